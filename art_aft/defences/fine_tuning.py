"""Fine-tuning: the plainest rival."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.defences.base import NAD_RELEASE, Purification, Tuning, register
from art_aft.training.loop import fit


@register("fine_tuning")
@dataclass(eq=False, repr=False)
class FineTuning(Tuning, Purification):
    """
    Fine-tune all layers on the clean data with cross entropy.

    The learning rate decides most of what fine-tuning forgets, so compare defences at rates tuned alike. The
    defaults are those of Stages 2 and 3 of Adversarial Fine-Tuning, for as many epochs as both together.

    Presets: "paper", that of Neural Attention Distillation without its distillation (WRN-16-1: rate 0.1 for two
    epochs, then 0.01; https://arxiv.org/abs/2101.05930); "paper_preact" for PreActResNet-18, 10 epochs at 0.01.

    :param classifier: The classifier that may be infected.

    All other settings are those of `Tuning`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": NAD_RELEASE,
        "paper_preact": {"nb_epochs": 10, "learning_rate": 0.01, "weight_decay": 5e-4},
    }

    classifier: PyTorchClassifier
    _: KW_ONLY
    nb_epochs: int = 20

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
        with self._stage("Fine-tuning"):
            fit(classifier, x, y, self._recipe(self.nb_epochs), verbose=self.verbose, description="Fine-tuning")
