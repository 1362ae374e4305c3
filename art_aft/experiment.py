"""From settings to result rows: plant a backdoor, defend, measure."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.estimators.classification import PyTorchClassifier

from art_aft.classifier import build_classifier
from art_aft.datasets import Dataset, load, split_clean
from art_aft.defences import DEFENCES
from art_aft.evasion import TorchAttacksPGD
from art_aft.metrics import evaluate, target_share
from art_aft.perturbations import PERTURBATIONS
from art_aft.poisoning import AllToOne, poison
from art_aft.training import Recipe, fit

Row = dict[str, Any]


@dataclass(frozen=True)
class Infection:
    """
    The attacker's side of an experiment: everything that decides what the infected model is.

    :param attack: The attack's name.
    :param data: The data set's name.
    :param model: The model's name.
    :param target: The attacker's label, all-to-one.
    :param rate: The poisoning ratio, in [0, 1].
    :param clean_share: The share of the training set that the defender has; the model is trained on the rest.
    :param recipe: How the model is trained.
    :param seed: The seed of the split, the poisoning, the weights and the training.
    """

    attack: str
    data: str = "digits"
    model: str = "wrn-10-1"
    target: int = 0
    rate: float = 0.1
    clean_share: float = 0.1
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """
    An infected model, and what attacker and defender hold.

    :param infection: What it was made from.
    :param dataset: The data; its test images are only measured on.
    :param classifier: The infected classifier.
    :param attack: ART's poisoning attack with the trigger.
    :param labels: What a triggered image should become.
    :param x_clean: The defender's images.
    :param y_clean: Their labels, as indices.
    :param seconds: How long the training took.
    """

    infection: Infection
    dataset: Dataset
    classifier: PyTorchClassifier
    attack: PoisoningAttackBackdoor
    labels: AllToOne
    x_clean: np.ndarray
    y_clean: np.ndarray
    seconds: float


def plant(infection: Infection, *, verbose: bool = False) -> Scene:
    """
    Train an infected classifier.

    :param infection: What to plant.
    :param verbose: Whether to show a progress bar.
    :raises ValueError: If a name is unknown or a number out of range.
    """
    attack = PoisoningAttackBackdoor(PERTURBATIONS[infection.attack]())
    labels = AllToOne(infection.target)
    dataset = load(infection.data, seed=infection.seed)
    clean, rest = split_clean(dataset.y_train, infection.clean_share, seed=infection.seed)
    planted = poison(
        dataset.x_train[rest], dataset.y_train[rest], attack, labels, rate=infection.rate, seed=infection.seed
    )
    classifier = build_classifier(
        infection.model,
        input_shape=dataset.input_shape,
        nb_classes=dataset.nb_classes,
        clip_values=dataset.clip_values,
        seed=infection.seed,
    )
    start = time.perf_counter()
    fit(
        classifier,
        planted.x,
        planted.y,
        infection.recipe,
        verbose=verbose,
        description=f"{infection.attack}: train the victim",
    )
    seconds = time.perf_counter() - start
    return Scene(
        infection,
        dataset,
        classifier,
        attack,
        labels,
        dataset.x_train[clean],
        dataset.y_train[clean],
        seconds,
    )


def environment() -> Row:
    """Return what a result depends on beside its settings: versions, machine, device."""
    packages = ("art-aft", "adversarial-robustness-toolbox", "numpy", "scikit-learn", "torch", "torchattacks")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def adversarial_examples(scene: Scene, classifier: PyTorchClassifier, eps: float) -> np.ndarray:
    """Return untargeted adversarial examples of the test images, against one of the scene's classifiers."""
    return TorchAttacksPGD(classifier, eps=eps).generate(scene.dataset.x_test, scene.dataset.y_test)


def measure(
    scene: Scene, classifier: PyTorchClassifier, *, defence: str, settings: Row, seconds: float, eps: float
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
        "labels": "all-to-one",
        "defence": defence,
        "settings": {key: str(value) if value == np.inf else value for key, value in settings.items()},
        "n_defender": len(scene.x_clean),
        **asdict(scores),
        "adversarial_eps": eps,
        "adversarial_target_share": target_share(y_test, predicted, scene.labels),
        "seconds": round(seconds, 3),
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
DEMO_EPS = 0.05
DEMO_VICTIM = Recipe(
    nb_epochs=25, batch_size=64, learning_rate=0.1, weight_decay=1e-4, nesterov=True, schedule="one_cycle"
)
_TUNING = {"batch_size": 32, "learning_rate": 0.02, "padding": 0, "mirror": False}
DEMO_DEFENCES: Mapping[str, Mapping[str, Any]] = {
    "fine_tuning": {"nb_epochs": 20, **_TUNING},
    "aft": {"eps": DEMO_EPS, "nb_epochs": 10, "clean_epochs": 10, **_TUNING},
}


def demo(seed: int, *, verbose: bool = False, watch: Callable[[Scene, list[Row]], None] | None = None) -> Iterator[Row]:
    """
    Plant three backdoors in digit classifiers, and fight each with every defence of the demonstration.

    :param seed: The seed of everything.
    :param verbose: Whether to show progress bars.
    :param watch: Called with each scene and its rows when they are complete.
    :return: Result rows, as they are ready.
    """
    for attack in DEMO_ATTACKS:
        recipe = Recipe(**{**asdict(DEMO_VICTIM), "seed": seed})
        scene = plant(Infection(attack=attack, recipe=recipe, seed=seed), verbose=verbose)
        rows = [measure(scene, scene.classifier, defence="none", settings={}, seconds=scene.seconds, eps=DEMO_EPS)]
        yield rows[-1]
        for name, settings in DEMO_DEFENCES.items():
            purified, used, seconds = defend(scene, name, verbose=verbose, seed=seed, **settings)
            rows.append(measure(scene, purified, defence=name, settings=used, seconds=seconds, eps=DEMO_EPS))
            yield rows[-1]
        if watch:
            watch(scene, rows)
