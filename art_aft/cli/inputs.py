"""The model and the clean images that a command is given: the options that name them, and how they are read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_integer, naming
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import images_for
from art_aft.classifiers.storage import Stored
from art_aft.classifiers.weights import MATCHES
from art_aft.data.array_files import read_npz
from art_aft.data.class_names import class_labels, read_class_names
from art_aft.data.datasets import labelled_images
from art_aft.data.images import Images
from art_aft.runtime.text import shown

# More class folders than these are not listed.
_FEW_CLASSES = 20


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the options that tell where a model and clean images are."""
    add = command.add_argument
    add("path", metavar="MODEL", help="a model that art-aft stored, or a state dict (with --model)")
    add(
        "--data",
        type=Path,
        required=True,
        help="clean images: a folder or zip of CLASS/FILE, or a .npz with x (N, C, H, W), uint8 or in [0, 1], and y",
    )
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="the names of all class folders, one a line in the order of the labels",
    )
    add("--resize", type=int, nargs=2, metavar=("H", "W"), help="resize image files of another size (bilinear)")
    add("--model", help="for a state dict: the architecture, such as wrn-16-1, or module:factory")
    add("--input-shape", type=int, nargs=3, metavar=("C", "H", "W"), help="with --model: the shape of an image")
    add("--nb-classes", type=int, help="with --model: the number of classes")
    add("--mean", type=float, nargs="+", help="with --model: the mean by channel, of pixels in [0, 1]")
    add("--std", type=float, nargs="+", help="with --model: the standard deviation by channel")
    add(
        "--match",
        choices=MATCHES,
        help="with --model: whether weights are matched by their names, or by their order where all shapes agree "
        "(default: names)",
    )


def open_model(options: argparse.Namespace) -> Stored:
    """Return the model that the options name, with what was stored beside it."""
    names = ("input_shape", "nb_classes", "mean", "std", "match")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.model is None:
        if given:
            option = f"--{next(iter(given)).replace('_', '-')}"
            raise ValueError(f"{option}: got it without --model, expected it for a state dict only")
        return storage.load(options.path)
    if ":" in options.model and os.getcwd() not in sys.path:
        # For a factory beside the weights. At the end, so that no file there hides an installed module.
        sys.path.append(os.getcwd())
    # Not to the standard output, whose first line is the result.
    tell = partial(print, file=sys.stderr)
    return Stored(storage.open_classifier(options.path, model=options.model, tell=tell, **given), options.model)


def inputs(options: argparse.Namespace) -> dict[str, Any]:
    """Return which model and images the options name, for a report: only options that were given."""
    shown = {"path": "model file", "model": "architecture", "input_shape": "shape of an image", "nb_classes": "classes"}
    shown |= {"mean": "mean", "std": "deviation", "data": "clean images", "resize": "resized to"}
    return {title: getattr(options, name) for name, title in shown.items() if getattr(options, name) is not None}


def read_images(options: argparse.Namespace, classifier: PyTorchClassifier) -> tuple[Images, dict[int, str]]:
    """
    Return the clean images that the options name, with their labels, as the classifier takes them; and the class
    folders by label, where there are some.
    """
    path: Path = options.data
    if path.suffix == ".npz":
        for option in ("classes", "resize"):
            if getattr(options, option):
                raise ValueError(f"--{option}: got it with {path}, expected it for folders and zips of images only")
        with naming(x="--data: x", y="--data: y"):
            return images_for(classifier, *_arrays(path)), {}
    height, width = [check_integer("--resize", side, 1) for side in options.resize or (1, 1)]
    with _named("--classes"):
        order = read_class_names(options.classes) if options.classes else None
    with _named("--data"):
        size = (height, width) if options.resize else None
        x, y, folders = labelled_images(path, size=size, verbose=not options.quiet)
    with _named("--classes" if options.classes else "--data"):
        labels = class_labels(folders, classifier.nb_classes, order)
    names = dict(zip(labels.tolist(), folders, strict=True))
    _tell(x, size is not None, names, classifier)
    y = labels[y]
    if classifier.input_shape[0] == 1 and (x == x[:, :1]).all():
        x = np.ascontiguousarray(x[:, :1])
    return images_for(classifier, x, y), names


def _tell(x: np.ndarray, resized: bool, folders: dict[int, str], classifier: PyTorchClassifier) -> None:
    """Say how image files were read; refuse a size that is not the model's, with the way out."""
    height, width = classifier.input_shape[1:]
    if x.shape[2:] != (height, width):
        found = "x".join(map(str, x.shape[2:]))
        raise ValueError(f"--data: got images of {found}, expected {height}x{width}, as with --resize {height} {width}")
    if len(folders) <= _FEW_CLASSES:
        pairs = ", ".join(f"{label} = {shown(folder)}" for label, folder in sorted(folders.items()))
        print(f"labels of the class folders: {pairs}", file=sys.stderr)
    if resized:
        print(f"images of another size are resized to {height}x{width} (bilinear)", file=sys.stderr)


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays x and y of a .npz file. Nothing is unpickled."""
    if not path.is_file():
        raise FileNotFoundError(f"--data: got {path}, expected a file")
    with _named("--data"):
        return read_npz(path)


@contextmanager
def _named(option: str) -> Iterator[None]:
    """Have errors about `path` or `order` name the option that gave it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {str(error).removeprefix('path: ').removeprefix('order: ')}") from None
