"""The state of a training run on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
            "parts": [_plain(part.state_dict()) for part in self.parts],
            "torch": torch.get_rng_state(),
        }
        replacing(self.path, lambda file: torch.save(state, file))

    def read(self) -> int:
        """
        Return the number of finished epochs, after continuing from the file if there is one.

        :raises ValueError: If the file is broken, or of another run.
        """
        if not self.path.exists():
            return 0
        state = self._state()
        if state["recipe"] != self.recipe or len(state["parts"]) != len(self.parts):
            raise ValueError(f"checkpoint: got {self.path} of another run, expected one with the same recipe and data")
        try:
            for part, values in zip(self.parts, state["parts"], strict=True):
                part.load_state_dict(values)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"checkpoint: got {self.path} of another run ({reason})") from None
        torch.set_rng_state(state["torch"])
        return state["epoch"]

    def _state(self) -> dict[str, Any]:
        """Return what the file contains."""
        with self.path.open("rb") as file:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except MemoryError:
                raise
            except Exception as error:
                # Without the text of the error, which is advice on how to unpickle the file all the same.
                raise ValueError(
                    f"checkpoint: got {self.path}, which is broken ({type(error).__name__}), expected one that was "
                    "written whole; delete it to start anew"
                ) from None
        if not isinstance(state, dict) or not {"recipe", "epoch", "parts", "torch"} <= state.keys():
            raise ValueError(f"checkpoint: got {self.path}, which is no checkpoint, expected that of a training run")
        return state


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without what schedules have of their settings that old releases of torch could only unpickle."""
    return {key: value for key, value in state.items() if not (callable(value) or isinstance(value, Counter))}
