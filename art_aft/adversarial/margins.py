"""How far images of a family are driven towards each label: the largest margins, and the images that follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_aft.adversarial.budget import images_per_label
from art_aft.adversarial.families import Family
from art_aft.checks import check_choice, check_integer
from art_aft.classifiers.classifier import check_classifier
from art_aft.classifiers.pixel_module import borrow
from art_aft.data.images import Images
from art_aft.data.pixels import to_float
from art_aft.runtime.devices import PRECISIONS
from art_aft.runtime.random_state import isolated_rng

# Pixel values in flight, over all labels and starts of a step.
_MEMORY = 4_000_000


def maximum_margins(
    classifier: PyTorchClassifier,
    family: Family,
    images: Images | None = None,
    *,
    starts: int = 4,
    max_iter: int = 100,
    learning_rate: float = 0.05,
    precision: str = "auto",
    seed: int = 0,
    verbose: bool = False,
) -> np.ndarray:
    """
    Return the largest margin of each label: its logit minus the largest other one, maximised over a family of images.

    A trigger makes the classifier surer of its target label than nature makes it of any label, so the target label's
    margin can be driven further. Where the family is blended into clean images, the mean over images of other labels is
    maximised, and measured on images that the search may not have seen.

    Where the model returns probabilities, their logarithms are taken, for margins of probabilities end at 1.

    | Paper link: https://arxiv.org/abs/2205.06900 (free pixels; plain gradient steps there, Adam here)

    :param classifier: The classifier; it stays as it is.
    :param family: The family of images.
    :param images: Clean images, for families that need them.
    :param starts: Random starts for each label; the best one counts.
    :param max_iter: The number of steps of Adam.
    :param learning_rate: Adam's learning rate, for values in [0, 1].
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of starts and order.
    :param verbose: Whether to show a progress bar.
    :return: Shape (nb_classes,), in units of the logits.
    :raises ValueError: If a number is out of its range, or images are missing.
    """
    search: dict[str, Any] = {"starts": starts, "max_iter": max_iter, "learning_rate": learning_rate}
    return _driven(classifier, family, images, **search, precision=precision, seed=seed, verbose=verbose)[0]


def family_success(
    classifier: PyTorchClassifier,
    family: Family,
    images: Images,
    *,
    max_iter: int = 80,
    learning_rate: float = 0.05,
    precision: str = "auto",
    seed: int = 0,
    verbose: bool = False,
) -> np.ndarray:
    """
    Return the targeted success rate of each label: the share of images of other labels that one change leads there.

    The change is the member of the family that drives the label's mean margin highest, the same for all images.

    :param classifier: The classifier; it stays as it is.
    :param family: A family that is shown on clean images.
    :param images: Clean images.
    :param max_iter: The number of steps of Adam.
    :param learning_rate: Adam's learning rate, for values in [0, 1].
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of starts and order.
    :param verbose: Whether to show a progress bar.
    :return: Shares in [0, 1], of shape (nb_classes,), of 240 images or fewer with many labels.
    :raises ValueError: If a number is out of its range, or the family makes whole images.
    """
    if not family.images_per_step:
        raise ValueError(f"family: got {family.name!r}, expected one that is shown on clean images")
    search: dict[str, Any] = {"starts": 1, "max_iter": max_iter, "learning_rate": learning_rate}
    return _driven(classifier, family, images, **search, precision=precision, seed=seed, verbose=verbose)[1]


def _driven(
    classifier: PyTorchClassifier,
    family: Family,
    images: Images | None,
    *,
    starts: int,
    max_iter: int,
    learning_rate: float,
    precision: str,
    seed: int,
    verbose: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the margin and the success rate of each label; the latter are 0 where members are whole images."""
    clip_values = check_classifier("classifier", classifier)
    for name, value in (("starts", starts), ("max_iter", max_iter)):
        check_integer(name, value, 1)
    check_choice("precision", precision, PRECISIONS)
    if family.images_per_step and images is None:
        raise ValueError(f"images: got None for the family {family.name!r}, expected clean images")
    size = family.images_per_step and images_per_label(family.images_per_step, classifier.nb_classes, 4)
    per_label = starts * max(1, size) * int(np.prod(classifier.input_shape))
    together = max(1, _MEMORY // per_label)
    labels = torch.arange(classifier.nb_classes)
    with (
        isolated_rng(check_integer("seed", seed, 0)),
        borrow(classifier, precision=precision, scale=clip_values, freeze=True, fold=True) as module,
        tqdm(total=len(labels), desc=family.name, unit="label", disable=None if verbose else True, leave=False) as bar,
    ):
        module.eval()
        found = []
        for group in labels.split(together):
            search = _Search(module, classifier, family, images, group.repeat_interleave(starts), size)
            reached = search(max_iter, learning_rate)
            found.append(torch.stack([each.view(len(group), starts).amax(dim=1) for each in reached]))
            bar.update(len(group))
    margins, success = torch.cat(found, dim=1).numpy()
    return margins, success


class _Search:
    """Members of a family that drive up the margins of given labels, one member a label."""

    def __init__(
        self,
        module: torch.nn.Module,
        classifier: PyTorchClassifier,
        family: Family,
        images: Images | None,
        labels: torch.Tensor,
        size: int,
    ) -> None:
        self.module, self.family, self.images, self.size = module, family, images, size
        self.measured = images_per_label(240, classifier.nb_classes, 60)
        self.channels_first, self.device = classifier.channels_first, classifier.device
        self.labels = labels.to(self.device)
        shape = classifier.input_shape
        self.shape = shape if self.channels_first else (shape[2], *shape[:2])

    def __call__(self, max_iter: int, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the margin that each label reached, and the share of the images that followed."""
        members = self.family.start(len(self.labels), self.shape).to(self.device).requires_grad_(True)
        optimizer = torch.optim.Adam([members], lr=learning_rate)
        best = torch.full((len(self.labels),), -torch.inf)
        size = self.size
        # Batches in an order that is drawn again when it is used up.
        order = torch.empty(0, dtype=torch.long)
        for _ in range(max_iter):
            index = None
            if size and self.images is not None:
                if len(order) < min(size, len(self.images)):
                    order = torch.randperm(len(self.images))
                index, order = order[:size], order[size:]
            reached = self._mean_margins(members, index)
            best = reached.detach().cpu() if size else torch.maximum(best, reached.detach().cpu())
            optimizer.zero_grad()
            (-reached.sum()).backward()
            optimizer.step()
            with torch.no_grad():
                members.clamp_(0, 1)
        return self._over_all(members.detach()) if size else (best, torch.zeros_like(best))

    def _over_all(self, members: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean margins over all images, or many of them, and the share of those above 0."""
        assert self.images is not None
        with torch.no_grad():
            parts = torch.randperm(len(self.images))[: self.measured].split(self.size)
            found = [self._margins(members, part) for part in parts]
        margins, others = (torch.cat(values, dim=1) for values in zip(*found, strict=True))
        counts = others.sum(dim=1).clamp(min=1)
        return (margins * others).sum(dim=1).div(counts).cpu(), ((margins > 0) * others).sum(dim=1).div(counts).cpu()

    def _mean_margins(self, members: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
        """Return the mean margin of each member's label over images of other labels."""
        margins, others = self._margins(members, index)
        return (margins * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)

    def _margins(self, members: torch.Tensor, index: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each member's margins, of shape (labels, images), and 1 for images of other labels, 0 for its own."""
        x = torch.zeros(1, *self.shape, device=self.device)
        others = torch.ones(len(members), 1, device=self.device)
        if index is not None and self.images is not None:
            x = self._pixels(self.images, index)
            others = (torch.from_numpy(self.images.labels)[index].to(self.device) != self.labels[:, None]).float()
        shown = self.family.shown(members, x)
        if not self.channels_first:
            shown = shown.movedim(2, -1)
        logits = self.module(shown.flatten(0, 1))
        wanted = self.labels.repeat_interleave(shown.shape[1])[:, None]
        rest = logits.scatter(1, wanted, -torch.inf).amax(dim=1)
        return (logits.gather(1, wanted)[:, 0] - rest).view(len(members), -1), others

    def _pixels(self, images: Images, index: torch.Tensor) -> torch.Tensor:
        low, high = images.clip_values
        x = (to_float(torch.from_numpy(images.pixels[index.numpy()]).to(self.device), (low, high)) - low) / (high - low)
        return x if self.channels_first else x.movedim(-1, 1)
