"""Distillation: what a teacher says of the clean images of each batch is learnt in the place of their labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.batches import Batches
from art_aft.pixel_module import borrow


@contextmanager
def taught(
    teacher: PyTorchClassifier, temperature: float, batches: Batches, loss: torch.nn.Module, precision: str
) -> Iterator[torch.nn.Module]:
    """
    Have a teacher look at the clean images of each batch, and lend the loss with which they are learnt from it.

    :param teacher: The teacher, in evaluation mode; it stays as it is.
    :param temperature: What both models' logits are divided by, above 0.
    :param batches: The batches, with clean images among them.
    :param loss: The loss of all other images, which have labels.
    :param precision: The teacher's: "auto", "float32" or "bfloat16".
    """
    with borrow(teacher, precision=precision, freeze=True, fold=True) as module:
        module.eval()
        batches.teacher = module
        yield Distillation(loss, batches, temperature)


class Distillation(torch.nn.Module):
    """
    The mean over a batch of, for clean images, T**2 times the cross entropy between the teacher's softmax(z / T) and
    the student's, and for all others of the loss on labels.

    | Paper link: https://arxiv.org/abs/1503.02531 (Section 2)
    """

    def __init__(self, loss: torch.nn.Module, batches: Batches, temperature: float) -> None:
        super().__init__()
        self.loss = copy.copy(loss)
        self.loss.reduction = "none"
        self.batches, self.temperature = batches, temperature

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The first images of a batch are the clean ones; this process may have none of them.
        said = self.batches.said[self.batches.part]
        clean, rest = logits.tensor_split([len(said)])
        wanted = (said / self.temperature).softmax(dim=1)
        soft = -(wanted * (clean / self.temperature).log_softmax(dim=1)).sum(dim=1) * self.temperature**2
        return torch.cat([soft, self.loss(rest, y[len(said) :])]).mean()
