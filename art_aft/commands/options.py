"""Options that several commands have."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from art_aft.infection import Infection
from art_aft.perturbations import PERTURBATIONS
from art_aft.recipes import RECIPES

INFECTION = ("attack", "data", "model", "labels", "target", "rate", "clean_share", "per_batch", "cover_ratio", "normalise", "seed")


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
    command.add_argument("--seed", type=int, default=0, help="the seed of everything (default: %(default)s)")
    command.add_argument("--store", type=Path, default=Path("art-aft-models"), help="where models go")
    command.add_argument("--rows", type=Path, help="a JSON file of result rows to add to")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def read_infection(options: argparse.Namespace) -> tuple[Infection, str]:
    """Return the infection that the options describe, and the same options as words for another command line."""
    recipe = replace(RECIPES[options.recipe], seed=options.seed)
    if options.epochs is not None:
        recipe = replace(recipe, nb_epochs=options.epochs)
    infection = Infection(recipe=recipe, **{name: getattr(options, name) for name in INFECTION})
    shown = {**vars(options), "data": Path(options.data).name}
    switches = [name for name in INFECTION if isinstance(shown[name], bool)]
    flags = [f"--{name.replace('_', '-')} {shown[name]}" for name in INFECTION if name not in switches]
    flags += [f"--recipe {options.recipe}", *(f"--{name.replace('_', '-')}" for name in switches if shown[name])]
    flags += [] if options.epochs is None else [f"--epochs {options.epochs}"]
    return infection, " ".join(flags)


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return settings from words of the form NAME=VALUE, with values as Python writes them."""
    settings = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            settings[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ValueError(f"--set: got {word!r}, expected NAME=VALUE, such as batch_size=64") from None
    return settings
