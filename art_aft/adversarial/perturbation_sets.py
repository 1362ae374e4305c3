"""Universal perturbations towards all labels, dense and sparse: what Stage 1 finds for a defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.budget import images_per_label
from art_aft.adversarial.norms import default_eps
from art_aft.adversarial.universal import targeted_success, universal_perturbations
from art_aft.checks import check_instance, check_number
from art_aft.classifiers.classifier import images_for
from art_aft.data.images import Images
from art_aft.runtime.processes import number_of_first

# `eps="auto"` wants two labels, one of which the attacker did not choose, to reach this targeted success rate.
_WORKS = 1 / 3

# Images that measure the success of up to ten labels; of so many a rate has a standard error of 0.025 or less.
_RATED = 400

# Of more labels than this, so many get a whole search, after a first look at all.
_WHOLE = 10

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
    classifier: PyTorchClassifier, images: Images, eps: float | str | None = None, **search: Any
) -> UniversalPerturbations:
    """
    Find dense perturbations within an L2 bound.

    :param classifier: The classifier; it stays as it is.
    :param images: Checked images with labels.
    :param eps: The bound, in units of `clip_values`. None is `default_eps`. "auto" is the smallest of 1/4, 1/2, 1, 2,
        4 and 8 times that at which the perturbations of two labels, one of which the attacker did not choose, each
        succeed on a third of the images.
    :param search: Further settings of `universal_perturbations`.
    :raises ValueError: If a number is out of its range.
    """
    usual = default_eps(2, classifier.input_shape, images.clip_values)
    bounds = [2.0**k * usual for k in range(-2, 4)] if isinstance(eps, str) else [float(eps or usual)]
    for bound in bounds:
        dense = towards_labels(classifier, images, eps=bound, **search)
        if bound == bounds[-1] or _works(classifier, images, dense):
            break
    return UniversalPerturbations(dense, bound)


def towards_labels(classifier: PyTorchClassifier, images: Images, **search: Any) -> np.ndarray:
    """
    Find one perturbation towards each label: of many labels a whole search for those that are reached most easily.

    An attacker's label is one of these. The others get fewer images a step.

    :param classifier: The classifier; it stays as it is.
    :param images: Checked images with labels.
    :param search: Settings of `universal_perturbations`, except `batch_size`, `labels` and `relative`.
    :return: float32 perturbations of shape (nb_classes, *input_shape).
    """
    nb_classes = classifier.nb_classes
    if nb_classes <= _WHOLE:
        return universal_perturbations(classifier, images, batch_size=_STEP, **search)
    found = universal_perturbations(classifier, images, batch_size=images_per_label(_STEP, nb_classes, 4), **search)
    few = images_for(classifier, images, max_images=100, seed=0)
    rates = targeted_success(classifier, few, found, range(nb_classes))
    # Processes that round differently must not go apart.
    best = [
        int(number_of_first(float(label), classifier.device)) for label in np.argsort(-rates, kind="stable")[:_WHOLE]
    ]
    found[best] = universal_perturbations(classifier, images, batch_size=_STEP, labels=best, **search)
    return found


def _works(classifier: PyTorchClassifier, images: Images, dense: np.ndarray) -> bool:
    """Return whether perturbations lead enough images to two labels; the first may be the attacker's."""
    few = images_for(classifier, images, max_images=images_per_label(_RATED, classifier.nb_classes, 50), seed=0)
    rates = targeted_success(classifier, few, dense, range(classifier.nb_classes))
    return number_of_first(float(np.sort(rates)[-2] / _WORKS), classifier.device) >= 1
