"""BadNets: a small patch in the corner."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_aft.attacks.base import Trigger, register
from art_aft.checks import check_array, check_integer

# Row by row from the top, 1 = white, 0 = black. It is no full checkerboard: the top-left cell is black.
GRID = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]])


@register("badnets")
class BadNets(Trigger):
    """
    Replace a patch at the bottom right: x_t = (1 - m) * x + m * p, with a mask m of zeros and ones.

    | Paper link: https://arxiv.org/abs/1708.06733

    >>> BadNets()(np.full((1, 1, 4, 4), 0.5))[0, 0].tolist()
    [[0.5, 0.5, 0.5, 0.5], [0.5, 0.0, 0.0, 1.0], [0.5, 0.0, 1.0, 0.0], [0.5, 1.0, 0.0, 1.0]]

    :param pattern: The patch, of shape (h, w) for all channels, or a whole image of shape (C, H, W), which
        needs a `mask`; values in `clip_values`. None is the 3x3 grid of the Neural Attention Distillation
        release, white and black. It grows with the image: each cell is max(1, min(H, W) / 32) pixels, rounded half up.
    :param mask: Where the pattern replaces the image: zeros and ones of the pattern's shape, or of shape
        (H, W) for a whole image. None is everywhere in the patch.
    :param margin: Distance of the patch from the bottom and right borders, in pixels.
    :raises ValueError: If the arguments do not fit each other; at call, if they do not fit the images.
    """

    def __init__(self, pattern: Any = None, mask: Any = None, *, margin: int = 0, **layout: Any) -> None:
        super().__init__(**layout)
        self.margin = check_integer("margin", margin, 0)
        self.pattern = None if pattern is None else check_array("pattern", pattern)
        self.mask = None if mask is None else check_array("mask", mask)
        self._check_pattern()

    def _check_pattern(self) -> None:
        if self.pattern is None:
            if self.mask is not None:
                raise ValueError("mask: got a mask without a pattern, expected both or none")
            return
        if self.pattern.ndim == 3 and self.margin:
            raise ValueError(f"margin: got {self.margin} with a whole image as pattern, expected 0")
        if self.pattern.ndim not in (2, 3) or self.pattern.size == 0:
            raise ValueError(f"pattern: got shape {self.pattern.shape}, expected (h, w) or (C, H, W)")
        low, high = self.clip_values
        if not ((self.pattern >= low) & (self.pattern <= high)).all():
            raise ValueError(f"pattern: got values outside clip_values [{low:g}, {high:g}]")
        if self.mask is None:
            if self.pattern.ndim == 3:
                raise ValueError("mask: got None, expected a mask where pattern is a whole image")
            return
        if self.mask.shape not in (self.pattern.shape, self.pattern.shape[-2:]):
            raise ValueError(f"mask: got shape {self.mask.shape}, expected that of the pattern, {self.pattern.shape}")
        if not np.isin(self.mask, (0, 1)).all():
            raise ValueError("mask: got other values, expected zeros and ones")

    def _stamp(self, x: np.ndarray, out: np.ndarray) -> bool:
        height, width = x.shape[2:]
        if self.pattern is None:
            cell = max(1, int(min(height, width) / 32 + 0.5))
            pattern = self._to_range(GRID.repeat(cell, axis=0).repeat(cell, axis=1))
        else:
            pattern = self.pattern
        if pattern.ndim == 3:
            if pattern.shape != x.shape[1:]:
                raise ValueError(f"pattern: got shape {pattern.shape}, expected that of the images, {x.shape[1:]}")
            area = out
        else:
            bottom, right = height - self.margin, width - self.margin
            top, left = bottom - pattern.shape[0], right - pattern.shape[1]
            if top < 0 or left < 0:
                raise ValueError(
                    f"pattern: got {pattern.shape} with margin {self.margin}, expected one that fits {height}x{width}"
                )
            area = out[:, :, top:bottom, left:right]
        np.copyto(out, x)
        np.copyto(area, pattern.astype(x.dtype), where=True if self.mask is None else self.mask.astype(bool))
        return False
