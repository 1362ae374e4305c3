"""Distillation: what teachers agree on about some images of a batch is learnt instead of their labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.classifiers.pixel_module import borrow
from art_aft.training.batches import Batch
from art_aft.training.losses import mean_loss

#: Takes images of shape (N, *input_shape) and returns logits of shape (N, nb_classes).
Teacher = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def agreeing(teachers: Sequence[PyTorchClassifier], temperature: float, precision: str) -> Iterator[Teacher]:
    """
    Make one teacher of several classifiers, for a block.

    :param teachers: One or several classifiers in evaluation mode; they stay as they are.
    :param temperature: The distillation temperature T, above 0.
    :param precision: "auto", "float32" or "bfloat16".
    """
    with ExitStack() as stack:
        modules = [stack.enter_context(borrow(t, precision=precision, freeze=True, fold=True)).eval() for t in teachers]

        @torch.no_grad()
        def teacher(images: torch.Tensor) -> torch.Tensor:
            return agreed([module(images) for module in modules], temperature)

        yield teacher


def agreed(logits: Sequence[torch.Tensor], temperature: float) -> torch.Tensor:
    """
    Return logits whose softmax(z / T) is, up to its sum, the lowest probability that any teacher gives each label.

    A label is learnt only as far as all teachers believe in it. So the student does not learn the backdoor of an
    infected teacher that a purified one lacks.

    >>> import torch
    >>> agreed([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])], 1.0).softmax(dim=1)
    tensor([[0.5000, 0.5000]])

    :param logits: The logits of each teacher, of shape (N, nb_classes).
    :param temperature: The distillation temperature T, above 0.
    """
    return temperature * torch.stack([(z.float() / temperature).log_softmax(dim=1) for z in logits]).amin(dim=0)


class DistillationLoss(torch.nn.Module):
    """
    The mean over a batch: for images with teacher logits z_t, T**2 times the cross entropy between softmax(z_t / T) and
    the student's softmax(z / T); for all others the loss on their labels.

    | Paper link: https://arxiv.org/abs/1503.02531 (Section 2)

    :param loss: A loss on logits and label indices, of any reduction.
    :param temperature: The distillation temperature T, above 0.
    """

    def __init__(self, loss: torch.nn.Module, temperature: float) -> None:
        super().__init__()
        self.loss = copy.copy(loss)
        # What another class makes of a change of its reduction is not known.
        self.by_image = type(loss) in (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss)
        if self.by_image:
            self.loss.reduction = "none"
        self.temperature = temperature

    def forward(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        wanted = logits[:0] if batch.teacher_logits is None else batch.teacher_logits
        count = len(wanted)
        learnt, rest = logits.tensor_split([count])
        wanted = (wanted / self.temperature).softmax(dim=1)
        soft = -(wanted * (learnt / self.temperature).log_softmax(dim=1)).sum(dim=1) * self.temperature**2
        if self.by_image:
            hard = self.loss(rest, batch.y[count:])
        else:
            hard = mean_loss(self.loss, rest, batch.y[count:]).expand(len(rest)) if len(rest) else soft[:0]
        return torch.cat([soft, hard]).mean()
