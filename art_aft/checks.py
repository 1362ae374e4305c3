"""Checks of arguments. Every error names the argument, what came, and what is expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from art_aft.check_types import check_callable as check_callable
from art_aft.check_types import check_instance as check_instance
from art_aft.check_types import check_mapping as check_mapping
from art_aft.check_types import check_path as check_path
from art_aft.check_types import check_sequence as check_sequence
from art_aft.check_types import check_text as check_text
from art_aft.check_types import did_you_mean as did_you_mean
from art_aft.check_types import naming as naming
from art_aft.check_types import within as within

# Sums and products of shares, such as 0.29 * 100, miss a whole number of images by less than this.
_ROUNDING = 1e-9


def at_most(value: float, bound: float) -> bool:
    """
    Return whether a share is at most a bound, where a share of whole images must not fall to the side of a rounding
    error.

    >>> 1 - 0.9 <= 0.1, at_most(1 - 0.9, 0.1)
    (True, True)
    >>> 0.8 - 0.7 <= 0.1, at_most(0.8 - 0.7, 0.1)
    (False, True)
    """
    return value <= bound + _ROUNDING


def whole(value: float) -> int:
    """
    Return a number of images rounded down, where a rounding error must not cost one.

    >>> int(0.29 * 100), whole(0.29 * 100)
    (28, 29)
    """
    return int(value + _ROUNDING)


def check_integer(name: str, value: Any, minimum: int) -> int:
    """Return `value` as an int that is at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected an integer")
    if value < minimum:
        raise ValueError(f"{name}: got {value}, expected an integer >= {minimum}")
    return int(value)


def check_seed(name: str, value: Any) -> int:
    """Return `value` as an int that every random generator takes as its seed."""
    if check_integer(name, value, 0) >= 2**64:
        raise ValueError(f"{name}: got {value}, expected an integer from 0 to 2**64 - 1")
    return int(value)


def check_number(
    name: str, value: Any, *, minimum: float = -math.inf, maximum: float = math.inf, above: bool = False
) -> float:
    """
    Return `value` as a finite float in [minimum, maximum], or in (minimum, maximum] with `above`.

    :param name: The argument's name.
    :param value: What should be a number.
    :param minimum: The least number that is allowed.
    :param maximum: The greatest.
    :param above: Whether the least number itself is refused.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    low_enough = number > minimum if above else number >= minimum
    if not (math.isfinite(number) and low_enough and number <= maximum):
        bound = f"{'>' if above else '>='} {minimum:g}" if minimum > -math.inf else "finite"
        bound += f" and <= {maximum:g}" if maximum < math.inf else ""
        raise ValueError(f"{name}: got {value}, expected a number {bound}")
    return number


def check_choice(name: str, value: Any, options: Sequence[Any]) -> Any:
    """Return `value` if it is one of `options`."""
    if not any(type(value) is type(option) and value == option for option in options):
        near = (
            did_you_mean(value, [each for each in options if isinstance(each, str)]) if isinstance(value, str) else ""
        )
        raise ValueError(f"{name}: got {value!r}{near}, expected one of {', '.join(map(repr, options))}")
    return value


def check_names(name: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Check that all names that are given are known ones."""
    for each in given:
        if each not in known:
            raise ValueError(f"{name}: got {each!r}{did_you_mean(each, known)}, expected some of: {', '.join(known)}")


def check_norm(name: str, value: Any, options: Sequence[Any]) -> Any:
    """Return `value` if it equals one of the norms, as whatever kind of number."""
    if isinstance(value, bool) or not isinstance(value, (str, Real)) or value not in options:
        raise ValueError(f"{name}: got {value!r:.80}, expected one of {', '.join(map(repr, options))}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return `value` if it is a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected True or False")
    return bool(value)


def check_array(name: str, value: Any) -> np.ndarray:
    """Return numbers, such as nested lists of them, as a new array of finite float64."""
    try:
        numbers = np.array(value)
    except ValueError:  # lists of different lengths
        numbers = np.array(None)
    if numbers.dtype.kind not in "biuf":
        raise TypeError(f"{name}: got {value!r:.80} ({type(value).__name__}), expected an array of numbers")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name}: got NaN or infinite values, expected finite ones")
    return numbers.astype(np.float64)


def check_shape(name: str, value: Any) -> tuple[int, ...]:
    """Return the sides of an array, at least one, each at least 1."""
    sides = tuple(check_integer(name, side, 1) for side in check_sequence(name, value))
    if not sides:
        raise ValueError(f"{name}: got no numbers, expected the sides of an image")
    return sides


def check_class_indices(name: str, values: Any, nb_classes: int, minimum: int = 0) -> list[int]:
    """Return some labels of a classifier, at least one, as ints from `minimum` to `nb_classes` - 1."""
    chosen = [check_integer(name, label, minimum) for label in check_sequence(name, values)]
    if not chosen:
        raise ValueError(f"{name}: got none, expected at least one")
    if max(chosen) >= nb_classes:
        raise ValueError(f"{name}: got {max(chosen)}, expected labels below {nb_classes}")
    return chosen


def check_clip_values(name: str, clip_values: Any) -> tuple[float, float]:
    """Return the pixel range (low, high), the same for all pixels, as two floats."""
    expected = "expected (low, high) with low < high, the same for all pixels"
    if not isinstance(clip_values, (tuple, list, np.ndarray)) or len(clip_values) != 2:
        raise ValueError(f"{name}: got {clip_values!r}, {expected}")
    if any(np.asarray(bound).dtype.kind not in "iuf" for bound in clip_values):
        raise ValueError(f"{name}: got {clip_values!r}, {expected}")
    low, high = (np.unique(np.asarray(bound, dtype=float)) for bound in clip_values)
    if low.size != 1 or high.size != 1 or not low[0] < high[0] or not np.isfinite([low[0], high[0]]).all():
        raise ValueError(f"{name}: got {clip_values!r}, {expected}")
    return float(low[0]), float(high[0])


def check_images(
    name: str,
    x: Any,
    *,
    clip_values: tuple[float, float] | None,
    input_shape: Sequence[int] | None = None,
    allow_empty: bool = False,
    allow_8bit: bool = False,
) -> np.ndarray:
    """
    Return `x` if it is a batch of images.

    :param name: The argument's name.
    :param x: Floating-point pixels of shape (N, C, H, W) or (N, H, W, C).
    :param clip_values: The pixel range (low, high); None is any.
    :param input_shape: The shape of one image, where it is known.
    :param allow_empty: Whether N may be 0.
    :param allow_8bit: Whether uint8 is allowed, where 0 to 255 stand for the whole of `clip_values`.
    """
    check_layout(name, x, input_shape=input_shape, allow_empty=allow_empty, allow_8bit=allow_8bit)
    if x.size and x.dtype != np.uint8:
        check_pixels(name, x, clip_values)
    return x


def check_layout(
    name: str,
    x: Any,
    *,
    input_shape: Sequence[int] | None = None,
    allow_empty: bool = False,
    allow_8bit: bool = False,
) -> None:
    """
    Check the shape and type of a batch of images, and not the values of the pixels.

    :param name: The argument's name.
    :param x: Floating-point pixels of shape (N, C, H, W) or (N, H, W, C).
    :param input_shape: The shape of one image, where it is known.
    :param allow_empty: Whether N may be 0.
    :param allow_8bit: Whether uint8 is allowed.
    """
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: got {type(x).__name__}, expected a numpy array of images")
    if x.ndim != 4 or (input_shape is not None and x.shape[1:] != tuple(input_shape)):
        shape = "(N, C, H, W) or (N, H, W, C)" if input_shape is None else f"(N, {', '.join(map(str, input_shape))})"
        raise ValueError(f"{name}: got shape {x.shape}, expected {shape}")
    if not (x.dtype.kind == "f" or (allow_8bit and x.dtype == np.uint8)):
        also = " or uint8" if allow_8bit else ""
        raise TypeError(f"{name}: got dtype {x.dtype}, expected floating-point{also} pixels")
    if x.size == 0 and not (allow_empty and len(x) == 0):
        raise ValueError(f"{name}: got an empty set of shape {x.shape}, expected at least one image")


def in_range(x: np.ndarray, low: float, high: float) -> bool:
    """Return whether all pixels, at least one, lie in [low, high]; NaN lies nowhere."""
    if low == 0 and high > 0 and x.dtype == np.float32 and x.flags.c_contiguous:
        # Numbers from 0 on are in the order of their bits, below those of negative numbers and NaN: one pass, not two.
        # Of -0.0 this says False.
        return bool(x.view(np.uint32).max() <= np.float32(high).view(np.uint32))
    return bool(low <= x.min() and x.max() <= high)


def check_pixels(name: str, x: np.ndarray, clip_values: tuple[float, float] | None) -> None:
    """
    Check that floating-point pixels, at least one, are finite and in range.

    :param name: The argument's name.
    :param x: The pixels, of any shape.
    :param clip_values: The pixel range (low, high); None is any.
    """
    if clip_values is not None and in_range(x, *clip_values):
        return
    least, greatest = float(x.min()), float(x.max())
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise ValueError(f"{name}: got NaN or infinite pixels, expected finite ones")
    if clip_values is None:
        return
    low, high = clip_values
    # Standard float32 arithmetic on valid pixels may overshoot the range by a rounding error.
    slack = 1e-5 * (high - low)
    if least < low - slack or greatest > high + slack:
        raise ValueError(f"{name}: got pixels in [{least:g}, {greatest:g}], expected clip_values [{low:g}, {high:g}]")


def check_labels(name: str, y: Any, *, nb_classes: int | None = None, nb_samples: int | None = None) -> np.ndarray:
    """
    Return labels as class indices of shape (N,).

    :param name: The argument's name.
    :param y: Class indices of shape (N,) or (N, 1), or one-hot rows of shape (N, nb_classes).
    :param nb_classes: The number of classes, where it is known.
    :param nb_samples: The number of images that the labels belong to, where it is known.
    """
    if y is None:
        raise ValueError(f"{name}: got None, expected labels: class indices or one-hot rows")
    labels = np.asarray(y)
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2):
        raise ValueError(
            f"{name}: got an array of dtype {labels.dtype} and shape {labels.shape}, "
            "expected class indices of shape (N,) or one-hot rows of shape (N, nb_classes)"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        if nb_classes is not None and labels.shape[1] != nb_classes:
            raise ValueError(f"{name}: got one-hot rows of length {labels.shape[1]}, expected nb_classes {nb_classes}")
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            kind = "multi-label rows" if np.isin(labels, (0, 1)).all() else "soft labels or scores"
            raise ValueError(f"{name}: got rows that are not one-hot ({kind}?), expected a single 1 and zeros in each")
        labels = labels.argmax(axis=1)
    if not np.isfinite(labels).all() or (labels != np.floor(labels)).any() or (np.abs(labels) > 2**31).any():
        raise ValueError(f"{name}: got labels that are not whole numbers of a class, expected class indices")
    labels = labels.astype(np.int64)
    if nb_samples is not None and len(labels) != nb_samples:
        raise ValueError(f"{name}: got {len(labels)} labels, expected one for each of the {nb_samples} images")
    top = math.inf if nb_classes is None else nb_classes - 1
    if labels.size and (labels.min() < 0 or labels.max() > top):
        raise ValueError(f"{name}: got labels in [{labels.min()}, {labels.max()}], expected 0 to {top}")
    return labels
