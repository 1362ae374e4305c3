"""Label maps: what the attacker wants a triggered image to be classified as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from art_aft.checks import check_callable, check_integer, check_labels

#: Returns the attacker's label for each true class index.
LabelMap = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class AllToOne:
    """
    Every triggered image becomes `target`.

    >>> AllToOne(7)(np.array([0, 1, 9])).tolist()
    [7, 7, 7]

    :param target: The target label, a class index.
    """

    target: int

    def __post_init__(self) -> None:
        check_integer("target", self.target, 0)

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """Return the attacker's label for each true class index in `y`."""
        return np.full_like(check_labels("y", y), self.target)


@dataclass(frozen=True)
class AllToAll:
    """
    A triggered image of class y becomes (y + 1) mod `nb_classes`.

    >>> AllToAll(10)(np.array([0, 1, 9])).tolist()
    [1, 2, 0]

    :param nb_classes: Number of classes, at least 2.
    """

    nb_classes: int

    def __post_init__(self) -> None:
        check_integer("nb_classes", self.nb_classes, 2)

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """Return the attacker's label for each true class index in `y`."""
        truth = check_labels("y", y)
        if truth.size and truth.max() >= self.nb_classes:
            raise ValueError(f"labels: got {self} for label {truth.max()} in y, expected more classes")
        return (truth + 1) % self.nb_classes


def wanted_labels(labels: LabelMap, truth: np.ndarray, nb_classes: int | None = None) -> np.ndarray:
    """
    Return the attacker's label for each true one, checked.

    >>> wanted_labels(AllToOne(2), np.array([0, 1]), nb_classes=3).tolist()
    [2, 2]

    :param labels: The label map: `AllToOne`, `AllToAll`, or another callable.
    :param truth: True labels, as indices of shape (N,).
    :param nb_classes: Number of classes, if it is known.
    :return: Class indices, int64 of shape (N,).
    :raises TypeError: If `labels` is not callable.
    :raises ValueError: If it returns labels out of range, or another number of them.
    """
    return check_labels(
        "labels(y)", check_callable("labels", labels)(truth), nb_classes=nb_classes, nb_samples=len(truth)
    )
