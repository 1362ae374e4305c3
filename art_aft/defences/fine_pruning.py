"""Fine-pruning: cut off what clean images leave idle, then fine-tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_number
from art_aft.classifiers.layers import Head
from art_aft.defences.base import NAD_RELEASE, Purification, Tuning, register
from art_aft.training.loop import fit


@register("fine_pruning")
@dataclass(eq=False, repr=False)
class FinePruning(Tuning, Purification):
    """
    Cut off the last convolution's channels in the order of their mean activation on clean images, the idlest first,
    until accuracy on held-out clean images has fallen too far; the cut that went too far is undone. Then fine-tune
    what is left; channels that were cut off stay so.

    After a call, `pruned_channels` tells which channels were cut off, in order, and `accuracy_curve` the held-out
    accuracy before the first cut and after each, the undone one included.

    | Paper link: https://arxiv.org/abs/1805.12185

    Presets: "paper" prunes only, as the paper's rows for WaNet and Input-aware say; "paper_tuned" fine-tunes
    afterwards as Neural Attention Distillation's release does.

    :param classifier: The classifier that may be infected.
    :param max_drop: The held-out accuracy that may be lost to pruning, as a share in [0, 1].
    :param max_pruned: The share of the channels, in [0, 1], that may be cut off.
    :param held_out: The share of the clean set, in (0, 1), that decides when to stop; fine-tuning uses all of it.
    :param layer: The layer that reads the channels, as in `named_modules`; None is the first linear layer after the
        last convolution.
    :param nb_epochs: Passes over the clean data after pruning; 0 only prunes.

    All other settings are those of `Tuning`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"nb_epochs": 0, "max_drop": 0.04},
        "paper_tuned": {**NAD_RELEASE, "max_drop": 0.04},
    }

    classifier: PyTorchClassifier
    _: KW_ONLY
    max_drop: float = 0.04
    max_pruned: float = 1.0
    held_out: float = 0.1
    layer: str | None = None

    def _check_params(self) -> None:
        super()._check_params()
        check_number("max_drop", self.max_drop, minimum=0.0, maximum=1.0)
        check_number("max_pruned", self.max_pruned, minimum=0.0, maximum=1.0)
        if check_number("held_out", self.held_out, minimum=0.0, maximum=1.0, above=True) == 1:
            raise ValueError("held_out: got 1, expected a share below 1")

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
        if len(x) < 2:
            raise ValueError(f"x: got {len(x)} image, expected at least two: one decides when to stop")
        head = Head(classifier, x, self.layer)
        order = np.random.default_rng(self._stream(0)).permutation(len(x))
        size = min(max(1, round(self.held_out * len(x))), len(x) - 1)
        with self._stage("Pruning") as accuracies:
            self._prune(head, x[order[size:]], x[order[:size]], y[order[:size]])
            accuracies += self.accuracy_curve
        recipe = self._recipe(self.nb_epochs)
        with self._stage("Fine-tuning"):
            fit(classifier, x, y, recipe, after_step=head.keep_cut, verbose=self.verbose, description="Fine-tuning")

    def _prune(self, head: Head, x: np.ndarray, x_held: np.ndarray, y_held: np.ndarray) -> None:
        """Cut channels off in place, as many as the held-out accuracy allows."""
        activity = head.activations(x).mean(axis=0)
        inputs = head.inputs(x_held)
        self.accuracy_curve = [float(np.mean(head.predict(x_held, inputs) == y_held))]
        # A share that is a whole number of images must not fall to the side of a rounding error.
        lowest = self.accuracy_curve[0] - self.max_drop - 1e-9
        for channel in np.argsort(activity, kind="stable")[: int(self.max_pruned * head.nb_channels + 1e-9)]:
            weights = head.cut(int(channel))
            self.accuracy_curve.append(float(np.mean(head.predict(x_held, inputs) == y_held)))
            if self.accuracy_curve[-1] < lowest:
                head.restore(weights)
                break
        self.pruned_channels = list(head.pruned)
