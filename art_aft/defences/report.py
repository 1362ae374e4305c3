"""What a purification did: its settings, its stages, what it tried and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """
    A part of a purification.

    :param name: The part's name, such as "Stage 2".
    :param seconds: How long it took.
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class Trial:
    """
    One run of a defence that tries several settings.

    :param settings: The settings.
    :param accuracy: The purified classifier's accuracy on held-out images, in [0, 1].
    :param accepted: Whether that is enough.
    :param stages: The parts of the run.
    :param seconds: How long it took.
    """

    settings: Mapping[str, Any]
    accuracy: float
    accepted: bool
    stages: tuple[Stage, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PurificationReport:
    """
    What a purification did. A defence that finds more has a report of its own kind.

    :param settings: All settings of the defence, by name.
    :param n_images: Number of images that it got.
    :param stages: Its parts, in order.
    :param seconds: How long all of it took.
    :param accepted: Whether the purified classifier keeps enough accuracy; True where the defence sets no bound. False
        where training diverged, where a label still stands out, and where the images cannot tell (`images_trusted`).
    :param finite: Whether all weights and running statistics are finite numbers; False where training diverged.
    :param changed: Whether any weight or running statistic is another one than before.
    :param chosen: What the defence chose by itself, by name.
    :param notes: What speaks against the result: few images, missing classes, a classifier that gets most of them wrong
        before purification, training that diverged, or a label that still stands out afterwards. They are in the log,
        too.
    :param images_trusted: Whether accuracy on the images tells what purification costs. False where classes are
        missing, or where the classifier got fewer than half of the images right.
    :param remarks: What is worth knowing and speaks against nothing, such as that the model returns probabilities.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    n_images: int = 0
    stages: tuple[Stage, ...] = ()
    seconds: float = 0.0
    accepted: bool = True
    finite: bool = True
    changed: bool = True
    chosen: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    images_trusted: bool = True
    remarks: tuple[str, ...] = ()
