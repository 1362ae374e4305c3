"""Options that several commands have."""

from __future__ import annotations

import argparse
import ast
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from art_aft.attacks import TRIGGERS
from art_aft.checks import naming
from art_aft.defences import DEFENCES
from art_aft.experiments.rows import read_rows
from art_aft.experiments.victims import VictimSettings
from art_aft.training.recipes import RECIPES

#: The settings of a victim that have an option of the same name.
VICTIM = (
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
    "seen",
    "seed",
)


def check_writable(option: str, path: Path) -> None:
    """
    Check that files can be made beside a path, before any work is done for them. Nothing is left there.

    :param option: The option that the path comes from, for the error.
    :param path: The path, in a folder that may be missing.
    :raises ValueError: If they cannot.
    """
    if not path.name:
        raise ValueError(f"{option}: got {str(path)!r}, expected the path of a file")
    folder = path.absolute().parent
    try:
        while not folder.exists():
            folder = folder.parent
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{option}: got {path}, expected a place that can be written ({error})") from None


def check_places(store: Path, path: Path | None) -> None:
    """Check that models can be stored, and rows added to a file, before there are any."""
    check_writable("--store", store / "model")
    if path:
        check_writable("--rows", path)
        read_rows(path)


def add_victim(command: argparse.ArgumentParser, *, rows: str, settings: str | None = None) -> None:
    """
    Add the options that describe a victim.

    :param command: The command's parser.
    :param rows: The help of `--rows`.
    :param settings: The help of `--settings`, a file that can stand in the place of `--attack`; None has no such
        option.
    """
    add = command.add_argument
    attack: Any = command
    if settings is not None:
        attack = command.add_mutually_exclusive_group(required=True)
        attack.add_argument("--settings", type=Path, metavar="FILE", help=settings)
    required = {} if settings is not None else {"required": True}
    attack.add_argument("--attack", choices=sorted(TRIGGERS), help="the attack, by its trigger", **required)
    add(
        "--data",
        default="digits",
        help="digits (default), cifar10, or a folder with train.zip and test.zip",
    )
    add("--model", default="wrn-16-1", help="the architecture, such as preactresnet-18 (default: %(default)s)")
    add("--recipe", default="paper", choices=sorted(RECIPES), help="how it is trained (default: %(default)s)")
    add("--epochs", type=int, help="number of epochs (default: the recipe's)")
    add("--labels", default="all-to-one", choices=["all-to-one", "all-to-all"], help="default: %(default)s")
    add("--target", type=int, default=0, help="the target label of all-to-one (default: %(default)s)")
    add("--rate", type=float, default=0.1, help="the poisoning ratio (default: %(default)s)")
    add("--clean-share", type=float, default=0.05, help="the defender's share of the data (default: %(default)s)")
    add("--per-batch", action="store_true", help="poison every batch afresh, as the release of WaNet does")
    add("--cover-ratio", type=float, default=0.0, help="cover images for each poisoned image (default: %(default)s)")
    add("--normalise", action="store_true", help="normalise pixels by mean and deviation, as the releases do")
    add("--seen", action="store_true", help="train on the defender's images, too")
    add("--trigger", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trigger, such as ratio=0.1")
    add("--seed", type=int, default=0, help="the seed of everything random (default: %(default)s)")
    add("--store", type=Path, default=Path("art-aft-models"), help="the folder for models (default: %(default)s)")
    add("--rows", type=Path, help=rows)
    add("--quiet", action="store_true", help="show no progress bars")


def read_victim(options: argparse.Namespace) -> tuple[VictimSettings, str]:
    """Return the settings of the victim that the options describe, and the options as text for another command line."""
    recipe = replace(RECIPES[options.recipe], seed=options.seed)
    if options.epochs is not None:
        with naming(nb_epochs="--epochs"):
            recipe = replace(recipe, nb_epochs=options.epochs)
    trigger = read_settings(options.trigger, "--trigger")
    settings = VictimSettings(recipe=recipe, trigger=trigger, **{name: getattr(options, name) for name in VICTIM})
    shown = {**vars(options), "data": Path(options.data).name}
    switches = [name for name in VICTIM if isinstance(shown[name], bool)]
    flags = [f"--{name.replace('_', '-')} {shown[name]}" for name in VICTIM if name not in switches]
    flags += [f"--recipe {options.recipe}", *(f"--{name.replace('_', '-')}" for name in switches if shown[name])]
    flags += [] if options.epochs is None else [f"--epochs {options.epochs}"]
    flags += [f"--trigger {shlex.join(options.trigger)}"] if options.trigger else []
    return settings, " ".join(flags)


def read_settings(words: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """
    Return settings from words of the form NAME=VALUE, with values as Python writes them.

    >>> read_settings(["batch_size=64", "attack={'eps': 0.05}"])
    {'batch_size': 64, 'attack': {'eps': 0.05}}

    :param words: The words.
    :param option: The option that they come from, for the error.
    :raises ValueError: If a word has another form.
    """
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ValueError(f"{option}: got {word!r}, expected NAME=VALUE, such as batch_size=64")
        try:
            settings[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            expected = f"a value as Python writes it, text in quotes: {shlex.quote(f'{name}={value!r}')}"
            raise ValueError(f"{option}: got {word!r}, expected {expected}") from None
    return settings


def preset_settings(defence: str, preset: str | None) -> dict[str, Any]:
    """
    Return the settings that a defence has under the name of a preset.

    >>> preset_settings("fine_tuning", "paper_preact")
    {'nb_epochs': 10, 'learning_rate': 0.01, 'weight_decay': 0.0005}

    :param defence: The name of the defence.
    :param preset: The name of the preset. None gives no settings.
    :raises ValueError: If the defence has no preset of that name.
    """
    if preset is None:
        return {}
    known = DEFENCES[defence].presets
    if preset not in known:
        names = f"one of: {', '.join(sorted(known))}" if known else "none: it has no presets"
        raise ValueError(f"--preset: got {preset!r} for {defence}, expected {names}")
    return dict(known[preset])


def command_line(program: str, options: argparse.Namespace, positional: Sequence[str] = ()) -> str:
    """
    Return the command that measures the rows of a benchmark again, without paths and numbers of processes.

    :param program: The path of the program.
    :param options: Its options.
    :param positional: The names of positional arguments.
    """
    words = ["python", f"examples/benchmarks/{Path(program).name}"]
    for name, value in vars(options).items():
        if name in ("data", "store", "output", "jobs") or value is None or value is False or value == []:
            continue
        values = value if isinstance(value, list | tuple) else [] if value is True else [value]
        words += [*([] if name in positional else [f"--{name.replace('_', '-')}"]), *map(str, values)]
    return shlex.join(words) + (" --data DATA" if getattr(options, "data", None) else "")
