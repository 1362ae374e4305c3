"""Infected models at will: from the attacker's settings to a trained classifier."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.estimators.classification import PyTorchClassifier

from art_aft.attacks import PERTURBATIONS
from art_aft.attacks.labels import AllToAll, AllToOne
from art_aft.attacks.poisoning import BatchPoisoning, PoisonedData, poison
from art_aft.checks import check_choice, check_integer
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier
from art_aft.data.datasets import Dataset, load, split_clean
from art_aft.data.pixels import to_float
from art_aft.metrics import Scores, evaluate
from art_aft.training.loop import Recipe, fit

Row = dict[str, Any]

# Input-aware's mask generator finds small masks within some 150 steps; before that its evaluation mode is far from
# its training mode, and masks may cover the whole image.
MASK_STEPS = 500


def environment() -> Row:
    """Return what a result depends on beside its settings: versions, machine, device."""
    packages = ("art-aft", "adversarial-robustness-toolbox", "numpy", "scikit-learn", "torch", "torchattacks")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True)
class Infection:
    """
    The attacker's side of an experiment: everything that decides what the infected model is.

    :param attack: The attack's name.
    :param data: The data set's name or path.
    :param model: The model's name.
    :param labels: "all-to-one" or "all-to-all".
    :param target: The attacker's label, all-to-one.
    :param rate: The poisoning ratio, in [0, 1]; 0 makes a benign model.
    :param clean_share: The share of the training set that the defender has; the model is trained on the rest.
    :param recipe: How the model is trained.
    :param per_batch: Whether every batch is poisoned afresh, else a set is poisoned once.
    :param cover_ratio: How many cover images for each poisoned one, for attacks that have them.
    :param clean_label: Whether only images of the target class are poisoned, and keep their label.
    :param trigger: Settings of the trigger, where they are not its defaults, such as {"ratio": 0.1}; JSON values.
    :param normalise: Whether the classifier reduces pixels by their mean and deviation over the training images, by
        channel, as the releases of WaNet and Input-aware do on CIFAR-10.
    :param seed: The seed of the split, the poisoning, the weights and the training.
    """

    attack: str
    data: str = "digits"
    model: str = "wrn-10-1"
    labels: str = "all-to-one"
    target: int = 0
    rate: float = 0.1
    clean_share: float = 0.1
    recipe: Recipe = field(default_factory=Recipe)
    per_batch: bool = False
    cover_ratio: float = 0.0
    clean_label: bool = False
    trigger: Mapping[str, Any] = field(default_factory=dict)
    normalise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("labels", self.labels, ("all-to-one", "all-to-all"))

    def label_map(self, nb_classes: int) -> AllToOne | AllToAll:
        """Return what a triggered image should become."""
        return AllToAll(nb_classes) if self.labels == "all-to-all" else AllToOne(self.target)

    @property
    def benign(self) -> Infection:
        """The same without a backdoor."""
        return replace(
            self, attack="badnets", rate=0.0, per_batch=False, cover_ratio=0.0, clean_label=False, trigger={}
        )

    @property
    def key(self) -> str:
        """A name for files: readable, and different for different settings."""
        facts = {**asdict(self), "data": Path(self.data).name}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{facts['data']}-{self.model}-{self.attack}-{self.labels}-{self.rate:g}-{digest}"


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
    :param seconds: How long the training took; None for one that was interrupted.
    :param store: Where the classifier is stored, if it is.
    :param scores: The infected classifier's on all test images; None where it is not stored.
    """

    infection: Infection
    dataset: Dataset
    classifier: PyTorchClassifier
    attack: PoisoningAttackBackdoor
    labels: AllToOne | AllToAll
    x_clean: np.ndarray
    y_clean: np.ndarray
    seconds: float | None
    store: Path | None = None
    scores: Scores | None = None


def plant(
    infection: Infection, *, dataset: Dataset | None = None, store: Path | None = None, verbose: bool = False
) -> Scene:
    """
    Train an infected classifier, or find it stored.

    :param infection: What to plant.
    :param dataset: The data, where they are loaded already.
    :param store: A folder for finished classifiers and for the checkpoint of an unfinished one.
    :param verbose: Whether to show a progress bar, with ACC and ASR of each epoch on 1,000 test images.
    :raises ValueError: If a name is unknown or a number out of range.
    """
    dataset = dataset or load(infection.data, seed=infection.seed, verbose=verbose)
    labels = infection.label_map(dataset.nb_classes)
    clean, rest = split_clean(dataset.y_train, infection.clean_share, seed=infection.seed)
    place = store / infection.key if store else None
    scores = None
    if place and place.with_name(place.name + ".json").exists():
        stored = storage.load(place)
        attack, classifier, seconds = stored.trigger, stored.classifier, stored.facts["seconds"]
        scores = Scores(**stored.facts["scores"])
    else:
        attack = PERTURBATIONS[infection.attack](**_trigger_settings(infection, dataset))
        resumed = place is not None and _checkpoint(place).exists()
        start = time.perf_counter()
        classifier = _train(infection, dataset, rest, attack, labels, place, verbose)
        # Of a run that went on from a checkpoint nobody knows how long it took.
        seconds = None if resumed else time.perf_counter() - start
        if place:
            scores = evaluate(classifier, dataset.x_test, dataset.y_test, attack, labels)
            facts = {"infection": asdict(infection), "scores": asdict(scores), "seconds": seconds, **environment()}
            storage.save(place, classifier, infection.model, trigger=attack, facts=facts)
            _checkpoint(place).unlink(missing_ok=True)
    return Scene(
        infection,
        dataset,
        classifier,
        PoisoningAttackBackdoor(attack),
        labels,
        dataset.x_train[clean],
        dataset.y_train[clean],
        seconds,
        store,
        scores,
    )


def clean_subset(scene: Scene, number: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Return one of several sets of clean images that a defender might have, for repeating an experiment.

    :param scene: The scene.
    :param number: 0 is the scene's own, which the victim was not trained on. Others are drawn from the whole training
        set, as in the paper, so that the victim has seen most of them.
    :return: Images and label indices.
    """
    if check_integer("number", number, 0) == 0:
        return scene.x_clean, scene.y_clean
    infection, dataset = scene.infection, scene.dataset
    chosen, _ = split_clean(dataset.y_train, infection.clean_share, seed=infection.seed + number)
    return dataset.x_train[chosen], dataset.y_train[chosen]


def poisoned_data(scene: Scene) -> PoisonedData:
    """
    Return the training set with the backdoor in it, as a defender without clean data has it.

    For victims that were poisoned afresh in every batch, it is a set poisoned once at the same ratio.
    """
    _, rest = split_clean(scene.dataset.y_train, scene.infection.clean_share, seed=scene.infection.seed)
    return _poison(scene.infection, scene.dataset, rest, scene.attack, scene.labels)


def _poison(
    infection: Infection, dataset: Dataset, rest: np.ndarray, attack: Any, labels: AllToOne | AllToAll
) -> PoisonedData:
    return poison(
        dataset.x_train[rest],
        dataset.y_train[rest],
        attack,
        labels,
        rate=infection.rate,
        cover_rate=infection.rate * infection.cover_ratio,
        clean_label=infection.clean_label,
        seed=infection.seed,
    )


def _checkpoint(place: Path) -> Path:
    return place.with_name(place.name + ".checkpoint")


def _trigger_settings(infection: Infection, dataset: Dataset) -> Row:
    """Return the settings of the trigger: those that depend on the images, and the infection's own."""
    if infection.attack != "input_aware":
        return {"clip_values": dataset.clip_values, **infection.trigger}
    channels, side = dataset.input_shape[0], dataset.input_shape[1]
    sizes = {} if side % 8 == 0 else {"base_width": 16, "levels": 2}
    return {
        "clip_values": dataset.clip_values,
        "in_channels": channels,
        "seed": infection.seed,
        **sizes,
        **infection.trigger,
    }


def _mean_and_deviation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both by channel, of images in [0, 1], from at most 10,000 of them."""
    few = to_float(x[:: -(-len(x) // 10_000)], (0.0, 1.0))
    return few.mean(axis=(0, 2, 3), dtype=np.float64), few.std(axis=(0, 2, 3), dtype=np.float64)


def _train(
    infection: Infection,
    dataset: Dataset,
    rest: np.ndarray,
    attack: Any,
    labels: AllToOne | AllToAll,
    place: Path | None,
    verbose: bool,
) -> PyTorchClassifier:
    """Return a fresh classifier, trained on the poisoned data."""
    x, y = dataset.x_train[rest], dataset.y_train[rest]
    # A mirrored traffic sign is another sign, whatever the recipe says.
    recipe = replace(infection.recipe, mirror=infection.recipe.mirror and dataset.mirror)
    settings: Row = {
        "verbose": verbose,
        "description": f"{infection.attack}: train the victim",
        "checkpoint": _checkpoint(place) if place else None,
    }
    reduction: Row = {"preprocessing": _mean_and_deviation(x)} if infection.normalise else {}
    classifier = build_classifier(
        infection.model,
        input_shape=dataset.input_shape,
        nb_classes=dataset.nb_classes,
        clip_values=dataset.clip_values,
        seed=infection.seed,
        **reduction,
    )
    if verbose and place:
        few = np.random.default_rng(infection.seed).permutation(len(dataset.y_test))[:1000]

        def watch(_: int) -> dict[str, str]:
            scores = evaluate(classifier, dataset.x_test[few], dataset.y_test[few], attack, labels)
            return {"ACC": f"{100 * scores.acc:.1f}", "ASR": f"{100 * scores.asr:.1f}"}

        settings["after_epoch"] = watch
    if hasattr(attack, "fit"):
        steps = recipe.nb_epochs * -(-len(x) // recipe.batch_size)
        mask_epochs = max(2, recipe.nb_epochs // 4, math.ceil(MASK_STEPS / max(1, len(x) // 128)))
        attack.fit(
            classifier,
            x,
            y,
            labels,
            train=partial(fit, recipe=recipe, **settings),
            steps=steps,
            rate=infection.rate,
            # A checkpoint has the masks in it.
            mask_epochs=0 if place and _checkpoint(place).exists() else mask_epochs,
            verbose=verbose,
        )
    elif infection.per_batch:
        poisoning = BatchPoisoning(attack, labels, rate=infection.rate, cover_ratio=infection.cover_ratio)
        fit(classifier, x, y, recipe, each_batch=poisoning, augment_last=True, **settings)
    else:
        planted = _poison(infection, dataset, rest, attack, labels)
        fit(classifier, planted.x, planted.y, recipe, **settings)
    return classifier
