"""Neural Cleanse: does it flag the planted label and nothing on clean models, and what does searching together save?"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from art_aft.defences import NeuralCleanse
from art_aft.experiments.victims import Infection, Row, Scene, environment, plant
from art_aft.training.recipes import RECIPES


def search(scene: Scene, steps: int, classes_at_once: int | None) -> tuple[NeuralCleanse, float]:
    """Return a defence that has searched, and the seconds it took."""
    defence = NeuralCleanse(scene.classifier, steps=steps, classes_at_once=classes_at_once)
    start = time.perf_counter()
    defence.detect(scene.x_clean)
    return defence, time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="digits, or a folder with train.zip and test.zip")
    parser.add_argument("--model", default="wrn-10-1")
    parser.add_argument("--recipe", default="digits", choices=sorted(RECIPES))
    parser.add_argument("--epochs", type=int, help="other than the recipe's")
    parser.add_argument("--clean-share", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--store", type=Path, help="where models are kept")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file for the rows")
    options = parser.parse_args()
    rows: list[Row] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        recipe = replace(RECIPES[options.recipe], seed=seed)
        if options.epochs is not None:
            recipe = replace(recipe, nb_epochs=options.epochs)
        infected = Infection(
            attack="badnets",
            data=options.data,
            model=options.model,
            clean_share=options.clean_share,
            recipe=recipe,
            seed=seed,
        )
        for infection in (infected, infected.benign):
            scene = plant(infection, store=options.store)
            together, seconds = search(scene, options.steps, None)
            found = together.detection.triggers
            row = {
                "data": Path(options.data).name,
                "model": options.model,
                "infected": infection.rate > 0,
                "seed": seed,
                "flagged": together.detection.flagged,
                "norms": np.round(found.norms, 2).tolist(),
                "anomaly_indices": np.round(found.anomaly_indices, 2).tolist(),
                "success": np.round(found.success, 4).tolist(),
                "steps": found.steps.tolist(),
                "seconds": round(seconds, 2),
            }
            if seed == 0:  # the same search, one label at a time
                alone, alone_seconds = search(scene, options.steps, 1)
                row["seconds_one_at_a_time"] = round(alone_seconds, 2)
                row["ratio"] = round(alone_seconds / seconds, 2)
                row["largest_mask_difference"] = float(np.abs(alone.detection.triggers.masks - found.masks).max())
                row["largest_norm_difference"] = float(np.abs(alone.detection.triggers.norms - found.norms).max())
            rows.append(row)
            print({key: row[key] for key in ("infected", "seed", "flagged", "norms", "seconds")}, flush=True)
    command = f"python examples/benchmarks/neural_cleanse.py --data {Path(options.data).name} --model {options.model} "
    command += f"--recipe {options.recipe} --clean-share {options.clean_share} --seeds {options.seeds} "
    command += f"--steps {options.steps} --first-seed {options.first_seed}" + (
        f" --epochs {options.epochs}" if options.epochs is not None else ""
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"command": command, **environment(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
