"""Count the images that a scan and `auto` pass through a network, against the number of labels."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from art_aft import AutomaticFineTuning
from art_aft.classifiers.classifier import build_classifier, images_for, predict_labels
from art_aft.detection.base import DETECTORS, THOROUGH, Suspect
from art_aft.experiments.rows import Row, environment
from art_aft.runtime.files import write_json

SHAPE = (3, 8, 8)


class Counting(torch.nn.Module):
    """A linear network that counts images: without gradients, for gradients of the images, and in training."""

    seen: dict[str, int] = {}

    def __init__(self, nb_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(int(np.prod(SHAPE)), nb_classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, and count."""
        kind = "trained" if self.training else "attacked" if torch.is_grad_enabled() and x.requires_grad else "seen"
        Counting.seen[kind] = Counting.seen.get(kind, 0) + len(x)
        return self.layer(x.flatten(1))


def rows(nb_classes: int, n: int) -> list[Row]:
    """Return the counts of every detector of effort "normal", none of which ends early, and of one trial of `auto`."""
    torch.manual_seed(0)
    classifier = build_classifier(Counting(nb_classes), input_shape=SHAPE, nb_classes=nb_classes)
    x = np.random.default_rng(0).random((n, *SHAPE), dtype=np.float32)
    images = images_for(classifier, x, predict_labels(classifier, x))
    found = []
    for name, detector in sorted(DETECTORS.items()):
        if detector.cost < THOROUGH:
            Counting.seen = {}
            detector().detect(Suspect(classifier, images))
            found.append({"labels": nb_classes, "what": name, **Counting.seen})
    Counting.seen = {}
    AutomaticFineTuning(classifier, max_accuracy_drop=1.0)(images.pixels, y=images.labels)
    return [*found, {"labels": nb_classes, "what": "auto", **Counting.seen}]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 43, 200, 1000])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    found = [row for labels in options.labels for row in rows(labels, options.images)]
    for labels in options.labels:
        of = [row for row in found if row["labels"] == labels]
        for what, part in (("scan", of[:-1]), ("auto", of[-1:])):
            sums = (f"{sum(row.get(kind, 0) for row in part)} {kind}" for kind in ("seen", "attacked", "trained"))
            print(f"{labels} labels, {what}: {', '.join(sums)}")
    if options.output:
        command = f"python examples/benchmarks/labels.py --images {options.images}"
        write_json(options.output, {"command": command, "environment": environment(), "rows": found}, indent=1)


if __name__ == "__main__":
    main()
