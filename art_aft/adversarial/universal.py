"""One perturbation for all images, towards each label: the r of the paper's Section V."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.special import log_softmax
from tqdm.auto import tqdm

from art_aft.adversarial.norms import default_eps
from art_aft.checks import (
    check_choice,
    check_class_indices,
    check_flag,
    check_integer,
    check_norm,
    check_number,
    check_seed,
)
from art_aft.classifiers.classifier import images_for, predict_logits
from art_aft.classifiers.pixel_module import borrow, told_labels
from art_aft.data.images import Images
from art_aft.data.pixels import clamped, to_float
from art_aft.runtime.devices import PRECISIONS
from art_aft.runtime.random_state import isolated_rng

# Pixels in flight, over all labels of a step.
_MEMORY = 4_000_000


def universal_perturbations(
    classifier: PyTorchClassifier,
    x: np.ndarray | Images,
    y: np.ndarray | None = None,
    *,
    norm: float = 2,
    eps: float | None = None,
    eps_step: float | None = None,
    max_iter: int = 20,
    batch_size: int = 125,
    num_random_init: int = 0,
    labels: Sequence[int] | None = None,
    relative: bool = False,
    precision: str = "auto",
    seed: int = 0,
    verbose: bool = False,
) -> np.ndarray:
    """
    Find one universal perturbation r_l for each label l, which leads images of all other labels to l.

    Each r_l minimises the mean cross entropy of the perturbed images with l, within a norm bound (eq. 14, with one r
    for all images). All labels share each pass through the classifier, which stays as it is. On an infected classifier
    the perturbation towards the target label succeeds first: `targeted_success` measures that. With `relative`, each r
    leads the images of every label y to the label y + l, as an all-to-all trigger does.

    With norm 0 few pixels change, as far as the pixel range permits. A trigger such as BadNets' is of that kind, and
    other norms do not reach it with a small bound. The search keeps the pixels with the largest changes. It keeps ten
    times as many at its start as at its end, so that pixels that help only together are not dropped early.

    | Paper link: https://arxiv.org/abs/2202.06312 (Section V)

    :param classifier: The classifier.
    :param x: Images in `clip_values`, of shape (N, *input_shape).
    :param y: Their labels, as indices or one-hot; None with checked `Images`.
    :param norm: The norm of the bound: np.inf, 2 or 0.
    :param eps: The bound, in units of `clip_values`; with norm 0 the number of pixels. None is `default_eps`.
    :param eps_step: The length of a step, in units of `clip_values`; with norm 0 the step of the pixel value with the
        steepest gradient. None is a fifth of `eps`, with norm 0 0.3 of the range.
    :param max_iter: The number of steps.
    :param batch_size: Images a step, for each label. A step continues in the images where the last one ended.
    :param num_random_init: Random starting points; the one that ends with the lowest loss on the images counts. 0
        starts once, without a perturbation. With norm 0 all start there, and differ by the order of the images.
    :param labels: The labels l; None is all of them (with `relative`, all but 0).
    :param relative: Whether l is added to each image's own label, modulo the number of labels.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of order and starting points.
    :param verbose: Whether to show a progress bar.
    :return: float32 perturbations of shape (K, *input_shape), within the bound.
    :raises ValueError: If a number is out of its range or the data do not fit.
    """
    images = images_for(classifier, x, y)
    low, high = images.clip_values
    check_norm("norm", norm, (np.inf, 2, 0))
    eps = default_eps(norm, classifier.input_shape, (low, high)) if eps is None else eps
    check_number("eps", eps, minimum=0.0 if norm else 1.0, above=bool(norm))
    usual = eps / 5 if norm else 0.3 * (high - low)
    eps_step = usual if eps_step is None else check_number("eps_step", eps_step, minimum=0.0, above=True)
    check_integer("max_iter", max_iter, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("num_random_init", num_random_init, 0)
    check_choice("precision", precision, PRECISIONS)
    check_seed("seed", seed)
    least = int(check_flag("relative", relative))
    nb_classes = classifier.nb_classes
    chosen = check_class_indices("labels", range(least, nb_classes) if labels is None else labels, nb_classes, least)
    check_flag("verbose", verbose)
    modulo = nb_classes if relative else None
    together = max(1, _MEMORY // (batch_size * int(np.prod(classifier.input_shape))))
    found = []
    with (
        isolated_rng(seed),
        borrow(classifier, precision=precision, scale=(low, high), freeze=True, fold=True) as module,
        tqdm(total=len(chosen), desc="Universal", unit="label", disable=None if verbose else True, leave=False) as bar,
    ):
        module.eval()
        data = torch.from_numpy(images.pixels), torch.from_numpy(images.labels).to(classifier.device)
        radius, step = eps / (high - low) if norm else eps, eps_step / (high - low)
        bound = _Pixels(radius, step, 1 if classifier.channels_first else 3) if norm == 0 else _Norm(radius, step, norm)
        search = _Search(module, *data, (low, high), bound, max_iter, batch_size, modulo)
        for start in range(0, len(chosen), together):
            group = torch.tensor(chosen[start : start + together], device=classifier.device)
            best, best_loss = search(group, random_start=num_random_init > 0)
            for _ in range(num_random_init - 1):
                other, loss = search(group, random_start=True)
                better = loss < best_loss
                best = torch.where(better[:, None, None, None], other, best)
                best_loss = torch.where(better, loss, best_loss)
            found.append(best.cpu().numpy())
            bar.update(len(group))
    return np.concatenate(found) * np.float32(high - low)


@dataclass
class _Norm:
    """Steps of normalised gradients within an L2 or L-infinity bound."""

    eps: float
    eps_step: float
    norm: float

    def start(self, r: torch.Tensor) -> torch.Tensor:
        """Return a random perturbation for each of those given."""
        drawn = torch.randn(r.shape).to(r.device) if self.norm == 2 else 2 * torch.rand(r.shape).to(r.device) - 1
        length = torch.rand(len(r)).to(r.device)[:, None, None, None]
        return self._inside(self._unit(drawn) * self.eps * length if self.norm == 2 else drawn * self.eps)

    def step(self, r: torch.Tensor, gradient: torch.Tensor, done: float) -> torch.Tensor:
        """Return perturbations after a step against the gradient; `done` is the share of the steps before it."""
        direction = self._unit(gradient) if self.norm == 2 else gradient.sign()
        return self._inside(r - self.eps_step * direction)

    @staticmethod
    def _unit(r: torch.Tensor) -> torch.Tensor:
        return r / r.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]

    def _inside(self, r: torch.Tensor) -> torch.Tensor:
        if self.norm == 2:
            length = r.flatten(1).norm(dim=1)[:, None, None, None]
            return r * (self.eps / length.clamp(min=1e-12)).clamp(max=1)
        return r.clamp(-self.eps, self.eps)


@dataclass
class _Pixels:
    """The same within a bound on the number of pixels: iterative hard thresholding. `channel` is the channels' axis."""

    eps: float
    eps_step: float
    channel: int

    def start(self, r: torch.Tensor) -> torch.Tensor:
        """Return no perturbation."""
        return r

    def step(self, r: torch.Tensor, gradient: torch.Tensor, done: float) -> torch.Tensor:
        """Return perturbations after a step against the gradient; `done` is the share of the steps before it."""
        steepest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        r = (r - self.eps_step * gradient / steepest).clamp(-1, 1)
        change = r.abs().sum(dim=self.channel, keepdim=True)
        # From ten times as many pixels down to the right number, which the last third of the steps have.
        count = min(int(self.eps * max(1.0, 10 - 13.5 * done)), change[0].numel())
        kept = change.flatten(1).topk(count, dim=1).indices
        return r * torch.zeros_like(change).flatten(1).scatter_(1, kept, 1.0).view_as(change)


@dataclass
class _Search:
    """Perturbations towards several labels at once, on pixels in [0, 1]."""

    module: torch.nn.Module
    x: torch.Tensor
    y: torch.Tensor
    clip_values: tuple[float, float]
    bound: _Norm | _Pixels
    max_iter: int
    batch_size: int
    modulo: int | None = None

    def _pixels(self, index: torch.Tensor) -> torch.Tensor:
        low, high = self.clip_values
        return (to_float(self.x[index].to(self.y.device), self.clip_values) - low) / (high - low)

    def __call__(self, labels: torch.Tensor, *, random_start: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return perturbations, and the mean loss of each over the last step's images."""
        x, y, device = self.x, self.y, self.y.device
        r = torch.zeros(len(labels), *x.shape[1:], device=device)
        if random_start:
            r = self.bound.start(r)
        # Whole batches, from an order that is drawn again when it is used up.
        size = min(self.batch_size, len(x))
        order = torch.empty(0, dtype=torch.long)
        loss = torch.zeros(len(labels), device=x.device)
        for number in range(self.max_iter):
            if len(order) < size:
                order = torch.randperm(len(x))
            index, order = order[:size], order[size:]
            r.requires_grad_(True)
            shown = clamped(self._pixels(index) + r[:, None], 0, 1)
            logits = self.module(shown.flatten(0, 1))
            wanted = _wanted(labels[:, None], y[index], self.modulo)
            each = torch.nn.functional.cross_entropy(logits, wanted.flatten(), reduction="none").view(wanted.shape)
            others = (y[index] != wanted).float()
            loss = (each * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)
            (gradient,) = torch.autograd.grad(loss.sum(), r)
            with torch.no_grad():
                # An overflow in one layer, as in a model that all but diverged, is no direction.
                gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
                r = self.bound.step(r, gradient, number / self.max_iter)
        return r.detach(), loss.detach()


def _wanted(labels: torch.Tensor, y: torch.Tensor, modulo: int | None) -> torch.Tensor:
    """Return the label, of shape (K, N), that images of the labels y (N,) are led to by labels of shape (K, 1)."""
    return labels.expand(-1, len(y)) if modulo is None else (y + labels) % modulo


def targeted_success(
    classifier: PyTorchClassifier,
    images: Images,
    perturbations: np.ndarray,
    labels: Sequence[int],
    *,
    relative: bool = False,
) -> np.ndarray:
    """
    Return the targeted success rate of each perturbation: the share of images of other labels that it leads to its
    label.

    :param classifier: The classifier.
    :param images: Checked images with labels.
    :param perturbations: Of shape (K, *input_shape).
    :param labels: The label of each perturbation.
    :param relative: Whether that is added to each image's own label, modulo the number of labels.
    :return: Shares in [0, 1], of shape (K,).
    """
    led = _led(classifier, images, perturbations, labels, relative=relative)
    return np.array(
        [
            np.mean(told_labels(torch.from_numpy(logits)).numpy() == wanted) if len(wanted) else 0.0
            for logits, wanted in led
        ]
    )


def targeted_log_probability(
    classifier: PyTorchClassifier, images: Images, perturbations: np.ndarray, labels: Sequence[int]
) -> np.ndarray:
    """
    Return the mean log-probability of its label that each perturbation gives images of other labels.

    :param classifier: The classifier.
    :param images: Checked images with labels.
    :param perturbations: Of shape (K, *input_shape).
    :param labels: The label of each perturbation.
    :return: Of shape (K,), -inf where there are no images of other labels, or outputs are NaN.
    """
    led = _led(classifier, images, perturbations, labels)
    chosen = (log_softmax(logits, axis=1)[np.arange(len(wanted)), wanted] for logits, wanted in led)
    return np.array([np.nan_to_num(each.mean(), nan=-np.inf) if len(each) else -np.inf for each in chosen])


def _led(
    classifier: PyTorchClassifier,
    images: Images,
    perturbations: np.ndarray,
    labels: Sequence[int],
    *,
    relative: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each perturbation, the logits of images of other labels, and the label that each should get."""
    (low, high), y = images.clip_values, images.labels
    for label, r in zip(labels, perturbations, strict=True):
        wanted = (y + label) % classifier.nb_classes if relative else np.full_like(y, label)
        others = y != wanted
        if others.any():
            yield predict_logits(classifier, np.clip(images.floats(others) + r, low, high)), wanted[others]
        else:
            yield np.empty((0, classifier.nb_classes), dtype=np.float32), wanted[others]
