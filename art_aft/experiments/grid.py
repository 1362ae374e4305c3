"""Grids of experiments: cells that are computed once, in any order, on any of joblib's backends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from art_aft.checks import check_integer
from art_aft.data.datasets import Dataset, load
from art_aft.experiments.measurements import COMPARED_WITH_BENIGN, TASKS, Cell
from art_aft.experiments.victims import Infection, Row, environment, plant


@lru_cache(maxsize=1)
def _dataset(data: str, seed: int) -> Dataset:
    """Return a data set, the last one without reading its files again."""
    return load(data, seed=seed)


def run_cell(cell: Cell, folder: Path) -> Row:
    """
    Return a cell's row: measured, or found where it was written before.

    :param cell: The cell.
    :param folder: Where rows (cells/) and infected models (models/) are kept.
    """
    place = folder / "cells" / f"{cell.key}.json"
    if place.exists():
        return json.loads(place.read_text(encoding="utf-8"))
    measure = TASKS[cell.task]
    infection = cell.infection
    scene = plant(infection, dataset=_dataset(infection.data, infection.seed), store=folder / "models")
    start = time.perf_counter()
    result = measure(scene, cell)
    row = {**cell.facts(), **result, "task_seconds": round(time.perf_counter() - start, 3), **environment()}
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f"{place.name}.{os.getpid()}.part")
    text = json.dumps(row, indent=2) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, place)
    return json.loads(text)  # the same, whether measured now or before


def run_grid(cells: Sequence[Cell], folder: Path, *, n_jobs: int = 1, verbose: bool = False) -> list[Row]:
    """
    Run cells, those that are not yet in the folder; a killed run loses the cells at hand and no others.

    :param cells: The cells; the same one may stand there more than once.
    :param folder: Where rows and infected models are kept.
    :param n_jobs: How many at a time, as for `joblib.Parallel`, whose backend `joblib.parallel_config` chooses.
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
    # Models first, each by one worker: cells that share a model must not train it twice at the same time.
    needed = [cell.infection for cell in todo]
    needed += [cell.infection.benign for cell in todo if cell.task in COMPARED_WITH_BENIGN]
    infections = {infection.key: infection for infection in needed}
    models = [delayed(_plant)(infection, folder / "models") for infection in infections.values()]
    measurements = [delayed(run_cell)(cell, folder) for cell in todo]
    for title, jobs in (("Models", models), ("Cells", measurements)):
        finished = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs)
        for _ in tqdm(finished, total=len(jobs), desc=title, disable=None if verbose else True, leave=False):
            pass
    return [run_cell(cell, folder) for cell in cells]


def _plant(infection: Infection, store: Path) -> None:
    """Train a model into the store, or leave the one that is there; a scene is too large to be sent back."""
    if not (store / f"{infection.key}.json").exists():
        plant(infection, dataset=_dataset(infection.data, infection.seed), store=store)
