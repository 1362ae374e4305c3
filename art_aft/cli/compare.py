"""`art-aft compare`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from art_aft.checks import check_integer
from art_aft.cli.options import add_infection, read_infection, read_settings
from art_aft.defences import DEFENCES
from art_aft.experiments.compare import LEARNING_RATES, TUNABLE, compare
from art_aft.experiments.report import add_row, comparison_table
from art_aft.experiments.victims import Row, clean_subset, environment, plant


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "compare", help="purify an infected model with several defences, tuned alike, and measure each"
    )
    add_infection(command)
    command.add_argument(
        "--defences", nargs="+", default=TUNABLE, choices=sorted(DEFENCES), help="which (default: all but auto)"
    )
    command.add_argument("--preset", help="the defences' settings by name, such as paper, where they have them")
    command.add_argument("--subsets", type=int, default=1, help="clean subsets to repeat on (default: %(default)s)")
    command.add_argument(
        "--learning-rates",
        type=float,
        nargs="*",
        help=f"the rates that every defence is tried at (default: {' '.join(map(str, LEARNING_RATES))}; with a preset: "
        "its own)",
    )
    command.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings for all the defences, such as batch_size=64",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `art-aft compare`: a table on standard output, rows in a file as they are ready."""
    infection, flags = read_infection(options)
    check_integer("--subsets", options.subsets, 1)
    scene = plant(infection, store=options.store, verbose=not options.quiet)
    rates = options.learning_rates
    if rates is None:
        rates = LEARNING_RATES if options.preset is None else ()
    settings = {"mirror": scene.dataset.mirror, **read_settings(options.set)}
    if options.preset is not None:
        settings["preset"] = options.preset
    flags += f" --defences {' '.join(options.defences)} --subsets {options.subsets}"
    flags += f" --learning-rates {' '.join(f'{rate:g}' for rate in rates)}".rstrip()
    flags += f" --preset {options.preset}" * (options.preset is not None)
    flags += f" --set {' '.join(options.set)}" * bool(options.set)
    shared = {
        "command": f"art-aft compare {flags}",
        "infection": {**asdict(infection), "data": Path(options.data).name},
        "preset": options.preset,
        **environment(),
    }
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append({**shared, "clean_subset": subset, **row})
        if options.rows:
            add_row(options.rows, rows[-1], same=("infection", "preset", "defence", "clean_subset"))

    for subset in range(options.subsets):
        x_clean, y_clean = clean_subset(scene, subset)
        compare(
            scene.classifier,
            {name: partial(DEFENCES[name], **settings) for name in options.defences},
            x_clean,
            y_clean,
            scene.dataset.x_test,
            scene.dataset.y_test,
            scene.attack,
            scene.labels,
            learning_rates=rates,
            seed=options.seed + subset,
            verbose=not options.quiet,
            watch=keep,
        )
    print(comparison_table(rows))
    return 0
