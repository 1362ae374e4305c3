"""Fine-tuning: the plainest rival."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from art.estimators.classification import PyTorchClassifier

from art_aft.data.images import Images
from art_aft.defences.base import NAD_RELEASE, Defence, Run, register
from art_aft.training.batches import Batches
from art_aft.training.loop import fit

#: As the paper's rivals were run: Neural Attention Distillation's release without its distillation, on WRN-16-1.
PAPER: Mapping[str, Any] = NAD_RELEASE
#: The same for PreActResNet-18.
PAPER_PREACT: Mapping[str, Any] = {"nb_epochs": 10, "learning_rate": 0.01, "weight_decay": 5e-4}


@register("fine_tuning")
class FineTuning(Defence):
    """
    Fine-tune all layers on the clean data with cross entropy.

    The learning rate decides most of what fine-tuning forgets, so compare defences at rates tuned alike. The defaults
    are those of Stages 2 and 3 of Adversarial Fine-Tuning, for as many epochs as both together. `FineTuning(classifier,
    **PAPER)` is the setting of Neural Attention Distillation (https://arxiv.org/abs/2101.05930).

    :param classifier: The classifier that may be infected.
    :param nb_epochs: Passes over the clean data.
    :param batch_size: Images a step.
    :param learning_rate: The (peak) rate of a new SGD optimizer; None continues with the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay.
    :param nesterov: Whether the momentum is Nesterov's.
    :param schedule: The learning rate over the steps: "constant", "cosine" or "one_cycle".
    :param milestones: Pairs (epoch, learning rate), from 0: that rate from that epoch on.
    :param padding: Random crops after padding by this many pixels; 0 is none. None is 4, or less on images of fewer
        than 32 pixels: an eighth of the shorter side.
    :param horizontal_flip: Whether to flip half of the images. Wrong for digits, letters and traffic signs.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER, "paper_preact": PAPER_PREACT}

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        nb_epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float | None = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
        schedule: str = "constant",
        milestones: tuple[tuple[int, float], ...] = (),
        padding: int | None = None,
        horizontal_flip: bool = True,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            nb_epochs=nb_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            schedule=schedule,
            milestones=milestones,
            padding=padding,
            horizontal_flip=horizontal_flip,
            precision=precision,
            seed=seed,
            verbose=verbose,
        )

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> None:
        recipe = self._recipe()
        with run.stage("Fine-tuning"):
            batches = Batches(images, recipe, classifier.device)
            fit(classifier, batches, recipe, callbacks=run.callbacks, verbose=self.verbose, description="Fine-tuning")
