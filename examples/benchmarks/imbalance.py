"""Scan clean models that were trained with one class much larger than the others: none should be reported."""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from art_aft import BackdoorScan
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.cli.options import command_line
from art_aft.data.datasets import digits, split_clean
from art_aft.experiments.rows import Row, write_record
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipes import RECIPES


def row(seed: int, factor: int, epochs: int, effort: str) -> Row:
    """Train a clean model on digits of which one class has `factor` times as many as the others, and scan it."""
    data, large = digits(seed=seed), (seed + 2) % 10
    clean, rest = split_clean(data.y_train, 0.1, seed=seed)
    x, y, rng = data.x_train[rest], data.y_train[rest], np.random.default_rng(seed)
    classes = [np.flatnonzero(y == label) for label in range(10)]
    kept = [own if c == large else rng.choice(own, len(own) // factor, replace=False) for c, own in enumerate(classes)]
    chosen = np.concatenate(kept)
    classifier = build_classifier("wrn-10-1", input_shape=data.input_shape, nb_classes=10, seed=seed)
    recipe = replace(RECIPES["digits"], nb_epochs=epochs, seed=seed)
    fit(classifier, Batches(images_for(classifier, x[chosen], y[chosen]), recipe, classifier.device), recipe)
    report = BackdoorScan(classifier, effort=effort)(data.x_train[clean], data.y_train[clean])
    return {
        "seed": seed,
        "factor": factor,
        "large_class": large,
        "verdict": report.verdict,
        "targets": list(report.targets),
        "score": report.score,
        "evidence": {each.detector: {"label": each.label, "score": each.score} for each in report.evidence},
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factors", type=int, nargs="+", default=[3, 8], help="how much larger one class is")
    parser.add_argument("--epochs", type=int, default=75)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed, factor in product(range(options.seeds), options.factors):
        rows.append(row(seed, factor, options.epochs, options.effort))
        shown = "  ".join(f"{name} {found['score']:.2f}" for name, found in rows[-1]["evidence"].items())
        print(f"seed {seed}  factor {factor}  {rows[-1]['verdict']}  {shown}", flush=True)
    write_record(options.output, rows, command=command_line(__file__, options))


if __name__ == "__main__":
    main()
