"""The bar that images must pass before anything they show is trusted, one for the scan and for every defence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Below this accuracy, what a classifier does on the images says more about a bad classifier than about a backdoor.
_LEAST_ACCURACY = 0.5

# Fewer images for each class make shares too coarse for the thresholds of the detectors.
_LEAST_IMAGES = 5

# Of so many images any classifier that fits them gets one right.
_TELLING = 20

# So many missing classes are named; of others, the number is.
_NAMED = 5

_HINT = "check the order of the labels, mean and std, and the pixel range"


@dataclass(frozen=True)
class Judgement:
    """
    What images and their labels can tell about a classifier; each text is empty where there is nothing to say.

    :param few: The images are fewer than five a class.
    :param missing: Some classes have no image.
    :param inaccurate: The classifier gets fewer than half of the images right.
    :param hopeless: Nothing can be told: there is one class alone, or none of 20 and more images is got right.
    """

    few: str = ""
    missing: str = ""
    inaccurate: str = ""
    hopeless: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """All that speaks against trusting a result."""
        return tuple(note for note in (self.few, self.missing, self.hopeless or self.inaccurate) if note)

    @property
    def trusted(self) -> bool:
        """Whether accuracy on the images tells what a change of the classifier costs."""
        return not (self.missing or self.inaccurate or self.hopeless)


def how_many(nb_classes: int) -> int:
    """Return how many images are enough, of that many classes."""
    return _LEAST_IMAGES * nb_classes


def judge(labels: np.ndarray, accuracy: float, looked_at: int, nb_classes: int) -> Judgement:
    """
    Judge images by their labels, and by what the classifier makes of them before anything is done to it.

    The bar is that for a training set that may be poisoned, too. An infected classifier has learnt the labels that are
    given there, and the set has images of all classes.

    >>> judge(np.array([0, 0, 1, 1]), 0.25, 4, nb_classes=3).missing
    'images of only 2 of 3 classes, none of 2'

    :param labels: The labels of all images, as indices of shape (N,).
    :param accuracy: The share of the images looked at that the classifier gets right, in [0, 1].
    :param looked_at: The number of those.
    :param nb_classes: The number of the classifier's classes.
    """
    needed, present = how_many(nb_classes), np.unique(labels)
    few = missing = inaccurate = hopeless = ""
    if looked_at < needed:
        few = f"only {looked_at} images for {nb_classes} classes, {needed} or more are needed"
    if len(present) == 1 < nb_classes:
        hopeless = f"images of class {present[0]} alone, expected images of all {nb_classes} classes"
    elif len(present) < nb_classes:
        absent = _listed(np.setdiff1d(np.arange(nb_classes), present).tolist())
        missing = f"images of only {len(present)} of {nb_classes} classes, none of {absent}"
    if accuracy == 0 and looked_at >= _TELLING:
        hopeless = hopeless or f"{looked_at} images of which the classifier gets none right, expected most: {_HINT}"
    if accuracy < _LEAST_ACCURACY:
        inaccurate = f"the classifier gets only {100 * accuracy:.0f} % of the images right: {_HINT}"
    return Judgement(few, missing, inaccurate, hopeless)


def _listed(labels: Sequence[int]) -> str:
    """
    Return labels as text, a handful of them by name.

    >>> _listed(range(8))
    '0, 1, 2, 3, 4 and 3 others'
    """
    named, others = labels[:_NAMED], len(labels) - _NAMED
    text = ", ".join(map(str, named))
    return text if others <= 0 else f"{text} and {others} other{'s' if others > 1 else ''}"
