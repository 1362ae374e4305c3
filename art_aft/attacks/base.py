"""What every trigger shares: image layout and pixel range, the methods by which it describes itself, the registry."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from art_aft.attacks.labels import LabelMap
from art_aft.checks import (
    check_clip_values,
    check_flag,
    check_integer,
    check_labels,
    check_layout,
    check_pixels,
    in_range,
)
from art_aft.data.pixels import to_8bit, to_float
from art_aft.registry import Registry
from art_aft.runtime.callbacks import Callback

#: Changes one batch of images and label indices, as tensors.
Transform = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
#: Trains the victim: its batches go through the transform, the callback watches.
TrainVictim = Callable[[Transform, Callback], None]
#: Makes cover images from images and a random generator.
Cover = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Trigger(abc.ABC):
    """
    A trigger: a pure function from images to triggered images.

    A subclass writes `_stamp`. What else is special about it, it states by `has_covers`, `needs_training`, `for_images`
    and `release`.

    :param channels_first: Whether images are (N, C, H, W). False means (N, H, W, C).
    :param clip_values: The pixel range (low, high).
    :raises ValueError: If an argument is out of its range.
    :raises TypeError: If an argument has the wrong type.
    """

    #: How the attack's own release trains its victims, as arguments of `art_aft.experiments.victims.VictimSettings`.
    release: ClassVar[Mapping[str, Any]] = {}

    # Pixel values processed at a time: few enough to stay in the processor's cache from the check to the clip.
    _AT_ONCE: ClassVar[int] = 200_000

    def __init__(self, *, channels_first: bool = True, clip_values: tuple[float, float] = (0.0, 1.0)) -> None:
        self.channels_first = check_flag("channels_first", channels_first)
        self.clip_values = check_clip_values("clip_values", clip_values)

    @classmethod
    def for_images(
        cls, input_shape: tuple[int, ...], clip_values: tuple[float, float], seed: int = 0, /, **settings: Any
    ) -> Trigger:
        """
        Return the trigger for the images of a data set. Override it where the defaults depend on the images.

        The first three arguments are positional only, so that `settings` may have a `seed` of its own.

        :param input_shape: The shape (C, H, W) of one image.
        :param clip_values: The pixel range (low, high).
        :param seed: The victim's seed, for a trigger that is trained with it. Others do not use it.
        :param settings: Arguments of the class, which replace its defaults for these images.
        """
        return cls(**{"clip_values": clip_values, **settings})

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """
        Return the triggered images.

        :param x: Floating-point images in `clip_values`, of shape (N, C, H, W) or (N, H, W, C), N >= 0.
        :return: A new array of the same shape and type, in `clip_values`.
        :raises ValueError: If the shape or the pixels do not fit.
        :raises TypeError: If `x` is not a floating-point array.
        """
        check_layout("x", x, allow_empty=True)
        return self._stamped(x) if x.size else x.copy()

    def has_covers(self) -> bool:
        """Return whether the trigger has cover images, that is, whether `cover` is written."""
        return False

    def cover(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Return cover images: they look triggered but keep their labels, and make the backdoor harder to find.

        :param x: Floating-point images in `clip_values`, of shape (N, C, H, W) or (N, H, W, C).
        :param rng: The source of all randomness.
        :return: A new array of the same shape and type, in `clip_values`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no cover images")

    def needs_training(self) -> bool:
        """Return whether the trigger must be trained together with its victim, that is, whether `fit` is written."""
        return False

    def fit(
        self,
        classifier: Any,
        x: np.ndarray,
        y: np.ndarray,
        labels: LabelMap,
        *,
        train: TrainVictim,
        nb_epochs: int,
        steps: int,
        rate: float = 0.1,
        resumed: bool = False,
        verbose: bool = False,
    ) -> None:
        """
        Train the trigger together with its victim. The trigger is a fixed function afterwards.

        :param classifier: The victim, to look at. `train` trains it in place.
        :param x: Clean training images: floats in `clip_values`, or uint8 that stands for that range.
        :param y: Their labels, as indices.
        :param labels: The attacker's label for each true one.
        :param train: Trains the victim. Call it once, as `train(transform, callback)`: `transform(x, y)` poisons each
            augmented batch, and `callback.on_step` runs after each step of the victim's optimizer. Checkpoints contain
            `callback.parts`.
        :param nb_epochs: Number of epochs that `train` runs.
        :param steps: Number of steps that `train` takes.
        :param rate: The share of each batch that is poisoned.
        :param resumed: Whether `train` resumes from a checkpoint, which restores `callback.parts`.
        :param verbose: Whether to show progress bars.
        """
        raise NotImplementedError(f"{type(self).__name__} needs no training")

    def _stamped(self, x: np.ndarray) -> np.ndarray:
        """Return the triggered images, checked and clipped; at least one."""
        triggered = np.empty(x.shape, x.dtype)
        step = max(1, self._AT_ONCE * len(x) // x.size)
        for start in range(0, len(x), step):
            part, stamped = x[start : start + step], triggered[start : start + step]
            inside = in_range(part, *self.clip_values)
            if not inside:
                check_pixels("x", part, self.clip_values)
            arrays = (part, stamped) if self.channels_first else (np.moveaxis(part, -1, 1), np.moveaxis(stamped, -1, 1))
            outside = self._stamp(*arrays)
            if outside is None or not (outside or inside):
                outside = not in_range(stamped, *self.clip_values)
            if outside:
                stamped.clip(*self.clip_values, out=stamped)
        return triggered

    @abc.abstractmethod
    def _stamp(self, x: np.ndarray, out: np.ndarray) -> bool | None:
        """
        Write the triggered images to `out`. Values out of range are clipped afterwards.

        :param x: At least one image, of shape (N, C, H, W) whatever `channels_first` is. Do not change it.
        :param out: Where the triggered images go, of the same shape and type.
        :return: Whether images in range may have left it. None has the result checked.
        """

    @classmethod
    def settings(cls) -> list[str]:
        """Return the names of the arguments of `__init__`."""
        signature = inspect.signature(cls.__init__)
        named = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        return list(dict.fromkeys([*named, "channels_first", "clip_values"]))

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Return everything that defines the trigger, for storage.

        :return: Settings as JSON values, and arrays or tensors by name.
        """
        values = {name: getattr(self, name) for name in self.settings() if name != "device"}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return {name: value for name, value in values.items() if name not in arrays}, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, Any]) -> Trigger:
        """Return the trigger that `state` described."""
        given: dict[str, Any] = {**settings, **{name: np.asarray(value) for name, value in arrays.items()}}
        return cls(**given)

    def _to_range(self, fraction: Any) -> np.ndarray:
        """Map values in [0, 1] onto `clip_values`."""
        low, high = self.clip_values
        return low + (high - low) * np.asarray(fraction, dtype=np.float64)


TRIGGERS: Registry[type[Trigger]] = Registry("attack", group="art_aft.attacks")
register = TRIGGERS.register


def trigger_of(attack: Any) -> Any:
    """
    Return the trigger inside an ART poisoning attack, or the attack itself where it is a trigger or another callable.

    :param attack: ART's `PoisoningAttackBackdoor`, or a callable on batches.
    """
    return getattr(attack, "perturbation", attack)


def clip_values_of(attack: Any) -> tuple[float, float]:
    """
    Return the pixel range of an attack's trigger. A callable that has none works on [0, 1].

    :param attack: ART's `PoisoningAttackBackdoor`, or a callable on batches.
    """
    return getattr(trigger_of(attack), "clip_values", (0.0, 1.0))


def cover_of(attack: Any) -> Cover | None:
    """
    Return the function that makes an attack's cover images, or None for an attack without them.

    :param attack: ART's `PoisoningAttackBackdoor`, or a callable on batches. A callable that is not a `Trigger` has
        covers if it has a method `cover`.
    """
    trigger = trigger_of(attack)
    if isinstance(trigger, Trigger) and not trigger.has_covers():
        return None
    return getattr(trigger, "cover", None)


def stamp(
    attack: Any,
    x: np.ndarray,
    y: np.ndarray | None,
    *,
    batch_size: int = 1024,
    clip_values: tuple[float, float] | None = None,
) -> np.ndarray:
    """
    Return triggered images from an ART poisoning attack or from a trigger.

    >>> white = lambda x: np.ones_like(x)
    >>> stamp(white, np.zeros((1, 1, 2, 2), np.uint8), np.array([0])).tolist()
    [[[[255, 255], [255, 255]]]]

    :param attack: ART's `PoisoningAttackBackdoor`, or a callable on batches.
    :param x: Images, of any number. 8-bit images are converted to floats, stamped and rounded.
    :param y: The labels that the images will be given, which ART's attacks ask for; None with a bare trigger.
    :param batch_size: Number of 8-bit images converted at a time.
    :param clip_values: The pixel range (low, high) of the images. None is that of the attack's trigger; a callable that
        has none works on [0, 1], or on any range if `x` leaves that one.
    :return: The triggered images, of the same shape and type as `x`.
    :raises TypeError: If `attack` is neither, or returns another type of pixels.
    :raises ValueError: If `attack` changes the shape, or returns pixels that are NaN, infinite or out of range.
    """
    poison: Callable | None = getattr(attack, "poison", None)
    if poison is None and not callable(attack):
        raise TypeError(f"attack: got {type(attack).__name__}, expected PoisoningAttackBackdoor or a callable")
    check_layout("x", x, allow_empty=True, allow_8bit=True)
    if y is not None or poison is not None:
        check_labels("y", y, nb_samples=len(x))
    check_integer("batch_size", batch_size, 1)
    if clip_values is not None:
        check_clip_values("clip_values", clip_values)
    if len(x) == 0:
        return x.copy()
    own = clip_values_of(attack)
    if x.dtype == np.uint8:
        # In the attack's range, whatever the images' range is: 8-bit images stand for any.
        parts = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
        return np.concatenate(
            [to_8bit(stamp(attack, to_float(x[part], own), None if y is None else y[part]), own) for part in parts]
        )
    if clip_values is None and (hasattr(trigger_of(attack), "clip_values") or in_range(x, *own)):
        clip_values = own
    triggered = attack(x) if poison is None else poison(x, y=y)[0]
    if np.shape(triggered) != x.shape:
        raise ValueError(f"attack: returned shape {np.shape(triggered)}, expected that of its input, {x.shape}")
    if not np.can_cast(np.asarray(triggered).dtype, x.dtype, casting="same_kind"):
        raise TypeError(f"attack: returned {np.asarray(triggered).dtype} for {x.dtype} images, expected the same type")
    triggered = np.asarray(triggered, dtype=x.dtype)
    check_pixels("attack(x)", triggered, clip_values)
    return triggered
