"""
Hide the backdoors of stored victims, and measure which defences wake them.

An attacker can make a backdoor dormant: triggered images with their true labels, for so few steps that the backdoor
stops to work and is not removed. Whoever fine-tunes or distils such a model may wake it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from stored import arguments, measured, named, victims

from art_aft import evaluate
from art_aft.attacks import stamp
from art_aft.attacks.labels import LabelMap, wanted_labels
from art_aft.classifiers.classifier import clone
from art_aft.defences import DEFENCES
from art_aft.defences.fine_tuning import FineTuning
from art_aft.experiments.rows import Row, write_record
from art_aft.experiments.victims import VictimSettings, train_victim

#: A backdoor that works on fewer images is dormant.
DORMANT = 0.1

#: The most calls that hide it.
MOST = 40

#: What a defender might do. The second and the third distil: clean images from the infected model alone, and all that
#: `universal_aft` shows from the infected model alone, for its other teacher is not purified.
DEFENDERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fine-tuning", "fine_tuning", {}),
    ("distilled from the infected model alone, clean images", "universal_aft", {"label_epochs": 0, "clean_share": 1.0}),
    ("`universal_aft` from the infected model alone", "universal_aft", {"label_epochs": 0}),
    ("`nad`", "nad", {}),
    ("`universal_aft`", "universal_aft", {}),
    ("`auto`", "auto", {}),
)


def hide(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, attack: Any, labels: LabelMap) -> int:
    """
    Fine-tune a classifier in place, on images and on the same with the trigger, all with their true labels, until its
    backdoor is dormant on them; return the calls of fine-tuning, of five steps or fewer each.
    """
    triggered = stamp(attack, x, wanted_labels(labels, y))
    both, truth = np.concatenate([x, triggered]), np.concatenate([y, y])
    gently: dict[str, Any] = {"nb_epochs": 1, "learning_rate": 1e-3, "padding": 0, "horizontal_flip": False}
    for calls in range(1, MOST + 1):
        few = np.random.default_rng(calls).choice(len(both), min(len(both), 640), replace=False)
        FineTuning(classifier, batch_size=128, seed=calls, **gently)(both[few], classifier, truth[few])
        if evaluate(classifier, x, y, attack, labels).asr < DORMANT:
            break
    return calls


def rows(settings: VictimSettings, options: argparse.Namespace) -> list[Row]:
    """Return what a hidden backdoor does before and after each defence, on all test images."""
    torch.set_num_threads(options.threads)
    victim = train_victim(settings, store=options.store)
    test = victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels
    infected = evaluate(victim.classifier, *test)
    if infected.asr < 0.5:
        return []
    calls = hide(victim.classifier, victim.dataset.x_train[:1000], victim.dataset.y_train[:1000], *test[2:])
    before, found = evaluate(victim.classifier, *test), []
    for title, name, more in DEFENDERS:
        kind = DEFENCES[name]
        flip = {"horizontal_flip": victim.dataset.horizontal_flip} if "horizontal_flip" in kind.params else {}
        # On few images, as many steps as `auto` makes.
        epochs = {"nb_epochs": -(-400 // -(-len(victim.x_clean) // 64))} if name == "universal_aft" else {}
        defence = kind(clone(victim.classifier), **{**flip, **epochs, **more})
        after = evaluate(defence(victim.x_clean, y=victim.y_clean), *test)
        row = {"model": settings.key, "architecture": settings.model, "attack": settings.attack, "seed": settings.seed}
        scores = {"infected": asdict(infected), "before": asdict(before), "after": asdict(after)}
        found.append({**row, "calls": calls, "defence": title, **scores})
    return found


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__).parse_args()
    found = measured(rows, [each for each in victims(options) if each.rate], options)
    write_record(options.output, found, command=f"python examples/benchmarks/dormant.py {named(options)}")
    for title, _, _ in DEFENDERS:
        group = [row for row in found if row["defence"] == title]
        asr = [np.mean([row[when]["asr"] for row in group]) for when in ("before", "after")]
        worst = max(row["after"]["asr"] for row in group)
        lost = np.mean([row["before"]["acc"] - row["after"]["acc"] for row in group])
        print(f"{title}: {len(group)} models, ASR {asr[0]:.3f} -> {asr[1]:.3f}, worst {worst:.3f}, ACC lost {lost:.3f}")


if __name__ == "__main__":
    main()
