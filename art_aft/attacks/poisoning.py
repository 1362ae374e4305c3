"""Poisoned training data: a whole set once, or every batch afresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from art_aft.attacks.base import Cover, clip_values_of, cover_of, stamp
from art_aft.attacks.labels import LabelMap, wanted_labels
from art_aft.checks import (
    check_callable,
    check_choice,
    check_flag,
    check_images,
    check_instance,
    check_labels,
    check_number,
    check_seed,
    whole,
)


@dataclass(frozen=True)
class PoisonedData:
    """
    A training set with a backdoor in it.

    :param x: All images, of the same shape and type as the clean ones.
    :param y: All labels, in the same form as the clean ones (indices or one-hot).
    :param is_poisoned: Which images have the trigger and the attacker's label, bool of shape (N,).
    :param is_cover: Which images look triggered but keep their label, bool of shape (N,).
    """

    x: np.ndarray
    y: np.ndarray
    is_poisoned: np.ndarray
    is_cover: np.ndarray


class BatchPoisoning:
    """
    Poisons every batch of a training run afresh, as the releases of WaNet and Input-aware do.

    Use it as the `transform` of `art_aft.training.batches.Batches`. In each shuffled batch of B images the first
    int(rate * B) are poisoned, the next int(cover_ratio * int(rate * B)) are covers, and the rest stays clean.

    :param attack: ART's `PoisoningAttackBackdoor`, or a callable on batches.
    :param labels: The attacker's label for each true one.
    :param rate: The share of each batch that is poisoned, in [0, 1]. int() truncates: 12 of 128 at 0.1.
    :param cover_ratio: Number of covers for each poisoned image, at least 0. Above 0 the attack must have covers.
    :raises ValueError: If a number is out of its range, or the attack has no covers.
    """

    def __init__(self, attack: Any, labels: LabelMap, *, rate: float, cover_ratio: float = 0.0) -> None:
        self.attack, self.labels = attack, check_callable("labels", labels)
        self.rate = check_number("rate", rate, minimum=0.0, maximum=1.0)
        self.cover_ratio = check_number("cover_ratio", cover_ratio, minimum=0.0)
        if self.rate * (1 + self.cover_ratio) > 1:
            raise ValueError(
                f"cover_ratio: got {cover_ratio:g} with rate {rate:g}, expected shares of at most 1 in all"
            )
        self.cover = cover_of(attack)
        if self.cover is None and self.cover_ratio > 0:
            raise ValueError(f"cover_ratio: got {cover_ratio:g}, expected 0 for an attack without cover images")

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return the poisoned batch.

        :param x: Floating-point images in the attack's `clip_values`.
        :param y: Their labels, as indices.
        """
        for name, value in (("x", x), ("y", y)):
            check_instance(name, value, torch.Tensor, "a tensor")
        poisoned = int(self.rate * len(x))
        covers = int(self.cover_ratio * poisoned)
        images, truth = x.cpu().numpy(), y.cpu().numpy()
        wanted = wanted_labels(self.labels, truth[:poisoned])
        parts = [torch.from_numpy(stamp(self.attack, images[:poisoned], wanted)).to(x.device)]
        if covers and self.cover is not None:
            # From torch's generator, whose state is in the checkpoints of a training run.
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
            part = slice(poisoned, poisoned + covers)
            covered = stamp(_Cover(self.attack, self.cover, rng), images[part], truth[part])
            parts.append(torch.from_numpy(covered).to(x.device))
        labels = torch.cat([torch.from_numpy(wanted).to(y.device), y[poisoned:]])
        return torch.cat([*parts, x[poisoned + covers :]]), labels


class _Cover:
    """Makes an attack's cover images from the images alone, as `stamp` calls it."""

    def __init__(self, attack: Any, cover: Cover, rng: np.random.Generator) -> None:
        self.clip_values = clip_values_of(attack)
        self._cover, self._rng = cover, rng

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._cover(x, self._rng)


def poison(
    x: np.ndarray,
    y: np.ndarray,
    attack: Any,
    labels: LabelMap,
    *,
    rate: float,
    seed: int,
    clean_label: bool = False,
    ratio_of: str = "dataset",
    exclude_target: bool = False,
    cover_rate: float = 0.0,
) -> PoisonedData:
    """
    Poison a training set: stamp the trigger on some images and give them the attacker's label.

    >>> from art_aft.attacks.labels import AllToOne
    >>> x, y = np.zeros((10, 1, 4, 4), dtype=np.float32), np.arange(10)
    >>> data = poison(x, y, lambda x: x + 1, AllToOne(7), rate=0.2, seed=0)
    >>> int(data.is_poisoned.sum()), data.y[data.is_poisoned].tolist()
    (2, [7, 7])

    :param x: Training images, of shape (N, C, H, W) or (N, H, W, C).
    :param y: Their labels, as indices or one-hot.
    :param attack: ART's `PoisoningAttackBackdoor`, or a callable on batches.
    :param labels: The attacker's label for each true one: `AllToOne`, `AllToAll`, or another callable.
    :param rate: The poisoning ratio, in [0, 1]: floor(rate * n) images are poisoned.
    :param seed: Seed of the choice of images, and of the covers.
    :param clean_label: Whether to poison only images that have the attacker's label already, which keeps all labels.
        Otherwise (dirty label) images are drawn from all classes.
    :param ratio_of: What n is: "dataset", the whole training set; or, with `clean_label`, "target_class", the images
        that have the attacker's label.
    :param exclude_target: With dirty labels, whether to draw only images whose label changes. Otherwise an image
        of the target class may be drawn; it keeps its label and counts towards the rate.
    :param cover_rate: The ratio of cover images, disjoint from the poisoned ones, for attacks that have covers.
    :return: Copies of the data, with masks of the images that changed.
    :raises ValueError: If an argument is out of range, or there are too few images to draw from.
    :raises TypeError: If `attack` or another argument has the wrong type.
    """
    check_images("x", x, clip_values=None, allow_8bit=True)
    truth = check_labels("y", y, nb_samples=len(x))
    rate = check_number("rate", rate, minimum=0.0, maximum=1.0)
    cover_rate = check_number("cover_rate", cover_rate, minimum=0.0, maximum=1.0)
    rng = np.random.default_rng(check_seed("seed", seed))
    _check_choice_of_images(clean_label, ratio_of, exclude_target)

    wanted = wanted_labels(labels, truth, np.shape(y)[1] if _is_one_hot(y) else None)
    candidates = np.arange(len(x))
    if clean_label or exclude_target:
        candidates = np.flatnonzero(wanted == truth if clean_label else wanted != truth)
    size = whole(rate * (len(candidates) if ratio_of == "target_class" else len(x)))
    if size > len(candidates) or (rate > 0 and size == 0):
        raise ValueError(
            f"rate: got {rate:g}, which is {size} images, expected 1 to the {len(candidates)} that may be drawn"
        )
    is_poisoned = _drawn(rng, candidates, size, len(x))
    poisoned_x, poisoned_y = x.copy(), np.array(y)
    rows = np.flatnonzero(is_poisoned)
    new_labels = _in_form_of(poisoned_y, wanted[rows])
    poisoned_x[rows] = stamp(attack, x[rows], new_labels)
    poisoned_y[rows] = new_labels.reshape(poisoned_y[rows].shape)
    is_cover = np.zeros(len(x), dtype=bool)
    if cover_rate > 0:
        cover = cover_of(attack)
        if cover is None:
            raise ValueError(f"cover_rate: got {cover_rate:g}, expected 0 for an attack without cover images")
        rest, size = np.flatnonzero(~is_poisoned), whole(cover_rate * len(x))
        if not 0 < size <= len(rest):
            raise ValueError(f"cover_rate: got {cover_rate:g}, which is {size} images, expected 1 to {len(rest)}")
        is_cover = _drawn(rng, rest, size, len(x))
        poisoned_x[is_cover] = stamp(_Cover(attack, cover, rng), x[is_cover], truth[is_cover])
    return PoisonedData(poisoned_x, poisoned_y, is_poisoned, is_cover)


def _check_choice_of_images(clean_label: bool, ratio_of: str, exclude_target: bool) -> None:
    check_choice("ratio_of", ratio_of, ("dataset", "target_class"))
    check_flag("clean_label", clean_label)
    if check_flag("exclude_target", exclude_target) and clean_label:
        raise ValueError("exclude_target: got True with clean_label, which draws from the target class alone")
    if ratio_of == "target_class" and not clean_label:
        raise ValueError("ratio_of: got 'target_class' with dirty labels, expected clean_label=True with it")


def _is_one_hot(y: Any) -> bool:
    return np.ndim(y) == 2 and np.shape(y)[1] > 1


def _drawn(rng: np.random.Generator, candidates: np.ndarray, size: int, n: int) -> np.ndarray:
    """Return a mask over n images in which `size` of the candidates are drawn."""
    mask = np.zeros(n, dtype=bool)
    mask[rng.choice(candidates, size=size, replace=False)] = True
    return mask


def _in_form_of(y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return label indices in the form of `y`: one-hot rows of its type, or indices that its type can hold."""
    new_labels = np.eye(y.shape[1], dtype=y.dtype)[wanted] if _is_one_hot(y) else wanted
    if not np.array_equal(new_labels.astype(y.dtype), new_labels):
        raise ValueError(f"y: got labels of type {y.dtype}, expected one that holds {new_labels.max()}")
    return new_labels
