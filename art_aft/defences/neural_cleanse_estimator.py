"""Neural Cleanse behind ART's own interface, which ART has for Keras only: a classifier with `mitigate`."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from art.estimators.poison_mitigation.neural_cleanse.neural_cleanse import NeuralCleanseMixin

from art_aft.adversarial.inversion import invert_triggers
from art_aft.adversarial.inversion_recipe import InversionRecipe
from art_aft.checks import (
    check_choice,
    check_flag,
    check_instance,
    check_labels,
    check_number,
    check_seed,
)
from art_aft.classifiers.classifier import check_classifier, clone, images_for, predict_labels
from art_aft.classifiers.layers import Head
from art_aft.data.images import Images
from art_aft.defences.found_triggers import Detection, excited_channels, prune, unlearn
from art_aft.runtime.modes import kept_modes
from art_aft.runtime.random_state import isolated_rng
from art_aft.training.recipe import Recipe

logger = logging.getLogger(__name__)

_SEARCH = ("steps", "init_cost", "norm", "learning_rate", "attack_success_threshold", "patience", "early_stop")
SETTINGS = (*_SEARCH, "early_stop_threshold", "early_stop_patience", "cost_multiplier", "batch_size")


class PyTorchNeuralCleanse(NeuralCleanseMixin, PyTorchClassifier):
    """
    A PyTorch classifier with ART's interface for Neural Cleanse, which ART itself has for Keras only.

    It corrects ART's mixin. The cost of the mask can grow. There is one mask for all channels. Every label's search
    starts anew. A median deviation of zero is no error. Unlearning stamps found triggers on images of other classes,
    which keep their true labels. Pruning stops once the trigger no longer works. Filtering compares with a quantile of
    clean activations. The triggers of all labels are searched together.

    `detection` is what the last search found.

    | Paper link: https://people.cs.uchicago.edu/~ravenben/publications/pdf/backdoor-sp19.pdf

    :param arguments: The positional arguments of `PyTorchClassifier`.
    :param steps: The most steps of the search.
    :param init_cost: The weight of the mask's norm, once the trigger works.
    :param norm: The mask's norm, 1 or 2.
    :param learning_rate: Adam's rate.
    :param attack_success_threshold: The share of images, in (0, 1], that a working trigger leads to its label.
    :param patience: Steps of success (or failure) in a row before the cost rises (or falls).
    :param early_stop: Whether to stop when the masks no longer shrink.
    :param early_stop_threshold: A norm above this share of the best one is no improvement.
    :param early_stop_patience: Steps without improvement before the end.
    :param cost_multiplier: The factor by which the cost rises; it falls by this factor to the power 1.5.
    :param batch_size: Images of every class at a time.
    :param images_per_step: Images a step.
    :param classes_at_once: Number of classes whose triggers share a batch; None is as many as memory allows.
    :param anomaly_threshold: The anomaly index above which a small trigger is suspicious.
    :param largest_suspect: The largest suspicious norm, as a share of the median norm, in (0, 1].
    :param stamped_share: The share of the images, in (0, 1], that get a found trigger for unlearning.
    :param recipe: How unlearning trains; None is ten epochs at rate 0.01.
    :param filter_quantile: The quantile of clean activations, in [0, 1], above which filtering abstains.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :param settings: The keyword arguments of `PyTorchClassifier`.
    :raises ValueError: If a number is out of its range.
    """

    estimator_params = [*PyTorchClassifier.estimator_params, *SETTINGS]

    def __init__(
        self,
        *arguments: Any,
        steps: int = 200,
        init_cost: float = 1e-3,
        norm: int = 1,
        learning_rate: float = 0.1,
        attack_success_threshold: float = 0.99,
        patience: int = 5,
        early_stop: bool = True,
        early_stop_threshold: float = 1.0,
        early_stop_patience: int = 25,
        cost_multiplier: float = 2.0,
        batch_size: int = 32,
        images_per_step: int = 256,
        classes_at_once: int | None = None,
        anomaly_threshold: float = 2.0,
        largest_suspect: float = 0.5,
        stamped_share: float = 0.2,
        recipe: Recipe | None = None,
        filter_quantile: float = 0.95,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(
            steps,
            *arguments,
            init_cost=init_cost,
            norm=norm,
            learning_rate=learning_rate,
            attack_success_threshold=attack_success_threshold,
            patience=patience,
            early_stop=early_stop,
            early_stop_threshold=early_stop_threshold,
            early_stop_patience=early_stop_patience,
            cost_multiplier=check_number("cost_multiplier", cost_multiplier),  # ART computes with it at once
            batch_size=batch_size,
            **settings,
        )
        self.cost_multiplier = cost_multiplier
        self.images_per_step, self.classes_at_once = images_per_step, classes_at_once
        self.anomaly_threshold = check_number("anomaly_threshold", anomaly_threshold)
        self.largest_suspect = check_number("largest_suspect", largest_suspect, minimum=0.0, maximum=1.0, above=True)
        self.stamped_share = check_number("stamped_share", stamped_share, minimum=0.0, maximum=1.0, above=True)
        self.filter_quantile = check_number("filter_quantile", filter_quantile, minimum=0.0, maximum=1.0)
        self.precision, self.seed = precision, check_seed("seed", seed)
        self.verbose = check_flag("verbose", verbose)
        self.recipe = Recipe(seed=seed, precision=precision) if recipe is None else recipe
        check_instance("recipe", self.recipe, Recipe, "a Recipe")
        self.detection: Detection | None = None
        self._inversion()

    @classmethod
    def from_classifier(cls, classifier: PyTorchClassifier, **settings: Any) -> PyTorchNeuralCleanse:
        """
        Return a copy of a classifier that has this interface.

        :param classifier: The classifier, which stays as it is.
        :param settings: The keyword arguments of this class.
        :raises TypeError: If it is not a `PyTorchClassifier`.
        """
        check_classifier("classifier", classifier)
        copied = clone(classifier)
        own = {name: getattr(copied, name) for name in PyTorchClassifier.estimator_params if name != "device_type"}
        wrapped = cls(**{**own, **settings}, device_type=classifier.device_type)
        wrapped._model.eval()
        return wrapped

    def set_params(self, **kwargs: Any) -> None:
        """Change settings, checked; on an error, a ValueError of an unknown or bad one, all stay as they were."""
        before = {name: getattr(self, name) for name in kwargs if name in self.estimator_params and hasattr(self, name)}
        super().set_params(**kwargs)
        try:
            self._inversion()
        except (TypeError, ValueError):
            super().set_params(**before)
            raise

    def _inversion(self) -> InversionRecipe:
        check_flag("early_stop", self.early_stop)
        check_number("attack_success_threshold", self.attack_success_threshold, minimum=0.0, maximum=1.0, above=True)
        return InversionRecipe(
            steps=self.steps,
            images_per_step=self.images_per_step,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            norm=self.norm,
            init_cost=self.init_cost,
            success=self.attack_success_threshold,
            patience=self.patience,
            cost_multiplier=self.cost_multiplier,
            early_stop_threshold=self.early_stop_threshold,
            # More steps without improvement than there are steps: never.
            early_stop_patience=self.early_stop_patience if self.early_stop else self.steps + 1,
            classes_at_once=self.classes_at_once,
            precision=self.precision,
            seed=self.seed,
        )

    def generate_backdoor(
        self, x_val: np.ndarray, y_val: np.ndarray, y_target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Search the smallest trigger that leads to one label.

        :param x_val: Clean images in `clip_values`, of shape (N, *input_shape).
        :param y_val: Their labels, as indices or one-hot.
        :param y_target: The label, as an index or one-hot.
        :return: The mask, with values in (0, 1), one for all channels, and the pattern, in `clip_values`.
        """
        label = check_labels("y_target", np.atleast_2d(y_target), nb_classes=self.nb_classes)
        images = images_for(self, x_val, y_val)
        triggers = invert_triggers(self, images, self._inversion(), labels=label.tolist(), verbose=self.verbose)
        return triggers.masks[0], triggers.patterns[0]

    def outlier_detection(self, x_val: np.ndarray, y_val: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """
        Search the triggers of all labels, together, and return the suspected ones.

        :param x_val: Clean images in `clip_values`, of shape (N, *input_shape).
        :param y_val: Their labels, as indices or one-hot.
        :return: Label, mask and pattern of each suspected label, the smallest trigger first.
        """
        found = self._detect(images_for(self, x_val, y_val))
        # One row for each label, in order.
        return [(label, found.triggers.masks[label], found.triggers.patterns[label]) for label in found.flagged]

    def _detect(self, images: Images) -> Detection:
        triggers = invert_triggers(self, images, self._inversion(), verbose=self.verbose)
        self.detection = Detection(triggers, triggers.flagged(self.anomaly_threshold, self.largest_suspect))
        return self.detection

    def backdoor_examples(self, x_val: np.ndarray, y_val: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Return, for each suspected label, the images of all other classes: clean, stamped, and their true labels.

        :param x_val: Clean images in `clip_values`, of shape (N, *input_shape).
        :param y_val: Their labels, as indices or one-hot.
        :return: Clean images, the same with the found trigger, and one-hot true labels.
        """
        images = images_for(self, x_val, y_val)
        found = self._detect(images)
        x, y = images.floats(), images.labels
        clean, stamped, labels = [x[:0]], [x[:0]], [y[:0]]
        for label in found.flagged:
            others = y != label
            clean.append(x[others])
            stamped.append(found.triggers.stamp(x[others], label))
            labels.append(y[others])
        one_hot = np.eye(self.nb_classes, dtype=np.float32)[np.concatenate(labels)]
        return np.concatenate(clean), np.concatenate(stamped).astype(np.float32), one_hot

    def check_backdoor_effective(self, backdoor_data: np.ndarray, backdoor_labels: np.ndarray) -> bool:
        """
        Return whether at least one stamped image in twenty is taken for another class than its own.

        :param backdoor_data: Stamped images.
        :param backdoor_labels: Their true labels, as indices or one-hot.
        """
        images = images_for(self, backdoor_data, backdoor_labels)
        return bool(np.mean(predict_labels(self, images.pixels) != images.labels) >= 0.05)

    def mitigate(self, x_val: np.ndarray, y_val: np.ndarray, mitigation_types: list[str]) -> None:
        """
        Search triggers and act on suspected labels, in place. Without one nothing changes, and the log has a warning.

        :param x_val: Clean images in `clip_values`, of shape (N, *input_shape).
        :param y_val: Their labels, as indices or one-hot.
        :param mitigation_types: What to do, in this order: "unlearning", "pruning" or "filtering".
        :raises ValueError: If a type is unknown, or the data do not fit.
        """
        for kind in mitigation_types:
            check_choice("mitigation_types", kind, ("unlearning", "pruning", "filtering"))
        images = images_for(self, x_val, y_val)
        found = self._detect(images)
        if not found.flagged:
            logger.warning("Neural Cleanse suspects no label: the classifier is left unchanged")
            return
        with isolated_rng():
            for kind in mitigation_types:
                if kind == "unlearning":
                    unlearn(self, images, found, self.recipe, share=self.stamped_share, verbose=self.verbose)
                elif kind == "pruning":
                    prune(self, images, found)
                else:
                    self._watch(images, found)
        self._model.eval()

    def _watch(self, images: Images, detection: Detection) -> None:
        """Have `predict` abstain where the one percent of channels that the triggers raise most is too active."""
        head = Head(self, images.pixels)
        order, _ = excited_channels(head, images, detection)
        self.top_indices = order[: max(1, head.nb_channels // 100)].tolist()
        self.activation_threshold = float(np.quantile(self._suspicion(images.pixels), self.filter_quantile))

    def _suspicion(self, x: np.ndarray) -> np.ndarray:
        return self._get_penultimate_layer_activations(x)[:, self.top_indices].mean(axis=1)

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """
        Return logits; after "filtering", zeros for an image on which the classifier abstains.

        Modes stay as they were, and so do the global generators, but for what dropout draws in training mode.

        :param x: Images in `clip_values`, of shape (N, *input_shape).
        :param batch_size: Images at a time.
        :param training_mode: Whether the model is in training mode meanwhile.
        :return: float32 of shape (N, nb_classes).
        """
        predictions = self._predict_classifier(x, batch_size, training_mode, **kwargs)
        if self.top_indices:
            predictions[self._suspicion(x) > self.activation_threshold] = self.abstain()
        return predictions

    # The mixin asks a framework for the following.
    def _predict_classifier(self, x: Any, batch_size: int = 128, training_mode: bool = False, **more: Any) -> Any:
        # ART's loader draws from torch's global generator.
        with kept_modes(self._model), nullcontext() if training_mode else isolated_rng():
            return PyTorchClassifier.predict(self, x, batch_size=batch_size, training_mode=training_mode, **more)

    def _fit_classifier(self, x: np.ndarray, y: np.ndarray, batch_size: int, nb_epochs: int, **kwargs: Any) -> None:
        PyTorchClassifier.fit(self, x, y, batch_size=batch_size, nb_epochs=nb_epochs, **kwargs)

    def _get_penultimate_layer_activations(self, x: np.ndarray) -> np.ndarray:
        images = images_for(self, x, labelled=False, in_range=False)
        return Head(self, images.pixels).activations(images.pixels)

    def _prune_neuron_at_index(self, index: int) -> None:
        Head(self, np.zeros((2, *self.input_shape), dtype=np.float32)).cut(index)
