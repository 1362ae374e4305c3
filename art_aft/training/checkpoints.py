"""The state of a training run on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from art_aft.runtime.files import replacing


class Checkpoint:
    """
    A training run on disk, as tensors and plain values, which are read without unpickling.

    :param path: The file.
    :param recipe: What the run is; a file of another one is refused.
    :param parts: Everything with `state_dict` that changes: the module, its optimizer, the schedule, the batches.
    """

    def __init__(self, path: Path, recipe: str, parts: Sequence[Any]) -> None:
        self.path, self.recipe, self.parts = Path(path), recipe, parts

    def write(self, epoch: int) -> None:
        """Store the state after an epoch; the file appears whole or not at all."""
        state = {
            "recipe": self.recipe,
            "epoch": epoch,
            "parts": [part.state_dict() for part in self.parts],
            "torch": torch.get_rng_state(),
        }
        replacing(self.path, lambda file: torch.save(state, file))

    def read(self) -> int:
        """
        Return the number of finished epochs, after continuing from the file if there is one.

        :raises ValueError: If the file is of another run.
        """
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["recipe"] != self.recipe or len(state["parts"]) != len(self.parts):
            raise ValueError(f"checkpoint: got {self.path} of another run, expected one with the same recipe and data")
        try:
            for part, values in zip(self.parts, state["parts"], strict=True):
                part.load_state_dict(values)
        except ValueError as error:
            raise ValueError(f"checkpoint: got {self.path} of another run ({error})") from None
        torch.set_rng_state(state["torch"])
        return state["epoch"]
