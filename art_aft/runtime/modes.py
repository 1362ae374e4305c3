"""Training and evaluation mode, put back module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def kept_modes(model: Any) -> Iterator[None]:
    """
    Give every module its own mode back afterwards, also after an exception.

    `.train()` and `.eval()` would not do: they set the modes of all parts alike, and some may differ, such as frozen
    batch normalisation.

    :param model: The module. Nothing is done for what is none of PyTorch's, such as a model of Keras.
    """
    modes = {part: part.training for part in model.modules()} if isinstance(model, torch.nn.Module) else {}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """
    Have a model in evaluation mode, and every module in its own mode afterwards.

    :param model: The module. Nothing is done for what is none of PyTorch's.
    """
    with kept_modes(model):
        if isinstance(model, torch.nn.Module):
            model.eval()
        yield
