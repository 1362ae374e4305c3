"""Which label a class folder stands for: by the order of the names, or by a list of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from art_aft.runtime.text import shown


def class_order(names: Iterable[str]) -> list[str]:
    """
    Return the names of class folders in the order of their labels.

    Where all names are numbers they are sorted as numbers, otherwise as text. So where they are 0 to K - 1, the number
    is the label.

    >>> class_order(["10", "9", "0"]), class_order(["10", "9", "a"])
    (['0', '9', '10'], ['10', '9', 'a'])

    :param names: The names. Repeated ones count once.
    :raises ValueError: If two names are the same number, such as "1" and "01".
    """
    distinct = sorted(set(names))
    if not _are_numbers(distinct):
        return distinct
    ordered = sorted(distinct, key=int)
    for one, other in pairwise(ordered):
        if int(one) == int(other):
            raise ValueError(f"path: got class folders {shown(one)} and {shown(other)}, expected one for each number")
    return ordered


def class_labels(names: Sequence[str], nb_classes: int, order: Sequence[str] | None = None) -> np.ndarray:
    """
    Return the label of each class folder for a classifier, whose classes may not all have a folder.

    >>> class_labels(["0", "90", "180", "270"], 4).tolist(), class_labels(["3", "7"], 10).tolist()
    ([0, 1, 2, 3], [3, 7])

    :param names: The names of the folders.
    :param nb_classes: The number of the classifier's classes.
    :param order: The names of all classes in the order of their labels; None takes `class_order`.
    :return: int64 of shape (len(names),): the place in `class_order` where each class has a folder. Where some have
        none, the number that is the folder's name. With an order, the place there.
    :raises ValueError: If classes lack a folder and the names are not numbers below `nb_classes`, or there are more
        folders than classes. If an order has another number of names, or lacks one of the folders.
    """
    if order is not None:
        return _labels_in(order, names, nb_classes)
    ordered = class_order(names)
    if len(ordered) == nb_classes:
        labels = {name: label for label, name in enumerate(ordered)}
    elif len(ordered) < nb_classes and _are_numbers(ordered) and int(ordered[-1]) < nb_classes:
        labels = {name: int(name) for name in ordered}
    else:
        raise ValueError(
            f"path: got {len(ordered)} class folders, expected {nb_classes}, or fewer named by their labels, "
            f"0 to {nb_classes - 1} (or a list of all names: --classes FILE)"
        )
    return np.array([labels[name] for name in names], dtype=np.int64)


def _labels_in(order: Sequence[str], names: Sequence[str], nb_classes: int) -> np.ndarray:
    """Return the place of each name in a list of all classes."""
    if len(order) != nb_classes:
        raise ValueError(f"order: got {len(order)} names, expected one for each of the model's {nb_classes} classes")
    unknown = sorted(set(names) - set(order))
    if unknown:
        raise ValueError(
            f"order: got no line for {len(unknown)} class folder(s), such as {shown(unknown[0])}, expected all"
        )
    place = {name: label for label, name in enumerate(order)}
    return np.array([place[name] for name in names], dtype=np.int64)


def read_class_names(path: Path) -> list[str]:
    """
    Return the names of a file with one class a line, in the order of their labels.

    :param path: The text file, in UTF-8. Empty lines at its end do not count.
    :raises ValueError: If it is no text, a line is empty, or two are the same.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"path: got {path}, expected a text file in UTF-8 with one name a line") from None
    names: dict[str, None] = {}
    for number, name in enumerate(map(str.strip, lines), start=1):
        if not name or name in names:
            what = f"{shown(name)} again" if name else "nothing"
            raise ValueError(f"path: got {what} in line {number} of {path}, expected one name a line, each once")
        names[name] = None
    return list(names)


def _are_numbers(names: Sequence[str]) -> bool:
    return bool(names) and all(name.isascii() and name.isdigit() for name in names)
