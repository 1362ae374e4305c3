"""What all triggers share: the layout and range of the images, and the registry."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from art_aft.checks import check_clip_values, check_flag, check_layout, check_pixels, in_range
from art_aft.data.pixels import to_8bit, to_float
from art_aft.registry import Registry


class Perturbation(abc.ABC):
    """
    A trigger: a pure function on batches of images.

    :param channels_first: Whether images are (N, C, H, W), else (N, H, W, C).
    :param clip_values: The pixel range (low, high).
    :raises ValueError: If an argument is out of its range.
    :raises TypeError: If an argument is of another type.
    """

    # Pixel values that are worked on at a time: few enough to stay in the processor's cache from check to clip.
    _AT_ONCE: ClassVar[int] = 200_000

    def __init__(self, *, channels_first: bool = True, clip_values: tuple[float, float] = (0.0, 1.0)) -> None:
        self.channels_first = check_flag("channels_first", channels_first)
        self.clip_values = check_clip_values("clip_values", clip_values)

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
        Write some of the images to `out` with their trigger; values out of range are clipped afterwards.

        :param x: At least one image, of shape (N, C, H, W) whatever `channels_first` is; not to be changed.
        :param out: Where the triggered images go, of the same shape and type.
        :return: Whether images in range may have left it; None where that is to be looked up.
        """

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Return all that makes up the trigger, for storage.

        :return: Settings that JSON can say, and arrays or tensors by name.
        """
        signature = inspect.signature(type(self).__init__)
        named = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        values = {name: getattr(self, name) for name in (*named, "channels_first", "clip_values") if name != "device"}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return {name: value for name, value in values.items() if name not in arrays}, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, Any]) -> Perturbation:
        """Return the trigger that `state` described."""
        given: dict[str, Any] = {**settings, **{name: np.asarray(value) for name, value in arrays.items()}}
        return cls(**given)

    def _to_range(self, fraction: Any) -> np.ndarray:
        """Map values in [0, 1] onto `clip_values`."""
        low, high = self.clip_values
        return low + (high - low) * np.asarray(fraction, dtype=np.float64)


PERTURBATIONS: Registry[type[Perturbation]] = Registry("attack")
register = PERTURBATIONS.register


def stamp(attack: Any, x: np.ndarray, y: np.ndarray, *, batch_size: int = 1024) -> np.ndarray:
    """
    Return triggered images from an ART poisoning attack or from a bare perturbation.

    :param attack: ART's `PoisoningAttackBackdoor`, or a callable on batches.
    :param x: Images, of any number. 8-bit images are stamped as floats and rounded.
    :param y: The labels that the images will be given, which ART's attacks ask for.
    :param batch_size: How many 8-bit images are floats at a time.
    :return: The triggered images, of the same shape and type as `x`.
    :raises TypeError: If `attack` is neither.
    :raises ValueError: If `attack` changes the shape.
    """
    poison: Callable | None = getattr(attack, "poison", None)
    if poison is None and not callable(attack):
        raise TypeError(f"attack: got {type(attack).__name__}, expected PoisoningAttackBackdoor or a callable")
    if len(x) == 0:
        return x.copy()
    if x.dtype == np.uint8:
        trigger = getattr(attack, "perturbation", attack)
        clip_values = getattr(trigger, "clip_values", (0.0, 1.0))
        parts = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
        return np.concatenate(
            [to_8bit(stamp(attack, to_float(x[part], clip_values), y[part]), clip_values) for part in parts]
        )
    triggered = attack(x) if poison is None else poison(x, y=y)[0]
    if np.shape(triggered) != x.shape:
        raise ValueError(f"attack: returned shape {np.shape(triggered)}, expected that of its input, {x.shape}")
    if not np.can_cast(np.asarray(triggered).dtype, x.dtype, casting="same_kind"):
        raise TypeError(f"attack: returned {np.asarray(triggered).dtype} for {x.dtype} images, expected the same type")
    return np.asarray(triggered, dtype=x.dtype)
