"""The training loop: batches go through `PyTorchClassifier`'s own fit, and callbacks watch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from art.data_generators import PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from art_aft.classifiers.classifier import check_classifier
from art_aft.classifiers.model_checks import check_single_images
from art_aft.classifiers.pixel_module import PixelModule, borrow
from art_aft.runtime.callbacks import Callback
from art_aft.runtime.processes import check_same, world
from art_aft.runtime.random_state import isolated_rng
from art_aft.training.batches import Batch, Batches
from art_aft.training.checkpoints import Checkpoint
from art_aft.training.data_parallel import data_parallel
from art_aft.training.losses import LabelLoss, Loss
from art_aft.training.optimizers import optimizer_for, pull_to_start, scheduler_for
from art_aft.training.recipe import Recipe


def fit(
    classifier: PyTorchClassifier,
    batches: Batches,
    recipe: Recipe,
    *,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    verbose: bool = False,
    description: str = "Fit",
) -> None:
    """
    Train a classifier in place.

    Modes, memory formats and the global generators are left as they were; the same seed gives the same weights. Within
    `across_processes()` each process takes a part of every batch, and `batches` must yield the same in all of them.

    :param classifier: The classifier; its own optimizer is used only where `recipe.learning_rate` is None.
    :param batches: What each epoch yields.
    :param recipe: How to train.
    :param loss: The loss of a batch, given its logits. None is the classifier's own, on the labels.
    :param callbacks: What watches, in this order.
    :param checkpoint: A file that is written after each epoch and, if it exists, continued from: a killed run that is
        started again ends with the weights of an uninterrupted one, bit for bit on a CPU.
    :param verbose: Whether to show a progress bar.
    :param description: The progress bar's title.
    :raises ValueError: If the classifier has no optimizer where its own is needed, or a batch is of one image that its
        batch normalisation cannot be trained on, or recipe or checkpoint differ between processes.
    """
    check_classifier("classifier", classifier)
    if min(batches.sizes, default=2) == 1:
        check_single_images(classifier)
    if recipe.learning_rate is None and classifier.optimizer is None:
        raise ValueError("learning_rate: got None for a classifier without an optimizer, expected one of the two")
    check_same(classifier.device, recipe=repr(recipe))
    feed = _Feed(batches, recipe, callbacks)
    if feed.total_steps == 0:
        return
    bar = tqdm(
        total=feed.total_steps,
        desc=description,
        unit="step",
        disable=None if verbose and world().rank == 0 else True,
        leave=False,
    )
    with isolated_rng(recipe.seed), borrow(classifier, precision=recipe.precision) as module, bar:
        optimizer = optimizer_for(classifier, module, recipe)
        scheduler = scheduler_for(optimizer, recipe, feed.total_steps, len(batches))
        # Before a checkpoint is read: the start is that of the whole run.
        pull = pull_to_start(optimizer, recipe.l2_sp) if recipe.l2_sp else None
        parts = [module, optimizer, *([scheduler] if scheduler else []), batches, feed]
        parts += [part for callback in callbacks for part in callback.parts]
        feed.module, feed.bar, feed.scheduler = module, bar, scheduler
        feed.checkpoint = Checkpoint(checkpoint, repr(recipe), parts) if checkpoint else None
        done = feed.checkpoint.read() if feed.checkpoint else 0
        check_same(classifier.device, checkpoint=str(done))
        bar.update(feed.steps)
        network, objective = data_parallel(module, loss or LabelLoss(classifier.loss), feed)
        hooks = [optimizer.register_step_post_hook(lambda *_: feed.stepped())]
        hooks += [optimizer.register_step_pre_hook(pull)] if pull else []
        try:
            _worker(classifier, network, optimizer, objective).fit_generator(
                # The loader draws a seed for worker processes that there are none of; its own generator spares ours.
                PyTorchDataGenerator(
                    DataLoader(feed, batch_size=None, generator=torch.Generator()), len(batches.x), max(batches.sizes)
                ),
                nb_epochs=math.ceil(feed.total_steps / len(batches)) - done,
            )
        finally:
            for hook in hooks:
                hook.remove()
            optimizer.zero_grad(set_to_none=True)


class _Feed(IterableDataset):
    """
    What ART's `fit_generator` reads: each batch's images and one-hot labels. Counts steps and epochs, and calls back.

    ART hands logits and labels to the loss, and nothing else, so `whole` and `own` keep the batch at hand: all of it,
    and the part of this process.
    """

    def __init__(self, batches: Batches, recipe: Recipe, callbacks: Sequence[Callback]) -> None:
        self.batches, self.callbacks = batches, callbacks
        total = len(batches) * recipe.nb_epochs
        self.total_steps = total if recipe.max_steps is None else min(total, recipe.max_steps)
        self.steps, self.epoch = 0, 0
        self.whole: Batch
        self.own: Batch
        self.world = world()
        self.module: PixelModule
        self.bar: tqdm
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.checkpoint: Checkpoint | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(self.batches, start=1):
            # Callbacks, and what makes the batch, may have left the model in evaluation mode. ART sets the mode once.
            self.module.train()
            self.steps += 1
            self.whole = batch
            self.own = batch.part(self.part)
            yield self.own.x, torch.nn.functional.one_hot(self.own.y, self.module.nb_classes)
            if self.steps == self.total_steps and number < len(self.batches):
                return
        # Reached only when ART asks for more, that is after the last step of the epoch.
        self.epoch += 1
        shown = [callback.on_epoch(self.epoch) or {} for callback in self.callbacks]
        self.bar.set_postfix({key: value for one in shown for key, value in one.items()})
        if self.checkpoint and self.world.rank == 0:
            self.checkpoint.write(self.epoch)

    @property
    def part(self) -> slice:
        """Which images of the batch at hand are this process's."""
        return self.world.part(len(self.whole.y))

    def stepped(self) -> None:
        """Act after a step of the optimizer."""
        self.bar.update()
        for callback in self.callbacks:
            callback.on_step(self.steps)
        if self.scheduler is not None and self.steps < self.total_steps:
            self.scheduler.step()

    def state_dict(self) -> dict[str, int]:
        """Return how far the run is."""
        return {"steps": self.steps, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from there."""
        self.steps, self.epoch = state["steps"], state["epoch"]


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
