"""From settings to result rows: plant a backdoor, defend, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.defences import DEFENCES
from art_aft.detection.scan import BackdoorScan
from art_aft.experiments.victims import Infection, Row, Scene, environment, plant
from art_aft.metrics import evaluate, target_share
from art_aft.training.loop import Recipe

__all__ = ["Infection", "Row", "Scene", "adversarial_examples", "defend", "demo", "environment", "measure", "plant"]


def adversarial_examples(scene: Scene, classifier: PyTorchClassifier, eps: float) -> np.ndarray:
    """Return untargeted adversarial examples of the test images, against one of the scene's classifiers."""
    return TorchAttacksPGD(classifier, eps=eps).generate(scene.dataset.x_test, scene.dataset.y_test)


def measure(
    scene: Scene, classifier: PyTorchClassifier, *, defence: str, settings: Row, seconds: float | None, eps: float
) -> Row:
    """
    Return a result row for one classifier of a scene.

    :param scene: The scene.
    :param classifier: The infected classifier, or a purified one.
    :param defence: The defence's name, or "none".
    :param settings: The defence's settings.
    :param seconds: How long training or defence took.
    :param eps: The radius, L-infinity, of the adversarial examples whose labels are counted.
    :return: Scores as shares in [0, 1], and everything needed to measure them again.
    """
    x_test, y_test = scene.dataset.x_test, scene.dataset.y_test
    scores = evaluate(classifier, x_test, y_test, scene.attack, scene.labels)
    predicted = classifier.predict(adversarial_examples(scene, classifier, eps)).argmax(axis=1)
    infection = asdict(scene.infection)
    return {
        **infection,
        "defence": defence,
        "settings": {key: str(value) if value == np.inf else value for key, value in settings.items()},
        "n_defender": len(scene.x_clean),
        **asdict(scores),
        "adversarial_eps": eps,
        "adversarial_target_share": target_share(y_test, predicted, scene.labels),
        "seconds": None if seconds is None else round(seconds, 3),
    }


def defend(scene: Scene, name: str, *, verbose: bool = False, **settings: Any) -> tuple[PyTorchClassifier, Row, float]:
    """
    Run a defence on a scene's infected classifier.

    :param scene: The scene.
    :param name: The defence's name.
    :param verbose: Whether to show progress bars.
    :param settings: The defence's settings, where they are not its defaults.
    :return: The purified classifier, all settings of the defence, and the seconds it took.
    :raises ValueError: If the name is unknown or a setting out of range.
    """
    defence = DEFENCES[name](scene.classifier, verbose=verbose, **settings)
    start = time.perf_counter()
    purified = defence(scene.x_clean, y=scene.y_clean)
    seconds = time.perf_counter() - start
    return purified, {key: value for key, value in defence.get_params().items() if key != "verbose"}, seconds


# The demonstration: 1,080 digits train the victim, 120 are the defender's, 597 measure.
DEMO_ATTACKS = ("badnets", "blend", "sig")
DEMO_EPS = 0.1  # of the adversarial examples that are counted and shown; the defence needs less
DEMO_SCAN: Mapping[str, Any] = {"effort": "first_alarm", "max_images": 60}  # half of the defender's: it is the dearest
DEMO_VICTIM = Recipe(
    nb_epochs=20, batch_size=64, learning_rate=0.1, weight_decay=1e-4, nesterov=True, schedule="one_cycle"
)
_TUNING = {"batch_size": 32, "learning_rate": 0.02, "padding": 0, "mirror": False}
# Twenty passes over the clean images for each.
DEMO_DEFENCES: Mapping[str, Mapping[str, Any]] = {
    "fine_tuning": {"nb_epochs": 20, **_TUNING},
    "fine_pruning": {"nb_epochs": 20, **_TUNING},
    "neural_cleanse": {"nb_epochs": 20, "steps": 100, "images_per_step": 64, **_TUNING},
    "nad": {"nb_epochs": 10, "teacher_epochs": 10, **_TUNING},
    "aft": {"eps": 0.05, "nb_epochs": 10, "clean_epochs": 10, **_TUNING},
}


def demo(seed: int, *, verbose: bool = False, watch: Callable[[Scene, list[Row]], None] | None = None) -> Iterator[Row]:
    """
    Plant three backdoors in digit classifiers, look for each, and fight it with every defence of the demonstration.

    :param seed: The seed of everything.
    :param verbose: Whether to show progress bars.
    :param watch: Called with each scene and its rows when they are complete.
    :return: Result rows, as they are ready.
    """
    for attack in DEMO_ATTACKS:
        recipe = Recipe(**{**asdict(DEMO_VICTIM), "seed": seed})
        scene = plant(Infection(attack=attack, recipe=recipe, seed=seed), verbose=verbose)
        rows = [measure(scene, scene.classifier, defence="none", settings={}, seconds=scene.seconds, eps=DEMO_EPS)]
        found = BackdoorScan(scene.classifier, seed=seed, **DEMO_SCAN)(scene.x_clean, scene.y_clean)
        rows[0]["scan"] = {
            "verdict": found.verdict,
            "targets": list(found.targets),
            "score": found.score,
            "seconds": round(found.seconds, 3),
        }
        yield rows[0]
        for name, settings in DEMO_DEFENCES.items():
            purified, used, seconds = defend(scene, name, verbose=verbose, seed=seed, **settings)
            rows.append(measure(scene, purified, defence=name, settings=used, seconds=seconds, eps=DEMO_EPS))
            yield rows[-1]
        if watch:
            watch(scene, rows)
