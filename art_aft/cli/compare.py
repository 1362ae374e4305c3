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
from art_aft.cli.parsing import add_command
from art_aft.cli.python_lines import compare_lines
from art_aft.data.datasets import Dataset, load
from art_aft.defences import DEFENCES
from art_aft.defences.base import Defence
from art_aft.experiments.compare import LEARNING_RATES, TUNABLE, compare
from art_aft.experiments.measurements import build_defence
from art_aft.experiments.reports.comparison import comparison_report
from art_aft.experiments.reports.parts import Source
from art_aft.experiments.rows import Row, add_row, environment, json_values
from art_aft.experiments.tables import comparison_table
from art_aft.experiments.victims import VictimSettings, clean_subset, train_victim
from art_aft.runtime.files import write_text


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "compare",
        run=run,
        help="purify a victim with several defences, tuned alike, and score each",
        examples=(
            "art-aft compare --attack badnets --recipe digits --rows badnets.json",
            "art-aft compare --attack blend --data path/to/cifar10 --defences aft nad --subsets 3 --rows blend.json",
            "art-aft compare --attack sig --recipe digits --defences aft --set batch_size=32 --json",
        ),
        kept=lambda options: (
            f"the victim, or its last epoch, is in {options.store}, and the same command goes on from "
            f"there; finished rows are in {options.rows or 'no file (--rows)'}"
        ),
        json=True,
    )
    add_victim(
        command, rows="a JSON file; result rows are added to it, and a report of this run goes beside it (.html)"
    )
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


def run(options: argparse.Namespace) -> int:
    """Run `art-aft compare`: print a table, and add each row to a file of rows as soon as it is ready."""
    settings, flags = read_victim(options)
    check_places(options.store, options.rows)
    if options.rows and options.rows.suffix == ".html":
        raise ValueError(f"--rows: got {options.rows}, expected another ending: the report for people gets this one")
    check_integer("--subsets", options.subsets, 1)
    presets = {name: preset_settings(name, options.preset) for name in options.defences}
    rates = options.learning_rates
    if rates is None:
        rates = LEARNING_RATES if options.preset is None else ()
    dataset = load(settings.data, seed=settings.seed, verbose=not options.quiet)
    own = read_settings(options.set)
    known = {name: {**presets[name], **_flips(name, dataset), **own} for name in options.defences}
    defences = {name: partial(build_defence, name, settings=each) for name, each in known.items()}
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
    options.report = json_values({"rows": rows})
    if options.rows:
        _write(options, rows, compare_lines(options, settings, known, rates))
    return 0


def _write(options: argparse.Namespace, rows: list[Row], python: str) -> None:
    """Write the report of this run for people, beside the file of rows."""
    inputs = {"data": options.data, "models": options.store, "rows": options.rows, "subsets": options.subsets}
    place = options.rows.with_suffix(".html")
    source = Source(
        shlex.join(options.words), python, inputs={**inputs, "preset": options.preset, "seed": options.seed}
    )
    write_text(place, comparison_report(json_values(rows), source))
    print(f"written: {place}, to be opened in a browser")


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


def _flips(name: str, dataset: Dataset) -> Row:
    """Return whether a defence flips images, as a part of its settings, where it has such a setting."""
    return {"horizontal_flip": dataset.horizontal_flip} if "horizontal_flip" in DEFENCES[name].params else {}


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
