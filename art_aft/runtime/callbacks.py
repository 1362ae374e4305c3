"""What watches a training run or a defence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Callback:
    """
    Watches a training run or a defence. Override what you need; everything else does nothing.

    Across processes every process calls its own callbacks.
    """

    #: What the callback changes and a checkpoint must hold: anything with `state_dict` and `load_state_dict`.
    parts: Sequence[Any] = ()

    def on_stage(self, name: str) -> None:
        """Note that a stage of a defence begins, such as "Stage 2"."""

    def on_step(self, step: int) -> None:
        """Act after a step of the optimizer; `step` counts from 1."""

    def on_epoch(self, epoch: int) -> dict[str, str] | None:
        """Act after an epoch, counted from 1. Return what the progress bar shows, or None."""
        return None
