"""Batches in which some images are clean and the others carry a perturbation that is drawn for each."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from art_aft.data.images import Images
from art_aft.runtime.random_state import seed_for
from art_aft.training.batches import Batch, Batches
from art_aft.training.distillation import Teacher
from art_aft.training.recipe import Recipe


class Directions:
    """
    Draws which perturbation each image gets: one towards another label than its own.

    Perturbations are numbered by their labels; kinds of few pixels follow behind the dense ones.

    :param nb_classes: The number of labels.
    :param target: The label of the focus; None is none.
    :param focus: The share of images, in [0, 1], that get the perturbation towards `target`.
    :param sparse_share: The share of images, in [0, 1], that get a perturbation of few pixels.
    :param seed: The user's seed.
    :param sparse_kinds: How many kinds of these there are, of which an image gets each equally often.
    """

    def __init__(
        self,
        nb_classes: int,
        target: int | None,
        focus: float,
        sparse_share: float,
        seed: int,
        *,
        sparse_kinds: int = 1,
    ) -> None:
        self.nb_classes, self.target, self.focus = nb_classes, target, focus
        self.sparse_share, self.sparse_kinds, self.seed = sparse_share, sparse_kinds, seed
        self.turns = itertools.count(1)

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """
        Return the number of a perturbation for each image, drawn anew at every call.

        :param labels: The images' labels, of shape (N,).
        :return: int64 of shape (N,), on the same device.
        """
        rng = np.random.default_rng(seed_for(self.seed, "directions", next(self.turns)))

        def drawn(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(labels.device)

        towards = (labels + drawn(rng.integers(1, self.nb_classes, len(labels)))) % self.nb_classes
        if self.target is not None:
            focused = drawn(rng.random(len(labels)) < self.focus) & (labels != self.target)
            towards = towards.masked_fill(focused, self.target)
        if self.sparse_share:
            sparse = rng.random(len(labels)) < self.sparse_share
            towards += self.nb_classes * drawn(sparse * rng.integers(1, 1 + self.sparse_kinds, len(labels)))
        return towards


class PerturbedBatches(Batches):
    """
    Batches whose first images are clean, with a teacher's logits if there is a teacher, and whose others are perturbed.

    :param images: The images.
    :param recipe: Batch size, augmentation and seed. Perturbations are added after augmentation.
    :param device: Where the batches are.
    :param perturbations: Of shape (M, *input_shape), in units of `clip_values`.
    :param directions: Says which of them each image gets.
    :param clean_share: The share of each batch, in [0, 1], that is clean.
    :param teacher: Gives the clean images the logits that they are to have; None leaves them their labels.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        device: torch.device,
        perturbations: np.ndarray,
        directions: Directions,
        *,
        clean_share: float,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(images, recipe, device)
        self.perturbations, self.directions = torch.from_numpy(perturbations).to(device), directions
        self.clean_share, self.teacher = clean_share, teacher

    def _batch(self, index: torch.Tensor) -> Batch:
        y = self.y[index]
        perturbed = self.augmentation(self._images(self.x, index), self.rng)
        perturbed = (perturbed + self.perturbations[self.directions(y)]).clamp(*self.clip_values)
        count = round(self.clean_share * len(index))
        clean = self.augmentation(self._images(self.x, index[:count]), self.rng)
        logits = self.teacher(clean) if self.teacher and count else None
        return Batch(torch.cat([clean, perturbed[count:]]), y, logits)
