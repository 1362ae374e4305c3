"""What defences share that are made of whole runs of Adversarial Fine-Tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_integer
from art_aft.defences.aft import AdversarialFineTuning
from art_aft.defences.base import Common


@dataclass(eq=False, repr=False, kw_only=True)
class Composed(Common):
    """
    What is the same for all runs of Adversarial Fine-Tuning that a defence is made of, beside the settings of `Common`.

    :param min_steps: Stage 2 goes through few images so often that it makes at least so many steps.
    :param batch_size: Images a step.
    :raises ValueError: If a setting is out of its range.
    """

    min_steps: int = 400
    batch_size: int = 64

    def _check_params(self) -> None:
        super()._check_params()
        check_integer("min_steps", self.min_steps, 0)
        check_integer("batch_size", self.batch_size, 1)
        check_integer("seed", self.seed, 0)
        self._found: dict[tuple[Any, ...], tuple[float, np.ndarray | None]] = {}

    def _fine_tuning(
        self, classifier: PyTorchClassifier, settings: Mapping[str, Any], n: int, *, max_steps: int | None = None
    ) -> AdversarialFineTuning:
        """Return a run for n images, with the settings given and those that all share."""
        own = ("batch_size", "padding", "mirror", "precision", "seed", "verbose")
        defence = AdversarialFineTuning(classifier, **{**settings, **{name: getattr(self, name) for name in own}})
        epoch_steps = math.ceil(n / self.batch_size)
        if max_steps is None:
            least = math.ceil(self.min_steps / epoch_steps)
            defence.nb_epochs, defence.label_epochs = max(defence.nb_epochs, least), max(defence.label_epochs, least)
        else:
            defence.max_steps, defence.nb_epochs = max_steps, math.ceil(max_steps / epoch_steps)
        return defence

    def _run(
        self, defence: AdversarialFineTuning, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray
    ) -> PyTorchClassifier:
        """
        Purify a copy of the infected classifier in place, and return it.

        The ball and the shared perturbations, which are the infected classifier's however it is fine-tuned, are
        looked for once for all runs of a purification, on the first one's images.
        """
        search = ("adversary", "norm", "eps", "eps_step", "max_iter", "num_random_init", "attack_labels")
        key = tuple(getattr(defence, name) for name in search)
        if key in self._found:
            defence.eps, defence.known = self._found[key]
        purified = defence(x, transformed_classifier=classifier, y=y)
        self._found.setdefault(key, (defence.radius, defence.found))
        return purified
