"""Random crops, rotations and horizontal flips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from art_aft.data.images import Images
from art_aft.data.loaders import chunks, empty


def default_padding(input_shape: Sequence[int]) -> int:
    """
    Return by how many pixels images are padded before random crops: 4, but at most an eighth of the shorter side.

    On small images crops of 4 pixels cost accuracy, and what a purification unlearns is a smaller part of what it sees.

    >>> default_padding((3, 32, 32)), default_padding((1, 16, 16)), default_padding((224, 224, 3))
    (4, 2, 4)

    :param input_shape: The shape of an image.
    """
    return min(4, sorted(input_shape)[1] // 8)  # channels are fewer


@dataclass(frozen=True)
class Augmentation:
    """
    Random crops, rotations and horizontal flips. Each image has its own draw.

    :param padding: The width of the border that is added before cropping, in pixels; 0 is no crop.
    :param horizontal_flip: Whether to flip each image left to right with probability one half.
    :param low: The value of the border.
    :param channels_first: Whether images are (N, C, H, W), else (N, H, W, C).
    :param rotation: The greatest angle of a rotation either way, in degrees; what comes in from outside is `low`.
    """

    padding: int = 0
    horizontal_flip: bool = False
    low: float = 0.0
    channels_first: bool = True
    rotation: float = 0.0

    def __call__(self, x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """
        Return augmented images.

        :param x: Four-dimensional images.
        :param rng: A CPU generator, so that the same seed gives the same draws on every device.
        """
        if not (self.padding or self.horizontal_flip or self.rotation):
            return x
        if not self.channels_first:
            return self._augmented(x.permute(0, 3, 1, 2), rng).permute(0, 2, 3, 1)
        return self._augmented(x, rng)

    def _augmented(self, x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        n, channels, height, width = x.shape
        device = x.device
        if self.padding:
            padded = torch.nn.functional.pad(x, [self.padding] * 4, value=self.low)
            corner = torch.randint(0, 2 * self.padding + 1, (2, n, 1), generator=rng).to(device)
            rows = (corner[0] + torch.arange(height, device=device))[:, None, :, None]
            columns = (corner[1] + torch.arange(width, device=device))[:, None, None, :]
            image = torch.arange(n, device=device)[:, None, None, None]
            channel = torch.arange(channels, device=device)[None, :, None, None]
            x = padded[image, channel, rows, columns]
        if self.rotation:
            angle = (torch.rand(n, generator=rng) * 2 - 1) * math.radians(self.rotation)
            turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(n, 2, 2)
            # In normalised coordinates both axes run from -1 to 1, whatever the sides are.
            turn *= torch.tensor([[1.0, height / width], [width / height, 1.0]])
            theta = torch.cat([turn, torch.zeros(n, 2, 1)], dim=2).to(device, x.dtype)
            grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
            x = torch.nn.functional.grid_sample(x - self.low, grid, align_corners=False) + self.low
        if self.horizontal_flip:
            flipped = torch.randint(0, 2, (n, 1, 1, 1), generator=rng).to(device, torch.bool)
            x = torch.where(flipped, x.flip(3), x)
        return x


def augmented(images: Images, augmentation: Augmentation, seed: int) -> Images:
    """
    Return an augmented copy of each image.

    :param images: The images.
    :param augmentation: What is done to each of them.
    :param seed: The seed of the draws.
    :return: The same images as float32, augmented; mapped to a file where they were.
    """
    rng = torch.Generator().manual_seed(seed)
    pixels = empty(images.pixels.shape, np.float32, like=images.pixels)
    for part in chunks(images.pixels):
        pixels[part] = augmentation(torch.from_numpy(images.floats(part)), rng)
    return replace(images, pixels=pixels)
