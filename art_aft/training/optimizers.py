"""The optimizer and the schedule of a recipe, and how many steps were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch.optim.optimizer import register_optimizer_step_post_hook

from art_aft.training.recipe import Recipe


def optimizer_for(classifier: PyTorchClassifier, module: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """
    Return a new SGD optimizer, or the classifier's own where the recipe has no learning rate.

    :param classifier: The classifier.
    :param module: Its model as it is trained; parameters that need no gradient are left out.
    :param recipe: The rate, momentum and weight decay.
    """
    if recipe.learning_rate is None:
        return classifier.optimizer
    return torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )


def pull_to_start(optimizer: torch.optim.Optimizer, strength: float) -> Callable[..., None]:
    """
    Return a hook for before each step of the optimizer.

    It adds to each gradient that of `strength` times half the squared distance from the parameters as they are now.
    Fine-tuning on few images moves parameters where nothing asks for it, and accuracy is lost on all others. With the
    pull, only what the loss really needs to move does.

    | Paper link: https://arxiv.org/abs/1802.01483 (L2-SP)

    :param optimizer: The optimizer, of any kind.
    :param strength: The penalty's weight, above 0.
    """
    pairs = [(each, each.detach().clone()) for group in optimizer.param_groups for each in group["params"]]

    @torch.no_grad()
    def pull(*_: object) -> None:
        for parameter, start in pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=strength)

    return pull


def scheduler_for(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """
    Return the schedule of the learning rate over the steps; None where the optimizer is the classifier's own.

    :param optimizer: The optimizer.
    :param recipe: The schedule and its rates.
    :param steps: The number of steps in all.
    :param steps_per_epoch: The number of steps an epoch.
    """
    if recipe.learning_rate is None:
        return None
    peak = recipe.learning_rate
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if recipe.schedule == "one_cycle" and steps > 1:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate_at(step // steps_per_epoch) / peak)


@contextmanager
def counted_steps(classifier: PyTorchClassifier) -> Iterator[list[int]]:
    """Lend out a list that gets an entry for each step of an optimizer of the classifier's parameters."""
    own, steps = {id(parameter) for parameter in classifier.model.parameters()}, []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            steps.append(1)

    hook = register_optimizer_step_post_hook(note)
    try:
        yield steps
    finally:
        hook.remove()
