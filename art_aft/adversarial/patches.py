"""One square patch at one place, the same for all images, towards each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_aft.checks import check_choice, check_integer
from art_aft.classifiers.classifier import check_classifier
from art_aft.classifiers.pixel_module import borrow, told_labels
from art_aft.data.images import Images
from art_aft.data.pixels import to_float
from art_aft.runtime.devices import PRECISIONS
from art_aft.runtime.random_state import isolated_rng

# Pixel values in flight, over all patches of a step.
_MEMORY = 4_000_000

# Of more labels than this, only as many get a search of their own after the first look.
_FINALISTS = 10

# The places that the first look leaves to each label, and those of them that the second leaves.
_PLACES, _LAST_PLACES = 16, 3

# Images on which success is measured; a share has a standard error of 0.03 or less.
_MEASURED = 240


@dataclass(frozen=True)
class Patches:
    """
    The most successful patch that was found for each label.

    :param success: Targeted success rates: the shares of images of other labels that the patches lead to their labels,
        of shape (nb_classes,).
    :param places: Row and column of each patch's first pixel, of shape (nb_classes, 2).
    :param pixels: The patches, of shape (nb_classes, C, side, side), as shares of the pixel range in [0, 1].
    """

    success: np.ndarray
    places: np.ndarray
    pixels: np.ndarray

    def as_perturbations(
        self, input_shape: Sequence[int], clip_values: tuple[float, float], *, channels_first: bool = True
    ) -> np.ndarray:
        """
        Return what is added to images in the place of the patches: black and white pixels become these exactly, grey
        ones shift the image's own.

        :param input_shape: The shape of an image.
        :param clip_values: The pixel range, to which sums are to be clipped.
        :param channels_first: Whether images are (C, H, W), else (H, W, C).
        :return: float32 of shape (nb_classes, *input_shape), in units of `clip_values`.
        """
        shape = tuple(input_shape) if channels_first else (input_shape[2], *input_shape[:2])
        added = np.zeros((len(self.pixels), *shape), dtype=np.float32)
        side = self.pixels.shape[-1]
        for each, pixels, (row, column) in zip(added, self.pixels, self.places, strict=True):
            each[:, row : row + side, column : column + side] = (2 * pixels - 1) * (clip_values[1] - clip_values[0])
        return added if channels_first else np.ascontiguousarray(np.moveaxis(added, 1, -1))


def patch_side(classifier: PyTorchClassifier, share: float) -> int:
    """
    Return the side of a patch in pixels.

    :param classifier: The classifier, for the size of its images.
    :param share: The side as a share of the image's shorter side, in (0, 1].
    """
    shape = classifier.input_shape
    return max(1, round(share * min(shape[1:] if classifier.channels_first else shape[:2])))


def find_patches(
    classifier: PyTorchClassifier,
    images: Images,
    side: int,
    *,
    precision: str = "auto",
    seed: int = 0,
    verbose: bool = False,
) -> Patches:
    """
    Search, for each label, the square patch and its place that lead the most images of other labels there.

    Where a patch is matters as much as what it shows, and no gradient leads from a wrong place to the right one. So
    places are tried out, half a patch apart. First, the patch at each place is driven to whichever label it reaches
    most easily. The places that get furthest are left to a search for each label, and the best few of them to a longer
    one. Of more than ten labels only the ten that the first look favours get these searches.

    | Paper link: https://arxiv.org/abs/1712.09665 (patches on clean classifiers; trying out places is not from there)

    :param classifier: The classifier; it stays as it is.
    :param images: Checked images with labels.
    :param side: The side of the patch, in pixels.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of starts and order.
    :param verbose: Whether to show a progress bar.
    :raises ValueError: If the patch is larger than an image, or `precision` is unknown.
    :raises TypeError: If `side` is not an integer.
    """
    clip_values = check_classifier("classifier", classifier)
    shape = classifier.input_shape
    height, width = shape[1:] if classifier.channels_first else shape[:2]
    if check_integer("side", side, 1) > min(height, width):
        raise ValueError(f"side: got {side}, expected at most {min(height, width)}, the shorter side of an image")
    check_choice("precision", precision, PRECISIONS)
    with (
        isolated_rng(check_integer("seed", seed, 0)),
        borrow(classifier, precision=precision, scale=clip_values, freeze=True, fold=True) as module,
        tqdm(total=3, desc=f"patch of {side}", unit="look", disable=None if verbose else True, leave=False) as bar,
    ):
        module.eval()
        return _Search(module, classifier, images, side, _places(height, width, side))(bar)


def _places(height: int, width: int, side: int) -> torch.Tensor:
    """Return rows and columns half a patch apart, and those at the far borders, of shape (places, 2)."""
    step = (side + 1) // 2
    axes = (sorted({*range(0, length - side + 1, step), length - side}) for length in (height, width))
    return torch.cartesian_prod(*(torch.tensor(axis) for axis in axes))


@dataclass
class _Candidates:
    """Patches of shape (M, C, side, side) in [0, 1], at places of shape (M, 2), each for a label of shape (M,)."""

    pixels: torch.Tensor
    places: torch.Tensor
    labels: torch.Tensor | None = None

    def take(self, index: torch.Tensor, labels: torch.Tensor) -> _Candidates:
        """Return some of them, for these labels."""
        return _Candidates(self.pixels[index], self.places[index.cpu()], labels)


class _Search:
    """The search on one classifier."""

    def __init__(
        self, module: torch.nn.Module, classifier: PyTorchClassifier, images: Images, side: int, places: torch.Tensor
    ) -> None:
        self.module, self.images, self.side, self.places = module, images, side, places
        self.channels_first, self.device = classifier.channels_first, classifier.device
        self.nb_classes = classifier.nb_classes
        self.y = torch.from_numpy(images.labels)

    def __call__(self, bar: Any) -> Patches:
        """Return the patches; the bar counts the looks."""
        channels = self.images.pixels.shape[1 if self.channels_first else -1]
        start = torch.rand(len(self.places), channels, self.side, self.side).to(self.device)
        found = _Candidates(start, self.places)
        first = self._driven(found, steps=4, learning_rate=0.4, size=8)
        bar.update()
        success, best = self._first_success(found, size=16)
        places, pixels = found.places[best], found.pixels[best.to(self.device)]
        furthest = first.max(dim=1).values.topk(min(_PLACES, len(first))).indices
        labels = first.max(dim=0).values.topk(min(_FINALISTS, self.nb_classes)).indices
        found = found.take(furthest.repeat(len(labels)), labels.repeat_interleave(len(furthest)))
        for kept, steps, learning_rate, size in ((_LAST_PLACES, 8, 0.2, 8), (1, 12, 0.1, 16)):
            reached = self._driven(found, steps=steps, learning_rate=learning_rate, size=size).view(len(labels), -1)
            bar.update()
            chosen = reached.topk(min(kept, reached.shape[1]), dim=1).indices
            count = chosen.shape[1]
            chosen += reached.shape[1] * torch.arange(len(labels), device=self.device)[:, None]
            found = found.take(chosen.flatten(), labels.repeat_interleave(count))
        success[labels.cpu()] = self._success(found)
        places[labels.cpu()], pixels[labels] = found.places, found.pixels
        return Patches(success.numpy(), places.numpy(), pixels.cpu().numpy())

    def _driven(self, found: _Candidates, *, steps: int, learning_rate: float, size: int) -> torch.Tensor:
        """
        Improve patches by Adam, and return how far they got: the mean log-probability of each one's label, or of every
        label, of shape (M, nb_classes), where they have none.
        """
        found.pixels.requires_grad_(True)
        optimizer = torch.optim.Adam([found.pixels], lr=learning_rate)
        order = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(order) < min(size, len(self.images)):
                order = torch.randperm(len(self.images))
            index, order = order[:size], order[size:]
            optimizer.zero_grad()
            for part in self._parts(found, size):
                reached = self._reached(found, part, index)
                # Without a label, the sum of the probabilities favours the label that is reached most easily.
                (-(reached.logsumexp(dim=1) if found.labels is None else reached).sum()).backward()
            assert found.pixels.grad is not None
            found.pixels.grad.nan_to_num_(0.0, 0.0, 0.0)  # an overflow is no direction
            optimizer.step()
            with torch.no_grad():
                found.pixels.clamp_(0, 1)
        found.pixels = found.pixels.detach()
        index = torch.randperm(len(self.images))[:size]
        with torch.no_grad():
            return torch.cat([self._reached(found, part, index) for part in self._parts(found, size)])

    def _parts(self, found: _Candidates, size: int) -> tuple[torch.Tensor, ...]:
        """Return the candidates' indices, as many at a time as memory permits."""
        values = size * int(np.prod(self.images.pixels.shape[1:]))
        return torch.arange(len(found.pixels)).split(max(1, _MEMORY // values))

    def _reached(self, found: _Candidates, part: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the mean log-probability over images of other labels: of each candidate's label, or of all labels."""
        log_probabilities = self._log_probabilities(found, part, index)
        y = self.y[index].to(self.device)
        if found.labels is None:
            others = 1 - torch.nn.functional.one_hot(y, self.nb_classes)
            return (log_probabilities * others).sum(dim=1) / others.sum(dim=0).clamp(min=1)
        labels = found.labels[part][:, None]
        own = log_probabilities.gather(2, labels[..., None].expand(-1, len(index), 1))[..., 0]
        others = (y != labels).to(own.dtype)
        return (own * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)

    def _log_probabilities(self, found: _Candidates, part: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return those of images with patches, of shape (patches, images, nb_classes)."""
        low, high = self.images.clip_values
        x = to_float(torch.from_numpy(self.images.pixels[index.numpy()]).to(self.device), (low, high))
        x = (x if self.channels_first else x.movedim(-1, 1)).sub(low).div(high - low)
        shown = x.repeat(len(part), 1, 1, 1, 1)
        rows, columns = ((found.places[part, axis, None] + torch.arange(self.side)).to(self.device) for axis in (0, 1))
        place = torch.arange(len(part), device=self.device)[:, None, None]
        shown[place, :, :, rows[:, :, None], columns[:, None, :]] = found.pixels[part].movedim(1, -1)[:, :, :, None]
        shown = (shown if self.channels_first else shown.movedim(2, -1)).flatten(0, 1)
        return self.module(shown).log_softmax(dim=1).view(len(part), len(index), self.nb_classes)

    def _first_success(self, found: _Candidates, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return, for every label, the success of the patch that leads most images to it, and which of all that is."""
        index = torch.randperm(len(self.images))[:size]
        shares = []
        with torch.no_grad():
            for part in self._parts(found, size):
                led = told_labels(self._log_probabilities(found, part, index))[..., None]
                led = (led == torch.arange(self.nb_classes, device=self.device)).cpu()
                others = self.y[index][:, None] != torch.arange(self.nb_classes)
                shares.append((led & others).sum(dim=1) / others.sum(dim=0).clamp(min=1))
        success, best = torch.cat(shares).max(dim=0)
        return success, best

    def _success(self, found: _Candidates) -> torch.Tensor:
        """Return the success of each patch towards its label."""
        assert found.labels is not None
        shares = []
        with torch.no_grad():
            for number, label in enumerate(found.labels.tolist()):
                index = torch.randperm(len(self.images))[:_MEASURED]
                index = index[self.y[index] != label]
                one, parts = torch.tensor([number]), index.split(64)
                told = (told_labels(self._log_probabilities(found, one, part)) for part in parts)
                led = [(labels == label).sum().cpu() for labels in told]
                shares.append(torch.stack(led).sum() / max(1, len(index)))
        return torch.stack(shares)
