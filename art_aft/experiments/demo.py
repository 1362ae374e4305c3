"""The demonstration: train victims on digits, scan them, purify them with every defence, measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import predict_labels
from art_aft.detection.scan import BackdoorScan
from art_aft.experiments.measurements import build_defence, run_defence, score, scored_on
from art_aft.experiments.rows import Row
from art_aft.experiments.victims import Victim, VictimSettings, train_victim
from art_aft.metrics import target_share
from art_aft.training.recipe import Recipe

# 1,080 digits train the victim, 120 are the defender's, 597 measure.
DEMO_ATTACKS = ("badnets", "blend", "sig")
#: The radius of the adversarial examples that are counted and shown. The defence needs less.
DEMO_EPS = 0.1
#: On half of the defender's images.
DEMO_SCAN: Mapping[str, Any] = {
    "detectors": ("last_layer", "margin_blended", "margin_pixels", "universal"),
    "max_images": 60,
}
DEMO_VICTIM = Recipe(
    nb_epochs=20, batch_size=64, learning_rate=0.1, weight_decay=1e-4, nesterov=True, schedule="one_cycle"
)
_TUNING = {"batch_size": 32, "learning_rate": 0.02, "padding": 0, "horizontal_flip": False}
#: By name, with settings as for `build_defence`: twenty passes over the clean images for each.
DEMO_DEFENCES: Mapping[str, Mapping[str, Any]] = {
    "fine_tuning": {"nb_epochs": 20, **_TUNING},
    "fine_pruning": {"nb_epochs": 20, **_TUNING},
    "neural_cleanse": {"nb_epochs": 20, "steps": 100, "images_per_step": 64, **_TUNING},
    "nad": {"nb_epochs": 10, "teacher_epochs": 10, **_TUNING},
    "aft": {"attack": {"eps": 0.05}, "nb_epochs": 10, "clean_epochs": 10, **_TUNING},
}


def adversarial_examples(victim: Victim, classifier: PyTorchClassifier, eps: float) -> np.ndarray:
    """
    Return untargeted adversarial examples of a victim's test images.

    :param victim: The victim.
    :param classifier: The classifier under attack: the victim's own, or a purified one.
    :param eps: The L-infinity radius, in units of `clip_values`.
    """
    return TorchAttacksPGD(classifier, eps=eps).generate(victim.dataset.x_test, victim.dataset.y_test)


def measure(victim: Victim, classifier: PyTorchClassifier, *, eps: float = DEMO_EPS) -> Row:
    """
    Return scores of one classifier, and how many of its adversarial examples get the target label.

    :param victim: The victim.
    :param classifier: The victim's own classifier, or a purified one.
    :param eps: The L-infinity radius of the adversarial examples.
    :return: Shares in [0, 1], as a part of a row.
    """
    predicted = predict_labels(classifier, adversarial_examples(victim, classifier, eps))
    return {
        **score(classifier, scored_on(victim)),
        "adversarial_eps": eps,
        "adversarial_target_share": target_share(victim.dataset.y_test, predicted, victim.labels),
    }


def demo(
    seed: int,
    *,
    attacks: Sequence[str] = DEMO_ATTACKS,
    verbose: bool = False,
    watch: Callable[[Victim, list[Row]], None] | None = None,
) -> Iterator[Row]:
    """
    Train victims on digits, scan each for its backdoor, and purify it with every defence of the demonstration.

    :param seed: The seed of everything.
    :param attacks: The attack of each victim.
    :param verbose: Whether to show progress bars.
    :param watch: Called with each victim and its rows when they are complete.
    :return: Result rows, as they are ready.
    """
    for attack in tqdm(attacks, desc="Demo", unit="victim", disable=None if verbose else True, leave=False):
        settings = VictimSettings(attack=attack, recipe=replace(DEMO_VICTIM, seed=seed), seed=seed)
        victim = train_victim(settings, verbose=verbose)
        rows = []
        for row in _rows(victim, verbose):
            rows.append(row)
            yield row
        if watch:
            watch(victim, rows)


def _rows(victim: Victim, verbose: bool) -> Iterator[Row]:
    """Return the row of a victim, with a scan of it, and one of each defence."""
    shared = {**asdict(victim.settings), "n_defender": len(victim.x_clean)}
    yield {
        **shared,
        "defence": "none",
        "settings": {},
        **measure(victim, victim.classifier),
        "seconds": None if victim.seconds is None else round(victim.seconds, 3),
        "scan": _scan(victim, verbose),
    }
    for name, settings in DEMO_DEFENCES.items():
        defence = build_defence(name, victim.classifier, settings, seed=victim.settings.seed, verbose=verbose)
        purified, facts = run_defence(defence, victim.x_clean, victim.y_clean)
        yield {**shared, "defence": name, **facts, **measure(victim, purified)}


def _scan(victim: Victim, verbose: bool) -> Row:
    """Return the result of a scan of a victim, with the defender's images."""
    scan = BackdoorScan(victim.classifier, seed=victim.settings.seed, verbose=verbose, **DEMO_SCAN)
    report = scan(victim.x_clean, victim.y_clean)
    return {
        "verdict": report.verdict,
        "targets": list(report.targets),
        "score": report.score,
        "seconds": round(report.seconds, 3),
    }
