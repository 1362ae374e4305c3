"""What the scan sees in the last layer of networks that the package does not know, infected and clean. Digits."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch
from architectures import ARCHITECTURES, ATTACKS
from joblib import Parallel, delayed

from art_aft import BackdoorScan
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison
from art_aft.classifiers.classifier import build_classifier
from art_aft.cli.options import command_line
from art_aft.data.datasets import digits, split_clean
from art_aft.experiments.report import write_record
from art_aft.experiments.victims import Row
from art_aft.training.loop import Recipe, fit


def row(name: str, kind: str, seed: int, epochs: int | None) -> Row:
    """Train a model, infected with the seed as its target or clean, and look at its last layer."""
    torch.set_num_threads(1)
    architecture, enough = ARCHITECTURES[name]
    data = digits(seed=seed)
    clean, rest = split_clean(data.y_train, 0.1, seed=seed)
    x, y = data.x_train[rest], data.y_train[rest]
    if kind != "clean":
        planted = poison(x, y, ATTACKS[kind](), AllToOne(seed), rate=0.1, seed=seed)
        x, y = planted.x, planted.y
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = build_classifier(architecture(), input_shape=data.input_shape, nb_classes=10)
    nb_epochs = epochs or enough
    recipe = Recipe(nb_epochs, 64, learning_rate=0.05, schedule="one_cycle", nesterov=True, seed=seed)
    fit(classifier, x, y, recipe)
    report = BackdoorScan(classifier, effort="weights")(data.x_train[clean], data.y_train[clean])
    (sign,) = report.signs
    return {
        "model": name,
        "kind": kind,
        "seed": seed,
        "target": None if kind == "clean" else seed,
        "verdict": report.verdict,
        "score": report.score,
        "label": sign.label,
        "where": sign.where,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="other than enough")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    cells = product(ARCHITECTURES, ("clean", *ATTACKS), options.seeds)
    rows = []
    for result in Parallel(n_jobs=options.jobs, return_as="generator")(
        delayed(row)(*cell, options.epochs) for cell in cells
    ):
        rows.append(result)
        print(*result.values(), flush=True)
        if options.output:
            write_record(options.output, rows, command=command_line(__file__, options))


if __name__ == "__main__":
    main()
