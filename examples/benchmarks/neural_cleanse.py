"""
Measure Neural Cleanse: does it suspect the target label of victims and no label of clean models, and how much time does
searching all labels together save?
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from art_aft.defences import NeuralCleanse
from art_aft.defences.found_triggers import Detection
from art_aft.experiments.rows import Row, environment, json_values
from art_aft.experiments.victims import Victim, VictimSettings, train_victim
from art_aft.runtime.files import write_json
from art_aft.training.recipes import RECIPES


def search(victim: Victim, steps: int, classes_at_once: int | None) -> tuple[Detection, float]:
    """Return what a search found, and the seconds it took."""
    defence = NeuralCleanse(victim.classifier, steps=steps, classes_at_once=classes_at_once)
    start = time.perf_counter()
    return defence.detect(victim.x_clean), time.perf_counter() - start


def victims(options: argparse.Namespace) -> Iterator[Victim]:
    """Yield a victim of BadNets and a benign model for each seed."""
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        recipe = replace(RECIPES[options.recipe], seed=seed)
        if options.epochs is not None:
            recipe = replace(recipe, nb_epochs=options.epochs)
        share = options.clean_share
        infected = VictimSettings("badnets", options.data, options.model, clean_share=share, recipe=recipe, seed=seed)
        for settings in (infected, infected.benign):
            yield train_victim(settings, store=options.store)


def measure(victim: Victim, steps: int) -> Row:
    """Return the row of one model."""
    detection, seconds = search(victim, steps, None)
    found, settings = detection.triggers, victim.settings
    row: Row = {
        "data": Path(settings.data).name,
        "model": settings.model,
        "infected": settings.rate > 0,
        "seed": settings.seed,
        "flagged": detection.flagged,
        "norms": np.round(found.norms, 2).tolist(),
        "anomaly_indices": np.round(found.anomaly_indices, 2).tolist(),
        "success": np.round(found.success, 4).tolist(),
        "steps": found.steps.tolist(),
        "seconds": round(seconds, 2),
    }
    if settings.seed == 0:  # the same search, one label at a time
        alone, alone_seconds = search(victim, steps, 1)
        row["seconds_one_at_a_time"] = round(alone_seconds, 2)
        row["ratio"] = round(alone_seconds / seconds, 2)
        row["largest_mask_difference"] = float(np.abs(alone.triggers.masks - found.masks).max())
        row["largest_norm_difference"] = float(np.abs(alone.triggers.norms - found.norms).max())
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="digits, or a folder with train.zip and test.zip")
    parser.add_argument("--model", default="wrn-10-1")
    parser.add_argument("--recipe", default="digits", choices=sorted(RECIPES))
    parser.add_argument("--epochs", type=int, help="number of epochs (default: the recipe's)")
    parser.add_argument("--clean-share", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--store", type=Path, help="the folder for models")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file for the rows")
    options = parser.parse_args()
    command = f"python examples/benchmarks/neural_cleanse.py --data {Path(options.data).name} --model {options.model} "
    command += f"--recipe {options.recipe} --clean-share {options.clean_share} --seeds {options.seeds} "
    command += f"--steps {options.steps} --first-seed {options.first_seed}" + (
        f" --epochs {options.epochs}" if options.epochs is not None else ""
    )
    rows: list[Row] = []
    for victim in victims(options):
        rows.append(measure(victim, options.steps))
        print({key: rows[-1][key] for key in ("infected", "seed", "flagged", "norms", "seconds")}, flush=True)
        write_json(options.output, json_values({"command": command, **environment(), "rows": rows}))


if __name__ == "__main__":
    main()
