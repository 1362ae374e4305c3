"""Universal perturbations towards all labels, dense and sparse: what Stage 1 finds for a defence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.budget import images_per_label
from art_aft.adversarial.norms import default_eps
from art_aft.adversarial.universal import targeted_log_probability, targeted_success, universal_perturbations
from art_aft.checks import check_choice, check_instance, check_integer, check_number
from art_aft.classifiers.classifier import images_for
from art_aft.data.images import Images
from art_aft.runtime.processes import number_of_first

# `eps="auto"` wants two labels, one of which the attacker did not choose, to reach this targeted success rate.
_WORKS = 1 / 3

# Images that measure the success of a label; of so many a rate has a standard error of 0.025 or less.
_RATED = 400

# Of more labels than this, so many get a whole search, after a first look at all.
_WHOLE = 10

# Images that rank up to ten labels after that; of more labels each gets fewer.
_RANKED = 100

# Images a step, for each of ten labels. With four times as many a purification leaves as much of an attack.
_STEP = 32


@dataclass(frozen=True, eq=False)
class UniversalPerturbations:
    """
    What Stage 1 found on the infected classifier.

    :param dense: One perturbation towards each label, within an L2 bound, float32 of shape (nb_classes, *input_shape).
    :param eps: That bound, in units of `clip_values`.
    :param sparse: One that changes few pixels towards each label, of the same shape; None where there is none.
    :param patches: One that changes the pixels of a square towards each label, of the same shape; None where there is
        none.
    """

    dense: np.ndarray
    eps: float
    sparse: np.ndarray | None = None
    patches: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_number("eps", self.eps, minimum=0.0, above=True)
        optional = {"sparse": self.sparse, "patches": self.patches}
        given = {"dense": self.dense, **{name: value for name, value in optional.items() if value is not None}}
        for name, value in given.items():
            check_instance(name, value, np.ndarray, "a numpy array")
            if value.dtype.kind != "f" or value.shape != self.dense.shape or value.ndim != 4:
                got, shape = f"{value.dtype} of shape {value.shape}", "(nb_classes, *input_shape)"
                raise ValueError(f"{name}: got {got}, expected floats of shape {shape}, the same for all")
            if not np.isfinite(value).all():
                raise ValueError(f"{name}: got NaN or infinite values, expected finite ones")

    @property
    def kinds(self) -> list[np.ndarray]:
        """The dense ones, and behind them those of few pixels that there are."""
        return [self.dense, *(each for each in (self.sparse, self.patches) if each is not None)]

    @property
    def all(self) -> np.ndarray:
        """All perturbations, kind by kind."""
        return np.concatenate(self.kinds)

    def __repr__(self) -> str:
        names = ["dense", *(name for name in ("sparse", "patches") if getattr(self, name) is not None)]
        return f"UniversalPerturbations({', '.join(names)}, {len(self.dense)} labels, eps {self.eps:.3g})"


def find_dense(
    classifier: PyTorchClassifier, images: Images, eps: float | str | None = None, *, max_iter: int = 20, **search: Any
) -> UniversalPerturbations:
    """
    Find dense perturbations within an L2 bound; of many labels only those that are reached most easily get a whole
    search, as in `towards_labels`.

    :param classifier: The classifier; it stays as it is.
    :param images: Checked images with labels.
    :param eps: The bound, in units of `clip_values`. None is `default_eps`. "auto" is the smallest of 1/4, 1/2, 1, 2,
        4 and 8 times that at which the perturbations of two labels, one of which the attacker did not choose, each
        succeed on a third of the images.
    :param max_iter: The steps of a whole search.
    :param search: Settings of `universal_perturbations`, except `batch_size`, `labels` and `relative`.
    :raises ValueError: If a number is out of its range.
    """
    usual = default_eps(2, classifier.input_shape, images.clip_values)
    auto = isinstance(eps, str) and check_choice("eps", eps, ("auto",)) == "auto"
    bounds = [2.0**k * usual for k in range(-2, 4)] if auto else [usual if eps is None else float(eps)]
    looked_at = usual if auto else bounds[0]
    dense, easiest = _first_look(classifier, images, eps=looked_at, max_iter=max_iter, **search)
    whole: dict[str, Any] = {"batch_size": _STEP, "max_iter": max_iter, "labels": easiest, **search}
    for bound in bounds:
        best = universal_perturbations(classifier, images, eps=bound, **whole)
        if bound == bounds[-1] or _works(classifier, images, best, easiest):
            break
    # What the first look found within another bound points the same way.
    dense *= np.float32(bound / looked_at)
    dense[easiest] = best
    return UniversalPerturbations(dense, bound)


def towards_labels(classifier: PyTorchClassifier, images: Images, *, max_iter: int, **search: Any) -> np.ndarray:
    """
    Find one perturbation towards each label: of many labels a whole search for those that are reached most easily.

    An attacker's label is one of these. The others keep what a first look found, of fewer steps and fewer images.

    :param classifier: The classifier; it stays as it is.
    :param images: Checked images with labels.
    :param max_iter: The steps of a whole search.
    :param search: Settings of `universal_perturbations`, except `batch_size`, `labels` and `relative`.
    :return: float32 perturbations of shape (nb_classes, *input_shape).
    """
    found, easiest = _first_look(classifier, images, max_iter=max_iter, **search)
    whole: dict[str, Any] = {"batch_size": _STEP, "max_iter": max_iter, "labels": easiest, **search}
    found[easiest] = universal_perturbations(classifier, images, **whole)
    return found


def easiest_labels(classifier: PyTorchClassifier, images: Images, perturbations: np.ndarray) -> list[int]:
    """
    Return up to ten labels: of more, those whose perturbations make them most probable on images of other labels.

    The probability ranks labels where no perturbation succeeds yet.

    :param classifier: The classifier; it stays as it is.
    :param images: Checked images with labels.
    :param perturbations: One towards each label, of shape (nb_classes, *input_shape).
    """
    nb_classes = classifier.nb_classes
    if nb_classes <= _WHOLE:
        return list(range(nb_classes))
    few = images_for(classifier, images, max_images=images_per_label(_RANKED, nb_classes, 10), seed=0)
    ranked = np.argsort(-targeted_log_probability(classifier, few, perturbations, range(nb_classes)), kind="stable")
    # Processes that round differently must not go apart.
    return [int(number_of_first(float(label), classifier.device)) for label in ranked[:_WHOLE]]


def _first_look(
    classifier: PyTorchClassifier, images: Images, *, max_iter: int, **search: Any
) -> tuple[np.ndarray, list[int]]:
    """Return a first perturbation towards each label, and the labels that get a whole search: up to ten, all."""
    nb_classes = classifier.nb_classes
    check_integer("max_iter", max_iter, 1)
    if nb_classes <= _WHOLE:
        return np.zeros((nb_classes, *classifier.input_shape), dtype=np.float32), list(range(nb_classes))
    few: dict[str, Any] = {"batch_size": images_per_label(_STEP, nb_classes, 4), "max_iter": -(-max_iter // 3)}
    found = universal_perturbations(classifier, images, **few, **search)
    return found, easiest_labels(classifier, images, found)


def _works(classifier: PyTorchClassifier, images: Images, dense: np.ndarray, labels: Sequence[int]) -> bool:
    """Return whether perturbations lead enough images to two labels; the first may be the attacker's."""
    few = images_for(classifier, images, max_images=_RATED, seed=0)
    rates = targeted_success(classifier, few, dense, labels)
    return number_of_first(float(np.sort(rates)[-2] / _WORKS), classifier.device) >= 1
