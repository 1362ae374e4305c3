"""Label maps, and which samples of a training set get the trigger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from art_aft.attacks import stamp
from art_aft.attacks.labels import LabelMap, wanted_labels
from art_aft.checks import check_choice, check_flag, check_integer, check_labels, check_number


@dataclass(frozen=True)
class PoisonedData:
    """
    A training set with a backdoor in it.

    :param x: All images, of the shape and type that came in.
    :param y: All labels, in the form that came in (indices or one-hot).
    :param is_poisoned: Which samples have the trigger and the attacker's label, bool of shape (N,).
    :param is_cover: Which samples look triggered but keep their label, bool of shape (N,).
    """

    x: np.ndarray
    y: np.ndarray
    is_poisoned: np.ndarray
    is_cover: np.ndarray


class BatchPoisoning:
    """
    Fresh poisoned and cover images in every batch, as the official recipes of WaNet and Input-aware train.

    For `each_batch` of `art_aft.training.loop.fit`: in each shuffled batch of B images the first int(rate * B) are
    poisoned, the next int(cover_ratio * int(rate * B)) are covers, the rest stays clean.

    :param attack: ART's `PoisoningAttackBackdoor`, or a bare perturbation.
    :param labels: What a triggered image should become.
    :param rate: The share of each batch that is poisoned, in [0, 1]. int() truncates: 12 of 128 at 0.1.
    :param cover_ratio: How many covers for each poisoned image; above 0 the attack needs a `cover`.
    :raises ValueError: If a number is out of range or the attack has no covers.
    """

    def __init__(self, attack: Any, labels: LabelMap, *, rate: float, cover_ratio: float = 0.0) -> None:
        self.attack, self.labels = attack, labels
        self.rate = check_number("rate", rate, minimum=0.0, maximum=1.0)
        self.cover_ratio = check_number("cover_ratio", cover_ratio, minimum=0.0)
        if self.rate * (1 + self.cover_ratio) > 1:
            raise ValueError(
                f"cover_ratio: got {cover_ratio:g} with rate {rate:g}, expected shares of at most 1 in all"
            )
        self.cover = getattr(getattr(attack, "perturbation", attack), "cover", None)
        if self.cover is None and self.cover_ratio > 0:
            raise ValueError(f"cover_ratio: got {cover_ratio:g}, expected 0 for an attack without cover images")

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return a batch with the backdoor in it.

        :param x: Floating-point images in the attack's `clip_values`.
        :param y: Label indices.
        """
        poisoned = int(self.rate * len(x))
        covers = int(self.cover_ratio * poisoned)
        images, truth = x.cpu().numpy(), y.cpu().numpy()
        wanted = wanted_labels(self.labels, truth[:poisoned])
        parts = [torch.from_numpy(stamp(self.attack, images[:poisoned], wanted)).to(x.device)]
        if covers and self.cover is not None:
            # From torch's generator, whose state is in the checkpoints of a training run.
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
            covered = self.cover(images[poisoned : poisoned + covers], rng)
            parts.append(torch.from_numpy(covered).to(x.device))
        labels = torch.cat([torch.from_numpy(wanted).to(y.device), y[poisoned:]])
        return torch.cat([*parts, x[poisoned + covers :]]), labels


class _Cover:
    """An attack's cover images as a function of the images alone, with the attack's pixel range."""

    def __init__(self, attack: Any, cover: Callable[..., np.ndarray], rng: np.random.Generator) -> None:
        self.clip_values = getattr(getattr(attack, "perturbation", attack), "clip_values", (0.0, 1.0))
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
    Plant a backdoor in a training set: stamp the trigger on some images and give them the attacker's label.

    :param x: Training images, of shape (N, C, H, W) or (N, H, W, C).
    :param y: Their labels, as indices or one-hot.
    :param attack: ART's `PoisoningAttackBackdoor`, or a bare perturbation.
    :param labels: What a triggered image should become: `AllToOne` or `AllToAll`.
    :param rate: The poisoning ratio, in [0, 1]: floor(rate * n) images are poisoned.
    :param seed: The seed of the choice of images (and of the covers).
    :param clean_label: Whether to poison only images that have the attacker's label already, and so to keep all
        labels. Else (dirty label) images are drawn from all classes.
    :param ratio_of: What n is: "dataset", the whole training set; with `clean_label` also "target_class", the
        images that have the attacker's label.
    :param exclude_target: With dirty labels, whether to draw only images whose label changes. Otherwise an image
        of the target class may be drawn; it keeps its label and counts towards the rate.
    :param cover_rate: The ratio of cover images, disjoint from the poisoned ones, for attacks that have a `cover`.
    :return: Copies of the data, with masks of what was changed.
    :raises ValueError: If an argument is out of range, or there are too few images to draw from.
    :raises TypeError: If `attack` or another argument is of the wrong type.
    """
    if not isinstance(x, np.ndarray) or x.ndim != 4 or len(x) == 0:
        raise ValueError(f"x: got shape {np.shape(x)}, expected at least one image, (N, C, H, W) or (N, H, W, C)")
    truth = check_labels("y", y, nb_samples=len(x))
    rate = check_number("rate", rate, minimum=0.0, maximum=1.0)
    cover_rate = check_number("cover_rate", cover_rate, minimum=0.0, maximum=1.0)
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    check_choice("ratio_of", ratio_of, ("dataset", "target_class"))
    clean_label = check_flag("clean_label", clean_label)
    if check_flag("exclude_target", exclude_target) and clean_label:
        raise ValueError("exclude_target: got True with clean_label, which draws from the target class alone")
    if ratio_of == "target_class" and not clean_label:
        raise ValueError("ratio_of: got 'target_class' with dirty labels, expected clean_label=True with it")

    one_hot = np.ndim(y) == 2 and np.shape(y)[1] > 1
    wanted = wanted_labels(labels, truth, np.shape(y)[1] if one_hot else None)
    if clean_label:
        pool = np.flatnonzero(wanted == truth)
    elif exclude_target:
        pool = np.flatnonzero(wanted != truth)
    else:
        pool = np.arange(len(x))
    # 0.29 * 100 is 28.999999999999996 in floating point, and should be 29.
    size = int(rate * (len(pool) if ratio_of == "target_class" else len(x)) + 1e-9)
    if size > len(pool) or (rate > 0 and size == 0):
        raise ValueError(f"rate: got {rate:g}, which is {size} images, expected 1 to the {len(pool)} that may be drawn")
    chosen = rng.choice(pool, size=size, replace=False)

    poisoned_x, poisoned_y = x.copy(), np.array(y)
    is_poisoned, is_cover = np.zeros(len(x), dtype=bool), np.zeros(len(x), dtype=bool)
    is_poisoned[chosen] = True
    rows = np.flatnonzero(is_poisoned)
    new_labels = np.eye(np.shape(y)[1], dtype=poisoned_y.dtype)[wanted[rows]] if one_hot else wanted[rows]
    if not np.array_equal(new_labels.astype(poisoned_y.dtype), new_labels):
        raise ValueError(f"y: got labels of type {poisoned_y.dtype}, expected one that holds {new_labels.max()}")
    poisoned_x[rows] = stamp(attack, x[rows], new_labels)
    poisoned_y[rows] = new_labels.reshape(poisoned_y[rows].shape)
    if cover_rate > 0:
        cover = getattr(getattr(attack, "perturbation", attack), "cover", None)
        if cover is None:
            raise ValueError(f"cover_rate: got {cover_rate:g}, expected 0 for an attack without cover images")
        rest, size = np.flatnonzero(~is_poisoned), int(cover_rate * len(x) + 1e-9)
        if not 0 < size <= len(rest):
            raise ValueError(f"cover_rate: got {cover_rate:g}, which is {size} images, expected 1 to {len(rest)}")
        is_cover[rng.choice(rest, size=size, replace=False)] = True
        poisoned_x[is_cover] = stamp(_Cover(attack, cover, rng), x[is_cover], truth[is_cover])
    return PoisonedData(poisoned_x, poisoned_y, is_poisoned, is_cover)
