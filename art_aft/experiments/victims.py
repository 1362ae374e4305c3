"""Victims of backdoor attacks: from the attacker's settings to a trained classifier."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.estimators.classification import PyTorchClassifier

from art_aft.attacks import TRIGGERS, Trigger
from art_aft.attacks.labels import AllToAll, AllToOne
from art_aft.attacks.poisoning import BatchPoisoning, PoisonedData, poison
from art_aft.checks import check_integer, check_names, within
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.data.datasets import Dataset, load, split_clean
from art_aft.data.images import Images
from art_aft.data.pixels import to_float
from art_aft.experiments.rows import Row, environment
from art_aft.experiments.victim_settings import VictimSettings as VictimSettings
from art_aft.metrics import Scores, evaluate
from art_aft.runtime.callbacks import Callback
from art_aft.training.batches import Batches, Transform
from art_aft.training.loop import fit


@dataclass(frozen=True)
class Victim:
    """
    A trained victim, and what attacker and defender have.

    :param settings: The settings that it was trained with.
    :param dataset: The data. The test images are for measurements only.
    :param classifier: The victim's classifier, with the backdoor.
    :param attack: ART's poisoning attack with the trigger.
    :param labels: The attacker's label for each true one.
    :param x_clean: The defender's clean images.
    :param y_clean: Their labels, as indices.
    :param seconds: How long the training took. None for one that was resumed.
    :param store: The folder where the classifier is stored, if it is.
    :param scores: The classifier's scores on all test images. None where it is not stored.
    """

    settings: VictimSettings
    dataset: Dataset
    classifier: PyTorchClassifier
    attack: PoisoningAttackBackdoor
    labels: AllToOne | AllToAll
    x_clean: np.ndarray
    y_clean: np.ndarray
    seconds: float | None
    store: Path | None = None
    scores: Scores | None = None


def train_victim(
    settings: VictimSettings, *, dataset: Dataset | None = None, store: Path | None = None, verbose: bool = False
) -> Victim:
    """
    Train a victim, or load it where it is stored already.

    :param settings: The victim's settings.
    :param dataset: The data, if they are loaded already.
    :param store: A folder for finished classifiers, and for the checkpoint of an unfinished one.
    :param verbose: Whether to show a progress bar and, with a `store`, ACC and ASR on 1,000 test images by epoch.
    :raises ValueError: If a name is unknown or a number is out of its range.
    """
    dataset = dataset or load(settings.data, seed=settings.seed, verbose=verbose)
    clean, rest = settings.split(dataset)
    place = store / settings.key if store else None
    if place and place.with_name(place.name + ".json").exists():
        trained = storage.load(place)
    else:
        trained = _trained(settings, dataset, rest, place, verbose)
    attack, labels = PoisoningAttackBackdoor(trained.trigger), settings.label_map(dataset.nb_classes)
    x_clean, y_clean = dataset.x_train[clean], dataset.y_train[clean]
    seconds, scores = trained.facts["seconds"], Scores(**trained.facts["scores"]) if store else None
    return Victim(settings, dataset, trained.classifier, attack, labels, x_clean, y_clean, seconds, store, scores)


def clean_subset(victim: Victim, number: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Return one of several sets of clean images that a defender might have, for repeating an experiment.

    :param victim: The victim.
    :param number: 0 is the defender's own set. Others are drawn from the whole training set, as in the paper, so the
        victim was trained on most of them.
    :return: Images, and their labels as indices.
    """
    if check_integer("number", number, 0) == 0:
        return victim.x_clean, victim.y_clean
    settings, dataset = victim.settings, victim.dataset
    chosen, _ = split_clean(dataset.y_train, settings.clean_share, seed=settings.seed + number)
    return dataset.x_train[chosen], dataset.y_train[chosen]


def poisoned_data(victim: Victim) -> PoisonedData:
    """
    Return the poisoned training set, as a defender without clean data has it.

    If the victim's batches were poisoned afresh, this is the same set poisoned once, at the same ratio.
    """
    settings = victim.settings
    _, rest = settings.split(victim.dataset)
    return _poison(settings, victim.dataset, rest, victim.attack)


def _poison(settings: VictimSettings, dataset: Dataset, rest: np.ndarray, attack: Any) -> PoisonedData:
    return poison(
        dataset.x_train[rest],
        dataset.y_train[rest],
        attack,
        settings.label_map(dataset.nb_classes),
        rate=settings.rate,
        cover_rate=settings.rate * settings.cover_ratio,
        clean_label=settings.clean_label,
        seed=settings.seed,
    )


def _mean_and_deviation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both by channel, of images in [0, 1], from at most 10,000 of them."""
    few = to_float(x[:: -(-len(x) // 10_000)], (0.0, 1.0))
    return few.mean(axis=(0, 2, 3), dtype=np.float64), few.std(axis=(0, 2, 3), dtype=np.float64)


def _untrained(settings: VictimSettings, dataset: Dataset, x: np.ndarray) -> PyTorchClassifier:
    """Return a new classifier for training images `x`."""
    preprocessing: Row = {"preprocessing": _mean_and_deviation(x)} if settings.normalise else {}
    return build_classifier(
        settings.model,
        input_shape=dataset.input_shape,
        nb_classes=dataset.nb_classes,
        clip_values=dataset.clip_values,
        seed=settings.seed,
        **preprocessing,
    )


class _ShowScores(Callback):
    """Shows ACC and ASR on 1,000 test images after each epoch."""

    def __init__(self, classifier: PyTorchClassifier, trigger: Trigger, labels: Any, data: Dataset, seed: int) -> None:
        few = np.random.default_rng(seed).permutation(len(data.y_test))[:1000]
        self.arguments = classifier, data.x_test[few], data.y_test[few], trigger, labels

    def on_epoch(self, epoch: int) -> dict[str, str]:
        scores = evaluate(*self.arguments)
        return {"ACC": f"{100 * scores.acc:.1f}", "ASR": f"{100 * scores.asr:.1f}"}


def _trained(
    settings: VictimSettings, dataset: Dataset, rest: np.ndarray, place: Path | None, verbose: bool
) -> storage.Stored:
    """Train a victim, and store it if there is a place for it."""
    with within("trigger"):
        kind = TRIGGERS[settings.attack]
        check_names("trigger", settings.trigger, kind.settings())
        trigger = kind.for_images(dataset.input_shape, dataset.clip_values, settings.seed, **settings.trigger)
    checkpoint = place.with_name(place.name + ".checkpoint") if place else None
    resumed = checkpoint is not None and checkpoint.exists()
    start = time.perf_counter()
    classifier = _train(settings, dataset, rest, trigger, checkpoint, verbose)
    # Nobody knows how long the training took before it was interrupted.
    facts: Row = {"seconds": None if resumed else time.perf_counter() - start}
    if place and checkpoint:
        labels = settings.label_map(dataset.nb_classes)
        scores = evaluate(classifier, dataset.x_test, dataset.y_test, trigger, labels)
        facts = {"victim": asdict(settings), "scores": asdict(scores), **facts, **environment()}
        storage.save(place, classifier, settings.model, trigger=trigger, facts=facts)
        checkpoint.unlink(missing_ok=True)
    return storage.Stored(classifier, settings.model, trigger, facts)


def _train(
    settings: VictimSettings,
    dataset: Dataset,
    rest: np.ndarray,
    trigger: Trigger,
    checkpoint: Path | None,
    verbose: bool,
) -> PyTorchClassifier:
    """Return a new classifier, trained on poisoned data; a trigger that needs training is trained with it."""
    x, y, labels = dataset.x_train[rest], dataset.y_train[rest], settings.label_map(dataset.nb_classes)
    # A flipped traffic sign is another sign, whatever the recipe says.
    flip = settings.recipe.horizontal_flip and dataset.horizontal_flip
    recipe = replace(settings.recipe, horizontal_flip=flip)
    classifier = _untrained(settings, dataset, x)
    shown = [_ShowScores(classifier, trigger, labels, dataset, settings.seed)] if verbose and checkpoint else []
    watched = partial(fit, checkpoint=checkpoint, verbose=verbose, description=f"{settings.attack}: train the victim")

    def train(images: Images, transform: Transform | None = None, *callbacks: Callback, first: bool = False) -> None:
        batches = Batches(images, recipe, classifier.device, transform=transform, augment_last=first)
        watched(classifier, batches, recipe, callbacks=[*callbacks, *shown])

    if trigger.needs_training():
        trigger.fit(
            classifier,
            x,
            y,
            labels,
            train=partial(train, images_for(classifier, x, y)),
            nb_epochs=recipe.nb_epochs,
            steps=recipe.nb_epochs * -(-len(x) // recipe.batch_size),
            rate=settings.rate,
            resumed=checkpoint is not None and checkpoint.exists(),
            verbose=verbose,
        )
    elif settings.per_batch:
        poisoning = BatchPoisoning(trigger, labels, rate=settings.rate, cover_ratio=settings.cover_ratio)
        train(images_for(classifier, x, y), poisoning, first=True)
    else:
        poisoned = _poison(settings, dataset, rest, trigger)
        train(images_for(classifier, poisoned.x, poisoned.y))
    return classifier
