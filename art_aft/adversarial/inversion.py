"""Trigger inversion, the first half of Neural Cleanse: for every label, the smallest patch that leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_aft.checks import check_choice, check_clip_values, check_integer, check_number
from art_aft.classifiers.classifier import check_data
from art_aft.classifiers.pixel_module import borrow
from art_aft.data.loaders import batch_sizes
from art_aft.data.pixels import to_float
from art_aft.metrics import anomaly_indices
from art_aft.runtime.devices import PRECISIONS
from art_aft.runtime.random_state import isolated_rng

# tanh reaches -1 and 1 in float32; with this, masks and patterns stay inside (0, 1) and can be inverted.
_INSIDE = 1e-6

# Pixels in flight, over all classes of a step: a gigabyte or so in a network like WRN-16-1.
_MEMORY = 4_000_000


@dataclass(frozen=True)
class InversionRecipe:
    """
    How triggers are searched for. The defaults are those of Neural Cleanse's example for GTSRB.

    | Paper link: https://people.cs.uchicago.edu/~ravenben/publications/pdf/backdoor-sp19.pdf, section V

    :param steps: The most steps; a step is a pass over `images_per_step` images.
    :param images_per_step: Images a step, drawn afresh.
    :param batch_size: Images at a time, of every class.
    :param learning_rate: Adam's rate.
    :param norm: The mask's norm, 1 or 2.
    :param init_cost: The weight of the mask's norm, once the trigger works.
    :param success: The share of images, in (0, 1], that a working trigger carries over.
    :param patience: Steps of success (or failure) in a row before the cost rises (or falls).
    :param cost_multiplier: What the cost is multiplied by; it falls by this to the power 1.5.
    :param early_stop_threshold: A norm above this share of the best one is no improvement.
    :param early_stop_patience: Steps without improvement before the end.
    :param classes_at_once: How many classes' triggers share a batch; None is as many as memory allows. Their results
        do not depend on each other.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of starting points and order.
    :raises ValueError: If a number is out of its range.
    """

    steps: int = 1000
    images_per_step: int = 1000
    batch_size: int = 32
    learning_rate: float = 0.1
    norm: int = 1
    init_cost: float = 1e-3
    success: float = 0.99
    patience: int = 5
    cost_multiplier: float = 2.0
    early_stop_threshold: float = 1.0
    early_stop_patience: int = 25
    classes_at_once: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "images_per_step", "batch_size", "patience", "early_stop_patience"):
            check_integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "init_cost", "success", "cost_multiplier", "early_stop_threshold"):
            check_number(name, getattr(self, name), minimum=0.0, above=True)
        check_choice("norm", self.norm, (1, 2))
        if self.success > 1:
            raise ValueError(f"success: got {self.success}, expected a share in (0, 1]")
        if self.cost_multiplier <= 1:
            raise ValueError(f"cost_multiplier: got {self.cost_multiplier}, expected a number above 1")
        if self.classes_at_once is not None:
            check_integer("classes_at_once", self.classes_at_once, 1)
        check_choice("precision", self.precision, PRECISIONS)
        check_integer("seed", self.seed, 0)


@dataclass
class CostController:
    """
    How much the norm of one label's mask costs, from step to step, and when to stop.

    The cost starts at 0. It is set once the trigger has worked for `patience` steps in a row, and then rises while it
    works and falls while it does not.

    :param recipe: The numbers.
    """

    recipe: InversionRecipe
    cost: float = 0.0
    best: float = float("inf")
    stopped: bool = False
    _works: int = field(default=0, repr=False)
    _up: int = field(default=0, repr=False)
    _down: int = field(default=0, repr=False)
    _rose: bool = field(default=False, repr=False)
    _fell: bool = field(default=False, repr=False)
    _idle: int = field(default=0, repr=False)

    def update(self, success: float, norm: float) -> bool:
        """
        Take note of a step.

        :param success: The share of images that the trigger carried over.
        :param norm: The mask's norm.
        :return: Whether this is the best trigger so far: it works, and none that did was smaller.
        """
        recipe, works = self.recipe, success >= self.recipe.success
        before, improved = self.best, works and norm < self.best
        if improved:
            self.best = norm
        if self.best < float("inf"):
            self._idle = self._idle + 1 if self.best >= recipe.early_stop_threshold * before else 0
            self.stopped = self._rose and self._fell and self._idle >= recipe.early_stop_patience
        if self.cost == 0:
            self._works = self._works + 1 if works else 0
            if self._works == recipe.patience:
                self.cost = recipe.init_cost
                self._up = self._down = 0
                self._rose = self._fell = False
        self._up, self._down = (self._up + 1, 0) if works else (0, self._down + 1)
        if self._up == recipe.patience:
            self._up, self._rose = 0, True
            self.cost *= recipe.cost_multiplier
        elif self._down == recipe.patience:
            self._down, self._fell = 0, True
            self.cost /= recipe.cost_multiplier**1.5
        return improved


@dataclass(frozen=True)
class Triggers:
    """
    What was found, a row a label. x_t = (1 - mask) * x + mask * pattern.

    :param labels: The labels, of shape (K,).
    :param masks: In (0, 1), of shape (K, 1, H, W), or (K, H, W, 1) where channels come last.
    :param patterns: In `clip_values`, of shape (K, *input_shape).
    :param norms: The masks' norms, of shape (K,).
    :param success: The share of images, in [0, 1], that each trigger carries over.
    :param steps: How many steps each took.
    """

    labels: np.ndarray
    masks: np.ndarray
    patterns: np.ndarray
    norms: np.ndarray
    success: np.ndarray
    steps: np.ndarray

    def stamp(self, x: np.ndarray, label: int) -> np.ndarray:
        """Return float images with the trigger of a label."""
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
    x: np.ndarray,
    recipe: InversionRecipe | None = None,
    *,
    labels: Sequence[int] | None = None,
    verbose: bool = False,
) -> Triggers:
    """
    Search, for every label, the smallest trigger that carries images of all classes to it.

    :param classifier: The classifier, which stays as it is.
    :param x: Clean images in `clip_values`, of shape (N, *input_shape).
    :param recipe: How.
    :param labels: The labels; None is all of them.
    :param verbose: Whether to show a progress bar.
    :raises ValueError: If the images do not fit the classifier, or a label is out of range.
    """
    recipe = recipe or InversionRecipe()
    x, _ = check_data(classifier, x, np.zeros(np.shape(x)[:1]))
    chosen = list(range(classifier.nb_classes)) if labels is None else list(labels)
    if not chosen:
        raise ValueError("labels: got none, expected at least one")
    for label in chosen:
        if check_integer("labels", label, 0) >= classifier.nb_classes:
            raise ValueError(f"labels: got {label}, expected labels below {classifier.nb_classes}")
    low, high = check_clip_values("clip_values", classifier.clip_values)
    together = recipe.classes_at_once or max(1, _MEMORY // (recipe.batch_size * int(np.prod(x.shape[1:]))))
    images = (to_float(torch.from_numpy(x), (low, high)) - low) / (high - low)
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
            found.append(_invert_together(module, images, group, recipe, classifier.channels_first, bar))
    masks, patterns, success, steps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    flat = masks.reshape(len(masks), -1).astype(np.float64)
    norms = flat.sum(axis=1) if recipe.norm == 1 else np.sqrt((flat**2).sum(axis=1))
    return Triggers(np.array(chosen), masks, low + (high - low) * patterns, norms, success, steps)


def _invert_together(
    module: torch.nn.Module,
    images: torch.Tensor,
    labels: Sequence[int],
    recipe: InversionRecipe,
    channels_first: bool,
    bar: tqdm,
) -> tuple[np.ndarray, ...]:
    """Return masks, patterns, success and steps for some labels, whose batches run as one."""
    device, shape = images.device, tuple(images.shape[1:])
    raw = [_start(label, shape, channels_first, recipe.seed) for label in labels]
    raw_masks, raw_patterns = (torch.stack(parts).to(device).requires_grad_() for parts in zip(*raw, strict=True))
    # Adam works value by value, so that labels that share a batch do not share anything else.
    optimizer = torch.optim.Adam([raw_masks, raw_patterns], lr=recipe.learning_rate, betas=(0.5, 0.9))
    controllers = [CostController(recipe) for _ in labels]
    best = [value.detach().clone() for value in (_squash(raw_masks), _squash(raw_patterns))]
    steps = np.zeros(len(labels), dtype=int)
    order = torch.Generator().manual_seed(recipe.seed)
    count = min(recipe.images_per_step, len(images))
    for _ in range(recipe.steps):
        active = [row for row, controller in enumerate(controllers) if not controller.stopped]
        if not active:
            break
        rows = torch.tensor(active, device=device)
        targets = torch.tensor([labels[row] for row in active], device=device)
        costs = torch.tensor([controllers[row].cost for row in active], device=device, dtype=torch.float32)
        hits = torch.zeros(len(active), device=device)
        for index in torch.randperm(len(images), generator=order)[:count].split(batch_sizes(count, recipe.batch_size)):
            masks, patterns = _squash(raw_masks[rows])[:, None], _squash(raw_patterns[rows])[:, None]
            stamped = (1 - masks) * images[index.to(device)] + masks * patterns
            logits = module(stamped.flatten(0, 1))
            wanted = targets.repeat_interleave(len(index))
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").view(len(active), -1).mean(dim=1)
            norms = masks.flatten(1).norm(p=recipe.norm, dim=1)
            optimizer.zero_grad()
            (loss + costs * norms).sum().backward()
            optimizer.step()
            hits += (logits.argmax(dim=1) == wanted).view(len(active), -1).sum(dim=1)
        with torch.no_grad():
            now = _squash(raw_masks), _squash(raw_patterns)
            norms = now[0].flatten(1).norm(p=recipe.norm, dim=1)[rows].tolist()
        for row, share, norm in zip(active, (hits / count).tolist(), norms, strict=True):
            steps[row] += 1
            improved = controllers[row].update(share, norm)
            # As long as no trigger has worked, the latest is what there is.
            if improved or controllers[row].best == float("inf"):
                for kept, value in zip(best, now, strict=True):
                    kept[row] = value[row]
        bar.n = bar.n + sum(controllers[row].stopped for row in active)
        bar.set_postfix(step=int(steps.max()), refresh=True)
    bar.update(sum(not controller.stopped for controller in controllers))
    # A step's share is that of a trigger on the move; this is the kept one's.
    hits = torch.zeros(len(labels), device=device)
    wanted = torch.tensor(labels, device=device)[:, None]
    with torch.no_grad():
        for index in torch.arange(count).split(recipe.batch_size):
            stamped = (1 - best[0][:, None]) * images[index.to(device)] + best[0][:, None] * best[1][:, None]
            hits += (module(stamped.flatten(0, 1)).argmax(dim=1).view(len(labels), -1) == wanted).sum(dim=1)
    return best[0].cpu().numpy(), best[1].cpu().numpy(), (hits / count).cpu().numpy(), steps


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
