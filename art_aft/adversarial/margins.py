"""The largest margin that each label can reach over a family of images."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch.nn import functional as F
from tqdm.auto import tqdm

from art_aft.adversarial.budget import images_per_label
from art_aft.checks import check_choice, check_integer
from art_aft.classifiers.classifier import check_classifier
from art_aft.classifiers.pixel_module import borrow
from art_aft.data.images import Images
from art_aft.data.pixels import clamped, to_float
from art_aft.runtime.devices import PRECISIONS
from art_aft.runtime.random_state import isolated_rng

# Pixel values in flight, over all labels and starts of a step.
_MEMORY = 4_000_000


class Family(Protocol):
    """
    A family of images: what is searched over, and what image that makes.

    A family that is blended into clean images has `images_per_step` above 0.
    """

    #: For people, such as "free pixels".
    name: str
    #: Clean images that each member is shown on in a step, fewer with many labels; 0 where it makes whole images. Eight
    #: give the margins of 24; four are too few.
    images_per_step: int

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return `count` random members for images of shape (C, H, W), with values in [0, 1]."""

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return images of shape (count, N, C, H, W) in [0, 1]; N is 1 without clean images x of shape (N, C, H, W)."""


class FreePixels:
    """Every pixel is free: MM-BD's images."""

    name, images_per_step = "free pixels", 0

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise."""
        return torch.rand(count, *shape)

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the members themselves."""
        return members[:, None]


class Smooth:
    """
    A few free values, enlarged to the size of an image: no fine structure.

    :param side: The number of free values along each axis.
    """

    name, images_per_step = "smooth", 0

    def __init__(self, side: int = 8) -> None:
        self.side = check_integer("side", side, 2)

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise of few values."""
        self.size = shape[1:]
        return torch.rand(count, shape[0], *(min(self.side, length) for length in shape[1:]))

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the members, enlarged."""
        return F.interpolate(members, size=self.size, mode="bilinear", align_corners=False)[:, None]


class Blended:
    """
    One picture, blended into clean images: (1 - ratio) x + ratio p.

    :param ratio: The share of the picture, in (0, 1].
    """

    name, images_per_step = "blended", 8

    def __init__(self, ratio: float = 0.1) -> None:
        self.ratio = ratio

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise."""
        return torch.rand(count, *shape)

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the images with each picture."""
        return (1 - self.ratio) * x + self.ratio * members[:, None]


class Profile:
    """
    One profile along an axis, the same in all rows or all columns, added to clean images.

    :param axis: "rows" (a horizontal profile, all rows alike) or "columns".
    :param size: The largest change of a pixel, as a share of the pixel range.
    """

    images_per_step = 8

    def __init__(self, axis: str = "rows", size: float = 0.1) -> None:
        self.axis = check_choice("axis", axis, ("rows", "columns"))
        self.size = size
        self.name = f"profile along {axis}"

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise along one axis."""
        height, width = shape[1:]
        return torch.rand(count, shape[0], *((1, width) if self.axis == "rows" else (height, 1)))

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the images with each profile."""
        return clamped(x + self.size * (2 * members[:, None] - 1), 0, 1)


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
            found.append(search(max_iter, learning_rate).view(len(group), starts).amax(dim=1))
            bar.update(len(group))
    return torch.cat(found).numpy()


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

    def __call__(self, max_iter: int, learning_rate: float) -> torch.Tensor:
        """Return the margin that each label reached."""
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
            reached = self._margins(members, index)
            best = reached.detach().cpu() if size else torch.maximum(best, reached.detach().cpu())
            optimizer.zero_grad()
            (-reached.sum()).backward()
            optimizer.step()
            with torch.no_grad():
                members.clamp_(0, 1)
        return self._over_all(members.detach()) if size else best

    def _over_all(self, members: torch.Tensor) -> torch.Tensor:
        """Return the mean margins over all images, or many of them."""
        assert self.images is not None
        with torch.no_grad():
            parts = torch.randperm(len(self.images))[: self.measured].split(self.size)
            sums = [self._margins(members, part, total=True) for part in parts]
        margins, counts = (torch.stack(values).sum(dim=0) for values in zip(*sums, strict=True))
        return (margins / counts.clamp(min=1)).cpu()

    def _margins(self, members: torch.Tensor, index: torch.Tensor | None, *, total: bool = False) -> torch.Tensor:
        """Return the mean margin of each member's label over images of other labels; with `total`, sum and number."""
        x = torch.zeros(1, *self.shape, device=self.device)
        others = torch.ones(len(members), 1, device=self.device)
        if index is not None and self.images is not None:
            x = self._pixels(self.images, index)
            others = (torch.from_numpy(self.images.labels)[index].to(self.device) != self.labels[:, None]).float()
        shown = self.family.shown(members, x)
        if not self.channels_first:
            shown = shown.movedim(2, -1)
        logits = _logits(self.module(shown.flatten(0, 1)))
        wanted = self.labels.repeat_interleave(shown.shape[1])[:, None]
        rest = logits.scatter(1, wanted, -torch.inf).amax(dim=1)
        margins = (logits.gather(1, wanted)[:, 0] - rest).view(len(members), -1) * others
        if total:
            return margins.sum(dim=1), others.sum(dim=1)
        return margins.sum(dim=1) / others.sum(dim=1).clamp(min=1)

    def _pixels(self, images: Images, index: torch.Tensor) -> torch.Tensor:
        low, high = images.clip_values
        x = (to_float(torch.from_numpy(images.pixels[index.numpy()]).to(self.device), (low, high)) - low) / (high - low)
        return x if self.channels_first else x.movedim(-1, 1)


def _logits(outputs: torch.Tensor) -> torch.Tensor:
    """Return logits: the outputs, or their logarithms where they are probabilities."""
    with torch.no_grad():
        probabilities = bool((outputs >= 0).all()) and bool(((outputs.sum(dim=1) - 1).abs() < 1e-2).all())
    return outputs.clamp(min=1e-30).log() if probabilities else outputs
