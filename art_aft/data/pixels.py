"""Pixels: 8-bit images, which are made floats batch by batch, and the pixel range."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Images = TypeVar("Images", np.ndarray, torch.Tensor)


def to_float(x: Images, clip_values: tuple[float, float]) -> Images:
    """
    Return images as floats in the pixel range; floating-point images come back as they are.

    :param x: An array or a tensor; uint8 stands for the range: 0 for its low end, 255 for its high end.
    :param clip_values: The pixel range (low, high).
    :return: float32 images where they were uint8.
    """
    low, high = clip_values
    if isinstance(x, torch.Tensor):
        return x.float().mul_((high - low) / 255).add_(low) if x.dtype == torch.uint8 else x
    if x.dtype != np.uint8:
        return x
    floats = x.astype(np.float32)
    floats *= np.float32((high - low) / 255)
    floats += np.float32(low)
    return np.clip(floats, low, high, out=floats)


def to_8bit(x: np.ndarray, clip_values: tuple[float, float]) -> np.ndarray:
    """
    Return images as uint8, rounded to the nearest level.

    :param x: Floating-point images in the pixel range.
    :param clip_values: The pixel range (low, high).
    """
    low, high = clip_values
    return np.clip(np.rint((x - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def clamped(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """
    Return pixels within their range, with the gradient of those that are inside or at its ends.

    `torch.clamp` stops the gradient at the ends from torch 2.14 on, and no search would leave a black or white pixel.

    >>> x = torch.tensor([-1.0, 0.0, 0.5], requires_grad=True)
    >>> clamped(x, 0, 1).sum().backward()
    >>> x.grad
    tensor([0., 1., 1.])

    :param x: Any tensor.
    :param low: The low end of the range.
    :param high: The high end of the range.
    """
    return torch.where((x >= low) & (x <= high), x, x.detach().clamp(low, high))
