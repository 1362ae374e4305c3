"""One perturbation for all images, towards each label: the r of the paper's Section V."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_aft.checks import check_choice, check_clip_values, check_flag, check_integer, check_number
from art_aft.classifiers.classifier import check_data, predict_labels
from art_aft.classifiers.pixel_module import borrow
from art_aft.data.pixels import to_float
from art_aft.runtime.devices import PRECISIONS
from art_aft.runtime.random_state import isolated_rng

# Pixels in flight, over all labels of a step.
_MEMORY = 4_000_000


def default_eps(norm: float, input_shape: Sequence[int], clip_values: tuple[float, float]) -> float:
    """
    Return the radius of a ball that is about as small for images of any size.

    :param norm: np.inf: 4/255 of the range; 2: 1.0 of the range for 32x32x3 values, and as the square root of their
        number for others; 0: 12 pixels of 32x32, and in proportion to their number for others, but one at least.
    :param input_shape: The shape of an image.
    :param clip_values: The pixel range.
    """
    if norm == 0:
        height, width = sorted(input_shape)[1:]  # channels are fewer
        return float(max(1, round(12 * height * width / 1024)))
    fraction = 4 / 255 if norm == np.inf else (np.prod(input_shape) / 3072) ** 0.5
    return float(fraction * (clip_values[1] - clip_values[0]))


def universal_perturbations(
    classifier: PyTorchClassifier,
    x: np.ndarray,
    y: np.ndarray,
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
    Return, for each label l, one perturbation r_l that leads images of other labels to l: it minimises their mean
    cross entropy with l over a ball (eq. 14, one r for every instance).

    All labels share each pass through the classifier, which stays as it is. An infected classifier gives way to the
    perturbation towards its attacker's label first: `carried` measures that. With `relative`, each r leads the images
    of every label y to the label y + l, as an all-to-all trigger does.

    With norm 0 few pixels change, by as much as the range permits: a trigger such as BadNets' is of that kind, and far
    from what small balls of the other norms hold. Pixels with the largest changes are kept, ten times as many at the
    start as at the end, so that those that help together can be told from those that help alone.

    | Paper link: https://arxiv.org/abs/2202.06312 (Section V)

    :param classifier: The classifier.
    :param x: Images in `clip_values`, of shape (N, *input_shape).
    :param y: Their labels, as indices or one-hot.
    :param norm: The ball's norm: np.inf, 2 or 0.
    :param eps: The ball's radius, in units of `clip_values`, with norm 0 the number of pixels; None is `default_eps`.
    :param eps_step: The length of a step, in units of `clip_values`, with norm 0 that of the pixel value with the
        steepest gradient; None is a fifth of `eps`, with norm 0 0.3 of the range.
    :param max_iter: The number of steps.
    :param batch_size: Images a step, for each label; a step goes through the images where the last one ended.
    :param num_random_init: Random starting points, of which the one that ends with the lowest loss on the images
        counts; 0 starts once, at no perturbation. With norm 0 all start there, and differ by the order of the images.
    :param labels: The labels l; None is all of them (with `relative`, all but 0).
    :param relative: Whether l is added to each image's own label, modulo the number of labels.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of order and starting points.
    :param verbose: Whether to show a progress bar.
    :return: float32 perturbations of shape (K, *input_shape), at most `eps` long.
    :raises ValueError: If a number is out of its range or the data do not fit.
    """
    x, y = check_data(classifier, x, y)
    low, high = check_clip_values("clip_values", classifier.clip_values)
    if norm not in (np.inf, 2, 0):
        raise ValueError(f"norm: got {norm!r}, expected np.inf, 2 or 0")
    eps = default_eps(norm, x.shape[1:], (low, high)) if eps is None else eps
    check_number("eps", eps, minimum=0.0 if norm else 1.0, above=bool(norm))
    usual = eps / 5 if norm else 0.3 * (high - low)
    eps_step = usual if eps_step is None else check_number("eps_step", eps_step, minimum=0.0, above=True)
    check_integer("max_iter", max_iter, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("num_random_init", num_random_init, 0)
    check_choice("precision", precision, PRECISIONS)
    check_integer("seed", seed, 0)
    least = int(check_flag("relative", relative))
    chosen = list(range(least, classifier.nb_classes)) if labels is None else list(labels)
    for label in chosen:
        if check_integer("labels", label, least) >= classifier.nb_classes:
            raise ValueError(f"labels: got {label}, expected labels below {classifier.nb_classes}")
    modulo = classifier.nb_classes if relative else None
    together = max(1, _MEMORY // (batch_size * int(np.prod(x.shape[1:]))))
    found = []
    with (
        isolated_rng(seed),
        borrow(classifier, precision=precision, scale=(low, high), freeze=True, fold=True) as module,
        tqdm(total=len(chosen), desc="Universal", unit="label", disable=None if verbose else True, leave=False) as bar,
    ):
        module.eval()
        data = torch.from_numpy(x), torch.from_numpy(y).to(classifier.device)
        radius, step = eps / (high - low) if norm else eps, eps_step / (high - low)
        ball = _Pixels(radius, step, 1 if classifier.channels_first else 3) if norm == 0 else _Ball(radius, step, norm)
        search = _Search(module, *data, (low, high), ball, max_iter, batch_size, modulo)
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
class _Ball:
    """Steps of normalised gradients, and what keeps them in an L2 or L-infinity ball around nothing."""

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
    """The same for a ball in the L0 norm of pixels, along axis `channel`: iterative hard thresholding."""

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
    ball: _Ball | _Pixels
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
            r = self.ball.start(r)
        # Whole batches, from an order that is drawn again when it is used up.
        size = min(self.batch_size, len(x))
        order = torch.empty(0, dtype=torch.long)
        loss = torch.zeros(len(labels), device=x.device)
        for number in range(self.max_iter):
            if len(order) < size:
                order = torch.randperm(len(x))
            index, order = order[:size], order[size:]
            r.requires_grad_(True)
            shown = (self._pixels(index) + r[:, None]).clamp(0, 1)
            logits = self.module(shown.flatten(0, 1))
            wanted = _wanted(labels[:, None], y[index], self.modulo)
            each = torch.nn.functional.cross_entropy(logits, wanted.flatten(), reduction="none").view(wanted.shape)
            others = (y[index] != wanted).float()
            loss = (each * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)
            (gradient,) = torch.autograd.grad(loss.sum(), r)
            with torch.no_grad():
                r = self.ball.step(r, gradient, number / self.max_iter)
        return r.detach(), loss.detach()


def _wanted(labels: torch.Tensor, y: torch.Tensor, modulo: int | None) -> torch.Tensor:
    """Return where images of the labels y, of shape (N,), are led, for labels of shape (K, 1): of shape (K, N)."""
    return labels.expand(-1, len(y)) if modulo is None else (y + labels) % modulo


def carried(
    classifier: PyTorchClassifier,
    x: np.ndarray,
    y: np.ndarray,
    perturbations: np.ndarray,
    labels: Sequence[int],
    *,
    relative: bool = False,
) -> np.ndarray:
    """
    Return which share of the images of other labels each perturbation leads to its label.

    :param classifier: The classifier.
    :param x: Images in `clip_values`, of shape (N, *input_shape).
    :param y: Their labels, as indices or one-hot.
    :param perturbations: Of shape (K, *input_shape).
    :param labels: The label of each perturbation.
    :param relative: Whether that is added to each image's own label, modulo the number of labels.
    :return: Shares in [0, 1], of shape (K,).
    """
    x, y = check_data(classifier, x, y)
    low, high = check_clip_values("clip_values", classifier.clip_values)
    shares = []
    for label, r in zip(labels, perturbations, strict=True):
        wanted = (y + label) % classifier.nb_classes if relative else np.full_like(y, label)
        others = y != wanted
        shown = np.clip(to_float(x[others], (low, high)) + r, low, high)
        shares.append(np.mean(predict_labels(classifier, shown) == wanted[others]) if others.any() else 0)
    return np.array(shares, dtype=float)
