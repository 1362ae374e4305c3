"""Distillation: what teachers say of the clean images of each batch is learnt in the place of their labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.classifiers.pixel_module import borrow
from art_aft.training.batches import Batches


@contextmanager
def taught(
    teachers: Sequence[PyTorchClassifier], temperature: float, batches: Batches, loss: torch.nn.Module, precision: str
) -> Iterator[torch.nn.Module]:
    """
    Have teachers look at the clean images of each batch, and lend the loss with which they are learnt from them.

    :param teachers: One or several, in evaluation mode; they stay as they are. What is taught is what they `agree` on.
    :param temperature: What all models' logits are divided by, above 0.
    :param batches: The batches, with clean images among them.
    :param loss: The loss of all other images, which have labels.
    :param precision: The teachers': "auto", "float32" or "bfloat16".
    """
    with ExitStack() as stack:
        modules = [stack.enter_context(borrow(t, precision=precision, freeze=True, fold=True)).eval() for t in teachers]
        batches.teacher = lambda images: agreed([module(images) for module in modules], temperature)
        yield Distillation(loss, batches, temperature)


def agreed(logits: Sequence[torch.Tensor], temperature: float) -> torch.Tensor:
    """
    Return logits whose softmax(z / T) is, up to its sum, the lowest probability that any teacher gives each label.

    So a label is taught as far as all believe in it: an infected teacher's backdoor, which a purified one does not
    know, is not handed on.

    :param logits: Of each teacher, of shape (N, nb_classes).
    :param temperature: T, above 0.
    """
    return temperature * torch.stack([(z.float() / temperature).log_softmax(dim=1) for z in logits]).amin(dim=0)


class Distillation(torch.nn.Module):
    """
    The mean over a batch of, for clean images, T**2 times the cross entropy between the teachers' softmax(z / T) and
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
