"""
Score automatic settings on architectures that the package does not know: a VGG with dropout that flattens with `.view`,
and a small vision transformer. Digits, BadNets and Blend, the same settings for all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.attacks import BadNets, Blend, Trigger
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.cli.options import command_line
from art_aft.data.datasets import Dataset, digits, split_clean
from art_aft.defences import AutomaticFineTuning, FineTuning
from art_aft.defences.base import Defence
from art_aft.experiments.rows import Row, json_values, write_record
from art_aft.metrics import evaluate
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe


class VGG(torch.nn.Module):
    """Two groups of convolutions and a head with dropout, for images of 16x16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for before, after in ((1, 16), (16, 32)):
            layers += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
            layers += [torch.nn.Conv2d(after, after, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        self.features = torch.nn.Sequential(*layers)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(512, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.features(x)
        return self.head(maps.view(len(maps), -1))


class VisionTransformer(torch.nn.Module):
    """Patches of 4x4 pixels, two layers of attention."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(1, width, 4, stride=4)
        self.places = torch.nn.Parameter(0.02 * torch.randn(1, 16, width))
        layer = torch.nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.layers(tokens).mean(dim=1))


ARCHITECTURES = {"vgg": (VGG, 25), "vision transformer": (VisionTransformer, 60)}
ATTACKS = {"badnets": BadNets, "blend": Blend}


def victim(name: str, attack: Trigger, data: Dataset, rest: np.ndarray, epochs: int, seed: int) -> PyTorchClassifier:
    """Return a backdoored classifier of an architecture."""
    poisoned = poison(data.x_train[rest], data.y_train[rest], attack, AllToOne(0), rate=0.1, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ARCHITECTURES[name][0]()
    classifier = build_classifier(model, input_shape=data.input_shape, nb_classes=10)
    recipe = Recipe(nb_epochs=epochs, batch_size=64, learning_rate=0.05, schedule="one_cycle", nesterov=True, seed=seed)
    images = images_for(classifier, poisoned.x, poisoned.y)
    fit(classifier, Batches(images, recipe, classifier.device), recipe)
    return classifier


def defences(classifier: PyTorchClassifier, steps: int, seed: int) -> Iterator[tuple[str, Defence | None]]:
    """Yield titles and defences; None is none."""
    own = {"horizontal_flip": False, "padding": 1, "seed": seed}
    # The rival makes as many steps, at the learning rate at which it forgets most.
    rate = {"learning_rate": 0.1, "schedule": "one_cycle", "batch_size": 64}
    yield "before", None
    yield "fine-tuning", FineTuning(classifier, nb_epochs=steps // 2, **rate, **own)
    yield "automatic", AutomaticFineTuning(classifier, min_steps=steps, **own)


def measure(options: argparse.Namespace, seed: int) -> Iterator[Row]:
    """Yield a row for each architecture, attack and defence."""
    data = digits(seed=seed)
    clean, rest = split_clean(data.y_train, 0.1, seed=seed)
    for name, (_, epochs) in ARCHITECTURES.items():
        for attack_name, attack in ((name, kind()) for name, kind in ATTACKS.items()):
            classifier = victim(name, attack, data, rest, options.epochs or epochs, seed)
            for title, defence in defences(classifier, options.steps, seed):
                start = time.perf_counter()
                purified = defence(data.x_train[clean], y=data.y_train[clean]) if defence else classifier
                seconds = time.perf_counter() - start
                scores = evaluate(purified, data.x_test, data.y_test, attack, AllToOne(0))
                chosen = dict(defence.report.chosen) if defence and defence.report else {}
                yield {
                    "model": name,
                    "attack": attack_name,
                    "seed": seed,
                    "defence": title,
                    **asdict(scores),
                    "seconds": seconds,
                    "chosen": json_values(chosen) or None,
                }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="number of epochs of the victims (default: by architecture)")
    parser.add_argument("--steps", type=int, default=400, help="number of steps of each defence, at least")
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    rows = []
    for row in (row for seed in options.seeds for row in measure(options, seed)):
        rows.append(row)
        print(
            f"{row['model']:<20} {row['attack']:<8} {row['defence']:<12} ACC {100 * row['acc']:5.1f}  "
            f"ASR {100 * row['asr']:5.1f}  RA {100 * row['ra']:5.1f}  {row['seconds']:5.1f} s",
            flush=True,
        )
        if options.output:
            write_record(options.output, rows, command=command_line(__file__, options))


if __name__ == "__main__":
    main()
