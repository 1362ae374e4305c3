"""Adversarial Fine-Tuning: the paper's Algorithm 1."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.batch_norm import recalibrate_batch_norm
from art_aft.batches import Augmentation, augmented_views
from art_aft.checkpoints import BestEpoch
from art_aft.checks import check_choice, check_clip_values, check_flag, check_integer, check_number
from art_aft.classifier import clone, predict_labels
from art_aft.defences.presets import ADVERSARIAL_FINE_TUNING as PRESETS
from art_aft.defences.purification import Purification, Tuning, register
from art_aft.evasion import TorchAttacksPGD
from art_aft.large_data import chunks, empty, hold_out, take
from art_aft.pixels import to_float
from art_aft.processes import number_of_first
from art_aft.training import fit
from art_aft.universal import carried, default_eps, universal_perturbations


@register("aft")
@dataclass(eq=False, repr=False)
class AdversarialFineTuning(Tuning, Purification):
    """
    Remove a backdoor by fine-tuning on the infected model's own adversarial examples.

    An infected model's untargeted adversarial examples behave like triggered images: they light up the same
    features and tend to fall on the attacker's label. To learn their true labels is to forget the backdoor, and
    needs no trigger.

    After a call, `adversarial_classifier` is the classifier as it was after Stage 2, and `radius` the ball's.

    | Paper link: https://arxiv.org/abs/2202.06312 (Algorithm 1; the paper leaves most numbers open)

    Stage 1 settings, in units of the classifier's `clip_values`:

    :param classifier: The classifier that may be infected.
    :param adversary: "per_image", a perturbation of its own for every image (Algorithm 1), or "shared": one for each
        label, that leads images of all others there (the r of the paper's Section V); each epoch, every image gets one
        at random.
    :param norm: The ball's norm, np.inf or 2.
    :param eps: The ball's radius. None is 4/255 of the range for np.inf; for 2 it is 1.0 of the range at 32x32x3.
        "auto" is the smallest of 1/4, 1/2, 1, 2, 4 and 8 times that at which the attack works on the given images: nine
        of ten examples are misclassified; "shared", two labels, of which one is ordinary, carry a third of the others.
    :param eps_step: The step size. None is `eps` / 4, for "shared" `eps` / 5.
    :param max_iter: The number of steps; None is 10, for "shared" 20, each on 125 images.
    :param num_random_init: Random starting points; 0 starts at the image itself.
    :param clip: Whether examples stay in `clip_values`.
    :param training_mode: Whether the model is in training mode while it is attacked.
    :param attack_labels: The labels to lead away from: "given" or "predicted".
    :param misclassified: Images that the model gets wrong before the attack: "attack" them as the others, "keep" them
        unchanged, or "skip" them in Stage 2.
    :param regenerate: When examples are made: "once" from the infected model (Algorithm 1), or again from the current
        model at every "epoch" or "batch" (the authors' later code).
    :param augment_first: Whether images are cropped and mirrored before they are attacked and not afterwards, as the
        paper does without clean data; for "shared" afresh in every batch.
    :param n_views: With `augment_first`, how many augmented copies of each image.

    Stages 2 and 3, beside the settings of `Tuning` (the paper's WRN-16-1: `batch_size` 64, `weight_decay` 1e-4):

    :param nb_epochs: Passes over the adversarial examples, Stage 2.
    :param clean_epochs: Passes over the clean images, Stage 3; 0 leaves it out, as the paper does without clean data.
    :param clean_share: The share of each Stage 2 batch that is clean; 0 is eq. (7).
    :param distillation: The temperature at which those clean images are taught what the infected model says of them,
        not their labels; 0 is their labels.
    :param recalibrate_bn: Whether batch normalisation's statistics are recomputed on the clean images after each stage.
    :param held_out: The share of the clean set, up to 0.9, that each stage's best epoch is chosen on; 0 takes the last.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of the wrong type.

    Presets: "paper", Algorithm 1 as printed, with Stages 2 and 3 as WRN-16-1 is trained; "shared", one perturbation a
    label in an L2 ball, half of each batch clean, no Stage 3; "distilled", that for twice as long, with the clean half
    taught by the infected model: more accurate, but some backdoors (SIG) are handed on; "no_clean_data", for the
    poisoned training set: cropped and mirrored before Stage 1, no Stage 3, and an early end.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    classifier: PyTorchClassifier
    _: KW_ONLY
    adversary: str = "per_image"
    norm: int | float | str = np.inf
    eps: float | str | None = None
    eps_step: float | None = None
    max_iter: int | None = None
    num_random_init: int = 0
    clip: bool = True
    training_mode: bool = False
    attack_labels: str = "given"
    misclassified: str = "attack"
    regenerate: str = "once"
    augment_first: bool = False
    n_views: int = 1
    clean_epochs: int = 10
    clean_share: float = 0.0
    distillation: float = 0.0
    recalibrate_bn: bool = False
    held_out: float = 0.0

    def _check_params(self) -> None:
        super()._check_params()
        if isinstance(self.eps, str):
            check_choice("eps", self.eps, ("auto",))
        self.radius = self._attack(self.classifier, None if self.eps == "auto" else self.eps).eps
        self.known: np.ndarray | None = None  # shared perturbations of an earlier run
        self.found: np.ndarray | None = None  # those of the infected model
        self.perturbations: np.ndarray | None = None  # the latest
        check_choice("adversary", self.adversary, ("per_image", "shared"))
        check_choice("attack_labels", self.attack_labels, ("given", "predicted"))
        check_choice("misclassified", self.misclassified, ("attack", "keep", "skip"))
        check_choice("regenerate", self.regenerate, ("once", "epoch", "batch"))
        check_flag("augment_first", self.augment_first)
        check_integer("n_views", self.n_views, 1)
        check_integer("clean_epochs", self.clean_epochs, 0)
        check_number("clean_share", self.clean_share, minimum=0.0, maximum=1.0)
        check_number("distillation", self.distillation, minimum=0.0)
        check_flag("recalibrate_bn", self.recalibrate_bn)
        check_number("held_out", self.held_out, minimum=0.0, maximum=0.9)
        if self.n_views > 1 and not self.augment_first:
            raise ValueError(f"n_views: got {self.n_views} without augment_first, expected 1")
        if self.distillation and not self.clean_share:
            raise ValueError(f"distillation: got {self.distillation:g} without clean images (clean_share), expected 0")
        if self.misclassified == "skip" and self.regenerate != "once":
            raise ValueError(f"misclassified: got 'skip' with regenerate {self.regenerate!r}, expected 'once' with it")

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> Mapping[str, Any]:
        held_out = None
        if size := round(self.held_out * len(x)):
            (x, y), held_out = hold_out(x, y, size, self.seed)
        if self.augment_first and not self._fresh_views:
            clip_values = check_clip_values("clip_values", classifier.clip_values)
            augmentation = Augmentation(self.padding, self.mirror, clip_values[0], classifier.channels_first)
            x = augmented_views(x, augmentation, self.n_views, clip_values, self._stream(1))
            y = np.tile(y, self.n_views)

        # Stage 1: adversarial examples x~ of the infected model, each with the true label of its image.
        x_source, y_source = self._attacked_images(classifier, x, y)
        online = self.regenerate == "batch" or self._fresh_views  # then Stage 2 makes its examples itself
        with self._stage("Stage 1"):
            self.perturbations = self.known
            given = None if self.eps == "auto" else self._attack(classifier, self.eps).eps
            self.radius = given or self._working_radius(classifier, x_source, y_source)
            if self._fresh_views:
                self._find_shared(classifier, x_source, y_source)
            x_adversarial = x_source if online else self._adversarial_examples(classifier, x_source, y_source)
            self.found = self.perturbations

        # Stage 2: fine-tune the infected model on (x~, y), eq. (7).
        with self._stage("Stage 2") as accuracies:
            self._fine_tune(classifier, x_adversarial, y_source, self.nb_epochs, 2, held_out, accuracies, x_source)
        self.adversarial_classifier = clone(classifier)

        # Stage 3, optional: fine-tune on (x, y) to win accuracy back, eq. (8).
        with self._stage("Stage 3") as accuracies:
            self._fine_tune(classifier, x, y, self.clean_epochs, 3, held_out, accuracies)
        return {"chosen": {"eps": self.radius}}

    @property
    def _fresh_views(self) -> bool:
        """Whether perturbations that all images share are put on views of them that are new in every batch."""
        return self.augment_first and self.adversary == "shared" and (self.regenerate, self.n_views) == ("once", 1)

    def _working_radius(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
        """Return the smallest ball in which the attack works, or the largest that is tried."""
        norm = 2 if self.norm == 2 else np.inf
        eps = default_eps(norm, classifier.input_shape, check_clip_values("clip_values", classifier.clip_values)) / 8
        aimed = y if self.attack_labels == "given" else predict_labels(classifier, x)
        for _ in range(6):
            eps *= 2
            attack = self._attack(classifier, eps)
            if self.adversary == "shared":
                # Those of the ball that is taken are Stage 1's.
                self.perturbations = self._shared_perturbations(classifier, x, aimed, attack)
                share = np.sort(carried(classifier, x, aimed, self.perturbations, range(classifier.nb_classes)))[-2] * 3
            else:
                share = np.mean(predict_labels(classifier, attack.generate(x, aimed)) != y) / 0.9
            if number_of_first(float(share), classifier.device) >= 1:
                break
        return eps

    def _attacked_images(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the images that Stage 1 works on, and their labels: those that Stage 2 comes to."""
        count = len(x) if self.max_steps is None else max(1, self.max_steps * self.batch_size)
        if count < len(x):
            seen = np.random.default_rng(self._stream(5)).permutation(len(x))[:count]
            x, y = take(x, seen), y[seen]
        if self.misclassified != "skip":
            return x, y
        right = predict_labels(classifier, x) == y
        if not right.any():
            raise ValueError("misclassified: got 'skip' where the classifier gets every image wrong, expected 'attack'")
        return x[right], y[right]

    def _adversarial_examples(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, turn: int = 0
    ) -> np.ndarray:
        """Return adversarial examples of the classifier as it is now; `turn` counts how often that was done before."""
        if self.adversary == "shared":
            adversarial = self._shared_examples(classifier, x, y, turn)
        else:
            attack = self._attack(classifier, self.radius)
            attack.seed = self._stream(0, turn)
            attack.verbose = self.verbose and turn == 0
            adversarial = attack.generate(x, y if self.attack_labels == "given" else None)
        if self.misclassified == "keep":
            wrong = predict_labels(classifier, x) != y
            adversarial[wrong] = to_float(x[wrong], check_clip_values("clip_values", classifier.clip_values))
        return adversarial

    def _shared_examples(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, turn: int) -> np.ndarray:
        """Return each image with the perturbation towards another label than its own, drawn anew every turn."""
        y = self._find_shared(classifier, x, y, turn)
        rng = np.random.default_rng(self._stream(4, turn))
        towards = (y + rng.integers(1, classifier.nb_classes, len(y))) % classifier.nb_classes
        low, high = check_clip_values("clip_values", classifier.clip_values)
        adversarial = empty(x.shape, np.float32, like=x)
        for part in chunks(x):
            moved = to_float(x[part], (low, high)) + cast(np.ndarray, self.perturbations)[towards[part]]
            adversarial[part] = np.clip(moved, low, high) if self.clip else moved
        return adversarial

    def _find_shared(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, turn: int = 0) -> np.ndarray:
        """Look for the shared perturbations where there are none for this turn; return the labels to lead away from."""
        y = y if self.attack_labels == "given" else predict_labels(classifier, x)
        if self.perturbations is None or (turn and self.regenerate != "once"):
            attack = self._attack(classifier, self.radius)
            self.perturbations = self._shared_perturbations(classifier, x, y, attack, turn)
        return y

    def _shared_perturbations(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, attack: TorchAttacksPGD, turn: int = 0
    ) -> np.ndarray:
        """Return a perturbation for each label, in the attack's ball."""
        return universal_perturbations(
            classifier,
            x,
            y,
            norm=2 if self.norm == 2 else np.inf,
            eps=attack.eps,
            eps_step=self.eps_step,
            max_iter=20 if self.max_iter is None else self.max_iter,
            num_random_init=self.num_random_init,
            precision=self.precision,
            seed=self._stream(0, turn),
            verbose=self.verbose and turn == 0,
        )

    def _fine_tune(
        self,
        classifier: PyTorchClassifier,
        x: np.ndarray,
        y: np.ndarray,
        nb_epochs: int,
        stage: int,
        held_out: tuple[np.ndarray, np.ndarray] | None,
        accuracies: list[float],
        x_clean: np.ndarray | None = None,
    ) -> None:
        """Fine-tune in place on (x, y), with what the settings add to the plain stage; `x_clean` belongs to Stage 2."""
        if nb_epochs == 0:
            return
        best = BestEpoch(classifier, held_out, self.batch_size) if held_out else None
        turns = itertools.count(1)

        def each_epoch(epoch: int) -> np.ndarray | None:
            # The first epoch has its examples already: at its start the current model is the infected one.
            return self._adversarial_examples(classifier, cast(np.ndarray, x_clean), y, next(turns)) if epoch else None

        def each_batch(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x_batch, y_batch = images.cpu().numpy(), labels.cpu().numpy()
            adversarial = self._adversarial_examples(classifier, x_batch, y_batch, next(turns))
            return torch.from_numpy(adversarial).to(images.device), labels

        adversarial = x_clean is not None
        online = adversarial and (self.regenerate == "batch" or self._fresh_views)
        redrawn = self.regenerate == "epoch" or self.adversary == "shared"
        fit(
            classifier,
            x,
            y,
            self._recipe(nb_epochs, stage, augmented=self._fresh_views or not self.augment_first),
            each_epoch=each_epoch if adversarial and redrawn and not online else None,
            each_batch=each_batch if online else None,
            clean=(cast(np.ndarray, x_clean), self.clean_share) if adversarial and self.clean_share else None,
            teacher=(clone(classifier), self.distillation) if adversarial and self.distillation else None,
            after_epoch=best,
            in_range=self.clip,
            verbose=self.verbose,
            description=f"Stage {stage}",
        )
        if best:
            best.restore()
            accuracies += best.accuracies
        if self.recalibrate_bn:
            recalibrate_batch_norm(classifier, x if x_clean is None else x_clean, batch_size=self.batch_size)

    def _attack(self, classifier: PyTorchClassifier, eps: Any) -> TorchAttacksPGD:
        names = ("norm", "eps_step", "num_random_init", "clip", "training_mode", "precision")
        chosen = {name: getattr(self, name) for name in (*names, "seed", "verbose")}
        return TorchAttacksPGD(classifier, eps=eps, max_iter=10 if self.max_iter is None else self.max_iter, **chosen)
