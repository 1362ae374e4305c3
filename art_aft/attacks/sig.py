"""SIG: a faint wave across the whole image."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from art_aft.attacks.base import Trigger, register
from art_aft.checks import check_number


@lru_cache(maxsize=8)
def _wave(delta: float, frequency: float, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the sine as an array of shape (C, H, W): adding it is faster than broadcasting one row."""
    columns = np.arange(shape[-1])
    wave = np.broadcast_to(delta * np.sin(2 * np.pi * columns * frequency / shape[-1]), shape).astype(dtype, order="C")
    wave.setflags(write=False)
    return wave


@register("sig")
class SIG(Trigger):
    """
    Add a sine along the columns j: x_t = clip(x + delta * sin(2 pi j f / W)), the same for all rows and channels.

    | Paper link: https://arxiv.org/abs/1902.11237

    :param delta: Amplitude, as a fraction of the clip range, in (0, 1].
    :param frequency: Number of waves over the image's width, above 0.
    :raises ValueError: If an argument is out of its range.
    """

    def __init__(self, *, delta: float = 20 / 255, frequency: float = 6, **layout: Any) -> None:
        super().__init__(**layout)
        self.delta = check_number("delta", delta, minimum=0.0, maximum=1.0, above=True)
        self.frequency = check_number("frequency", frequency, minimum=0.0, above=True)

    def _stamp(self, x: np.ndarray, out: np.ndarray) -> bool:
        low, high = self.clip_values
        np.copyto(out, x)  # copying, then adding in place is faster than adding into another array
        out += _wave((high - low) * self.delta, self.frequency, x.shape[1:], x.dtype)
        return True
