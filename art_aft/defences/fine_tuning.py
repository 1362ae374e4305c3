"""Fine-tuning: the plainest rival."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_flag
from art_aft.defences.purification import Purification, register
from art_aft.training import Recipe, fit


@register("fine_tuning")
@dataclass(eq=False, repr=False)
class FineTuning(Purification):
    """
    Fine-tune all layers on the clean data with cross entropy.

    The learning rate decides most of what fine-tuning forgets, so compare defences at rates tuned alike. The
    defaults are those of Stages 2 and 3 of Adversarial Fine-Tuning, for as many epochs as both together.

    :param classifier: The classifier that may be infected.
    :param nb_epochs: Passes over the clean data.
    :param batch_size: Images a step.
    :param learning_rate: The rate of a fresh SGD optimizer; None goes on with the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay.
    :param nesterov: Whether the momentum is Nesterov's.
    :param schedule: "constant", "cosine" or "one_cycle".
    :param milestones: Pairs (epoch, learning rate), from 0.
    :param max_steps: End after so many steps, if that is before `nb_epochs`.
    :param padding: Random crops after padding by so many pixels.
    :param mirror: Whether to mirror half the images. Wrong for digits, letters, traffic signs.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of order and augmentation.
    :param verbose: Whether to show a progress bar.
    :raises ValueError: If a setting is out of its range.
    """

    classifier: PyTorchClassifier
    _: KW_ONLY
    nb_epochs: int = 20
    batch_size: int = 128
    learning_rate: float | None = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: str = "constant"
    milestones: tuple[tuple[int, float], ...] = ()
    max_steps: int | None = None
    padding: int = 4
    mirror: bool = True
    precision: str = "auto"
    seed: int = 0
    verbose: bool = False

    def _check_params(self) -> None:
        check_flag("verbose", self.verbose)
        self._recipe()

    def _recipe(self) -> Recipe:
        return Recipe(**{key: value for key, value in self.get_params().items() if key != "verbose"})

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
        fit(classifier, x, y, self._recipe(), verbose=self.verbose, description="Fine-tuning")
