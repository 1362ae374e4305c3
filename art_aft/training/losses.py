"""Losses that see the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from art_aft.training.batches import Batch

#: Takes logits of shape (N, nb_classes) and the batch that they are of; returns a scalar.
Loss = Callable[[torch.Tensor, Batch], torch.Tensor]


def mean_loss(loss: torch.nn.Module, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """
    Return the mean of a loss over a batch, whatever its own reduction is, so that a learning rate means the same.

    >>> import torch
    >>> logits, y = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    >>> [mean_loss(torch.nn.CrossEntropyLoss(reduction=how), logits, y).item() for how in ("mean", "sum", "none")]
    [0.5032044..., 0.5032044..., 0.5032044...]

    :param loss: A loss on logits and label indices that `check_classifier` takes.
    :param logits: Logits of shape (N, nb_classes).
    :param y: Label indices of shape (N,).
    """
    value = loss(logits, y)
    if value.ndim:
        return value.mean()
    return value / len(y) if getattr(loss, "reduction", None) == "sum" else value


class LabelLoss(torch.nn.Module):
    """
    The mean of a loss on labels alone.

    :param loss: A loss on logits and label indices, of any reduction.
    """

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return mean_loss(self.loss, logits, batch.y)
