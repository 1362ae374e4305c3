"""What every defence is, and what the base class does for it."""

from __future__ import annotations

import abc
import dataclasses
import inspect
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.data_generators import PyTorchDataGenerator
from art.defences.transformer import Transformer
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader

from art_aft.checks import check_flag
from art_aft.classifiers.bar import Judgement, how_many, judge
from art_aft.classifiers.classifier import (
    check_classifier,
    check_fits,
    check_outputs,
    clone,
    images_for,
    predict_labels,
)
from art_aft.classifiers.pixel_module import not_compiled
from art_aft.data.images import Images
from art_aft.defences.report import PurificationReport, Stage
from art_aft.registry import Registry
from art_aft.runtime.callbacks import Callback
from art_aft.runtime.processes import check_same, from_first, number_of_first, world
from art_aft.runtime.random_state import isolated_rng
from art_aft.training.augmentation import default_padding
from art_aft.training.optimizers import counted_steps
from art_aft.training.recipe import Recipe

logger = logging.getLogger(__name__)

# Images, drawn at random, on which a classifier's accuracy is judged.
_JUDGED = 1000


class Run:
    """
    One call of a defence: times its stages, and tells a callback of them.

    :param callback: What watches the call; None is nobody.
    """

    def __init__(self, callback: Callback | None = None) -> None:
        self.callbacks: Sequence[Callback] = () if callback is None else (callback,)
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of the work; the report lists it under this name."""
        for callback in self.callbacks:
            callback.on_stage(name)
        start = time.perf_counter()
        yield
        self.stages.append(Stage(name, time.perf_counter() - start))


class Defence(Transformer):
    """
    A defence that removes a backdoor from a trained classifier.

    A subclass has an `__init__` with explicit keyword arguments, its settings, which it hands to this one by name. It
    checks them in `_check_params` and purifies in `_purify`. Settings that `Recipe` has, too, are checked here.

    After a call, `report` tells what was done and found.

    :param classifier: The classifier that may be infected: ART's `PyTorchClassifier` on images, with `clip_values`.
    :param settings: The settings of the subclass.
    :raises TypeError: If the classifier or a setting is of another type.
    :raises ValueError: If the classifier has no pixel range, or a setting is out of its range.
    """

    if TYPE_CHECKING:  # settings are attributes whose names and types stand in the signature of `__init__`

        def __getattr__(self, name: str) -> Any: ...

    #: Names of the settings, from the signature of `__init__`.
    params: ClassVar[list[str]] = []
    #: Sets of settings by name, such as "paper", for the command line.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = inspect.signature(cls.__init__).parameters.values()
        cls.params = [p.name for p in known if p.kind is not p.VAR_KEYWORD and p.name not in ("self", "classifier")]

    def __init__(self, classifier: PyTorchClassifier, **settings: Any) -> None:
        check_classifier("classifier", classifier)
        super().__init__(classifier=classifier)
        self._is_fitted = True
        self.report: PurificationReport | None = None
        for name, value in settings.items():
            setattr(self, name, value)
        self._check_params()

    def __call__(
        self,
        x: np.ndarray | DataLoader | PyTorchDataGenerator | Images,
        transformed_classifier: PyTorchClassifier | None = None,
        y: np.ndarray | None = None,
        *,
        callback: Callback | None = None,
    ) -> PyTorchClassifier:
        """
        Return a purified classifier, in evaluation mode.

        :param x: The defender's images, in `clip_values`, of shape (N, *input_shape): an array (a mapped one stays on
            the disk), or a loader of images and labels. A loader is read once into a temporary file, so that memory
            does not grow with the number of images.
        :param transformed_classifier: None purifies a copy of the classifier, which stays as it is. A given one is
            purified itself, from its own weights, and returned.
        :param y: The images' labels, as indices or one-hot; None with a loader.
        :param callback: Watches stages, steps and epochs.
        :return: The purified classifier.
        :raises ValueError: If the data do not fit the classifier, or nothing could be told from them (one class alone,
            no image that the classifier gets right); the model returns neither logits nor probabilities, has no
            parameter that can be trained or cannot be copied; or data or settings differ between processes that work
            together.
        """
        if callback is not None and not isinstance(callback, Callback):
            raise TypeError(f"callback: got {type(callback).__name__}, expected art_aft.runtime.callbacks.Callback")
        if transformed_classifier is not None:
            check_fits("transformed_classifier", transformed_classifier, self.classifier)
        given = self.classifier if transformed_classifier is None else transformed_classifier
        images = images_for(given, x, y)
        remarks = check_outputs(given, images, trained=self._trains(), batch_size=self.get_params().get("batch_size"))
        if getattr(self, "learning_rate", 0.0) is None and given.optimizer is None:
            raise ValueError("learning_rate: got None for a classifier without an optimizer, expected one of the two")
        check_same(given.device, x=images.pixels, y=images.labels, settings=self._settings_in_words())
        judgement = _judged(given, images)
        purified = clone(self.classifier) if transformed_classifier is None else transformed_classifier
        report = self.run_within(purified, images, callback)
        accepted = report.accepted and judgement.trusted
        notes = (*judgement.notes, *report.notes)
        self.report = dataclasses.replace(
            report, accepted=accepted, notes=notes, images_trusted=judgement.trusted, remarks=remarks
        )
        return purified

    def run_within(
        self, classifier: PyTorchClassifier, images: Images, callback: Callback | None = None
    ) -> PurificationReport:
        """
        Purify a classifier in place as a part of another defence, which has checked classifier and images.

        :param classifier: The classifier to change.
        :param images: Checked images with labels.
        :param callback: Watches stages, steps and epochs.
        :return: The report, which is `report` too.
        """
        before = [tensor.detach().clone() for tensor in _state(classifier)]
        start, run = time.perf_counter(), Run(callback)
        with isolated_rng(), not_compiled(classifier), counted_steps(classifier) as steps:
            found = self._purify(classifier, images, run) or PurificationReport()
        # Across processes all return the same classifier, also where each has worked and rounded for itself.
        from_first(_state(classifier))
        classifier.model.eval()
        changed = not all(map(torch.equal, before, _state(classifier)))
        if not changed and steps:
            logger.warning("%s trained, but changed no weights of the classifier", type(self).__name__)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in _state(classifier))
        notes = found.notes
        if not finite:
            notes += (f"{type(self).__name__} diverged: weights are NaN or infinite, try a lower learning rate",)
            logger.warning("%s", notes[-1])
        self.report = dataclasses.replace(
            found,
            accepted=found.accepted and finite,
            finite=finite,
            notes=notes,
            settings=self.get_params(),
            n_images=len(images),
            stages=tuple(run.stages),
            seconds=time.perf_counter() - start,
            changed=changed,
        )
        return self.report

    @abc.abstractmethod
    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> PurificationReport | None:
        """
        Purify a classifier in place.

        :param classifier: The classifier to change.
        :param images: The defender's images and labels.
        :param run: Times stages; its callbacks go to `fit`.
        :return: What was found, as a report whose settings, stages and times are filled in afterwards; None is nothing.
        """

    def _settings_in_words(self) -> str:
        """Return the settings as text that is the same in all processes; some of ART's attacks cannot be printed."""
        if world().size == 1:
            return ""
        return repr(
            {
                name: {key: getattr(value, key) for key in value.attack_params if key != "verbose"}
                if isinstance(value, EvasionAttack)
                else value
                for name, value in self.get_params().items()
            }
        )

    def _trains(self) -> bool:
        """Return whether the settings ask for training: there is no number of epochs, or one above 0."""
        epochs = [value for name, value in self.get_params().items() if name.endswith("epochs")]
        return not epochs or any(epochs)

    def _check_params(self) -> None:
        """Check the settings; change nothing."""
        super()._check_params()
        if hasattr(self, "verbose"):
            check_flag("verbose", self.verbose)
        self._recipe()

    def _recipe(self, **changes: Any) -> Recipe:
        """Return how this defence fine-tunes, from those of its settings that a recipe has."""
        names = [field.name for field in dataclasses.fields(Recipe)]
        own = {name: getattr(self, name) for name in names if hasattr(self, name)}
        if own.get("padding", 0) is None:
            own["padding"] = default_padding(self.classifier.input_shape)
        return Recipe(**{**own, **changes})

    def fit(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> None:
        """No parameters to learn for this method; do nothing."""

    def get_params(self) -> dict[str, Any]:
        """Return all settings by name."""
        return {name: getattr(self, name) for name in self.params}

    def set_params(self, **kwargs: Any) -> None:
        """
        Change settings, checked; on an error all stay as they were. The report of the last call stays.

        :raises ValueError: If a setting is unknown (ART would drop it in silence) or out of range.
        """
        unknown = sorted(set(kwargs) - set(self.params))
        if unknown:
            raise ValueError(f"unknown parameter {unknown[0]!r}, expected one of: {', '.join(self.params)}")
        before = {name: getattr(self, name) for name in kwargs}
        try:
            super().set_params(**kwargs)
        except (TypeError, ValueError):
            self.__dict__.update(before)
            raise


def _state(classifier: PyTorchClassifier) -> list[torch.Tensor]:
    return [*classifier.model.parameters(), *classifier.model.buffers()]


def _judged(classifier: PyTorchClassifier, images: Images) -> Judgement:
    """Judge images by the classifier before purification, log what speaks against them, and refuse hopeless ones."""
    nb_classes = classifier.nb_classes
    some = images_for(classifier, images, max_images=max(_JUDGED, how_many(nb_classes)))
    accuracy = float(np.mean(predict_labels(classifier, some.pixels) == some.labels))
    # Processes that round differently must not go apart.
    judgement = judge(images.labels, number_of_first(accuracy, classifier.device), len(some), nb_classes)
    if judgement.hopeless:
        raise ValueError(f"x: got {judgement.hopeless}")
    for note in judgement.notes:
        logger.warning("%s", note)
    return judgement


DEFENCES: Registry[type[Defence]] = Registry("defence", group="art_aft.defences")
register = DEFENCES.register

#: The released configuration of Neural Attention Distillation, which the paper's rivals were run with.
NAD_RELEASE: Mapping[str, Any] = {
    "nb_epochs": 10,
    "batch_size": 64,
    "learning_rate": 0.1,
    "milestones": ((2, 0.01),),
    "weight_decay": 1e-4,
    "nesterov": True,
}
