"""Everything that runs `PyTorchClassifier`'s fit: recipes, schedules, the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.data_generators import PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from art_aft.checks import check_choice, check_clip_values, check_flag, check_integer, check_number
from art_aft.classifiers.classifier import check_data
from art_aft.classifiers.pixel_module import PixelModule, borrow
from art_aft.runtime.devices import PRECISIONS
from art_aft.runtime.processes import check_same, world
from art_aft.runtime.random_state import isolated_rng
from art_aft.training.batches import Augmentation, Batches, EachBatch, EachEpoch
from art_aft.training.checkpoints import Checkpoint
from art_aft.training.data_parallel import data_parallel
from art_aft.training.distillation import taught

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
    :param rotation: Random rotations by up to so many degrees either way.
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
    rotation: float = 0.0
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
        check_number("rotation", self.rotation, minimum=0.0, maximum=180.0)
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


def fit(
    classifier: PyTorchClassifier,
    x: np.ndarray,
    y: np.ndarray,
    recipe: Recipe,
    *,
    each_epoch: EachEpoch | None = None,
    each_batch: EachBatch | None = None,
    augment_last: bool = False,
    after_step: Callable[[], None] | None = None,
    clean: tuple[np.ndarray, float] | None = None,
    after_epoch: Callable[[int], dict[str, str] | None] | None = None,
    checkpoint: Path | None = None,
    also: Sequence[Any] = (),
    in_range: bool = True,
    loss: torch.nn.Module | None = None,
    teachers: tuple[Sequence[PyTorchClassifier], float] | None = None,
    verbose: bool = False,
    description: str = "Fit",
) -> None:
    """
    Train a classifier in place, through its own `fit_generator` on batches that live on its device.

    Modes, memory formats and the global generators are left as they were; the same seed gives the same weights.
    Within `across_processes()` each process takes a part of every batch; hooks are called in all of them, with whole
    batches.

    :param classifier: The classifier; its own optimizer is used only where `recipe.learning_rate` is None.
    :param x: Images in `clip_values`, of shape (N, *input_shape), or uint8 images that stand for that range.
    :param y: Labels, as indices or one-hot.
    :param recipe: How to train.
    :param each_epoch: Called with the epoch's number, from 0, at its start; may return new images for the same labels.
    :param each_batch: Called with the augmented images and label indices of each batch; returns both as trained on.
    :param augment_last: Whether `each_batch` sees the images before augmentation, not after it.
    :param after_step: Called after each step of the optimizer.
    :param clean: Other images for the same labels, and the share of each batch, in [0, 1], that is taken from them.
    :param after_epoch: Called with the number of finished epochs after each of them; what it returns is shown.
    :param checkpoint: A file that is written after each epoch and, if it is there, gone on from: a killed run that is
        started again ends with the weights of an uninterrupted one, bit for bit on a CPU.
    :param also: Things with `state_dict` that the callbacks change, to be part of the checkpoint.
    :param in_range: Whether images outside `clip_values` are refused.
    :param loss: Another loss than the classifier's own, on logits and label indices.
    :param teachers: With `clean`: classifiers whose outputs on those images, softened by a temperature above 0, are
        learnt instead of their labels, as far as they agree.
    :param verbose: Whether to show a progress bar.
    :param description: The progress bar's title.
    :raises ValueError: If the data do not fit the classifier, or it has no optimizer where its own is needed, or
        labels, recipe or checkpoint differ between processes.
    """
    x, labels = check_data(classifier, x, y, in_range=in_range)
    if recipe.learning_rate is None and classifier.optimizer is None:
        raise ValueError("learning_rate: got None for a classifier without an optimizer, expected one of the two")
    device, clip_values = classifier.device, check_clip_values("clip_values", classifier.clip_values)
    check_same(device, y=labels, recipe=repr(recipe))
    batches = Batches(
        _on(device, x),
        torch.from_numpy(labels).to(device),
        nb_classes=classifier.nb_classes,
        batch_size=recipe.batch_size,
        nb_epochs=recipe.nb_epochs,
        max_steps=recipe.max_steps,
        augmentation=Augmentation(
            recipe.padding, recipe.mirror, clip_values[0], classifier.channels_first, recipe.rotation
        ),
        clip_values=clip_values,
        seed=recipe.seed,
    )
    batches.augment_last = augment_last
    if clean is not None:
        share = check_number("clean", clean[1], minimum=0.0, maximum=1.0)
        batches.clean = _on(device, check_data(classifier, clean[0], labels)[0]), share
    if teachers is not None:
        check_number("teachers", teachers[1], minimum=0.0, above=True)
        if clean is None:
            raise ValueError("clean: got none with teachers, expected the images that they teach")
    if batches.total_steps == 0:
        return
    verbose = verbose and world().rank == 0
    objective = loss or classifier.loss
    with (
        isolated_rng(recipe.seed),
        taught(*teachers, batches, objective, recipe.precision) if teachers else nullcontext(objective) as objective,
        borrow(classifier, precision=recipe.precision) as module,
    ):
        module.freeze_bn = recipe.freeze_bn
        optimizer = _optimizer(classifier, module, recipe)
        bar = tqdm(
            total=batches.total_steps, desc=description, unit="step", disable=None if verbose else True, leave=False
        )
        scheduler = None if recipe.learning_rate is None else _scheduler(optimizer, recipe, batches)

        after_step = _then_train(module, after_step)

        def stepped(*_: object) -> None:
            bar.update()
            if after_step:
                after_step()
            if scheduler is not None and batches.steps < batches.total_steps:
                scheduler.step()

        def finished(epoch: int) -> None:
            if after_epoch:
                bar.set_postfix(after_epoch(epoch) or {})
            if saved and world().rank == 0:
                saved.write(epoch)

        batches.each_epoch, batches.each_batch = _then_train(module, each_epoch), _then_train(module, each_batch)
        batches.after_epoch = _then_train(module, finished)
        parts = [module, optimizer, *([scheduler] if scheduler else []), *also]
        saved = Checkpoint(checkpoint, repr(recipe), parts, batches) if checkpoint else None
        done = saved.read() if saved else 0
        check_same(device, checkpoint=str(done))
        bar.update(batches.steps)
        hook = optimizer.register_step_post_hook(stepped)
        try:
            network, objective = data_parallel(module, objective, batches)
            _worker(classifier, network, optimizer, objective).fit_generator(
                # The loader draws a seed for worker processes that there are none of; its own generator spares ours.
                PyTorchDataGenerator(
                    DataLoader(batches, batch_size=None, generator=torch.Generator()),
                    len(x),
                    min(recipe.batch_size, len(x)),
                ),
                nb_epochs=math.ceil(batches.total_steps / len(batches.sizes)) - done,
            )
        finally:
            hook.remove()
            bar.close()
            optimizer.zero_grad(set_to_none=True)


def _on(device: torch.device, x: np.ndarray) -> torch.Tensor:
    """Return images as a tensor on the device; mapped ones, which may not fit there, stay where they are."""
    images = torch.from_numpy(x)
    return images if isinstance(x, np.memmap) else images.to(device)


def _then_train(module: PixelModule, hook: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Return a hook after which the module is in training mode: ART sets it once, and a prediction changes it."""
    if hook is None:
        return None

    def hook_then_train(*arguments: Any) -> Any:
        result = hook(*arguments)
        module.train()
        return result

    return hook_then_train


def _worker(
    classifier: PyTorchClassifier, module: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.nn.Module
) -> PyTorchClassifier:
    """
    Return ART's classifier around the borrowed module, which has the preprocessing inside.

    ART's fit_generator takes batches from the device only where the preprocessing is (0, 1), and takes a mean
    per channel for an error.
    """
    return PyTorchClassifier(
        module,
        loss=loss,
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


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, batches: Batches
) -> torch.optim.lr_scheduler.LRScheduler:
    steps, peak = batches.total_steps, recipe.learning_rate or 0.0
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if recipe.schedule == "one_cycle" and steps > 1:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate_at(step // len(batches.sizes)) / peak)
