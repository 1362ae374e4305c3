"""Data sets, and the defender's share of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from art_aft.checks import check_flag, check_integer, check_labels, check_number


@dataclass(frozen=True)
class Dataset:
    """
    A training and a test set of images.

    :param name: The data set's name.
    :param x_train: Training images, (N, C, H, W), in `clip_values`.
    :param y_train: Their labels, int64 of shape (N,).
    :param x_test: Test images.
    :param y_test: Their labels.
    :param nb_classes: The number of classes.
    :param mirror: Whether a mirrored image keeps its class (not so for digits and traffic signs).
    :param clip_values: The pixel range (low, high).
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    nb_classes: int
    mirror: bool
    clip_values: tuple[float, float] = (0.0, 1.0)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        return self.x_train.shape[1:]


def digits(*, seed: int = 0) -> Dataset:
    """
    Return scikit-learn's handwritten digits: 1,200 for training and 597 for testing, one channel, 16x16 pixels.

    The data come with scikit-learn: 1,797 real digits of 8x8 pixels with 17 grey levels, each pixel enlarged
    to 2x2 here.

    :param seed: The seed of the split.
    :return: Images as float32 in [0, 1].
    """
    raw = load_digits()
    images = np.repeat(np.repeat(raw.images, 2, axis=1), 2, axis=2)[:, np.newaxis] / 16
    order = np.random.default_rng(check_integer("seed", seed, 0)).permutation(len(images))
    x, y = images.astype(np.float32)[order], raw.target.astype(np.int64)[order]
    return Dataset("digits", x[:1200], y[:1200], x[1200:], y[1200:], nb_classes=10, mirror=False)


def split_clean(y: np.ndarray, share: float, *, seed: int, stratify: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """
    Choose the defender's clean samples out of a training set.

    :param y: The training labels, as indices or one-hot.
    :param share: The defender's share of the set, in (0, 1); round(share * n) samples.
    :param seed: The seed of the choice.
    :param stratify: Whether each class gives the same share (rounded). Else the choice is uniform, as in the paper.
    :return: Two disjoint sorted index arrays: the defender's samples, and the rest.
    :raises ValueError: If `share` is out of range or leaves one part empty.
    """
    labels = check_labels("y", y)
    share = check_number("share", share, minimum=0.0, maximum=1.0, above=True)
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    is_clean = np.zeros(len(labels), dtype=bool)
    groups = [np.flatnonzero(labels == c) for c in np.unique(labels)] if check_flag("stratify", stratify) else None
    for group in groups or [np.arange(len(labels))]:
        is_clean[rng.choice(group, size=round(share * len(group)), replace=False)] = True
    if not is_clean.any() or is_clean.all():
        raise ValueError(f"share: got {share:g} of {len(labels)} samples, expected both parts to have some")
    return np.flatnonzero(is_clean), np.flatnonzero(~is_clean)


def load(name: str, *, seed: int = 0) -> Dataset:
    """
    Return a data set by its name.

    :param name: "digits".
    :param seed: The seed of the split, where the data have none of their own.
    :raises ValueError: If the name is unknown.
    """
    if name != "digits":
        raise ValueError(f"unknown data set {name!r}, expected one of: digits")
    return digits(seed=seed)
