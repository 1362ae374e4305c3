"""What all defences share: data and a classifier go in, a purified classifier comes out."""

from __future__ import annotations

import abc
import inspect
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from art.data_generators import PyTorchDataGenerator
from art.defences.transformer import Transformer
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader

from art_aft.checks import check_choice, check_flag
from art_aft.classifiers.classifier import check_classifier, clone, load_data
from art_aft.defences.report import PurificationReport, Stage
from art_aft.registry import Registry
from art_aft.runtime.processes import check_same, from_first
from art_aft.runtime.random_state import isolated_rng
from art_aft.training.loop import Recipe


class _WithPresets(abc.ABCMeta):
    """Fills in a preset before the constructor runs: only then it is known what else was given."""

    if not TYPE_CHECKING:  # which knows the constructor better

        def __call__(cls, *arguments, **settings):
            if settings.get("preset") is not None:
                settings = {**cls._preset(settings["preset"]), **settings}
            return super().__call__(*arguments, **settings)

    @property
    def __signature__(cls) -> inspect.Signature:
        constructor = inspect.signature(inspect.getattr_static(cls, "__init__"))
        return constructor.replace(parameters=list(constructor.parameters.values())[1:])


class Purification(Transformer, metaclass=_WithPresets):
    """
    A defence that removes a backdoor from a trained classifier.

    A subclass is a dataclass: its fields are its settings, by keyword. It checks them in `_check_params` and writes
    `_purify`, and nothing more. `presets` are sets of settings by name, such as "paper"; what is given beside
    `preset=` comes before them.

    After a call, `report` tells what was done: a `PurificationReport`.

    :param classifier: The classifier that may be infected: ART's `PyTorchClassifier` on images, with `clip_values`.
    :raises TypeError: If the classifier is of another kind.
    :raises ValueError: If the classifier has no pixel range, or a setting is out of its range.
    """

    classifier: PyTorchClassifier
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # In the order of the dataclass that this class is about to become.
        bases = [base for base in reversed(cls.__mro__) if base is cls or "__dataclass_fields__" in vars(base)]
        names = [name for base in bases for name in vars(base).get("__annotations__", {})]
        cls.params = [name for name in dict.fromkeys(names) if name not in ("classifier", "presets", "_")]

    def __post_init__(self) -> None:
        check_classifier("classifier", self.classifier)
        super().__init__(classifier=self.classifier)
        self._is_fitted = True
        self.report: PurificationReport | None = None
        self._stages: list[Stage] = []
        self._check_params()

    def __call__(
        self,
        x: np.ndarray | DataLoader | PyTorchDataGenerator,
        transformed_classifier: PyTorchClassifier | None = None,
        y: np.ndarray | None = None,
    ) -> PyTorchClassifier:
        """
        Return a purified classifier, in evaluation mode.

        :param x: The defender's images, in `clip_values`, of shape (N, *input_shape): an array (mapped ones stay on the
            disk), or a loader of images and labels, which is read once into a temporary file, so that memory does not
            grow with the number of images.
        :param transformed_classifier: None purifies a copy of the infected classifier, which stays as it is. A given
            one is purified itself, from its own weights, and returned.
        :param y: The images' labels, as indices or one-hot; None with a loader.
        :return: The purified classifier.
        :raises ValueError: If the data do not fit the classifier, or data or settings differ between processes that
            work together.
        """
        if transformed_classifier is not None:
            check_classifier("transformed_classifier", transformed_classifier)
        checked = load_data(self.classifier if transformed_classifier is None else transformed_classifier, x, y)
        purified = clone(self.classifier) if transformed_classifier is None else transformed_classifier
        if getattr(self, "learning_rate", 0.0) is None and purified.optimizer is None:
            raise ValueError("learning_rate: got None for a classifier without an optimizer, expected one of the two")
        check_same(purified.device, x=checked[0], y=checked[1], settings=repr(self.get_params()))
        start, self._stages = time.perf_counter(), []
        with isolated_rng():
            told = self._purify(purified, *checked) or {}
        seconds = time.perf_counter() - start
        self.report = PurificationReport(self.get_params(), len(checked[0]), tuple(self._stages), seconds, **told)
        # Across processes all return the same classifier, also where each has worked and rounded for itself.
        from_first([*purified.model.parameters(), *purified.model.buffers()])
        purified.model.eval()
        return purified

    def _check_params(self) -> None:
        """Check the settings."""
        super()._check_params()

    @abc.abstractmethod
    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> Mapping[str, Any] | None:
        """
        Purify a classifier in place.

        :param classifier: The classifier to change.
        :param x: Checked float32 or uint8 images.
        :param y: Label indices.
        :return: Fields of the report beside settings, stages and seconds, or nothing.
        """

    @contextmanager
    def _stage(self, name: str) -> Iterator[list[float]]:
        """Have the report tell of a part of the work; to the list go held-out accuracies, epoch by epoch."""
        accuracies: list[float] = []
        start = time.perf_counter()
        yield accuracies
        self._stages.append(Stage(name, time.perf_counter() - start, tuple(accuracies)))

    def fit(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> None:
        """No parameters to learn for this method; do nothing."""

    def set_params(self, **kwargs: Any) -> None:
        """
        Change settings, checked; on an error all stay as they were.

        :raises ValueError: If a setting is unknown (ART would drop it in silence) or out of range.
        """
        unknown = sorted(set(kwargs) - set(self.params))
        if unknown:
            raise ValueError(f"unknown parameter {unknown[0]!r}, expected one of: {', '.join(self.params)}")
        if kwargs.get("preset") is not None:
            kwargs = {**self._preset(kwargs["preset"]), **kwargs}
        before = {key: getattr(self, key) for key in kwargs}
        try:
            super().set_params(**kwargs)
        except (TypeError, ValueError):
            self.__dict__.update(before)
            raise

    def get_params(self) -> dict[str, Any]:
        """Return all settings by name."""
        return {key: getattr(self, key) for key in self.params}

    @classmethod
    def _preset(cls, name: str) -> Mapping[str, Any]:
        return cls.presets[check_choice("preset", name, tuple(cls.presets))]


@dataclass(eq=False, repr=False, kw_only=True)
class Common:
    """
    What every defence here can be told.

    :param preset: The name of a set of settings, such as "paper"; None takes the defaults.
    :param padding: Random crops after padding by so many pixels.
    :param mirror: Whether to mirror half the images. Wrong for digits, letters, traffic signs.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    """

    preset: str | None = None
    padding: int = 4
    mirror: bool = True
    precision: str = "auto"
    seed: int = 0
    verbose: bool = False

    def _check_params(self) -> None:
        check_flag("verbose", self.verbose)


@dataclass(eq=False, repr=False, kw_only=True)
class Tuning(Common):
    """
    How a defence fine-tunes: settings that are the same for all, beside those of `Common`.

    :param nb_epochs: Passes over the data.
    :param batch_size: Images a step.
    :param learning_rate: The (peak) rate of a fresh SGD optimizer; None goes on with the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay.
    :param nesterov: Whether the momentum is Nesterov's.
    :param schedule: "constant", "cosine" or "one_cycle".
    :param milestones: Pairs (epoch, learning rate), from 0: from that epoch on that rate.
    :param max_steps: End after so many steps, if that is before `nb_epochs`.
    :param freeze_bn: Whether batch normalisation keeps its running statistics.
    :raises ValueError: If a setting is out of its range.
    """

    nb_epochs: int = 10
    batch_size: int = 128
    learning_rate: float | None = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: str = "constant"
    milestones: tuple[tuple[int, float], ...] = ()
    max_steps: int | None = None
    freeze_bn: bool = False

    def _check_params(self) -> None:
        super()._check_params()
        self._recipe(self.nb_epochs)

    def _steps(self, n: int, nb_epochs: int) -> int:
        """Return how many steps so many passes over n images are."""
        steps = nb_epochs * math.ceil(n / self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def _recipe(self, nb_epochs: int, *stream: int, augmented: bool = True) -> Recipe:
        """Return the recipe of one fine-tuning; those of different streams share no random choice."""
        return Recipe(
            nb_epochs=nb_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            schedule=self.schedule,
            milestones=self.milestones,
            max_steps=self.max_steps,
            freeze_bn=self.freeze_bn,
            padding=self.padding if augmented else 0,
            mirror=self.mirror if augmented else False,
            precision=self.precision,
            seed=self._stream(*stream) if stream else self.seed,
        )

    def _stream(self, *key: int) -> int:
        """Return a seed of its own for each use, so that a second fine-tuning does not repeat the first one's order."""
        return int(np.random.SeedSequence([self.seed, *key]).generate_state(1)[0])


# The released configuration of Neural Attention Distillation, which the paper's rivals were run with.
NAD_RELEASE: Mapping[str, Any] = {
    "nb_epochs": 10,
    "batch_size": 64,
    "learning_rate": 0.1,
    "milestones": ((2, 0.01),),
    "weight_decay": 1e-4,
    "nesterov": True,
}

DEFENCES: Registry[type[Purification]] = Registry("defence")
register = DEFENCES.register
