"""Images and their labels, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from art_aft.data.loaders import take
from art_aft.data.pixels import to_float


@dataclass(frozen=True, eq=False)
class Images:
    """
    A set of images that was checked against a classifier: what comes in at a public door goes on as this.

    :param pixels: float32 in `clip_values`, or uint8 where 0 to 255 stand for that range; of shape (N, C, H, W), or
        (N, H, W, C) where `channels_first` is False. May be mapped to a file.
    :param labels: Class indices, int64 of shape (N,); -1 for images without labels.
    :param clip_values: The pixel range (low, high).
    :param channels_first: Whether the channels come before height and width.
    """

    pixels: np.ndarray
    labels: np.ndarray
    clip_values: tuple[float, float] = (0.0, 1.0)
    channels_first: bool = True

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Images:
        """Return some of the images: a slice, a mask or an array of indices. Mapped pixels stay mapped."""
        if isinstance(index, slice):
            return replace(self, pixels=self.pixels[index], labels=self.labels[index])
        index = np.asarray(index)
        rows = np.flatnonzero(index) if index.dtype == bool else index
        return replace(self, pixels=take(self.pixels, rows), labels=self.labels[rows])

    def floats(self, index: Any = slice(None)) -> np.ndarray:
        """Return pixels as float32 in `clip_values`; floats are not copied."""
        return to_float(self.pixels[index], self.clip_values)

    def hold_out(self, share: float, seed: int) -> tuple[Images, Images]:
        """
        Split the images at random in those that remain and those that are held out.

        >>> import numpy as np
        >>> images = Images(np.zeros((10, 1, 4, 4), np.float32), np.arange(10))
        >>> rest, held_out = images.hold_out(0.2, seed=0)
        >>> len(rest), len(held_out)
        (8, 2)

        :param share: The share that is held out, in (0, 1): at least one image, and never all.
        :param seed: The seed of the draw.
        :raises ValueError: If there are fewer than two images.
        """
        if len(self) < 2:
            raise ValueError(f"x: got {len(self)} image, expected at least two: one is held out")
        order = np.random.default_rng(seed).permutation(len(self))
        size = min(max(1, round(share * len(self))), len(self) - 1)
        return self[order[size:]], self[order[:size]]
