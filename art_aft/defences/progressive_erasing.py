"""Progressive Backdoor Erasing: purification with nothing but the poisoned training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_integer, check_number, check_sequence
from art_aft.classifiers.classifier import clone, margins
from art_aft.data.images import Images
from art_aft.defences.base import Defence, Run, register
from art_aft.defences.report import PurificationReport
from art_aft.defences.universal_aft import check_run
from art_aft.defences.universal_runs import UniversalRuns
from art_aft.runtime.processes import from_first
from art_aft.runtime.random_state import rng_for


@dataclass(frozen=True, kw_only=True)
class ErasingReport(PurificationReport):
    """
    What progressive erasing picked.

    :param picked: Whether the last round took an image for clean, bool of shape (N,).
    :param lost: How much margin each image lost before the last round, of shape (N,): the more, the more suspicious it
        is. NaN for images that were not judged (`max_images`, where there is one round only).
    """

    picked: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool), repr=False)
    lost: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)


@register("progressive_erasing")
class ProgressiveErasing(Defence):
    """
    Remove a backdoor without clean data, with the training set that planted it.

    Fine-tuning on triggered images, under the attacker's label, keeps the backdoor alive. But a purified copy that has
    not seen them tells them apart: it is slightly less confident on clean images and much less on triggered ones. In an
    all-to-one attack all triggered images have one label, which may be any. So the labels are dealt into folds. For
    each fold, a copy of the infected classifier is purified on the images of all other labels. The score of an image of
    the fold is how much of its margin (the logit of its label above the next one) it has lost under that copy. The
    images of each label that lost least are picked, and the infected classifier is purified on them. Then the purified
    classifier scores all images, the infected one is purified on those that lost least, and so on.

    Against all-to-all attacks it does little: triggered images have all labels, and each copy learns from the others.

    | Paper link: https://arxiv.org/abs/2202.06312 (v4, published as "Progressive Backdoor Erasing": the rounds, and
      to judge by disagreement; the folds and the margin are this package's)

    :param classifier: The classifier that may be infected.
    :param settings: Settings of `UniversalAdversarialFineTuning`; None is its defaults. The settings below come before
        them. Folds learn labels alone (`temperature=0`), for they are to disagree with the infected classifier.
    :param n_folds: Number of parts that the labels are dealt into; 1 leaves no label out.
    :param fold_steps: Stage 2's steps for each fold.
    :param shares: The share of each label's images, in (0, 1], that each round picks. (0.3,) is one round, in half of
        the time.
    :param max_images: The most images that the folds and the first round work on, drawn at random; None is all. Later
        rounds pick among all.
    :param min_steps: Stage 2 of each round passes over few images so often that it makes at least this many steps.
    :param batch_size: Images a step.
    :param padding: Random crops after padding by this many pixels; 0 is none. None is 4, or less on images of fewer
        than 32 pixels: an eighth of the shorter side.
    :param horizontal_flip: Whether to flip half of the images. Wrong for digits, letters and traffic signs.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range, or there are too few labels for the folds.
    :raises TypeError: If a setting is of another type.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        settings: Mapping[str, Any] | None = None,
        n_folds: int = 10,
        fold_steps: int = 250,
        shares: Sequence[float] = (0.3, 0.2),
        max_images: int | None = 10_000,
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
            settings=settings,
            n_folds=n_folds,
            fold_steps=fold_steps,
            shares=shares,
            max_images=max_images,
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
        check_integer("n_folds", self.n_folds, 1)
        check_integer("fold_steps", self.fold_steps, 1)
        check_integer("min_steps", self.min_steps, 0)
        if not check_sequence("shares", self.shares):
            raise ValueError(f"shares: got {self.shares!r}, expected at least one share")
        for share in self.shares:
            check_number("shares", share, minimum=0.0, maximum=1.0, above=True)
        if self.max_images is not None:
            check_integer("max_images", self.max_images, 1)
        check_run("settings", self.classifier, {} if self.settings is None else self.settings)

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> ErasingReport:
        infected, runs = clone(classifier), UniversalRuns(self)
        lost = np.full(len(images), np.nan)
        seen = rng_for(self.seed, "sample").permutation(len(images))[: self.max_images]
        lost[seen] = self._lost_in_folds(infected, images[seen], runs, run)
        for number, share in enumerate(self.shares, start=1):
            if number > 1:
                seen = np.arange(len(images))
                lost = self._as_in_first(margins(infected, images) - margins(classifier, images))
            picked = seen[least_of_each_label(lost[seen], images.labels[seen], share)]
            with run.stage(f"Round {number}"):
                # From the infected classifier again, so that accuracy lost in the last round is not lost for good.
                classifier.model.load_state_dict(infected.model.state_dict())
                runs(classifier, self.settings or {}, images[picked])
        is_picked = np.zeros(len(images), dtype=bool)
        is_picked[picked] = True
        return ErasingReport(picked=is_picked, lost=lost, chosen={"n_picked": len(picked)})

    def _lost_in_folds(self, infected: PyTorchClassifier, images: Images, runs: UniversalRuns, run: Run) -> np.ndarray:
        """Return how much margin each image lost under a classifier that was purified on other labels than its own."""
        before = margins(infected, images)
        lost = np.empty(len(images), dtype=np.float32)
        for number, fold in enumerate(self._folds(images.labels), start=1):
            with run.stage(f"Fold {number}"):
                out = np.isin(images.labels, fold)
                copy = clone(infected)
                settings = {**(self.settings or {}), "temperature": 0.0}
                runs(copy, settings, images if self.n_folds == 1 else images[~out], max_steps=self.fold_steps)
                lost[out] = before[out] - margins(copy, images[out])
        return self._as_in_first(lost)

    def _as_in_first(self, values: np.ndarray) -> np.ndarray:
        """Return float32 values as the first process has them: those that round differently must pick the same."""
        shared = torch.from_numpy(values).to(self.classifier.device)
        from_first([shared])
        return shared.cpu().numpy()

    def _folds(self, y: np.ndarray) -> list[np.ndarray]:
        """Return labels, dealt into folds at random; without one of the folds, there must be two labels left."""
        present = np.unique(y)
        if self.n_folds > 1 and len(present) - -(-len(present) // self.n_folds) < 2:
            raise ValueError(f"n_folds: got {self.n_folds} for {len(present)} labels, expected two labels outside each")
        dealt = rng_for(self.seed, "folds").permutation(present)
        return [fold for fold in np.array_split(dealt, self.n_folds) if len(fold)]


def least_of_each_label(values: np.ndarray, y: np.ndarray, share: float) -> np.ndarray:
    """
    Return which images have the lowest values among those of their label.

    >>> least_of_each_label(np.array([3.0, 1.0, 2.0, 0.0]), np.array([0, 0, 1, 1]), 0.5)
    array([False,  True, False,  True])

    :param values: A number for each image, of shape (N,).
    :param y: Their labels, of shape (N,).
    :param share: The share of each label's images, in (0, 1], that is chosen: at least one image.
    :return: bool of shape (N,).
    """
    chosen = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        of_label = np.flatnonzero(y == label)
        count = max(1, round(share * len(of_label)))
        chosen[of_label[np.argsort(values[of_label], kind="stable")[:count]]] = True
    return chosen
