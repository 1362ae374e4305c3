"""Data sets, and the defender's share of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from art_aft.checks import check_flag, check_labels, check_number, check_path, check_seed, check_shape
from art_aft.data.class_names import class_order
from art_aft.data.image_files import part_of, read_images
from art_aft.runtime.text import shown


@dataclass(frozen=True)
class Dataset:
    """
    A training and a test set of images.

    :param name: The data set's name.
    :param x_train: Training images, (N, C, H, W): floats in `clip_values`, or uint8 that stands for that range.
    :param y_train: Their labels, int64 of shape (N,).
    :param x_test: Test images.
    :param y_test: Their labels.
    :param nb_classes: The number of classes.
    :param horizontal_flip: Whether an image that is flipped left to right keeps its class, which digits and traffic
        signs do not.
    :param clip_values: The pixel range (low, high).
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    nb_classes: int
    horizontal_flip: bool
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
    order = np.random.default_rng(check_seed("seed", seed)).permutation(len(images))
    x, y = images.astype(np.float32)[order], raw.target.astype(np.int64)[order]
    return Dataset("digits", x[:1200], y[:1200], x[1200:], y[1200:], nb_classes=10, horizontal_flip=False)


def split_clean(y: np.ndarray, share: float, *, seed: int, stratify: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """
    Choose the defender's clean samples out of a training set.

    :param y: The training labels, as indices or one-hot.
    :param share: The defender's share of the set, in (0, 1); round(share * n) samples.
    :param seed: The seed of the choice.
    :param stratify: Whether each class gives the same share (rounded). False is a uniform choice, as in the paper.
    :return: Two disjoint sorted index arrays: the defender's samples, and the rest.
    :raises ValueError: If `share` is out of range or leaves one part empty.
    """
    labels = check_labels("y", y)
    if not labels.size:
        raise ValueError("y: got no labels, expected those of a training set")
    share = check_number("share", share, minimum=0.0, maximum=1.0, above=True)
    rng = np.random.default_rng(check_seed("seed", seed))
    is_clean = np.zeros(len(labels), dtype=bool)
    groups = [np.flatnonzero(labels == c) for c in np.unique(labels)] if check_flag("stratify", stratify) else None
    for group in groups or [np.arange(len(labels))]:
        is_clean[rng.choice(group, size=round(share * len(group)), replace=False)] = True
    if not is_clean.any() or is_clean.all():
        raise ValueError(f"share: got {share:g} of {len(labels)} samples, expected both parts to have some")
    return np.flatnonzero(is_clean), np.flatnonzero(~is_clean)


#: Data sets of digits and traffic signs: flipped left to right, they become others.
NEVER_FLIPPED = frozenset({"digits", "gtsrb", "mnist", "svhn"})


def may_be_flipped(path: str | Path) -> bool:
    """
    Return whether images keep their class when they are flipped left to right, judged by the data set's name.

    >>> may_be_flipped("/data/GTSRB"), may_be_flipped("/data/gtsrb-team/cifar10")
    (False, True)

    :param path: The data set's name or folder. Only the folder's own name counts, whole and in any case.
    """
    return check_path("path", path).name.lower() not in NEVER_FLIPPED


def image_folders(path: str | Path, *, horizontal_flip: bool | None = None, verbose: bool = False) -> Dataset:
    """
    Return a data set of image files in class folders: `<part>/<class>/<file>` or, in `<part>.zip`, `<class>/<file>`.

    The parts are `train` and `test`. A class's index is its place among the folder names of `train`, in `class_order`.

    :param path: The folder that contains the two parts. Its name is the data set's.
    :param horizontal_flip: Whether an image that is flipped left to right keeps its class. None decides by the folder's
        name, as `may_be_flipped`.
    :param verbose: Whether to show progress bars.
    :return: uint8 images with three channels, all of one size.
    :raises ValueError: If a part is missing or empty, a file cannot be read, images differ in size, or `test` has a
        class of its own.
    :raises ImportError: If Pillow is missing, which reads the files.
    """
    path = check_path("path", path)
    check_flag("verbose", verbose)
    if horizontal_flip is not None:
        check_flag("horizontal_flip", horizontal_flip)
    x_train, names_train = _read_part(path, "train", verbose)
    x_test, names_test = _read_part(path, "test", verbose)
    classes = class_order(names_train)
    unknown = sorted(set(names_test) - set(classes))
    if unknown:
        raise ValueError(
            f"path: got class {shown(unknown[0])} in the test part of {path}, expected only those of train"
        )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"path: got images of {x_train.shape[1:]} and of {x_test.shape[1:]} in {path}, expected one size"
        )
    index = {name: number for number, name in enumerate(classes)}
    return Dataset(
        path.name,
        x_train,
        np.array([index[name] for name in names_train], dtype=np.int64),
        x_test,
        np.array([index[name] for name in names_test], dtype=np.int64),
        nb_classes=len(classes),
        horizontal_flip=may_be_flipped(path) if horizontal_flip is None else horizontal_flip,
    )


def labelled_images(
    path: str | Path, *, size: tuple[int, int] | None = None, verbose: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """
    Return image files in class folders: a folder of `<class>/<file>`, or a zip of the same.

    :param path: The folder or the zip.
    :param size: (H, W), to which images of another size are resized (bilinear); None expects all of one size.
    :param verbose: Whether to show a progress bar.
    :return: uint8 images of shape (N, 3, H, W), their labels as indices, and the class names that the indices refer
        to, in `class_order`.
    :raises ValueError: If there is no image, a file cannot be read, or images differ in size.
    :raises ImportError: If Pillow is missing, which reads the files.
    """
    if size is not None and len(check_shape("size", size)) != 2:
        raise ValueError(f"size: got {size!r}, expected (height, width)")
    images, names = read_images(check_path("path", path), size=size, verbose=check_flag("verbose", verbose))
    classes = class_order(names)
    index = {name: number for number, name in enumerate(classes)}
    return images, np.array([index[name] for name in names], dtype=np.int64), classes


def _read_part(path: Path, part: str, verbose: bool) -> tuple[np.ndarray, list[str]]:
    """Return the images of one part, a folder or else a zip, and their class names."""
    place = part_of(path, part)
    if place is None:
        raise ValueError(f"path: got {path} without {part}/ or {part}.zip, expected one of them")
    return read_images(place, verbose=verbose)


def cifar10() -> Dataset:
    """Return CIFAR-10 through ART's own loader, which downloads it once into ART's data folder."""
    from art.utils import load_dataset

    (x_train, y_train), (x_test, y_test), *_ = load_dataset("cifar10")
    images = [np.ascontiguousarray(np.moveaxis(np.rint(255 * x).astype(np.uint8), -1, 1)) for x in (x_train, x_test)]
    labels = [check_labels("y", y) for y in (y_train, y_test)]
    return Dataset("cifar10", images[0], labels[0], images[1], labels[1], nb_classes=10, horizontal_flip=True)


def load(name_or_path: str | Path, *, seed: int = 0, verbose: bool = False) -> Dataset:
    """
    Return a data set by its name or its folder.

    :param name_or_path: "digits", "cifar10" (through ART's loader), or the path of a folder as for `image_folders`.
    :param seed: The seed of the split, for digits, which come without one.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If it is neither a known name nor a folder.
    """
    check_path("name_or_path", name_or_path)
    check_seed("seed", seed)
    check_flag("verbose", verbose)
    if name_or_path == "digits":
        return digits(seed=seed)
    if Path(name_or_path).is_dir():
        return image_folders(name_or_path, verbose=verbose)
    if name_or_path == "cifar10":
        return cifar10()
    raise ValueError(f"name_or_path: got {str(name_or_path)!r}, expected 'digits', 'cifar10' or a folder of images")
