"""Test the last layer of architectures that are not in the package, infected and clean. Digits."""

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
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.cli.options import command_line
from art_aft.data.datasets import digits, split_clean
from art_aft.experiments.rows import Row, write_record
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe


def row(name: str, kind: str, seed: int, epochs: int | None) -> Row:
    """Train a model, clean or with the seed as its target label, and test its last layer."""
    torch.set_num_threads(1)
    architecture, enough = ARCHITECTURES[name]
    data = digits(seed=seed)
    clean, rest = split_clean(data.y_train, 0.1, seed=seed)
    x, y = data.x_train[rest], data.y_train[rest]
    if kind != "clean":
        poisoned = poison(x, y, ATTACKS[kind](), AllToOne(seed), rate=0.1, seed=seed)
        x, y = poisoned.x, poisoned.y
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = build_classifier(architecture(), input_shape=data.input_shape, nb_classes=10)
    nb_epochs = epochs or enough
    recipe = Recipe(nb_epochs, 64, learning_rate=0.05, schedule="one_cycle", nesterov=True, seed=seed)
    fit(classifier, Batches(images_for(classifier, x, y), recipe, classifier.device), recipe)
    report = BackdoorScan(classifier, detectors=["last_layer"])(data.x_train[clean], data.y_train[clean])
    (evidence,) = report.evidence
    return {
        "model": name,
        "kind": kind,
        "seed": seed,
        "target": None if kind == "clean" else seed,
        "verdict": report.verdict,
        "score": report.score,
        "label": evidence.label,
        "details": evidence.details,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="other than those of the architecture")
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
