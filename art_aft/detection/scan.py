"""Is a classifier infected, and with which label? From a few clean images, without knowing the trigger."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
from art.data_generators import PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader

from art_aft.adversarial.inversion import InversionRecipe, invert_triggers
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.adversarial.universal import carried, default_eps, universal_perturbations
from art_aft.checks import check_choice, check_flag, check_integer, check_number
from art_aft.classifiers.classifier import check_classifier, load_data, predict_labels
from art_aft.classifiers.layers import output_weights
from art_aft.detection.last_layer import favoured_label
from art_aft.detection.report import ScanReport, Sign
from art_aft.metrics import label_matrix
from art_aft.runtime.devices import PRECISIONS

# The balls, in multiples of `default_eps`. The shared perturbations' grow until they carry a quarter of the images to
# an ordinary label: beyond that an infected classifier is nothing special.
_SHARED = {"shared": (0.5, 1.0, 2.0, 4.0), "shared_shift": (1.0, 2.0, 4.0)}
_ORDINARY = 0.25
_PER_IMAGE = ((2, 1.0), (2, 2.0), (2, 4.0), (np.inf, 1.0), (np.inf, 2.0), (np.inf, 4.0))

#: How much is looked at; see `BackdoorScan`.
EFFORTS = ("weights", "first_alarm", "cheap", "if_needed", "all")

# Below it, where images fall says more about a bad classifier than about a backdoor.
_LEAST_ACCURACY = 0.5

# From this share of an alarm on, a scan without an alarm does not say "clean" either.
_DOUBT = 0.8


class BackdoorScan:
    """
    Look for a backdoor, from cheap signs to dear ones.

    "weights": in the last layer, more speaks for one label than chance would have it (`positive_evidence`). "shared":
    one perturbation for all images, towards each label, in balls that grow. An infected classifier gives way to the one
    towards its attacker's label first. "labels": untargeted adversarial examples, one an image; they fall on the
    attacker's label (the paper's Figs. 1 and 4). "shift": the same examples fall on the label that lies a fixed number
    after their own, as all-to-all backdoors want. "shared_shift": one perturbation for all images, towards the label a
    fixed number after their own. "size": the reversed trigger of one label is much smaller than any other's (Neural
    Cleanse). Each sign's strength, but that of "weights", is the lead of the first hypothesis over the second.

    A backdoor without any of these signs is not seen: "clean" means that nothing was found.

    | Paper link: https://arxiv.org/abs/2202.06312 (Sections III and V)

    :param classifier: The classifier; it stays as it is.
    :param effort: Which signs are looked at: "all"; "if_needed", the last two, which cost most, only where the others
        raise no alarm; "cheap", the others alone; "first_alarm", no more after the first that raises one; or "weights",
        that alone, which costs nothing and clears no model.
    :param reference: Scores of classifiers that are known to be clean, for `false_alarm_rate`.
    :param max_images: How many images are used, drawn at random.
    :param recipe: How triggers are reversed.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If the classifier is not ART's `PyTorchClassifier`.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        effort: str = "if_needed",
        reference: Sequence[float] = (),
        max_images: int = 1000,
        recipe: InversionRecipe | None = None,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        self._clip_values = check_classifier("classifier", classifier)
        self.classifier = classifier
        self.effort = check_choice("effort", effort, EFFORTS)
        self.reference = tuple(check_number("reference", score, minimum=0.0) for score in reference)
        self.max_images = check_integer("max_images", max_images, 1)
        self.precision = check_choice("precision", precision, PRECISIONS)
        self.seed = check_integer("seed", seed, 0)
        self.verbose = check_flag("verbose", verbose)
        self.recipe = recipe or InversionRecipe(steps=100, images_per_step=250, precision=precision, seed=seed)

    def __call__(self, x: np.ndarray | DataLoader | PyTorchDataGenerator, y: np.ndarray | None = None) -> ScanReport:
        """
        Scan the classifier, on the images that it gets right.

        :param x: Clean images in `clip_values`, of shape (N, *input_shape), or uint8 images that stand for that range;
            or a loader of images and labels.
        :param y: Their true labels, as indices or one-hot; None with a loader.
        :raises ValueError: If the data do not fit the classifier.
        """
        start = time.perf_counter()
        x, y = load_data(self.classifier, x, y, max_images=self.max_images, seed=self.seed)
        right = predict_labels(self.classifier, x) == y
        notes = self._weaknesses(y, right)
        poor = right.mean() < _LEAST_ACCURACY
        if right.any():
            x, y = x[right], y[right]
        signs, matrix = self._signs(x, y)
        score = max((sign.alarms for sign in signs), default=0.0)
        if self.effort == "weights" and score < 1:
            notes.append("only the last layer was looked at, which many backdoors do not show in")
        verdict = "infected" if score >= 1 else "clean"
        if poor or (verdict == "clean" and (notes or score >= _DOUBT)):
            verdict = "cannot tell"
        kind, targets = self._accused(signs) if verdict == "infected" else (None, ())
        return ScanReport(
            verdict,
            kind,
            targets,
            score,
            self._false_alarm_rate(score),
            tuple(signs),
            matrix,
            tuple(notes),
            time.perf_counter() - start,
        )

    def _signs(self, x: np.ndarray, y: np.ndarray) -> tuple[list[Sign], np.ndarray | None]:
        """Return the evidence, as much as the effort asks for, and the labels of adversarial examples."""
        signs = self._weights(x)
        if self.effort == "weights" or self._enough(signs, "first_alarm"):
            return signs, None
        signs.append(self._shared("shared", x, y))
        if self._enough(signs, "first_alarm"):
            return signs, None
        per_image, matrix = self._per_image(x, y)
        signs += per_image
        if self.effort == "cheap" or self._enough(signs, "first_alarm", "if_needed"):
            return signs, matrix
        if self.classifier.nb_classes > 2:  # all-to-all is else the same as to change every label
            signs.append(self._shared("shared_shift", x, y))
        if not self._enough(signs, "first_alarm", "if_needed"):
            signs.append(self._size(x))
        return signs, matrix

    def _enough(self, signs: Sequence[Sign], *efforts: str) -> bool:
        """Return whether one of the signs raises an alarm, and the effort is one that then ends."""
        return self.effort in efforts and any(sign.alarms >= 1 for sign in signs)

    def _weaknesses(self, y: np.ndarray, right: np.ndarray) -> list[str]:
        """Return why nothing found would mean little."""
        nb_classes = self.classifier.nb_classes
        notes = []
        if len(y) < 5 * nb_classes:
            notes.append(f"only {len(y)} images for {nb_classes} classes, {5 * nb_classes} or more are needed")
        if len(np.unique(y)) < nb_classes:
            notes.append(f"images of only {len(np.unique(y))} of {nb_classes} classes")
        if right.mean() < _LEAST_ACCURACY:
            notes.append(f"the classifier gets only {100 * right.mean():.0f} % of the images right")
        return notes

    def _weights(self, x: np.ndarray) -> list[Sign]:
        """Return how far one label stands out in the last layer's weights; nothing without such a layer."""
        weights = output_weights(self.classifier, x)
        if weights is None or len(weights) < 3:
            return []
        values, chance, measure = favoured_label(weights)
        label = int(values.argmax())
        return [Sign("weights", 0.0 - math.log10(chance), label, f"last layer, {measure}", tuple(values.tolist()))]

    def _shared(self, kind: str, x: np.ndarray, y: np.ndarray) -> Sign:
        """Return how far one label's, or one shift's, perturbation carries more images than any other's."""
        relative = kind == "shared_shift"
        labels = range(int(relative), self.classifier.nb_classes)
        signs = []
        for multiple in _SHARED[kind]:
            eps = multiple * default_eps(2, self.classifier.input_shape, self._clip_values)
            found = universal_perturbations(
                self.classifier,
                x,
                y,
                eps=eps,
                labels=labels,
                relative=relative,
                precision=self.precision,
                seed=self.seed,
                verbose=self.verbose,
            )
            shares = carried(self.classifier, x, y, found, labels, relative=relative)
            signs.append(_lead(kind, shares, f"L2 {eps:.3g}", first_label=labels[0]))
            if np.median(shares) > _ORDINARY or self._enough(signs, "first_alarm"):
                break
        return max(signs, key=lambda sign: sign.strength)

    def _per_image(self, x: np.ndarray, y: np.ndarray) -> tuple[list[Sign], np.ndarray]:
        """Return how far one label, and one shift of labels, is ahead among adversarial examples; and their labels."""
        nb_classes, signs = self.classifier.nb_classes, list[Sign]()
        matrix = np.zeros((nb_classes, nb_classes))
        for norm, multiple in _PER_IMAGE:
            eps = multiple * default_eps(norm, self.classifier.input_shape, self._clip_values)
            attack = TorchAttacksPGD(
                self.classifier, norm=norm, eps=eps, precision=self.precision, seed=self.seed, verbose=self.verbose
            )
            fallen = predict_labels(self.classifier, attack.generate(x, y))
            where = f"{'L2' if norm == 2 else 'L-infinity'} {eps:.3g}"
            signs += self._leads(y, fallen, where)
            matrix = label_matrix(y, fallen, nb_classes)
        kinds = ("labels", "shift") if nb_classes > 2 else ("labels",)
        return [max((s for s in signs if s.kind == kind), key=lambda s: s.strength) for kind in kinds], matrix

    def _leads(self, y: np.ndarray, fallen: np.ndarray, where: str) -> Iterator[Sign]:
        nb_classes = self.classifier.nb_classes
        others = [fallen[y != label] == label for label in range(nb_classes)]
        yield _lead("labels", np.array([each.mean() if len(each) else 0.0 for each in others]), where)
        if nb_classes == 2:  # all-to-all is then the same as to change every label
            return
        counts = np.bincount((fallen - y) % nb_classes, minlength=nb_classes)[1:]
        yield _lead("shift", counts / len(y), where, first_label=1)

    def _size(self, x: np.ndarray) -> Sign:
        """Return by how much the smallest reversed trigger is smaller than the next."""
        found = invert_triggers(self.classifier, x, self.recipe, verbose=self.verbose)
        norms = np.where(found.success >= 0.9, found.norms, np.inf)
        first, second = np.sort(norms)[:2]
        strength = 1 - first / second if np.isfinite(second) else float(np.isfinite(first))
        return Sign("size", float(strength), int(norms.argmin()), "reversed triggers", tuple(norms.tolist()))

    def _accused(self, signs: Sequence[Sign]) -> tuple[str, tuple[int, ...]]:
        """Return the kind of the backdoor, and the attacker's label or labels."""
        strongest = max(signs, key=lambda sign: sign.alarms)
        nb_classes = self.classifier.nb_classes
        if strongest.relative:
            return "all-to-all", tuple((label + strongest.label) % nb_classes for label in range(nb_classes))
        loud = sorted((s for s in signs if not s.relative and s.alarms >= 1), key=lambda s: -s.alarms)
        return "all-to-one", tuple(dict.fromkeys(sign.label for sign in loud))

    def _false_alarm_rate(self, score: float) -> float | None:
        """Return the share of clean classifiers, this one taken for one of them, that score as high or higher."""
        if not self.reference:
            return None
        return (1 + sum(other >= score for other in self.reference)) / (1 + len(self.reference))


def _lead(kind: str, values: np.ndarray, where: str, first_label: int = 0) -> Sign:
    second, first = np.sort(values)[-2:]
    return Sign(kind, float(first - second), first_label + int(values.argmax()), where, tuple(values.tolist()))
