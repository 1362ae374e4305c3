"""What a purification did: its settings, its stages, what it tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """
    A part of a purification.

    :param name: Such as "Stage 2".
    :param seconds: How long it took.
    :param accuracies: After each epoch, the accuracy in [0, 1] on held-out images; empty where none are held out.
    """

    name: str
    seconds: float
    accuracies: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trial:
    """
    A setting that an automatic defence tried.

    :param settings: The settings.
    :param accuracy: What the purified classifier gets right of the held-out images, in [0, 1].
    :param accepted: Whether that is enough.
    :param stages: Its parts.
    :param seconds: How long it took.
    """

    settings: Mapping[str, Any]
    accuracy: float
    accepted: bool
    stages: tuple[Stage, ...]
    seconds: float


@dataclass(frozen=True)
class PurificationReport:
    """
    What a purification did.

    :param settings: All settings, by name.
    :param n_images: How many images it got.
    :param stages: Its parts, in order.
    :param seconds: How long all of it took.
    :param n_held_out: How many of the images only measured.
    :param accuracy_before: What the infected classifier gets right of those, in [0, 1]; None where there are none.
    :param accuracy_after: What the purified one does.
    :param accepted: Whether the accuracy that was lost is within the bound; True where there is no bound.
    :param trials: What was tried, in order; the chosen one is `chosen`.
    :param chosen: The settings of the trial that was taken.
    """

    settings: Mapping[str, Any]
    n_images: int
    stages: tuple[Stage, ...]
    seconds: float
    n_held_out: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    accepted: bool = True
    trials: tuple[Trial, ...] = ()
    chosen: Mapping[str, Any] | None = None
