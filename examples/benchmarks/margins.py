"""Measure the largest margins of all labels of stored victims: what p-values of margins rest on."""

from __future__ import annotations

import argparse

import torch
from stored import arguments, measured, named, victims

from art_aft.classifiers.classifier import images_for, predict_labels
from art_aft.detection.base import DETECTORS, Suspect
from art_aft.experiments.rows import Row, write_record
from art_aft.experiments.victims import VictimSettings, train_victim

#: The detectors of maximum margins.
MARGINS = tuple(name for name in DETECTORS if name.startswith("margin_"))


def rows(settings: VictimSettings, options: argparse.Namespace) -> list[Row]:
    """Return the margins of all labels over each family of images; of two families of a detector, the clearer one."""
    torch.set_num_threads(options.threads)
    victim = train_victim(settings, store=options.store)
    # Images that the scan looks at: as many, and those that the model gets right.
    images = images_for(victim.classifier, victim.x_clean, victim.y_clean, max_images=1000)
    right = predict_labels(victim.classifier, images.pixels) == images.labels
    suspect = Suspect(victim.classifier, images_for(victim.classifier, images.pixels[right], images.labels[right]))
    found = []
    for name in MARGINS:
        evidence = DETECTORS[name]().detect(suspect)
        assert evidence is not None  # there are three labels or more
        model = {"model": settings.key, "rate": settings.rate, "labels": settings.labels, "target": settings.target}
        attack = {"asr": victim.scores.asr if victim.scores else None, "seed": settings.seed}
        found.append({**model, **attack, "detector": name, "margins": list(evidence.scores)})
    return found


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__).parse_args()
    found = measured(rows, victims(options), options)
    write_record(options.output, found, command=f"python examples/benchmarks/margins.py {named(options)}")


if __name__ == "__main__":
    main()
