"""Architectures by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

from art_aft.checks import did_you_mean
from art_aft.registry import Registry

MODELS: Registry[Callable[..., torch.nn.Module]] = Registry("model")
register = MODELS.register

#: The greatest number in a model's name.
MOST = 1_000


def build_model(name: str, *, nb_classes: int, in_channels: int = 3) -> torch.nn.Module:
    """
    Return a new model by its name.

    :param name: A family, then its numbers: "wrn-16-1" is a wide residual network of depth 16, widening factor 1.
    :param nb_classes: The number of classes.
    :param in_channels: The number of image channels.
    :return: The model with fresh weights, drawn from torch's global generator.
    :raises ValueError: If no such model is known.
    """
    if not isinstance(name, str):
        raise TypeError(f"model: got {type(name).__name__}, expected a name such as 'wrn-16-1'")
    family, *numbers = name.split("-") if name not in MODELS else [name]
    try:
        inspect.signature(MODELS[family]).bind(*map(int, numbers), nb_classes=nb_classes, in_channels=in_channels)
    except (TypeError, ValueError) as error:
        # The name of a family may have numbers, too.
        near = did_you_mean(name, MODELS) if family not in MODELS and "did you mean" not in str(error) else ""
        raise ValueError(f"model: got {name!r}{near} ({error}), expected a name such as 'wrn-16-1'") from None
    if any(int(number) > MOST for number in numbers):
        raise ValueError(f"model: got {name!r}, expected numbers of at most {MOST}")
    return MODELS[family](*map(int, numbers), nb_classes=nb_classes, in_channels=in_channels)
