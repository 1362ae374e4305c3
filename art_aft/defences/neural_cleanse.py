"""Neural Cleanse: find the trigger, then unlearn it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import joblib
import numpy as np
from art.data_generators import PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader

from art_aft.adversarial.inversion import Triggers, invert_triggers
from art_aft.adversarial.inversion_recipe import InversionRecipe
from art_aft.checks import check_choice, check_integer, check_number
from art_aft.classifiers.classifier import images_for
from art_aft.data.images import Images
from art_aft.defences.base import Defence, Run, register
from art_aft.defences.found_triggers import Detection, prune, unlearn
from art_aft.defences.report import PurificationReport
from art_aft.runtime.random_state import seed_for

logger = logging.getLogger(__name__)

#: The search of the authors' example for GTSRB, and the anomaly index alone.
PAPER: Mapping[str, Any] = {"steps": 1000, "images_per_step": 1000, "largest_suspect": 1.0}


@dataclass(frozen=True, kw_only=True)
class NeuralCleanseReport(PurificationReport):
    """
    What Neural Cleanse did.

    :param detection: The triggers that it found, and the labels that it suspects; None before a call.
    """

    detection: Detection | None = field(default=None, repr=False)


@register("neural_cleanse")
class NeuralCleanse(Defence):
    """
    Search the smallest trigger of every label, and unlearn those that are suspiciously small.

    A label whose trigger is far smaller than the others' is suspected. If no label is, the model is returned unchanged,
    with a warning in the log. Backdoors without a small trigger (Blend, WaNet, all-to-all) are often not found, as in
    the paper. `detect` only searches.

    `NeuralCleanse(classifier, **PAPER)` searches as the authors' example for GTSRB does, with up to 1,000 steps of
    1,000 images, and judges by the anomaly index alone.

    | Paper link: https://people.cs.uchicago.edu/~ravenben/publications/pdf/backdoor-sp19.pdf

    :param classifier: The classifier that may be infected.
    :param mitigation: "unlearning", that is fine-tuning with stamped images under their true labels, or "pruning" of
        the channels that the found trigger excites most.
    :param anomaly_threshold: The anomaly index above which a small trigger is suspicious.
    :param largest_suspect: The largest suspicious norm, as a share of the median norm, in (0, 1]. On the models of
        `examples/results/`, real triggers had at most 0.26 of the median norm, other labels at least 0.53.
    :param stamped_share: The share of the images, in (0, 1], that get a found trigger for unlearning.
    :param steps: The most steps of the search; a step is a pass over `images_per_step` images.
    :param images_per_step: Images a step of the search.
    :param inversion_batch_size: Images of every class at a time.
    :param inversion_learning_rate: The rate of the search's Adam optimizer.
    :param init_cost: The weight of the mask's norm, once the trigger works.
    :param attack_success_threshold: The share of images, in (0, 1], that a working trigger leads to its label.
    :param patience: Steps of success (or failure) in a row before the cost rises (or falls).
    :param cost_multiplier: The factor by which the cost rises; it falls by this factor to the power 1.5.
    :param early_stop_patience: Steps without improvement before the search ends.
    :param classes_at_once: Number of classes whose triggers share a batch; None is as many as memory allows.
    :param nb_epochs: Passes over the images in unlearning.
    :param batch_size: Images a step of unlearning.
    :param learning_rate: The (peak) rate of a new SGD optimizer; None continues with the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay.
    :param nesterov: Whether the momentum is Nesterov's.
    :param schedule: The learning rate over the steps: "constant", "cosine" or "one_cycle".
    :param milestones: Pairs (epoch, learning rate), from 0: that rate from that epoch on.
    :param padding: Random crops after padding by this many pixels; 0 is none. None is 4, or less on images of fewer
        than 32 pixels: an eighth of the shorter side.
    :param horizontal_flip: Whether to flip half of the images. Wrong for digits, letters and traffic signs.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER}

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        mitigation: str = "unlearning",
        anomaly_threshold: float = 2.0,
        largest_suspect: float = 0.5,
        stamped_share: float = 0.2,
        steps: int = 200,
        images_per_step: int = 256,
        inversion_batch_size: int = 32,
        inversion_learning_rate: float = 0.1,
        init_cost: float = 1e-3,
        attack_success_threshold: float = 0.99,
        patience: int = 5,
        cost_multiplier: float = 2.0,
        early_stop_patience: int = 25,
        classes_at_once: int | None = None,
        nb_epochs: int = 10,
        batch_size: int = 128,
        learning_rate: float | None = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
        schedule: str = "constant",
        milestones: tuple[tuple[int, float], ...] = (),
        padding: int | None = None,
        horizontal_flip: bool = True,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            mitigation=mitigation,
            anomaly_threshold=anomaly_threshold,
            largest_suspect=largest_suspect,
            stamped_share=stamped_share,
            steps=steps,
            images_per_step=images_per_step,
            inversion_batch_size=inversion_batch_size,
            inversion_learning_rate=inversion_learning_rate,
            init_cost=init_cost,
            attack_success_threshold=attack_success_threshold,
            patience=patience,
            cost_multiplier=cost_multiplier,
            early_stop_patience=early_stop_patience,
            classes_at_once=classes_at_once,
            nb_epochs=nb_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            schedule=schedule,
            milestones=milestones,
            padding=padding,
            horizontal_flip=horizontal_flip,
            precision=precision,
            seed=seed,
            verbose=verbose,
        )
        #: The last search, by its question: tuning the unlearning asks the same one again and again.
        self._searched: tuple[str, Triggers] | None = None

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
            seed=seed_for(self.seed, "inversion"),
        )

    def detect(self, x: np.ndarray | DataLoader | PyTorchDataGenerator | Images) -> Detection:
        """
        Search the trigger of every label. The classifier stays as it is.

        :param x: Clean images in `clip_values`, of shape (N, *input_shape), or a loader of images and labels.
        :return: The triggers, and the labels that are suspected.
        :raises ValueError: If the images do not fit the classifier.
        """
        return self._detect(self.classifier, images_for(self.classifier, x, labelled=False))

    def _detect(self, classifier: PyTorchClassifier, images: Images) -> Detection:
        weights = [value.cpu().numpy() for value in classifier.model.state_dict().values()]
        question = joblib.hash((weights, images.pixels, self._inversion()))
        if self._searched is None or self._searched[0] != question:
            self._searched = question, invert_triggers(classifier, images, self._inversion(), verbose=self.verbose)
        triggers = self._searched[1]
        return Detection(triggers, triggers.flagged(self.anomaly_threshold, self.largest_suspect))

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> NeuralCleanseReport:
        with run.stage("Detection"):
            detection = self._detect(classifier, images)
        report = NeuralCleanseReport(detection=detection)
        if not detection.flagged:
            logger.warning("Neural Cleanse suspects no label: the classifier is returned unchanged")
            return report
        with run.stage(self.mitigation.capitalize()):
            if self.mitigation == "pruning":
                prune(classifier, images, detection)
            else:
                recipe = self._recipe(seed=seed_for(self.seed, "unlearning"))
                share, watching = self.stamped_share, run.callbacks
                unlearn(classifier, images, detection, recipe, share=share, callbacks=watching, verbose=self.verbose)
        return report
