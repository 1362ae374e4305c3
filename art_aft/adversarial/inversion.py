"""Trigger inversion, the first half of Neural Cleanse: for every label, the smallest trigger that leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_aft.adversarial.inversion_recipe import CostController, InversionRecipe
from art_aft.checks import check_class_indices, check_flag, check_instance
from art_aft.classifiers.classifier import images_for
from art_aft.classifiers.pixel_module import borrow, told_labels
from art_aft.data.images import Images
from art_aft.data.loaders import batch_sizes
from art_aft.data.pixels import to_float
from art_aft.metrics import anomaly_indices
from art_aft.runtime.random_state import isolated_rng

# tanh reaches -1 and 1 in float32; with this, masks and patterns stay inside (0, 1) and can be inverted.
_INSIDE = 1e-6

# Pixels in flight, over all classes of a step: a gigabyte or so in a network like WRN-16-1.
_MEMORY = 4_000_000


@dataclass(frozen=True)
class Triggers:
    """
    Triggers that were found, one row a label: x_t = (1 - mask) * x + mask * pattern.

    :param labels: The labels, of shape (K,).
    :param masks: In (0, 1), of shape (K, 1, H, W), or (K, H, W, 1) where channels come last.
    :param patterns: In `clip_values`, of shape (K, *input_shape).
    :param norms: The masks' norms, of shape (K,).
    :param success: The share of images, in [0, 1], that each trigger leads to its label.
    :param steps: Number of steps of each search, of shape (K,).
    """

    labels: np.ndarray
    masks: np.ndarray
    patterns: np.ndarray
    norms: np.ndarray
    success: np.ndarray
    steps: np.ndarray

    def stamp(self, x: np.ndarray, label: int) -> np.ndarray:
        """
        Return images with the trigger of a label.

        :param x: Floating-point images in `clip_values`, of shape (N, *input_shape).
        :param label: The label; one of `labels`.
        """
        row = int(np.flatnonzero(self.labels == label)[0])
        return (1 - self.masks[row]) * x + self.masks[row] * self.patterns[row]

    @property
    def anomaly_indices(self) -> np.ndarray:
        """The norms' distances from their median, as `anomaly_indices` measures them."""
        return anomaly_indices(self.norms)

    def flagged(self, threshold: float = 2.0, largest: float = 1.0) -> list[int]:
        """
        Return the labels whose trigger is suspiciously small, the smallest first.

        :param threshold: The anomaly index above which a norm below the median is suspicious.
        :param largest: The largest suspicious norm, as a share of the median, in (0, 1]: where all norms are nearly
            the same, the index alone suspects a mask that is hardly smaller than the others.
        """
        median = np.median(self.norms)
        small = (self.norms <= largest * median) & (self.anomaly_indices > threshold)
        return [int(self.labels[row]) for row in np.argsort(self.norms, kind="stable") if small[row]]


def invert_triggers(
    classifier: PyTorchClassifier,
    x: np.ndarray | Images,
    recipe: InversionRecipe | None = None,
    *,
    labels: Sequence[int] | None = None,
    verbose: bool = False,
) -> Triggers:
    """
    Search, for every label, the smallest trigger that leads images of all classes to it.

    :param classifier: The classifier. It stays as it is.
    :param x: Clean images in `clip_values`, of shape (N, *input_shape), or checked `Images`.
    :param recipe: How to search; None is `InversionRecipe` with its defaults.
    :param labels: The labels; None is all of them.
    :param verbose: Whether to show a progress bar.
    :return: A trigger for each label, in the order of `labels`.
    :raises ValueError: If the images do not fit the classifier, or a label is out of range.
    """
    recipe = InversionRecipe() if recipe is None else recipe
    check_instance("recipe", recipe, InversionRecipe, "an InversionRecipe")
    checked = images_for(classifier, x, labelled=False)
    chosen = check_class_indices(
        "labels", range(classifier.nb_classes) if labels is None else labels, classifier.nb_classes
    )
    check_flag("verbose", verbose)
    low, high = checked.clip_values
    together = recipe.classes_at_once or max(1, _MEMORY // (recipe.batch_size * int(np.prod(classifier.input_shape))))
    images = (to_float(torch.from_numpy(checked.pixels), (low, high)) - low) / (high - low)
    found: list[tuple[np.ndarray, ...]] = []
    with (
        isolated_rng(recipe.seed),
        borrow(classifier, precision=recipe.precision, scale=(low, high), freeze=True, fold=True) as module,
        tqdm(total=len(chosen), desc="Triggers", unit="label", disable=None if verbose else True, leave=False) as bar,
    ):
        module.eval()
        images = images.to(classifier.device)
        for start in range(0, len(chosen), together):
            group = chosen[start : start + together]
            found.append(_Search(module, images, group, recipe, classifier.channels_first)(bar))
    masks, patterns, success, steps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    flat = masks.reshape(len(masks), -1).astype(np.float64)
    norms = flat.sum(axis=1) if recipe.norm == 1 else np.sqrt((flat**2).sum(axis=1))
    return Triggers(np.array(chosen), masks, low + (high - low) * patterns, norms, success, steps)


class _Search:
    """
    The search of some labels' triggers, whose batches run as one.

    :param module: The frozen model, on pixels in [0, 1].
    :param images: Those pixels.
    :param labels: The labels.
    :param recipe: How to search.
    :param channels_first: Whether the channels come before height and width.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        images: torch.Tensor,
        labels: Sequence[int],
        recipe: InversionRecipe,
        channels_first: bool,
    ) -> None:
        self.module, self.images, self.recipe = module, images, recipe
        self.device = images.device
        self.labels = torch.tensor(labels, device=self.device)
        raw = [_start(label, tuple(images.shape[1:]), channels_first, recipe.seed) for label in labels]
        self.raw = [torch.stack(parts).to(self.device).requires_grad_() for parts in zip(*raw, strict=True)]
        # Adam works value by value, so that labels that share a batch do not share anything else.
        self.optimizer = torch.optim.Adam(self.raw, lr=recipe.learning_rate, betas=(0.5, 0.9))
        self.controllers = [CostController(recipe) for _ in labels]
        self.best = [_squash(value).detach().clone() for value in self.raw]
        self.steps = np.zeros(len(labels), dtype=int)
        self.count = min(recipe.images_per_step, len(images))

    def __call__(self, bar: tqdm) -> tuple[np.ndarray, ...]:
        """Return masks, patterns, success and steps."""
        order = torch.Generator().manual_seed(self.recipe.seed)
        for _ in range(self.recipe.steps):
            active = [row for row, controller in enumerate(self.controllers) if not controller.stopped]
            if not active:
                break
            shown = torch.randperm(len(self.images), generator=order)[: self.count]
            self._judge(active, self._step(active, shown))
            bar.n = bar.n + sum(self.controllers[row].stopped for row in active)
            bar.set_postfix(step=int(self.steps.max()), refresh=True)
        bar.update(sum(not controller.stopped for controller in self.controllers))
        masks, patterns = (value.cpu().numpy() for value in self.best)
        return masks, patterns, self._success().cpu().numpy(), self.steps

    def _stamped(self, masks: torch.Tensor, patterns: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return N images with each of K triggers of shape (K, 1, *), of shape (K * N, *input_shape)."""
        return ((1 - masks) * self.images[index.to(self.device)] + masks * patterns).flatten(0, 1)

    def _step(self, active: list[int], shown: torch.Tensor) -> torch.Tensor:
        """Change the active triggers, batch by batch, and return the share of images that each led to its label."""
        rows, recipe = torch.tensor(active, device=self.device), self.recipe
        costs = torch.tensor([self.controllers[row].cost for row in active], device=self.device, dtype=torch.float32)
        hits = torch.zeros(len(active), device=self.device)
        for index in shown.split(batch_sizes(self.count, recipe.batch_size)):
            masks, patterns = (_squash(value[rows])[:, None] for value in self.raw)
            logits = self.module(self._stamped(masks, patterns, index))
            wanted = self.labels[rows].repeat_interleave(len(index))
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").view(len(active), -1).mean(dim=1)
            norms = masks.flatten(1).norm(p=recipe.norm, dim=1)
            self.optimizer.zero_grad()
            (loss + costs * norms).sum().backward()
            self.optimizer.step()
            hits += (told_labels(logits) == wanted).view(len(active), -1).sum(dim=1)
        return hits / self.count

    @torch.no_grad()
    def _judge(self, active: list[int], success: torch.Tensor) -> None:
        """Keep the triggers that are better than those before, and update the costs."""
        now = [_squash(value) for value in self.raw]
        norms = now[0].flatten(1).norm(p=self.recipe.norm, dim=1).tolist()
        for row, share in zip(active, success.tolist(), strict=True):
            self.steps[row] += 1
            improved = self.controllers[row].update(share, norms[row])
            # As long as no trigger has worked, keep the latest.
            if improved or self.controllers[row].best == float("inf"):
                for kept, value in zip(self.best, now, strict=True):
                    kept[row] = value[row]

    @torch.no_grad()
    def _success(self) -> torch.Tensor:
        """Return the success of the triggers that are kept; within a step, a trigger changes."""
        hits = torch.zeros(len(self.labels), device=self.device)
        masks, patterns = (value[:, None] for value in self.best)
        for index in torch.arange(self.count).split(self.recipe.batch_size):
            labels = told_labels(self.module(self._stamped(masks, patterns, index))).view(len(self.labels), -1)
            hits += (labels == self.labels[:, None]).sum(dim=1)
        return hits / self.count


def _start(label: int, shape: tuple[int, ...], channels_first: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random mask and pattern, as the numbers that `_squash` maps into (0, 1); each label has its own."""
    rng = np.random.default_rng([seed, label])
    channels, *sides = shape if channels_first else (shape[-1], *shape[:-1])
    drawn = rng.random((1, *sides)), rng.random((channels, *sides))
    ordered = drawn if channels_first else tuple(np.ascontiguousarray(np.moveaxis(part, 0, -1)) for part in drawn)
    mask, pattern = (torch.atanh((torch.from_numpy(part) - 0.5) * (2 - 4 * _INSIDE)).float() for part in ordered)
    return mask, pattern


def _squash(raw: torch.Tensor) -> torch.Tensor:
    """Return values in (0, 1)."""
    return torch.tanh(raw) * (0.5 - _INSIDE) + 0.5
