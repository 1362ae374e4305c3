"""Batches of shuffled, augmented images on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from art_aft.data.images import Images
from art_aft.data.loaders import batch_sizes
from art_aft.data.pixels import to_float
from art_aft.runtime.processes import check_same, world
from art_aft.training.augmentation import Augmentation
from art_aft.training.recipe import Recipe

#: Takes the images and label indices of a batch, and returns both as they are trained on.
Transform = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Batch:
    """
    What one step of training sees.

    :param x: Images as they enter the classifier, of shape (N, *input_shape).
    :param y: Label indices of shape (N,).
    :param teacher_logits: Logits of shape (M, nb_classes), M <= N, that the first M images are to have instead of their
        labels. None where every image has its label.
    """

    x: torch.Tensor
    y: torch.Tensor
    teacher_logits: torch.Tensor | None = None

    def part(self, part: slice) -> Batch:
        """Return some images of the batch in a row, with what belongs to them."""
        logits = None if self.teacher_logits is None else self.teacher_logits[part]
        return Batch(self.x[part], self.y[part], logits)


class Batches:
    """
    Batches of shuffled, augmented images; one iteration is one epoch.

    Across processes, each draws and augments whole batches, the same in all of them.

    :param images: The images. Mapped ones stay where they are, and batches are moved to the device.
    :param recipe: Batch size, augmentation and seed.
    :param device: Where the batches are.
    :param transform: Called with the augmented images and the labels of each batch.
    :param augment_last: Whether `transform` sees the images before augmentation, not after it.
    :raises ValueError: If a batch has fewer images than there are processes, or labels differ between them.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        device: torch.device,
        *,
        transform: Transform | None = None,
        augment_last: bool = False,
    ) -> None:
        processes = world().size
        if min(len(images), recipe.batch_size) < processes:
            raise ValueError(
                f"batch_size: got {recipe.batch_size} with {len(images)} images, expected an image for each of "
                f"{processes} processes"
            )
        check_same(device, y=images.labels)
        self.x, self.y = on_device(images.pixels, device), torch.from_numpy(images.labels).to(device)
        self.clip_values = images.clip_values
        self.augmentation = Augmentation(
            recipe.padding, recipe.horizontal_flip, images.clip_values[0], images.channels_first, recipe.rotation
        )
        self.transform, self.augment_last = transform, augment_last
        self.sizes = batch_sizes(len(images), recipe.batch_size, max(2, processes))
        self.rng = torch.Generator().manual_seed(recipe.seed)

    def __len__(self) -> int:
        """Return the number of batches an epoch."""
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.x), generator=self.rng).to(self.x.device)
        for index in order.split(self.sizes):
            yield self._batch(index)

    def _batch(self, index: torch.Tensor) -> Batch:
        """Return the batch of some images, as it enters the classifier."""
        x, y = self._images(self.x, index), self.y[index]
        if self.transform and self.augment_last:
            x, y = self.transform(x, y)
        x = self.augmentation(x, self.rng)
        if self.transform and not self.augment_last:
            x, y = self.transform(x, y)
        return Batch(x, y)

    def _images(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return to_float(x[index].to(self.y.device), self.clip_values)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: the random state, and how many images there are."""
        return {"rng": self.rng.get_state(), "images": len(self.x)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continue from the random state of a checkpoint.

        :raises ValueError: If it is of another number of images.
        """
        if state["images"] != len(self.x):
            raise ValueError(f"images: got a state of {state['images']} images, expected {len(self.x)}")
        self.rng.set_state(state["rng"])


def on_device(x: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return images as a tensor on the device; mapped ones, which may not fit there, stay where they are."""
    images = torch.from_numpy(x)
    return images if isinstance(x, np.memmap) else images.to(device)
