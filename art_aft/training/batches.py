"""Shuffled, augmented batches that live on the classifier's device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset

from art_aft.data.loaders import batch_sizes, chunks, empty
from art_aft.data.pixels import to_float
from art_aft.runtime.processes import world

EachEpoch = Callable[[int], np.ndarray | None]
EachBatch = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Augmentation:
    """
    Random crops, rotations and mirroring, with a draw of its own for each image.

    :param padding: The width of the border that is added before cropping, in pixels; 0 is no crop.
    :param mirror: Whether to mirror each image left to right with probability one half.
    :param low: The value of the border.
    :param channels_first: Whether images are (N, C, H, W), else (N, H, W, C).
    :param rotation: The greatest angle of a rotation either way, in degrees; what comes in from outside is `low`.
    """

    padding: int = 0
    mirror: bool = False
    low: float = 0.0
    channels_first: bool = True
    rotation: float = 0.0

    def __call__(self, x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """
        Return augmented images.

        :param x: Four-dimensional images.
        :param rng: A CPU generator, so that the same seed gives the same draws on every device.
        """
        if not (self.padding or self.mirror or self.rotation):
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
        if self.mirror:
            flipped = torch.randint(0, 2, (n, 1, 1, 1), generator=rng).to(device, torch.bool)
            x = torch.where(flipped, x.flip(3), x)
        return x


class Batches(IterableDataset):
    """
    Batches for ART's `PyTorchDataGenerator`: one iteration is one epoch; labels come one-hot, as ART wants them.

    Across processes, each draws and augments whole batches, the same in all, and then yields its own part.

    :param x: Images, a tensor on the device, or on the CPU where it is large: then batches are moved.
    :param y: Labels as indices, a tensor on the device.
    :param nb_classes: The number of classes.
    :param batch_size: Images a batch.
    :param nb_epochs: How many epochs there will be.
    :param max_steps: End after so many batches, if that is before `nb_epochs`.
    :param augmentation: How images are augmented.
    :param clip_values: The pixel range that 8-bit images stand for.
    :param seed: The seed of order and augmentation.
    :raises ValueError: If a batch has fewer images than there are processes.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        nb_classes: int,
        batch_size: int,
        nb_epochs: int,
        max_steps: int | None,
        augmentation: Augmentation,
        clip_values: tuple[float, float],
        seed: int,
    ) -> None:
        self.x, self.y, self.nb_classes, self.augmentation = x, y, nb_classes, augmentation
        self.clip_values = clip_values
        self.rng = torch.Generator().manual_seed(seed)
        self.world = world()
        if min(len(x), batch_size) < self.world.size:
            raise ValueError(
                f"batch_size: got {batch_size} with {len(x)} images, expected an image for each of "
                f"{self.world.size} processes"
            )
        self.sizes = batch_sizes(len(x), batch_size, max(2, self.world.size))
        #: Of the latest batch: all its labels, and which of its images are this process's.
        self.labels, self.part = y[:0], slice(0, 0)
        total = len(self.sizes) * nb_epochs
        self.total_steps = total if max_steps is None else min(total, max_steps)
        self.steps = 0
        self.epoch = 0
        self.each_epoch: EachEpoch | None = None
        self.each_batch: EachBatch | None = None
        self.augment_last = False
        self.clean: tuple[torch.Tensor, float] | None = None
        #: Asked about the clean images of each batch, which come first; and what it said of the latest.
        self.teacher: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.said = torch.zeros(0, nb_classes, device=y.device)
        self.after_epoch: Callable[[int], None] | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        fresh = self.each_epoch(self.epoch) if self.each_epoch else None
        if fresh is not None:
            self.x = torch.from_numpy(fresh).to(self.x.device)
        order = torch.randperm(len(self.x), generator=self.rng).to(self.x.device)
        for index in order.split(self.sizes):
            if self.steps == self.total_steps:
                return
            self.steps += 1
            x, y = self._batch(index)
            self.labels, self.part = y, self.world.part(len(y))
            yield x[self.part], torch.nn.functional.one_hot(y[self.part], self.nb_classes)
        # Reached only when ART asks for more, that is after the last step of the epoch.
        self.epoch += 1
        if self.after_epoch:
            self.after_epoch(self.epoch)

    def _batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and labels of one batch as they enter the classifier."""
        x, y = self._images(self.x, index), self.y[index]
        if self.each_batch and self.augment_last:
            x, y = self.each_batch(x, y)
        x = self.augmentation(x, self.rng)
        if self.each_batch and not self.augment_last:
            x, y = self.each_batch(x, y)
        if self.clean:
            images, share = self.clean
            count = round(share * len(index))
            shown = self.augmentation(self._images(images, index[:count]), self.rng)
            x = torch.cat([shown, x[count:]])
            if self.teacher:
                with torch.no_grad():
                    self.said = self.teacher(shown) if count else self.said[:0]
        return x, y

    def _images(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return to_float(x[index].to(self.y.device), self.clip_values)


def augmented_views(
    x: np.ndarray, augmentation: Augmentation, n_views: int, clip_values: tuple[float, float], seed: int
) -> np.ndarray:
    """
    Return augmented copies of images, one whole set after the other.

    :param x: float32 or uint8 images.
    :param augmentation: What is done to each copy.
    :param n_views: How many copies of each image.
    :param clip_values: The pixel range that 0 to 255 stand for.
    :param seed: The seed of the draws.
    :return: float32 images, mapped to a file where `x` is.
    """
    rng = torch.Generator().manual_seed(seed)
    views = empty((n_views * len(x), *x.shape[1:]), np.float32, like=x)
    for start in range(0, len(views), len(x)):
        for part in chunks(x):
            seen = to_float(x[part], clip_values)
            views[start + part.start :][: len(seen)] = augmentation(torch.from_numpy(seen), rng)
    return views
