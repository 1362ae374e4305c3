"""Everything that runs `PyTorchClassifier`'s fit: batches, augmentation, schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from art.data_generators import PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from art_aft.checks import check_choice, check_clip_values, check_flag, check_integer, check_number
from art_aft.classifier import PRECISIONS, PixelModule, borrow, check_data, isolated_rng

SCHEDULES = ("constant", "cosine", "one_cycle")


@dataclass(frozen=True)
class Recipe:
    """
    How to train: stochastic gradient descent on cross entropy.

    :param nb_epochs: Passes over the data.
    :param batch_size: Images a step.
    :param learning_rate: The (peak) learning rate of a fresh SGD optimizer. None goes on with the classifier's own
        optimizer, whatever it is; momentum, weight decay and schedule are then its own.
    :param momentum: SGD's momentum, in [0, 1].
    :param weight_decay: SGD's weight decay.
    :param nesterov: Whether the momentum is Nesterov's.
    :param schedule: The learning rate over the steps: "constant", "cosine" (to 0) or "one_cycle".
    :param milestones: Pairs (epoch, learning rate): from that epoch on, counted from 0, that rate. Only with
        schedule "constant".
    :param padding: Random crops: pad by so many pixels of the lowest value and cut at random.
    :param mirror: Whether half the images are mirrored left to right. Wrong for digits, letters, traffic signs.
    :param freeze_bn: Whether batch normalisation keeps its running statistics.
    :param max_steps: End after so many steps, if that is before `nb_epochs`.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of order, augmentation and dropout.
    :raises ValueError: If a number is out of its range.
    """

    nb_epochs: int = 10
    batch_size: int = 128
    learning_rate: float | None = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: str = "constant"
    milestones: tuple[tuple[int, float], ...] = ()
    padding: int = 0
    mirror: bool = False
    freeze_bn: bool = False
    max_steps: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("nb_epochs", self.nb_epochs, 0)
        check_integer("batch_size", self.batch_size, 1)
        if self.learning_rate is not None:
            check_number("learning_rate", self.learning_rate, minimum=0.0, above=True)
        check_number("momentum", self.momentum, minimum=0.0, maximum=1.0)
        check_number("weight_decay", self.weight_decay, minimum=0.0)
        if check_flag("nesterov", self.nesterov) and self.momentum == 0:
            raise ValueError("nesterov: got True with momentum 0, expected a momentum above 0 with it")
        check_choice("schedule", self.schedule, SCHEDULES)
        if self.milestones and self.schedule != "constant":
            raise ValueError(f"milestones: got some with schedule {self.schedule!r}, expected schedule 'constant'")
        for epoch, rate in self.milestones:
            check_integer("milestones", epoch, 0)
            check_number("milestones", rate, minimum=0.0)
        check_integer("padding", self.padding, 0)
        check_flag("mirror", self.mirror)
        check_flag("freeze_bn", self.freeze_bn)
        if self.max_steps is not None:
            check_integer("max_steps", self.max_steps, 0)
        check_choice("precision", self.precision, PRECISIONS)
        check_integer("seed", self.seed, 0)

    def rate_at(self, epoch: int) -> float:
        """Return the learning rate in an epoch, by the milestones."""
        passed = [pair for pair in self.milestones if pair[0] <= epoch]
        return max(passed)[1] if passed else (self.learning_rate or 0.0)


def augment(x: torch.Tensor, padding: int, mirror: bool, low: float, rng: torch.Generator) -> torch.Tensor:
    """
    Return randomly cropped and mirrored images; each image has its own draw.

    :param x: Images of shape (N, C, H, W).
    :param padding: The width of the border that is added before cropping, in pixels; 0 is no crop.
    :param mirror: Whether to mirror each image with probability one half.
    :param low: The value of the border.
    :param rng: A CPU generator.
    """
    n, _, height, width = x.shape
    if padding:
        padded = torch.nn.functional.pad(x, [padding] * 4, value=low)
        corner = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=rng).to(x.device)
        rows = (corner[0] + torch.arange(height, device=x.device))[:, None, :, None]
        columns = (corner[1] + torch.arange(width, device=x.device))[:, None, None, :]
        image = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        x = padded[image, channel, rows, columns]
    if mirror:
        flipped = torch.randint(0, 2, (n, 1, 1, 1), generator=rng).to(x.device, torch.bool)
        x = torch.where(flipped, x.flip(3), x)
    return x


class Batches(IterableDataset):
    """
    Shuffled, augmented batches that live on the device, for ART's `PyTorchDataGenerator`.

    :param x: Images of shape (N, *input_shape), a tensor on the device.
    :param y: Labels as indices, a tensor on the device.
    :param recipe: Batch size, augmentation and the number of steps.
    :param low: The lowest pixel value, for the border of crops.
    :param channels_first: Whether images are (N, C, H, W).
    :param nb_classes: The number of classes.
    """

    def __init__(
        self, x: torch.Tensor, y: torch.Tensor, recipe: Recipe, low: float, channels_first: bool, nb_classes: int
    ) -> None:
        self.x, self.recipe, self.low, self.channels_first = x, recipe, low, channels_first
        self.y = torch.nn.functional.one_hot(y, nb_classes)
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.sizes = batch_sizes(len(x), recipe.batch_size)
        total = len(self.sizes) * recipe.nb_epochs
        self.total_steps = total if recipe.max_steps is None else min(total, recipe.max_steps)
        self.steps = 0
        self.epoch = 0
        self.each_epoch: Callable[[int], np.ndarray | None] | None = None
        self.each_batch: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
        self.clean: tuple[torch.Tensor, float] | None = None
        self.after_epoch: Callable[[int], None] | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        fresh = self.each_epoch(self.epoch) if self.each_epoch else None
        if fresh is not None:
            self.x = torch.from_numpy(fresh).to(self.x.device)
        order = torch.randperm(len(self.x), generator=self.rng).to(self.x.device)
        for index in order.split(self.sizes):
            if self.steps == self.total_steps:
                return
            self.steps += 1
            yield self._images(index), self.y[index]
        # Reached only when ART asks for more, that is after the last step of the epoch.
        self.epoch += 1
        if self.after_epoch:
            self.after_epoch(self.epoch)

    def _images(self, index: torch.Tensor) -> torch.Tensor:
        """Return the images of one batch as they enter the classifier."""
        x = self._augmented(self.x[index])
        if self.each_batch:
            x = self.each_batch(x, self.y[index].argmax(dim=1))
        if self.clean:
            images, share = self.clean
            count = round(share * len(index))
            x = torch.cat([self._augmented(images[index[:count]]), x[count:]])
        return x

    def _augmented(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.recipe.padding or self.recipe.mirror):
            return x
        x = x if self.channels_first else x.permute(0, 3, 1, 2)
        x = augment(x, self.recipe.padding, self.recipe.mirror, self.low, self.rng)
        return x if self.channels_first else x.permute(0, 2, 3, 1)


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """Return batch sizes that add up to n; a last batch of one image, on which BatchNorm fails, joins the other."""
    sizes = [batch_size] * (n // batch_size) + ([n % batch_size] if n % batch_size else [])
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def fit(
    classifier: PyTorchClassifier,
    x: np.ndarray,
    y: np.ndarray,
    recipe: Recipe,
    *,
    each_epoch: Callable[[int], np.ndarray | None] | None = None,
    each_batch: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    clean: tuple[np.ndarray, float] | None = None,
    after_epoch: Callable[[int], None] | None = None,
    verbose: bool = False,
    description: str = "Fit",
) -> None:
    """
    Train a classifier in place, through its own `fit_generator` on batches that live on its device.

    Modes, memory formats and the global generators are left as they were; the same seed gives the same weights.

    :param classifier: The classifier; its own optimizer is used only where `recipe.learning_rate` is None.
    :param x: Images in `clip_values`, of shape (N, *input_shape).
    :param y: Labels, as indices or one-hot.
    :param recipe: How to train.
    :param each_epoch: Called with the epoch's number, from 0, at its start; may return new images for the same labels.
    :param each_batch: Called with the augmented images and label indices of each batch; returns the images to train on.
    :param clean: Other images for the same labels, and the share of each batch, in [0, 1], that is taken from them.
    :param after_epoch: Called with the number of finished epochs after each of them.
    :param verbose: Whether to show a progress bar.
    :param description: The progress bar's title.
    :raises ValueError: If the data do not fit the classifier, or it has no optimizer where its own is needed.
    """
    x, labels = check_data(classifier, x, y)
    if recipe.learning_rate is None and classifier.optimizer is None:
        raise ValueError("learning_rate: got None for a classifier without an optimizer, expected one of the two")
    device, (low, _) = classifier.device, check_clip_values("clip_values", classifier.clip_values)
    batches = Batches(
        torch.from_numpy(x).to(device),
        torch.from_numpy(labels).to(device),
        recipe,
        low,
        classifier.channels_first,
        classifier.nb_classes,
    )
    batches.each_epoch, batches.each_batch = each_epoch, each_batch
    if clean is not None:
        share = check_number("clean", clean[1], minimum=0.0, maximum=1.0)
        batches.clean = torch.from_numpy(check_data(classifier, clean[0], labels)[0]).to(device), share
    if batches.total_steps == 0:
        return
    with isolated_rng(recipe.seed), borrow(classifier, precision=recipe.precision) as module:
        module.freeze_bn = recipe.freeze_bn
        optimizer = _optimizer(classifier, module, recipe)
        bar = tqdm(total=batches.total_steps, desc=description, unit="step", disable=not verbose, leave=False)
        scheduler = None if recipe.learning_rate is None else _scheduler(optimizer, batches)

        def after_step(*_: object) -> None:
            bar.update()
            if scheduler is not None and batches.steps < batches.total_steps:
                scheduler.step()

        def finished(epoch: int) -> None:
            if after_epoch:
                after_epoch(epoch)
                module.train()  # ART sets the mode once, and a prediction in between changes it

        batches.after_epoch = finished
        hook = optimizer.register_step_post_hook(after_step)
        try:
            _worker(classifier, module, optimizer).fit_generator(
                # The loader draws a seed for worker processes that there are none of; its own generator spares ours.
                PyTorchDataGenerator(
                    DataLoader(batches, batch_size=None, generator=torch.Generator()), len(x), recipe.batch_size
                ),
                nb_epochs=math.ceil(batches.total_steps / len(batches.sizes)),
            )
        finally:
            hook.remove()
            bar.close()
            optimizer.zero_grad(set_to_none=True)


def _worker(classifier: PyTorchClassifier, module: PixelModule, optimizer: torch.optim.Optimizer) -> PyTorchClassifier:
    """
    Return ART's classifier around the borrowed module, which has the preprocessing inside.

    ART's fit_generator takes batches from the device only where the preprocessing is (0, 1), and takes a mean
    per channel for an error.
    """
    return PyTorchClassifier(
        module,
        loss=classifier.loss,
        optimizer=optimizer,
        input_shape=classifier.input_shape,
        nb_classes=classifier.nb_classes,
        channels_first=classifier.channels_first,
        device_type=classifier.device_type,
    )


def _optimizer(classifier: PyTorchClassifier, module: PixelModule, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.learning_rate is None:
        return classifier.optimizer
    return torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )


def _scheduler(optimizer: torch.optim.Optimizer, batches: Batches) -> torch.optim.lr_scheduler.LRScheduler:
    recipe, steps = batches.recipe, batches.total_steps
    peak = recipe.learning_rate or 0.0
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if recipe.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate_at(step // len(batches.sizes)) / peak)


def recalibrate_batch_norm(classifier: PyTorchClassifier, x: np.ndarray, *, batch_size: int = 128) -> None:
    """
    Set batch normalisation's running statistics to those of some images; no weight changes.

    :param classifier: The classifier, changed in place.
    :param x: Images in `clip_values`, of shape (N, *input_shape); each batch counts the same.
    :param batch_size: Images a batch.
    :raises ValueError: If the images do not fit the classifier.
    """
    x, _ = check_data(classifier, x, np.zeros(len(x), dtype=np.int64))
    layers = [m for m in classifier.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    with isolated_rng(0), torch.no_grad(), borrow(classifier, precision="float32") as module:
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain average over batches
                layer.train()
            for batch in torch.from_numpy(x).split(batch_sizes(len(x), batch_size)):
                module(batch.to(classifier.device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


def augmented_views(classifier: PyTorchClassifier, x: np.ndarray, recipe: Recipe, n_views: int = 1) -> np.ndarray:
    """
    Return `n_views` randomly augmented copies of the images, one whole set after the other.

    :param classifier: The classifier that tells layout and pixel range.
    :param x: Images of shape (N, *input_shape).
    :param recipe: Padding, mirroring and seed.
    :param n_views: How many copies, at least 1.
    :return: Images of shape (n_views * N, *input_shape).
    """
    low, _ = check_clip_values("clip_values", classifier.clip_values)
    views = torch.from_numpy(np.concatenate([x] * check_integer("n_views", n_views, 1)))
    labels = torch.zeros(len(views), dtype=torch.int64)
    batches = Batches(views, labels, replace(recipe, nb_epochs=1), low, classifier.channels_first, 1)
    return batches._augmented(views).numpy()
