"""Universal Adversarial Fine-Tuning with settings that it finds by itself, and a guard of the accuracy."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import at_most, check_choice, check_flag, check_integer, check_number, check_sequence
from art_aft.classifiers.classifier import clone, predict_labels, predict_logits
from art_aft.classifiers.layers import NothingToPrune
from art_aft.data.images import Images
from art_aft.defences.base import Defence, Run, register
from art_aft.defences.fine_pruning import FinePruning, FinePruningReport
from art_aft.defences.report import PurificationReport, Trial
from art_aft.defences.universal_aft import check_run
from art_aft.defences.universal_runs import UniversalRuns
from art_aft.runtime.processes import number_of_first

logger = logging.getLogger(__name__)

#: What is tried, the setting that forgets most first. After pruning, two thirds of clean images forget as well as half,
#: and keep more accuracy; on few images, the pull of `l2_sp` keeps more again (docs/differences.md).
CANDIDATES: tuple[Mapping[str, Any], ...] = tuple(
    {"eps": "auto", "clean_share": 2 / 3, "learning_rate": rate, "l2_sp": 2.0} for rate in (0.05, 0.02, 0.01)
)

# Fewer images do not tell whether pruning costs 4 points or none, and a pruned teacher's errors are learnt.
_DECIDING = 100


class AccuracyLost(RuntimeError):
    """Every setting that was tried lost more accuracy than was allowed."""


@dataclass(frozen=True, kw_only=True)
class AutomaticReport(PurificationReport):
    """
    What the automatic settings tried and chose. `chosen` has the settings of the trial that was taken.

    :param n_held_out: Number of images that only measured.
    :param accuracy_before: The infected classifier's accuracy on them, in [0, 1].
    :param accuracy_after: The purified classifier's.
    :param trials: What was tried, in order.
    :param n_pruned: Number of channels that were pruned before the trial that was taken.
    :param remaining_label: The label that still stands out in the purified classifier; None where none does, or
        `look_again` is False. With a label, `accepted` is False.
    """

    n_held_out: int = 0
    accuracy_before: float = 0.0
    accuracy_after: float = 0.0
    trials: tuple[Trial, ...] = ()
    n_pruned: int = 0
    remaining_label: int | None = None


@dataclass(frozen=True)
class _Origin:
    """What a trial starts from: the infected classifier or a pruned copy, and how many channels that lost."""

    classifier: PyTorchClassifier
    n_pruned: int


@dataclass(frozen=True)
class _Tried:
    """A trial, its result and origin, the accuracy that it lost on held-out images, and the standard error of that."""

    trial: Trial
    settings: Mapping[str, Any]
    classifier: PyTorchClassifier
    origin: _Origin
    drop: float
    error: float


def _strongest_of_the_best(tried: Sequence[_Tried]) -> _Tried:
    """
    Return the first trial that lost no more than the best one, by more than that one's standard error.

    The images cannot tell these apart, and the gentlest setting leaves most of a backdoor.
    """
    best = min(tried, key=lambda one: one.drop)
    return next(one for one in tried if at_most(one.drop, best.drop + best.error))


def _gives_numbers(classifier: PyTorchClassifier, images: Images) -> bool:
    """Return whether all outputs are finite: a model that diverged tells nothing about its labels."""
    finite = bool(np.isfinite(predict_logits(classifier, images.pixels)).all())
    # Processes that round differently must not go apart.
    return bool(number_of_first(float(finite), classifier.device))


@register("auto")
class AutomaticFineTuning(Defence):
    """
    Universal Adversarial Fine-Tuning as strong as the accuracy permits.

    The paper sets its perturbation "adaptively" for each attack, which a defender does not know. A defender sees the
    accuracy. So settings are tried from the strongest on, each as a whole purification of the infected classifier, and
    the first that keeps enough accuracy on held-out clean images is taken. No measure of the backdoor chooses: those
    that were tried (whether the infected model's perturbations or its reversed triggers still work on the purified one)
    vanish long before the backdoor does. But most perturbations lead to the suspected label (`focus`), and the result
    is searched for perturbations afresh: where they still reach one label much more easily than any other, it is not
    accepted.

    Before the first trial, channels that are idle on clean images are pruned, as by fine-pruning. A backdoor that hides
    there, as Input-aware's does, survives any fine-tuning that the accuracy permits. Fine-tuning wins back what pruning
    costs; where it does not, the trial is repeated without pruning, and the gentler settings begin where less was lost.

    | Paper link: https://arxiv.org/abs/2202.06312 (Section V; the choice is this package's)
    | Paper link: https://arxiv.org/abs/1805.12185 (the pruning)

    :param classifier: The classifier that may be infected.
    :param candidates: Settings of `UniversalAdversarialFineTuning`, the strongest first. The settings below come before
        theirs.
    :param max_accuracy_drop: The accuracy on held-out images that may be lost, in [0, 1]. The measured loss and its
        standard error together must stay below it, for few images tell little.
    :param pruning_drop: The accuracy that pruning may cost, in [0, 1], on a share `held_out` of the images that train.
        0 is no pruning. Nothing is pruned either where those are fewer than 100 (some 600 images in all are needed), or
        where a network has no convolution to prune.
    :param otherwise: What to do if all candidates lose more: "return" the strongest of those that lose least, within a
        standard error (the report then has `accepted=False`), or "raise" `AccuracyLost`.
    :param held_out: The share of the clean images, in (0, 0.9], that only measures.
    :param look_again: Whether to search the purified classifier for perturbations afresh, which takes less time than a
        trial.
    :param min_steps: Stage 2 passes over few images so often that it makes at least this many steps.
    :param batch_size: Images a step.
    :param padding: Random crops after padding by this many pixels; 0 is none. None is 4, or less on images of fewer
        than 32 pixels: an eighth of the shorter side.
    :param horizontal_flip: Whether to flip half of the images. Wrong for digits, letters and traffic signs.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        candidates: Sequence[Mapping[str, Any]] = CANDIDATES,
        max_accuracy_drop: float = 0.05,
        pruning_drop: float = 0.02,
        otherwise: str = "return",
        held_out: float = 0.2,
        look_again: bool = True,
        min_steps: int = 400,
        batch_size: int = 64,
        padding: int | None = None,
        horizontal_flip: bool = True,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            candidates=candidates,
            max_accuracy_drop=max_accuracy_drop,
            pruning_drop=pruning_drop,
            otherwise=otherwise,
            held_out=held_out,
            look_again=look_again,
            min_steps=min_steps,
            batch_size=batch_size,
            padding=padding,
            horizontal_flip=horizontal_flip,
            precision=precision,
            seed=seed,
            verbose=verbose,
        )

    def _check_params(self) -> None:
        super()._check_params()
        check_number("max_accuracy_drop", self.max_accuracy_drop, minimum=0.0, maximum=1.0)
        check_number("pruning_drop", self.pruning_drop, minimum=0.0, maximum=1.0)
        check_choice("otherwise", self.otherwise, ("return", "raise"))
        check_number("held_out", self.held_out, minimum=0.0, maximum=0.9, above=True)
        check_flag("look_again", self.look_again)
        check_integer("min_steps", self.min_steps, 0)
        if not check_sequence("candidates", self.candidates):
            raise ValueError(f"candidates: got {self.candidates!r}, expected settings of at least one")
        for settings in self.candidates:
            check_run("candidates", self.classifier, settings)

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> AutomaticReport:
        shown, held_out = images.hold_out(self.held_out, self.seed)
        known = predict_labels(classifier, held_out.pixels) == held_out.labels
        before, runs = float(known.mean()), UniversalRuns(self)
        tried = self._trials(classifier, runs, shown, held_out, known, run)
        taken = tried[-1] if tried[-1].trial.accepted else _strongest_of_the_best(tried)
        trial = taken.trial
        if not trial.accepted and self.otherwise == "raise":
            best = max(one.trial.accuracy for one in tried)
            raise AccuracyLost(
                f"max_accuracy_drop: of {before:.3f}, {len(tried)} trials left {best:.3f} at best, "
                f"expected at least {before - self.max_accuracy_drop:.3f}"
            )
        classifier.model.load_state_dict(taken.classifier.model.state_dict())
        remaining, notes = None, tuple[str, ...]()
        if self.look_again and _gives_numbers(classifier, held_out):
            with run.stage("Second look"):
                remaining = runs.remaining_label(classifier, taken.settings, images)
        if remaining is not None:
            notes = (f"label {remaining} still stands out: perturbations reach it much more easily than other labels",)
            logger.warning("%s", notes[0])
        return AutomaticReport(
            n_held_out=len(held_out),
            accuracy_before=before,
            accuracy_after=trial.accuracy,
            accepted=trial.accepted and remaining is None,
            notes=notes,
            trials=tuple(one.trial for one in tried),
            chosen=trial.settings,
            n_pruned=trial.settings["n_pruned"],
            remaining_label=remaining,
        )

    def _trials(
        self,
        classifier: PyTorchClassifier,
        runs: UniversalRuns,
        images: Images,
        held_out: Images,
        known: np.ndarray,
        run: Run,
    ) -> list[_Tried]:
        """Try settings until one is accepted; `known` says which held-out images the infected classifier gets right."""
        pruned, n_pruned = self._prune(classifier, images, run)
        # What pruning costs cannot always be won back.
        origins = [_Origin(pruned, n_pruned), _Origin(classifier, 0)] if n_pruned else [_Origin(classifier, 0)]
        tried = list[_Tried]()
        for settings in self.candidates:
            for origin in origins:
                with run.stage(f"Trial {len(tried) + 1}"):
                    tried.append(self._try(origin, settings, runs, images, held_out, known))
                if tried[-1].trial.accepted:
                    return tried
            # What lost less is where the gentler settings begin.
            origins = [min(tried[-len(origins) :], key=lambda one: one.drop).origin]
        return tried

    def _try(
        self,
        origin: _Origin,
        settings: Mapping[str, Any],
        runs: UniversalRuns,
        images: Images,
        held_out: Images,
        known: np.ndarray,
    ) -> _Tried:
        """Purify a copy and measure it on held-out images."""
        start, purified = time.perf_counter(), clone(origin.classifier)
        report = runs(purified, settings, images)
        lost = known.astype(int) - (predict_labels(purified, held_out.pixels) == held_out.labels)
        # Processes that round differently must not go apart.
        drop = number_of_first(float(lost.mean()), purified.device)
        error = number_of_first(float(lost.std() / len(lost) ** 0.5), purified.device)
        chosen = {
            **settings,
            **report.chosen,
            "nb_epochs": report.settings["nb_epochs"],
            "target": report.target,
            "n_pruned": origin.n_pruned,
        }
        accepted = at_most(drop + error, self.max_accuracy_drop)
        accuracy, seconds = float(known.mean()) - drop, time.perf_counter() - start
        trial = Trial(chosen, accuracy, accepted, report.stages, seconds)
        return _Tried(trial, {**settings, **report.chosen}, purified, origin, drop, error)

    def _prune(self, classifier: PyTorchClassifier, images: Images, run: Run) -> tuple[PyTorchClassifier, int]:
        """Return what all trials start from, a copy without the idle channels, and how many those were."""
        pruned = clone(classifier)
        if not self.pruning_drop or self.held_out * len(images) < _DECIDING:
            return pruned, 0
        own: dict[str, Any] = {"precision": self.precision, "seed": self.seed, "verbose": self.verbose}
        pruning = FinePruning(pruned, max_drop=self.pruning_drop, held_out=self.held_out, nb_epochs=0, **own)
        with run.stage("Pruning"), suppress(NothingToPrune):
            pruning.run_within(pruned, images)
        report = pruning.report
        return pruned, len(report.pruned_channels) if isinstance(report, FinePruningReport) else 0
