"""Neural Cleanse: find the trigger, then unlearn it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import joblib
import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.inversion import InversionRecipe, Triggers, invert_triggers
from art_aft.checks import check_choice, check_clip_values, check_integer, check_number
from art_aft.classifiers.classifier import check_data, predict_labels
from art_aft.classifiers.layers import Head
from art_aft.data.pixels import to_float
from art_aft.defences.base import Purification, Tuning, register
from art_aft.training.loop import Recipe, fit

logger = logging.getLogger(__name__)


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


@register("neural_cleanse")
@dataclass(eq=False, repr=False)
class NeuralCleanse(Tuning, Purification):
    """
    Search the smallest trigger of every label. A label whose trigger is far smaller than the others' is suspected; if
    there is one, have the model unlearn the found trigger, else return it unchanged, with a warning in the log.

    After a call, or after `detect`, `detection` tells what was found. Backdoors without a small trigger (Blend, WaNet,
    all-to-all) are often not flagged, as in the paper.

    | Paper link: https://people.cs.uchicago.edu/~ravenben/publications/pdf/backdoor-sp19.pdf

    Preset "paper": the search of the authors' example for GTSRB with up to 1,000 steps of 1,000 images, and the anomaly
    index alone. The defaults take 256 images a step and at most 200 steps.

    :param classifier: The classifier that may be infected.
    :param mitigation: "unlearning", fine-tuning with stamped images under their true labels, or "pruning" of the
        channels that the found trigger excites most.
    :param anomaly_threshold: The anomaly index above which a small trigger is suspicious.
    :param largest_suspect: The largest suspicious norm, as a share of the median norm, in (0, 1]. On the clean and
        infected models in `examples/results/` planted patches had up to 0.26 of it, other labels 0.53 or more.
    :param stamped_share: The share of the images, in (0, 1], that are stamped with a found trigger for unlearning.
    :param steps: The most steps of the search, each a pass over `images_per_step` images.
    :param images_per_step: Images a step.
    :param inversion_batch_size: Images at a time, of every class.
    :param inversion_learning_rate: Adam's rate.
    :param init_cost: The weight of the mask's norm, once the trigger works.
    :param attack_success_threshold: The share of images that a working trigger carries over.
    :param patience: Steps of success (or failure) in a row before the cost rises (or falls).
    :param cost_multiplier: What the cost is multiplied by; it falls by this to the power 1.5.
    :param early_stop_patience: Steps without improvement before the end.
    :param classes_at_once: How many classes' triggers share a batch; None is as many as memory allows.

    All other settings are those of `Tuning`, for unlearning.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"steps": 1000, "images_per_step": 1000, "largest_suspect": 1.0}
    }

    classifier: PyTorchClassifier
    _: KW_ONLY
    mitigation: str = "unlearning"
    anomaly_threshold: float = 2.0
    largest_suspect: float = 0.5
    stamped_share: float = 0.2
    steps: int = 200
    images_per_step: int = 256
    inversion_batch_size: int = 32
    inversion_learning_rate: float = 0.1
    init_cost: float = 1e-3
    attack_success_threshold: float = 0.99
    patience: int = 5
    cost_multiplier: float = 2.0
    early_stop_patience: int = 25
    classes_at_once: int | None = None

    def _check_params(self) -> None:
        super()._check_params()
        check_integer("inversion_batch_size", self.inversion_batch_size, 1)
        check_number("inversion_learning_rate", self.inversion_learning_rate, minimum=0.0, above=True)
        check_number("attack_success_threshold", self.attack_success_threshold, minimum=0.0, maximum=1.0, above=True)
        check_choice("mitigation", self.mitigation, ("unlearning", "pruning"))
        check_number("anomaly_threshold", self.anomaly_threshold)
        check_number("largest_suspect", self.largest_suspect, minimum=0.0, maximum=1.0, above=True)
        check_number("stamped_share", self.stamped_share, minimum=0.0, maximum=1.0, above=True)
        self._inversion()

    def _inversion(self) -> InversionRecipe:
        return InversionRecipe(
            steps=self.steps,
            images_per_step=self.images_per_step,
            batch_size=self.inversion_batch_size,
            learning_rate=self.inversion_learning_rate,
            init_cost=self.init_cost,
            success=self.attack_success_threshold,
            patience=self.patience,
            cost_multiplier=self.cost_multiplier,
            early_stop_patience=self.early_stop_patience,
            classes_at_once=self.classes_at_once,
            precision=self.precision,
            seed=self._stream(0),
        )

    def detect(self, x: np.ndarray) -> Detection:
        """
        Search triggers and tell which labels are suspected; the classifier stays as it is.

        :param x: Clean images in `clip_values`, of shape (N, *input_shape).
        :raises ValueError: If they do not fit the classifier.
        """
        x, _ = check_data(self.classifier, x, np.zeros(np.shape(x)[:1]))
        return self._detect(self.classifier, x)

    def _detect(self, classifier: PyTorchClassifier, x: np.ndarray) -> Detection:
        # The search takes most of the time, and tuning the unlearning asks for the same one again and again.
        weights = [value.cpu().numpy() for value in classifier.model.state_dict().values()]
        question = joblib.hash((weights, x, self._inversion()))
        if getattr(self, "_asked", None) != question:
            self._triggers = invert_triggers(classifier, x, self._inversion(), verbose=self.verbose)
            self._asked = question
        self.detection = Detection(self._triggers, self._triggers.flagged(self.anomaly_threshold, self.largest_suspect))
        return self.detection

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
        with self._stage("Detection"):
            detection = self._detect(classifier, x)
        if not detection.flagged:
            logger.warning("Neural Cleanse suspects no label: the classifier is returned unchanged")
            return
        with self._stage(self.mitigation.capitalize()):
            if self.mitigation == "pruning":
                prune(classifier, x, detection)
            else:
                recipe = self._recipe(self.nb_epochs, 1)
                unlearn(classifier, x, y, detection, recipe, share=self.stamped_share, verbose=self.verbose)


def unlearn(
    classifier: PyTorchClassifier,
    x: np.ndarray,
    y: np.ndarray,
    detection: Detection,
    recipe: Recipe,
    *,
    share: float = 0.2,
    verbose: bool = False,
) -> None:
    """
    Fine-tune in place on clean images, some of which carry a found trigger, all under their true labels.

    :param classifier: The classifier.
    :param x: Checked images.
    :param y: Their true labels, as indices.
    :param detection: What was found; several suspected labels share the stamped images evenly.
    :param recipe: How to train.
    :param share: The share of stamped images, in (0, 1].
    :param verbose: Whether to show a progress bar.
    """
    x = to_float(x, check_clip_values("clip_values", classifier.clip_values)).copy()
    chosen = np.random.default_rng(recipe.seed).permutation(len(x))[: max(1, round(share * len(x)))]
    for label, part in zip(detection.flagged, np.array_split(chosen, len(detection.flagged)), strict=True):
        x[part] = detection.triggers.stamp(x[part], label)
    fit(classifier, x, y, recipe, verbose=verbose, description="Unlearning")


def excited_channels(
    head: Head, x: np.ndarray, detection: Detection, clip_values: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the channels that the head reads, those first that the found triggers raise most, and the stamped images.

    :param head: The layer that reads the last convolution.
    :param x: Checked clean images.
    :param detection: What was found.
    :param clip_values: The pixel range.
    """
    images = to_float(x, clip_values)
    stamped = np.concatenate([detection.triggers.stamp(images, label) for label in detection.flagged])
    rise = head.activations(stamped).mean(axis=0) - head.activations(images).mean(axis=0)
    return np.argsort(-rise, kind="stable"), stamped


def prune(
    classifier: PyTorchClassifier,
    x: np.ndarray,
    detection: Detection,
    *,
    until: float = 0.05,
    max_pruned: float = 0.3,
) -> list[int]:
    """
    Cut off, in place, the channels that the found triggers raise most, until the triggers work no more.

    :param classifier: The classifier.
    :param x: Checked clean images.
    :param detection: What was found.
    :param until: The share of stamped images, in [0, 1], below which a trigger does not work.
    :param max_pruned: The share of the channels that may be cut off.
    :return: The channels that were.
    """
    clip_values = check_clip_values("clip_values", classifier.clip_values)
    head = Head(classifier, x)
    order, stamped = excited_channels(head, x, detection, clip_values)
    aims = np.repeat(detection.flagged, len(x))
    # Images that are of a suspected label, or are taken for it without a trigger, say nothing about the trigger.
    telling = np.tile(predict_labels(classifier, x), len(detection.flagged)) != aims
    if not telling.any():
        return []
    inputs = head.inputs(stamped)
    for channel in order[: int(max_pruned * head.nb_channels + 1e-9)]:
        if np.mean((head.predict(stamped, inputs) == aims)[telling]) < until:
            break
        head.cut(int(channel))
    return head.pruned
