"""Adversarial Fine-Tuning as one of ART's trainers."""

from __future__ import annotations

from typing import Any

import numpy as np
from art.attacks.attack import EvasionAttack
from art.data_generators import PyTorchDataGenerator
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader

from art_aft.defences.aft import AdversarialFineTuning


class AdversarialFineTuningTrainer(Trainer):
    """
    Adversarial Fine-Tuning in place, as one of ART's trainers.

    | Paper link: https://arxiv.org/abs/2202.06312

    :param classifier: The classifier that may be infected; `fit` changes it.
    :param attack: Stage 1: any of ART's evasion attacks, untargeted; None is `TorchAttacksPGD` with its defaults.
    :param settings: The other settings of `AdversarialFineTuning`, by keyword.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is unknown or of the wrong type.
    """

    def __init__(self, classifier: PyTorchClassifier, attack: EvasionAttack | None = None, **settings: Any) -> None:
        super().__init__(classifier)
        self._defence = AdversarialFineTuning(classifier, attack, **settings)

    def fit(
        self, x: np.ndarray | DataLoader | PyTorchDataGenerator, y: np.ndarray | None = None, **kwargs: Any
    ) -> None:
        """
        Purify the classifier.

        :param x: The defender's images, in `clip_values`, of shape (N, *input_shape), or a loader of images and labels.
        :param y: Their labels, as indices or one-hot; None with a loader.
        :param kwargs: No others are known.
        :raises ValueError: If the data do not fit the classifier.
        :raises TypeError: If there are other arguments.
        """
        if kwargs:
            raise TypeError(f"fit: got unknown argument {sorted(kwargs)[0]!r}, expected settings in the constructor")
        self._defence(x, transformed_classifier=self.classifier, y=y)
