"""What benchmarks on stored victims share: their arguments, and the victims that these name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from art_aft.experiments.rows import Row
from art_aft.experiments.victims import VictimSettings
from art_aft.experiments.zoo import HALVES, read_zoo


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that name victims of a zoo and say where rows go."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default=".", help="the folder of the data sets that the settings name")
    parser.add_argument("--settings", type=Path, nargs="+", required=True, help="files of victims; stored ones count")
    parser.add_argument("--half", choices=HALVES, help="which half of them; both by default")
    parser.add_argument("--store", type=Path, required=True, help="where models are kept")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads for each job")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file for the rows")
    return parser


def named(options: argparse.Namespace) -> str:
    """Return the part of the command that says which victims were measured."""
    names = " ".join(path.name for path in options.settings)
    return f"--settings {names}" + (f" --half {options.half}" if options.half else "")


def victims(options: argparse.Namespace) -> list[VictimSettings]:
    """Return the settings of the victims that are in the store, each once."""
    members = [each for path in options.settings for each in read_zoo(path, options.data)]
    chosen = {each.settings.key: each.settings for each in members if options.half in (None, each.half)}
    return [each for key, each in chosen.items() if options.store.joinpath(key + ".json").exists()]


def measured(
    rows: Callable[[VictimSettings, argparse.Namespace], list[Row]],
    cells: Sequence[VictimSettings],
    options: argparse.Namespace,
) -> list[Row]:
    """Return the rows of some victims, in their order."""
    results = Parallel(n_jobs=options.jobs, return_as="generator")(delayed(rows)(each, options) for each in cells)
    return [row for part in tqdm(results, total=len(cells)) for row in part]
