"""States of a training run: the latest on disk, the best in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.runtime.processes import number_of_first
from art_aft.training.batches import Batches


class Checkpoint:
    """
    A training run on disk, as tensors and plain values, which are read without unpickling.

    :param path: The file.
    :param recipe: What the run is; a file of another one is refused.
    :param parts: Everything with `state_dict` that changes: the module, its optimizer, the schedule.
    :param batches: The batches, with their random generator.
    """

    def __init__(self, path: Path, recipe: str, parts: Sequence[Any], batches: Batches) -> None:
        self.path, self.recipe = Path(path), recipe
        self.parts, self.batches = parts, batches

    def write(self, epoch: int) -> None:
        """Store the state after an epoch; the file appears whole or not at all."""
        state = {
            "recipe": self.recipe,
            "images": len(self.batches.x),
            "epoch": epoch,
            "steps": self.batches.steps,
            "parts": [part.state_dict() for part in self.parts],
            "batches": self.batches.rng.get_state(),
            "torch": torch.get_rng_state(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".part")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def read(self) -> int:
        """Return the number of finished epochs, after going on from the file if there is one."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if (state["recipe"], state["images"]) != (self.recipe, len(self.batches.x)):
            raise ValueError(f"checkpoint: got {self.path} of another run, expected one with the same recipe and data")
        for part, values in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(values)
        self.batches.rng.set_state(state["batches"])
        self.batches.epoch, self.batches.steps = state["epoch"], state["steps"]
        torch.set_rng_state(state["torch"])
        return state["epoch"]


class BestEpoch:
    """
    Remembers the weights of the epoch with the best accuracy on held-out data, the latest of equals; for `after_epoch`.

    :param classifier: The classifier in training.
    :param data: Held-out images and label indices.
    :param batch_size: Images a prediction.
    """

    def __init__(self, classifier: PyTorchClassifier, data: tuple[np.ndarray, np.ndarray], batch_size: int) -> None:
        self.classifier, self.data, self.batch_size = classifier, data, batch_size
        self.accuracy = -1.0
        self.accuracies: list[float] = []
        self.state: dict[str, torch.Tensor] | None = None

    def __call__(self, epoch: int) -> None:
        x, y = self.data
        accuracy = float(np.mean(self.classifier.predict(x, batch_size=self.batch_size).argmax(axis=1) == y))
        # Processes that round differently must not go apart.
        accuracy = number_of_first(accuracy, self.classifier.device)
        self.accuracies.append(accuracy)
        if accuracy >= self.accuracy:
            self.accuracy = accuracy
            self.state = {key: value.clone() for key, value in self.classifier.model.state_dict().items()}

    def restore(self) -> None:
        """Give the classifier the best epoch's weights, if an epoch has ended."""
        if self.state is not None:
            self.classifier.model.load_state_dict(self.state)
