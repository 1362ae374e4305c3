"""WaNet: a smooth warp of the whole image by fractions of a pixel."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from art_aft.attacks.base import Trigger, register
from art_aft.checks import (
    check_array,
    check_flag,
    check_images,
    check_instance,
    check_integer,
    check_number,
    check_pixels,
    check_seed,
    in_range,
)
from art_aft.runtime.devices import check_device


@lru_cache(maxsize=8)
def _grid(control_points: bytes, height: int, width: int, strength: float, rescale: float) -> np.ndarray:
    """
    Return where each pixel is sampled from, of shape (height, width, 2).

    The control points, float64 of shape (2, k, k), come as bytes, which the cache can compare.
    """
    points = np.frombuffer(control_points)
    side = math.isqrt(len(points) // 2)
    field = torch.nn.functional.interpolate(
        torch.from_numpy(points.reshape(1, 2, side, side).copy()), (height, width), mode="bicubic", align_corners=True
    )
    columns, rows = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    warp = strength * np.moveaxis(field[0].numpy(), 0, -1) / np.array([width, height])
    return np.clip((np.stack([columns, rows], axis=-1) + warp) * rescale, -1, 1)


def _sample(x: np.ndarray, positions: torch.Tensor) -> np.ndarray:
    """Sample images (N, C, H, W) bilinearly at positions (1 or N, H, W, 2)."""
    # torch refuses read-only arrays.
    images = torch.from_numpy(np.require(x, requirements=["C_CONTIGUOUS", "WRITEABLE"])).to(positions.device)
    if len(positions) == 1:
        # All images have the same grid: four of them count as one with four times as many channels, which is faster.
        images = images.unflatten(0, (-1, math.gcd(4, len(x)))).flatten(1, 2)
        positions = positions.expand(len(images), -1, -1, -1)
    sampled = torch.nn.functional.grid_sample(
        images, positions, mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return sampled.reshape(x.shape).cpu().numpy()


@lru_cache(maxsize=8)
def _positions(
    settings: tuple[bytes, int, int, float, float],
    dtype: np.dtype,
    device: torch.device,
    clip_values: tuple[float, float],
) -> tuple[torch.Tensor, bool]:
    """Return `_grid` as a tensor, and whether images in range may leave it by rounding."""
    positions = torch.from_numpy(_grid(*settings)[None].astype(dtype)).to(device)
    # Weights are not negative and rounding keeps the order: images at the ends of the range go furthest out.
    ends = np.array(clip_values, dtype).reshape(2, 1, 1, 1)
    furthest = _sample(np.broadcast_to(ends, (2, 1, *positions.shape[1:3])), positions)
    return positions, not in_range(furthest, *clip_values)


@register("wanet")
class WaNet(Trigger):
    """
    Warp all images by the same smooth field: x_t(p) = x(p + displacement(p)).

    | Paper link: https://arxiv.org/abs/2102.10369

    :param control_points: Horizontal and vertical displacement at k x k points, of shape (2, k, k). None draws them
        uniformly in [-1, 1) and scales their mean magnitude to 1.
    :param grid_size: k, where `control_points` is None.
    :param strength: s. The displacement is s * field / 2 pixels: on average a quarter of a pixel at s = 0.5.
    :param grid_rescale: g, a factor on the whole sampling grid, close to 1.
    :param scale_with_side: Whether the displacement grows with the image above 32 pixels a side (s * side / 32). False
        keeps it the same in pixels.
    :param seed: Seed of the control points.
    :param device: Where images are warped, such as "cuda". The result is a numpy array on every device.
    :raises ValueError: If an argument is out of its range.
    """

    release = {"per_batch": True, "cover_ratio": 2.0, "normalise": True, "model": "preactresnet-18"}

    # Every call of the sampling has a fixed cost.
    _AT_ONCE = 2**25

    def __init__(
        self,
        control_points: Any = None,
        *,
        grid_size: int = 4,
        strength: float = 0.5,
        grid_rescale: float = 1.0,
        scale_with_side: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
        **layout: Any,
    ) -> None:
        super().__init__(**layout)
        self.grid_size = check_integer("grid_size", grid_size, 2)
        self.strength = check_number("strength", strength, minimum=0.0)
        self.grid_rescale = check_number("grid_rescale", grid_rescale, minimum=0.0, above=True)
        self.scale_with_side = check_flag("scale_with_side", scale_with_side)
        self.seed = check_seed("seed", seed)
        self.device = check_device("device", device)
        if control_points is None:
            points = np.random.default_rng(self.seed).uniform(-1, 1, size=(2, self.grid_size, self.grid_size))
            points /= np.abs(points).mean()
        else:
            points = check_array("control_points", control_points)
            if points.ndim != 3 or points.shape[0] != 2 or points.shape[1] != points.shape[2] or points.shape[1] < 2:
                raise ValueError(f"control_points: got shape {points.shape}, expected (2, k, k) with k >= 2")
        self.control_points = points

    def grid(self, height: int, width: int) -> np.ndarray:
        """
        Return where each pixel is sampled from.

        :param height: The image's height, in pixels, at least 2.
        :param width: The image's width, in pixels, at least 2.
        :return: Positions (x, y) of shape (height, width, 2); -1 and 1 are the centres of the border pixels.
        """
        return _grid(*self._settings(height, width)).copy()

    def _settings(self, height: int, width: int) -> tuple[bytes, int, int, float, float]:
        strength = self.strength * (max(1.0, min(height, width) / 32) if self.scale_with_side else 1.0)
        return self.control_points.tobytes(), height, width, strength, self.grid_rescale

    def has_covers(self) -> bool:
        """Return True: the covers are the paper's noise mode."""
        return True

    def cover(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Return images warped by the field plus independent noise at every pixel.

        :param x: Floating-point images in `clip_values`, of shape (N, C, H, W) or (N, H, W, C).
        :param rng: The source of the noise, which differs from image to image.
        :return: A new array of the same shape and type.
        """
        check_images("x", x, clip_values=self.clip_values, allow_empty=True)
        check_instance("rng", rng, np.random.Generator, "numpy's Generator")
        covers = x.copy()
        images = covers if self.channels_first else np.moveaxis(covers, -1, 1)
        if x.size:
            count, _, height, width = images.shape
            noise = rng.uniform(-1, 1, size=(count, height, width, 2)) / np.array([width, height])
            grids = np.clip(self.grid(height, width) + noise, -1, 1).astype(x.dtype)
            images[...] = _sample(images, torch.from_numpy(grids).to(self.device))
            covers.clip(*self.clip_values, out=covers)
        return covers

    def _stamped(self, x: np.ndarray) -> np.ndarray:
        if x.size > self._AT_ONCE:
            return super()._stamped(x)
        # One call, whose result is returned as it is: sampling takes hardly longer than copying twice.
        inside = in_range(x, *self.clip_values)
        if not inside:
            check_pixels("x", x, self.clip_values)
        warped, outside = self._sampled(x if self.channels_first else np.moveaxis(x, -1, 1))
        if outside or not inside:
            warped.clip(*self.clip_values, out=warped)
        return warped if self.channels_first else np.ascontiguousarray(np.moveaxis(warped, 1, -1))

    def _stamp(self, x: np.ndarray, out: np.ndarray) -> bool:
        out[...], outside = self._sampled(x)
        return outside

    def _sampled(self, x: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the warped images, and whether images in range may have left it."""
        positions, outside = _positions(self._settings(*x.shape[2:]), x.dtype, self.device, self.clip_values)
        return _sample(x, positions), outside
