"""Options that several commands have."""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.attacks import PERTURBATIONS
from art_aft.checks import check_clip_values
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import check_data
from art_aft.data.datasets import labelled_images
from art_aft.data.pixels import to_8bit
from art_aft.experiments.victims import Infection
from art_aft.training.recipes import RECIPES

INFECTION = (
    "attack",
    "data",
    "model",
    "labels",
    "target",
    "rate",
    "clean_share",
    "per_batch",
    "cover_ratio",
    "normalise",
    "seed",
)


def add_infection(command: argparse.ArgumentParser) -> None:
    """Add the options that say what the infected model is."""
    command.add_argument("--attack", required=True, choices=sorted(PERTURBATIONS), help="the trigger")
    command.add_argument("--data", default="digits", help="digits, cifar10, or a folder with train.zip and test.zip")
    command.add_argument("--model", default="wrn-16-1", help="such as wrn-16-1, preactresnet-18 (default: %(default)s)")
    command.add_argument("--recipe", default="paper", choices=sorted(RECIPES), help="how (default: %(default)s)")
    command.add_argument("--epochs", type=int, help="other than the recipe's")
    command.add_argument("--labels", default="all-to-one", choices=["all-to-one", "all-to-all"])
    command.add_argument("--target", type=int, default=0, help="the attacker's label (default: %(default)s)")
    command.add_argument("--rate", type=float, default=0.1, help="the poisoning ratio (default: %(default)s)")
    command.add_argument("--clean-share", type=float, default=0.05, help="what the defender has (default: %(default)s)")
    command.add_argument("--per-batch", action="store_true", help="poison every batch afresh, as WaNet's release")
    command.add_argument("--cover-ratio", type=float, default=0.0, help="covers for each poisoned image")
    command.add_argument("--normalise", action="store_true", help="reduce pixels by mean and deviation, as releases do")
    command.add_argument(
        "--trigger", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trigger, such as ratio=0.1"
    )
    command.add_argument("--seed", type=int, default=0, help="the seed of everything (default: %(default)s)")
    command.add_argument("--store", type=Path, default=Path("art-aft-models"), help="where models go")
    command.add_argument("--rows", type=Path, help="a JSON file of result rows to add to")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def read_infection(options: argparse.Namespace) -> tuple[Infection, str]:
    """Return the infection that the options describe, and the same options as words for another command line."""
    recipe = replace(RECIPES[options.recipe], seed=options.seed)
    if options.epochs is not None:
        recipe = replace(recipe, nb_epochs=options.epochs)
    trigger = read_settings(options.trigger, "--trigger")
    infection = Infection(recipe=recipe, trigger=trigger, **{name: getattr(options, name) for name in INFECTION})
    shown = {**vars(options), "data": Path(options.data).name}
    switches = [name for name in INFECTION if isinstance(shown[name], bool)]
    flags = [f"--{name.replace('_', '-')} {shown[name]}" for name in INFECTION if name not in switches]
    flags += [f"--recipe {options.recipe}", *(f"--{name.replace('_', '-')}" for name in switches if shown[name])]
    flags += [] if options.epochs is None else [f"--epochs {options.epochs}"]
    flags += [f"--trigger {' '.join(options.trigger)}"] if options.trigger else []
    return infection, " ".join(flags)


def read_settings(words: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Return settings from words of the form NAME=VALUE, with values as Python writes them."""
    settings = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            settings[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ValueError(f"{option}: got {word!r}, expected NAME=VALUE, such as batch_size=64") from None
    return settings


def command_line(program: str, options: argparse.Namespace, positional: Sequence[str] = ()) -> str:
    """
    Return the command that makes a benchmark's rows again, without what is another machine's: places and processes.

    :param program: The path of the program.
    :param options: What it was called with.
    :param positional: The names of those that stand without their name.
    """
    words = ["python", f"examples/benchmarks/{Path(program).name}"]
    for name, value in vars(options).items():
        if name in ("data", "store", "output", "jobs") or value is None or value is False or value == []:
            continue
        values = value if isinstance(value, list | tuple) else [] if value is True else [value]
        words += [*([] if name in positional else [f"--{name.replace('_', '-')}"]), *map(str, values)]
    return shlex.join(words) + (" --data DATA" if getattr(options, "data", None) else "")


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the options that say where a model and clean images are."""
    command.add_argument("path", metavar="MODEL", help="a model that art-aft stored, or a state dict (see --model)")
    command.add_argument("--data", type=Path, required=True, help="clean images: a folder or a zip of CLASS/FILE, or a "
                         ".npz with x (N, C, H, W), uint8 or in [0, 1], and y")  # fmt: skip
    command.add_argument("--model", help="for a state dict: a name such as wrn-16-1, or module:factory")
    command.add_argument("--input-shape", type=int, nargs=3, metavar=("C", "H", "W"), help="with --model")
    command.add_argument("--nb-classes", type=int, help="with --model")
    command.add_argument("--mean", type=float, nargs="+", help="with --model: by channel, for pixels in [0, 1]")
    command.add_argument("--std", type=float, nargs="+", help="with --model: by channel")


def read_model(options: argparse.Namespace) -> tuple[PyTorchClassifier, np.ndarray, np.ndarray]:
    """Return the classifier that the options name, and clean images and labels as it takes them."""
    sys.path.insert(0, os.getcwd())  # as `python -m` does, for a factory beside the weights
    names = ("model", "input_shape", "nb_classes", "mean", "std")
    classifier = storage.open_classifier(options.path, **{name: getattr(options, name) for name in names})
    return classifier, *_read(options.data, classifier, verbose=not options.quiet)


def _read(path: Path, classifier: PyTorchClassifier, verbose: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return clean images and labels as the classifier takes them."""
    clip_values = check_clip_values("clip_values", classifier.clip_values)
    nb_classes = classifier.nb_classes
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            if not {"x", "y"} <= set(arrays):
                raise ValueError(f"--data: got {path} with {sorted(arrays)}, expected arrays x and y")
            return check_data(classifier, arrays["x"], arrays["y"])
    x, y, classes = labelled_images(path, verbose=verbose)
    if all(name.isdigit() for name in classes):
        y = np.array([int(name) for name in classes])[y]
    elif len(classes) != nb_classes:
        raise ValueError(f"--data: got {len(classes)} class folders, expected {nb_classes}, or folders named by number")
    if classifier.input_shape[0] == 1 and (x == x[:, :1]).all():
        x = np.ascontiguousarray(x[:, :1])
    return check_data(classifier, x if x.dtype == np.uint8 else to_8bit(x, clip_values), y)
