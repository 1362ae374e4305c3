"""What Neural Cleanse does about triggers that it found: unlearning and pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.inversion import Triggers
from art_aft.checks import whole
from art_aft.classifiers.classifier import predict_labels
from art_aft.classifiers.layers import Head
from art_aft.data.images import Images
from art_aft.runtime.callbacks import Callback
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe


@dataclass(frozen=True)
class Detection:
    """
    What Neural Cleanse found.

    :param triggers: A trigger for each label, with its norm.
    :param flagged: The suspected labels, the smallest trigger first; empty for a model that looks clean.
    """

    triggers: Triggers
    flagged: list[int]

    def __str__(self) -> str:
        found = self.triggers
        lines = []
        for label, norm, index in zip(found.labels, found.norms, found.anomaly_indices, strict=True):
            mark = " (suspected)" if label in self.flagged else ""
            lines.append(f"label {label}: norm {norm:.1f}, anomaly index {index:.1f}{mark}")
        return "\n".join(lines)


def unlearn(
    classifier: PyTorchClassifier,
    images: Images,
    detection: Detection,
    recipe: Recipe,
    *,
    share: float = 0.2,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
) -> None:
    """
    Fine-tune in place on clean images, some of them with a found trigger, all under their true labels.

    :param classifier: The classifier.
    :param images: The images, with labels.
    :param detection: What was found. Several suspected labels share the stamped images evenly.
    :param recipe: How to train.
    :param share: The share of stamped images, in (0, 1].
    :param callbacks: What watches the training.
    :param verbose: Whether to show a progress bar.
    """
    x = images.floats().copy()
    chosen = np.random.default_rng(recipe.seed).permutation(len(x))[: max(1, round(share * len(x)))]
    for label, part in zip(detection.flagged, np.array_split(chosen, len(detection.flagged)), strict=True):
        x[part] = detection.triggers.stamp(x[part], label)
    batches = Batches(replace(images, pixels=x), recipe, classifier.device)
    fit(classifier, batches, recipe, callbacks=callbacks, verbose=verbose, description="Unlearning")


def excited_channels(head: Head, images: Images, detection: Detection) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the channels that the head reads, those first that the found triggers raise most, and the stamped images.

    :param head: The layer that reads the last convolution.
    :param images: Clean images.
    :param detection: What was found.
    """
    x = images.floats()
    stamped = np.concatenate([detection.triggers.stamp(x, label) for label in detection.flagged])
    rise = head.activations(stamped).mean(axis=0) - head.activations(x).mean(axis=0)
    return np.argsort(-rise, kind="stable"), stamped


def prune(
    classifier: PyTorchClassifier,
    images: Images,
    detection: Detection,
    *,
    until: float = 0.05,
    max_pruned: float = 0.3,
) -> list[int]:
    """
    Cut off, in place, the channels that the found triggers raise most, until the triggers no longer work.

    :param classifier: The classifier.
    :param images: Clean images.
    :param detection: What was found.
    :param until: The share of stamped images, in [0, 1], below which a trigger does not work.
    :param max_pruned: The share of the channels that may be cut off.
    :return: The channels that were cut off.
    """
    head = Head(classifier, images.pixels)
    order, stamped = excited_channels(head, images, detection)
    aims = np.repeat(detection.flagged, len(images))
    # Images that get a suspected label without a trigger, too, do not count: they are no evidence.
    telling = np.tile(predict_labels(classifier, images.pixels), len(detection.flagged)) != aims
    if not telling.any():
        return []
    inputs = head.inputs(stamped)
    for channel in order[: whole(max_pruned * head.nb_channels)]:
        if np.mean((head.predict(stamped, inputs) == aims)[telling]) < until:
            break
        head.cut(int(channel))
    return head.pruned
