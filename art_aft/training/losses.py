"""Losses that see the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from art_aft.training.batches import Batch

#: Takes logits of shape (N, nb_classes) and the batch that they are of; returns a scalar.
Loss = Callable[[torch.Tensor, Batch], torch.Tensor]


class LabelLoss(torch.nn.Module):
    """
    A loss on labels alone.

    :param loss: torch's loss on logits and label indices.
    """

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.loss(logits, batch.y)
