"""`art-aft compare`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from art_aft.checks import check_integer, check_number
from art_aft.classifiers.classifier import build_classifier
from art_aft.cli.options import add_victim, check_places, preset_settings, read_settings, read_victim
from art_aft.data.datasets import Dataset, load
from art_aft.defences import DEFENCES
from art_aft.defences.base import Defence
from art_aft.experiments.compare import LEARNING_RATES, TUNABLE, compare
from art_aft.experiments.measurements import build_defence
from art_aft.experiments.rows import Row, add_row, environment
from art_aft.experiments.tables import comparison_table
from art_aft.experiments.victims import VictimSettings, clean_subset, train_victim


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser("compare", help="purify a victim with several defences, tuned alike, and score each")
    add_victim(command)
    command.add_argument(
        "--defences",
        nargs="+",
        default=TUNABLE,
        choices=sorted(DEFENCES),
        help="which (default: those of the paper's comparison)",
    )
    command.add_argument("--preset", help="a named set of settings that each of the defences has, such as paper")
    command.add_argument("--subsets", type=int, default=1, help="clean subsets to repeat on (default: %(default)s)")
    command.add_argument(
        "--learning-rates",
        type=float,
        nargs="*",
        help="the learning rates that every defence is tried at (default: "
        f"{' '.join(map(str, LEARNING_RATES))}; with a preset: its own)",
    )
    command.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all the defences, such as batch_size=64"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `art-aft compare`: print a table, and add each row to a file of rows as soon as it is ready."""
    settings, flags = read_victim(options)
    check_places(options.store, options.rows)
    check_integer("--subsets", options.subsets, 1)
    presets = {name: preset_settings(name, options.preset) for name in options.defences}
    rates = options.learning_rates
    if rates is None:
        rates = LEARNING_RATES if options.preset is None else ()
    dataset = load(settings.data, seed=settings.seed, verbose=not options.quiet)
    own = read_settings(options.set)
    defences = {name: _factory(name, presets[name], dataset.horizontal_flip, own) for name in options.defences}
    _check_defences(defences, settings, dataset, own, rates)
    victim = train_victim(settings, dataset=dataset, store=options.store, verbose=not options.quiet)
    shared = {**_shared(options, settings, f"{flags} {_flags(options, rates)}"), **environment()}
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append({**shared, "clean_subset": subset, **row})
        if options.rows:
            add_row(options.rows, rows[-1], same=("victim", "preset", "defence", "clean_subset"))

    for subset in range(options.subsets):
        x_clean, y_clean = clean_subset(victim, subset)
        compare(
            victim.classifier,
            defences,
            x_clean,
            y_clean,
            victim.dataset.x_test,
            victim.dataset.y_test,
            victim.attack,
            victim.labels,
            learning_rates=rates,
            seed=options.seed + subset,
            verbose=not options.quiet,
            watch=keep,
        )
    print(comparison_table(rows))
    return 0


def _check_defences(
    defences: Mapping[str, Callable[..., Defence]], settings: VictimSettings, dataset: Dataset, own: Row, rates: Any
) -> None:
    """Check the settings of the defences, before there is a victim."""
    for name in ("seed", "verbose"):
        if name in own:
            raise ValueError(f"--set: got {name}, which has an option of its own, expected others")
    for rate in rates:
        check_number("--learning-rates", rate, minimum=0.0, above=True)
    untrained = build_classifier(settings.model, input_shape=dataset.input_shape, nb_classes=dataset.nb_classes)
    for factory in defences.values():
        factory(untrained, seed=settings.seed, verbose=False)


def _factory(name: str, preset: Row, flip: bool, own: Row) -> Callable[..., Defence]:
    """Return what builds a defence: with a preset, horizontal flips if the data set allows them, and own settings."""
    known = {"horizontal_flip": flip} if "horizontal_flip" in DEFENCES[name].params else {}
    return partial(build_defence, name, settings={**preset, **known, **own})


def _flags(options: argparse.Namespace, rates: Any) -> str:
    """Return the options of this command that are not the victim's, as text."""
    flags = f"--defences {' '.join(options.defences)} --subsets {options.subsets}"
    flags += f" --learning-rates {' '.join(f'{rate:g}' for rate in rates)}".rstrip()
    flags += f" --preset {options.preset}" * (options.preset is not None)
    return flags + f" --set {shlex.join(options.set)}" * bool(options.set)


def _shared(options: argparse.Namespace, settings: VictimSettings, flags: str) -> Row:
    """Return what all rows have in common."""
    return {
        "command": f"art-aft compare {flags}",
        "victim": {**asdict(settings), "data": Path(options.data).name},
        "preset": options.preset,
    }
