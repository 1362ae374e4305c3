"""Progressive Backdoor Erasing: Adversarial Fine-Tuning where there is only the poisoned training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_integer, check_number
from art_aft.classifiers.classifier import clone
from art_aft.data.loaders import take
from art_aft.defences.aft import AdversarialFineTuning
from art_aft.defences.base import Purification, register
from art_aft.defences.composed import Composed
from art_aft.defences.early_stop import margins
from art_aft.runtime.processes import from_first


@register("progressive_erasing")
@dataclass(eq=False, repr=False)
class ProgressiveErasing(Composed, Purification):
    """
    Remove a backdoor without clean data, with the training set that planted it.

    Triggered images that are fine-tuned on, under the attacker's label, keep the backdoor alive. But a purified model
    that has not seen them tells them apart: of them the infected model was sure, and the purified one is not. In an
    all-to-one attack they all have one label, which may be any. So the labels are dealt into folds; for each fold, a
    copy of the infected classifier is purified on the images of all other labels, and the images of the fold are
    judged by how much of their margin (the logit of the given label above the next one) the copy has taken away. Of
    each label, the images that lost least are picked, and the infected classifier is purified on them. The
    purified one judges all images, the infected classifier is purified on those that it trusts most, and so on.

    Against all-to-all attacks it does little: triggered images have all labels, and each judge learns from the others.

    After a call, `picked` tells which images the last round took, `lost` how much margin each image lost before it;
    images that were not judged (`max_images`, where there is one round only) have NaN there.

    | Paper link: https://arxiv.org/abs/2202.06312 (v4, published as "Progressive Backdoor Erasing": the rounds, and
      to judge by disagreement; the folds and the margin are this package's)

    Preset "paper": one fold, that is, the first judge is purified on all images, and three rounds, with the shares of
    the authors' later code and Algorithm 1.

    :param classifier: The classifier that may be infected.
    :param settings: Of `AdversarialFineTuning`; None is its preset "mixed". Those of `Composed` come before them.
        Judges learn labels alone (`distillation=0`): they are to doubt the infected classifier.
    :param n_folds: How many parts the labels are dealt into; with 1, no label is left out.
    :param fold_steps: Stage 2's steps for each fold.
    :param shares: Which share of each label's images, in (0, 1], is picked in each round; (0.3,) is one round, in half
        of the time.
    :param max_images: The most images that the folds and the first round work on, drawn at random; None is all. Later
        rounds pick among all.
    :raises ValueError: If a setting is out of its range, or there are too few labels for the folds.
    :raises TypeError: If a setting is of the wrong type.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"settings": {"preset": "no_clean_data", "nb_epochs": 10}, "n_folds": 1, "shares": (0.2, 0.5, 0.7)}
    }

    classifier: PyTorchClassifier
    _: KW_ONLY
    settings: Mapping[str, Any] | None = None
    n_folds: int = 10
    fold_steps: int = 250
    shares: Sequence[float] = (0.3, 0.2)
    max_images: int | None = 10_000

    def _check_params(self) -> None:
        super()._check_params()
        check_integer("n_folds", self.n_folds, 1)
        check_integer("fold_steps", self.fold_steps, 1)
        if not isinstance(self.shares, Sequence) or not self.shares:
            raise ValueError(f"shares: got {self.shares!r}, expected at least one share")
        for share in self.shares:
            check_number("shares", share, minimum=0.0, maximum=1.0, above=True)
        if self.max_images is not None:
            check_integer("max_images", self.max_images, 1)
        self._aft(self.classifier, 1)
        self.picked = np.zeros(0, dtype=bool)
        self.lost = np.zeros(0)

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> Mapping[str, Any]:
        self._found.clear()
        self.picked, self.lost = np.zeros(len(y), dtype=bool), np.full(len(y), np.nan)
        infected = clone(classifier)
        seen = np.random.default_rng([self.seed, 0]).permutation(len(y))[: self.max_images]
        self.lost[seen] = self._lost_in_folds(infected, take(x, seen), y[seen])
        for number, share in enumerate(self.shares, start=1):
            if number > 1:
                seen = np.arange(len(y))
                self.lost = self._as_in_first(margins(infected, x, y) - margins(classifier, x, y))
            picked = seen[least_of_each_label(self.lost[seen], y[seen], share)]
            self.picked[:] = False
            self.picked[picked] = True
            with self._stage(f"Round {number}"):
                # From the infected classifier again: what the last round lost in accuracy is not carried on.
                classifier.model.load_state_dict(infected.model.state_dict())
                self._run(self._aft(classifier, len(picked)), classifier, take(x, picked), y[picked])
        return {"chosen": {"n_picked": len(picked)}}

    def _lost_in_folds(self, infected: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return how much margin each image lost under a classifier that was purified on other labels than its own."""
        before = margins(infected, x, y)
        lost = np.empty(len(y), dtype=np.float32)
        for number, fold in enumerate(self._folds(y), start=1):
            with self._stage(f"Fold {number}"):
                out = np.isin(y, fold)
                others = np.arange(len(y)) if self.n_folds == 1 else np.flatnonzero(~out)
                judge = clone(infected)
                defence = self._aft(judge, len(others), max_steps=self.fold_steps, distillation=0.0)
                self._run(defence, judge, take(x, others), y[others])
                lost[out] = before[out] - margins(judge, take(x, np.flatnonzero(out)), y[out])
        return self._as_in_first(lost)

    def _aft(
        self, classifier: PyTorchClassifier, n: int, max_steps: int | None = None, **changes: Any
    ) -> AdversarialFineTuning:
        """Return a run for n images."""
        settings = {"preset": "mixed"} if self.settings is None else self.settings
        return self._fine_tuning(classifier, {**settings, **changes}, n, max_steps=max_steps)

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
        dealt = np.random.default_rng([self.seed, 1]).permutation(present)
        return [fold for fold in np.array_split(dealt, self.n_folds) if len(fold)]


def least_of_each_label(values: np.ndarray, y: np.ndarray, share: float) -> np.ndarray:
    """Return a mask of the given share of each label's images, at least one, that have the lowest values."""
    chosen = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        of_label = np.flatnonzero(y == label)
        count = max(1, round(share * len(of_label)))
        chosen[of_label[np.argsort(values[of_label], kind="stable")[:count]]] = True
    return chosen
