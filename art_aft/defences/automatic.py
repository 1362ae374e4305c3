"""Adversarial Fine-Tuning with settings that it finds by itself, and a guard of the accuracy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_choice, check_number
from art_aft.classifiers.classifier import clone, predict_labels
from art_aft.classifiers.layers import NothingToPrune
from art_aft.data.loaders import hold_out
from art_aft.defences.base import Purification, register
from art_aft.defences.composed import Composed
from art_aft.defences.fine_pruning import FinePruning
from art_aft.defences.report import Trial
from art_aft.runtime.processes import number_of_first

#: What is tried, the setting that forgets most first. After the pruning, two thirds of clean images forget as well as
#: half, and keep more accuracy.
CANDIDATES: tuple[Mapping[str, Any], ...] = tuple(
    {"preset": "mixed", "eps": "auto", "clean_share": 2 / 3, "learning_rate": rate} for rate in (0.05, 0.02, 0.01)
)


# Fewer images do not tell whether pruning costs 4 points or none, and a pruned teacher's errors are learnt.
_DECIDING = 100


class AccuracyLost(RuntimeError):
    """Every setting that was tried cost more accuracy than was allowed."""


@register("auto")
@dataclass(eq=False, repr=False)
class AutomaticFineTuning(Composed, Purification):
    """
    Adversarial Fine-Tuning as strong as the accuracy permits.

    The paper sets its perturbation "adaptively" for each attack, which a defender does not know. What a defender can
    see is the accuracy: settings are tried from the strongest on, each as a whole purification of the infected
    classifier, and the first that keeps enough accuracy on held-out clean images is taken. No sign of the backdoor has
    a say in that: those that were tried (whether the infected model's perturbations or its reversed triggers still work
    on the purified one) fall silent long before the backdoor is gone. But a label that stands out in the infected
    model's last layer is where most perturbations lead (`focus`).

    Before that, the channels that clean images leave idle are cut off, as fine-pruning does: a backdoor that hides
    there, as that of Input-aware does, survives any fine-tuning that the accuracy permits. The accuracy that it costs,
    fine-tuning wins back.

    After a call, `report` tells what was tried, and `n_pruned` how many channels were cut off.

    | Paper link: https://arxiv.org/abs/2202.06312 (Section V; the choice is this package's)
    | Paper link: https://arxiv.org/abs/1805.12185 (the pruning)

    Preset "paper": Algorithm 1 as printed, with the guard alone.

    :param classifier: The classifier that may be infected.
    :param candidates: Settings of `AdversarialFineTuning`, the strongest first; those of `Composed` come before them.
    :param max_accuracy_drop: How much of the accuracy on held-out images may be lost, in [0, 1]: the measured loss and
        its standard error together, for few images say little.
    :param pruning_drop: How much accuracy the pruning may cost, in [0, 1], on a share `held_out` of the images that
        train; 0 is no pruning. There is none either where those are fewer than 100 (in all some 600 images are needed),
        or where a network has no convolution to prune.
    :param otherwise: If all candidates lose more: "return" the one that loses least (the report then says
        `accepted=False`), or "raise" an `AccuracyLost`.
    :param held_out: The share of the clean images, in (0, 0.9], that only measures.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of the wrong type.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"candidates": ({"preset": "paper"},), "min_steps": 0, "pruning_drop": 0.0}
    }

    classifier: PyTorchClassifier
    _: KW_ONLY
    candidates: Sequence[Mapping[str, Any]] = CANDIDATES
    max_accuracy_drop: float = 0.05
    pruning_drop: float = 0.02
    otherwise: str = "return"
    held_out: float = 0.2

    def _check_params(self) -> None:
        super()._check_params()
        self.n_pruned = 0
        check_number("max_accuracy_drop", self.max_accuracy_drop, minimum=0.0, maximum=1.0)
        check_number("pruning_drop", self.pruning_drop, minimum=0.0, maximum=1.0)
        check_choice("otherwise", self.otherwise, ("return", "raise"))
        check_number("held_out", self.held_out, minimum=0.0, maximum=0.9, above=True)
        if not isinstance(self.candidates, Sequence) or not self.candidates:
            raise ValueError(f"candidates: got {self.candidates!r}, expected settings of at least one")
        for settings in self.candidates:
            self._fine_tuning(self.classifier, settings, 1)

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> Mapping[str, Any]:
        if len(x) < 2:
            raise ValueError(f"x: got {len(x)} image, expected at least two: one measures")
        self._found.clear()
        size = min(max(1, round(self.held_out * len(x))), len(x) - 1)
        (x, y), (x_held, y_held) = hold_out(x, y, size, self.seed)

        known = predict_labels(classifier, x_held) == y_held
        before = float(known.mean())
        start_from = self._pruned(classifier, x, y)
        runs: list[tuple[Trial, PyTorchClassifier]] = []
        for settings in self.candidates:
            start, purified = time.perf_counter(), clone(start_from)
            with self._stage(f"Trial {len(runs) + 1}"):
                defence = self._fine_tuning(classifier, settings, len(x))
                self._run(defence, purified, x, y)
            lost = known.astype(int) - (predict_labels(purified, x_held) == y_held)
            after = before - float(lost.mean())
            # A share that is a whole number of images must not fall to the side of a rounding error. Processes that
            # round differently must not go apart.
            drop = number_of_first(float(lost.mean() + lost.std() / len(lost) ** 0.5) - 1e-9, classifier.device)
            accepted = drop <= self.max_accuracy_drop
            stages = defence.report.stages if defence.report else ()
            told = {**settings, "eps": defence.radius, "nb_epochs": defence.nb_epochs, "n_pruned": self.n_pruned}
            runs.append((Trial(told, after, accepted, stages, time.perf_counter() - start), purified))
            if accepted:
                break
        chosen, purified = runs[-1] if runs[-1][0].accepted else max(runs, key=lambda run: run[0].accuracy)
        if not chosen.accepted and self.otherwise == "raise":
            raise AccuracyLost(
                f"max_accuracy_drop: of {before:.3f}, {len(runs)} settings left {chosen.accuracy:.3f} at best, "
                f"expected at least {before - self.max_accuracy_drop:.3f}"
            )
        classifier.model.load_state_dict(purified.model.state_dict())
        return {
            "n_held_out": size,
            "accuracy_before": before,
            "accuracy_after": chosen.accuracy,
            "accepted": chosen.accepted,
            "trials": tuple(trial for trial, _ in runs),
            "chosen": chosen.settings,
        }

    def _pruned(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> PyTorchClassifier:
        """Return what all trials start from: a copy of the infected classifier without its idle channels."""
        self.n_pruned, pruned = 0, clone(classifier)
        if not self.pruning_drop or self.held_out * len(x) < _DECIDING:
            return pruned
        own: dict[str, Any] = {"precision": self.precision, "seed": self.seed, "verbose": self.verbose}
        pruning = FinePruning(pruned, max_drop=self.pruning_drop, held_out=self.held_out, nb_epochs=0, **own)
        with self._stage("Pruning"), suppress(NothingToPrune):
            pruning(x, transformed_classifier=pruned, y=y)
            self.n_pruned = len(pruning.pruned_channels)
        return pruned
