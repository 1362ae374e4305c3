"""Grids of experiments: cells that are measured once, in any order, on any of joblib's backends."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from art_aft.checks import check_integer
from art_aft.data.datasets import Dataset, load
from art_aft.experiments.measurements import COMPARED_WITH_BENIGN, TASKS, Cell
from art_aft.experiments.rows import Row, environment, json_values
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.runtime.files import write_json


@lru_cache(maxsize=1)
def _dataset(data: str, seed: int) -> Dataset:
    """Return a data set; the files of the last one are not read again."""
    return load(data, seed=seed)


def run_cell(cell: Cell, folder: Path) -> Row:
    """
    Return a cell's row: measured, or read from the file of an earlier run.

    :param cell: The cell.
    :param folder: Where rows (cells/) and victims (models/) are kept.
    """
    place = folder / "cells" / f"{cell.key}.json"
    if not place.exists():
        measure, settings = TASKS[cell.task], cell.victim
        dataset = _dataset(settings.data, settings.seed)
        victim = train_victim(settings, dataset=dataset, store=folder / "models")
        start = time.perf_counter()
        result = measure(victim, cell)
        row = {**cell.facts(), **result, "task_seconds": round(time.perf_counter() - start, 3), **environment()}
        write_json(place, json_values(row))
    # The same row, whether it was measured now or before.
    return json.loads(place.read_text(encoding="utf-8"))


def run_grid(cells: Sequence[Cell], folder: Path, *, n_jobs: int = 1, verbose: bool = False) -> list[Row]:
    """
    Run the cells that are not yet in the folder. A killed run loses the cells in progress and no others.

    :param cells: The cells. The same one may occur more than once.
    :param folder: Where rows and victims are kept.
    :param n_jobs: Number of cells at a time, as for `joblib.Parallel`. `joblib.parallel_config` chooses the backend.
    :param verbose: Whether to show progress, with an estimate of the time left.
    :return: Rows, in the order of the cells.
    :raises ValueError: If a name is unknown or a setting out of range.
    """
    if n_jobs != -1:
        check_integer("n_jobs", n_jobs, 1)
    for cell in cells:
        TASKS[cell.task]
    distinct = {cell.key: cell for cell in cells}
    todo = [cell for key, cell in distinct.items() if not (folder / "cells" / f"{key}.json").exists()]
    # Victims first, each by one worker: cells that share a victim must not train it twice at the same time.
    needed = [cell.victim for cell in todo]
    needed += [cell.victim.benign for cell in todo if cell.task in COMPARED_WITH_BENIGN]
    victims = {settings.key: settings for settings in needed}
    models = [delayed(_train)(settings, folder / "models") for settings in victims.values()]
    measurements = [delayed(run_cell)(cell, folder) for cell in todo]
    for title, jobs in (("Models", models), ("Cells", measurements)):
        finished = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs)
        for _ in tqdm(finished, total=len(jobs), desc=title, disable=None if verbose else True, leave=False):
            pass
    return [run_cell(cell, folder) for cell in cells]


def _train(settings: VictimSettings, store: Path) -> None:
    """Train a victim into the store if it is not there. It is too large to be returned."""
    if not (store / f"{settings.key}.json").exists():
        train_victim(settings, dataset=_dataset(settings.data, settings.seed), store=store)
