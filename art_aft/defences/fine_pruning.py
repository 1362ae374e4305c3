"""Fine-pruning: cut off the channels that clean images leave inactive, then fine-tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import at_most, check_number, check_text, whole
from art_aft.classifiers.layers import Head
from art_aft.data.images import Images
from art_aft.defences.base import NAD_RELEASE, Defence, Run, register
from art_aft.defences.report import PurificationReport
from art_aft.runtime.callbacks import Callback
from art_aft.runtime.random_state import seed_for
from art_aft.training.batches import Batches
from art_aft.training.loop import fit

#: Pruning alone, as the paper's rows for WaNet and Input-aware report it.
PAPER: Mapping[str, Any] = {"nb_epochs": 0, "max_drop": 0.04}
#: Pruning, then fine-tuning as in the release of Neural Attention Distillation.
PAPER_TUNED: Mapping[str, Any] = {**NAD_RELEASE, "max_drop": 0.04}


@dataclass(frozen=True, kw_only=True)
class FinePruningReport(PurificationReport):
    """
    What fine-pruning did.

    :param pruned_channels: The channels that were cut off, in this order.
    :param accuracy_curve: Accuracy on the held-out images, in [0, 1], before the first cut and after each one, the one
        that was undone included.
    """

    pruned_channels: tuple[int, ...] = ()
    accuracy_curve: tuple[float, ...] = ()


@register("fine_pruning")
class FinePruning(Defence):
    """
    Cut off channels of the last convolution, then fine-tune what is left.

    Channels go in the order of their mean activation on clean images, the lowest first, until the accuracy on held-out
    clean images has fallen too far. The cut that went too far is undone. Fine-tuning keeps the other cuts.

    | Paper link: https://arxiv.org/abs/1805.12185

    :param classifier: The classifier that may be infected.
    :param max_drop: The held-out accuracy that pruning may cost, in [0, 1].
    :param max_pruned: The share of the channels that may be cut off, in [0, 1].
    :param held_out: The share of the images, in (0, 1), that decides when pruning stops. Fine-tuning uses all images.
    :param layer: The layer that reads the channels, by its name in `named_modules`. None is the first linear layer
        after the last convolution.
    :param nb_epochs: Passes over the clean data after pruning; 0 only prunes.
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

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER, "paper_tuned": PAPER_TUNED}

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        max_drop: float = 0.04,
        max_pruned: float = 1.0,
        held_out: float = 0.1,
        layer: str | None = None,
        nb_epochs: int = 10,
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
            max_drop=max_drop,
            max_pruned=max_pruned,
            held_out=held_out,
            layer=layer,
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

    def _check_params(self) -> None:
        super()._check_params()
        if self.layer is not None:
            check_text("layer", self.layer)
        check_number("max_drop", self.max_drop, minimum=0.0, maximum=1.0)
        check_number("max_pruned", self.max_pruned, minimum=0.0, maximum=1.0)
        if check_number("held_out", self.held_out, minimum=0.0, maximum=1.0, above=True) == 1:
            raise ValueError("held_out: got 1, expected a share below 1")

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> FinePruningReport:
        rest, held = images.hold_out(self.held_out, seed_for(self.seed, "held out"))
        head = Head(classifier, images.pixels, self.layer)
        with run.stage("Pruning"):
            curve = self._prune(head, rest, held)
        recipe = self._recipe()
        with run.stage("Fine-tuning"):
            fit(
                classifier,
                Batches(images, recipe, classifier.device),
                recipe,
                callbacks=(_KeepCut(head), *run.callbacks),
                verbose=self.verbose,
                description="Fine-tuning",
            )
        return FinePruningReport(pruned_channels=tuple(head.pruned), accuracy_curve=tuple(curve))

    def _prune(self, head: Head, rest: Images, held: Images) -> list[float]:
        """Cut channels off in place, as many as the held-out accuracy permits. Return that accuracy, cut by cut."""
        activity = head.activations(rest.pixels).mean(axis=0)
        inputs = head.inputs(held.pixels)

        def accuracy() -> float:
            return float(np.mean(head.predict(held.pixels, inputs) == held.labels))

        curve = [accuracy()]
        for channel in np.argsort(activity, kind="stable")[: whole(self.max_pruned * head.nb_channels)]:
            weights = head.cut(int(channel))
            curve.append(accuracy())
            if not at_most(curve[0] - curve[-1], self.max_drop):
                head.restore(weights)
                break
        return curve


class _KeepCut(Callback):
    """Sets the weights of cut channels to zero again after each step."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def on_step(self, step: int) -> None:
        self.head.keep_cut()
