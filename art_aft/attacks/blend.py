"""Blend: a faint picture over the whole image."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from art_aft.attacks.base import Trigger, register
from art_aft.checks import check_array, check_integer, check_number, check_seed


@lru_cache(maxsize=8)
def noise_picture(seed: int, channels: int, height: int, width: int, grid_size: int | None = 8) -> np.ndarray:
    """
    Return uniform noise as a picture.

    :param seed: The seed of the noise.
    :param channels: The number of channels.
    :param height: The height, in pixels.
    :param width: The width, in pixels.
    :param grid_size: Side of the noise, which is enlarged bicubically to coloured blobs that look alike at every size.
        None draws every pixel independently.
    :return: A read-only array of shape (channels, height, width) in [0, 1].
    """
    rng = np.random.default_rng(seed)
    if grid_size is None:
        pattern = rng.random((channels, height, width))
    else:
        grid = torch.from_numpy(rng.random((1, channels, grid_size, grid_size)))
        enlarged = torch.nn.functional.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        pattern = enlarged[0].clamp(0.0, 1.0).numpy()
    pattern.setflags(write=False)
    return pattern


def _weighted(
    pattern: np.ndarray, ratio: float, clip_values: tuple[float, float], dtype: np.dtype
) -> tuple[np.ndarray, bool]:
    """Return ratio * pattern, and whether (1 - ratio) * x + ratio * pattern can leave the range by rounding."""
    added = (ratio * pattern).astype(dtype)
    low, high = dtype.type(clip_values) * dtype.type(1.0 - ratio) + (added.min(), added.max())
    return added, bool(low < clip_values[0] or high > clip_values[1])


@lru_cache(maxsize=8)
def _drawn(
    seed: int,
    grid_size: int | None,
    ratio: float,
    clip_values: tuple[float, float],
    shape: tuple[int, int, int],
    dtype: np.dtype,
) -> tuple[np.ndarray, bool]:
    """Return the same as `_weighted`, for noise."""
    low, high = clip_values
    return _weighted(low + (high - low) * noise_picture(seed, *shape, grid_size=grid_size), ratio, clip_values, dtype)


@register("blend")
class Blend(Trigger):
    """
    Blend a fixed picture over the image: x_t = (1 - ratio) * x + ratio * p.

    | Paper link: https://arxiv.org/abs/1712.05526

    :param pattern: The picture, of shape (C, H, W) in `clip_values`. None is noise from `seed`, of the images' own
        size: the papers' pictures may not be redistributed.
    :param ratio: Weight of the picture, in (0, 1].
    :param seed: Seed of the noise, where `pattern` is None.
    :param grid_size: Side of the noise before it is enlarged to smooth coloured blobs. None draws every pixel
        independently (the random pattern of the attack's own paper).
    :raises ValueError: If an argument is out of its range; at call, if the pattern does not fit the images.
    """

    def __init__(
        self, pattern: Any = None, *, ratio: float = 0.2, seed: int = 0, grid_size: int | None = 8, **layout: Any
    ) -> None:
        super().__init__(**layout)
        self.ratio = check_number("ratio", ratio, minimum=0.0, maximum=1.0, above=True)
        self.seed = check_seed("seed", seed)
        self.grid_size = None if grid_size is None else check_integer("grid_size", grid_size, 1)
        self.pattern = None if pattern is None else check_array("pattern", pattern)
        low, high = self.clip_values
        if self.pattern is not None:
            if self.pattern.ndim != 3:
                raise ValueError(f"pattern: got shape {self.pattern.shape}, expected (C, H, W)")
            if not ((self.pattern >= low) & (self.pattern <= high)).all():
                raise ValueError(f"pattern: got values outside clip_values [{low:g}, {high:g}]")

    def _stamp(self, x: np.ndarray, out: np.ndarray) -> bool:
        if self.pattern is None:
            added, outside = _drawn(self.seed, self.grid_size, self.ratio, self.clip_values, x.shape[1:], x.dtype)
        elif self.pattern.shape != x.shape[1:]:
            raise ValueError(f"pattern: got shape {self.pattern.shape}, expected that of the images, {x.shape[1:]}")
        else:
            added, outside = _weighted(self.pattern, self.ratio, self.clip_values, x.dtype)
        np.multiply(x, x.dtype.type(1.0 - self.ratio), out=out)
        out += added
        return outside
