"""SIG: a faint wave across the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_aft.checks import check_number
from art_aft.perturbations.base import Perturbation, register


@register("sig")
class SIG(Perturbation):
    """
    Add a sine along the columns j: x_t = clip(x + delta * sin(2 pi j f / W)), the same for all rows and channels.

    | Paper link: https://arxiv.org/abs/1902.11237

    :param delta: The amplitude, as a fraction of the clip range, in (0, 1].
    :param frequency: The number of waves over the image's width, above 0.
    :raises ValueError: If an argument is out of its range.
    """

    def __init__(self, *, delta: float = 20 / 255, frequency: float = 6, **layout: Any) -> None:
        super().__init__(**layout)
        self.delta = check_number("delta", delta, minimum=0.0, maximum=1.0, above=True)
        self.frequency = check_number("frequency", frequency, minimum=0.0, above=True)

    def _stamp(self, x: np.ndarray, out: np.ndarray) -> None:
        low, high = self.clip_values
        height, width = x.shape[2:]
        wave = np.sin(2 * np.pi * np.arange(width) * self.frequency / width)
        # Whole channels are added faster than rows.
        channel = np.tile(((high - low) * self.delta * wave).astype(x.dtype), (height, 1))
        np.add(x, channel, out=out)
