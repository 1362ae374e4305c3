"""Runs of Universal Adversarial Fine-Tuning that share what Stage 1 found: other defences are made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.perturbation_sets import UniversalPerturbations
from art_aft.data.images import Images
from art_aft.defences.base import Defence
from art_aft.defences.universal_aft import UniversalAdversarialFineTuning, UniversalReport
from art_aft.detection.suspicion import FOUND, reached_first
from art_aft.runtime.random_state import seed_for

_COMMON = ("batch_size", "padding", "horizontal_flip", "precision", "seed", "verbose")


class UniversalRuns:
    """
    Purifies copies of one infected classifier, with settings that differ.

    The perturbations are the infected classifier's, however it is fine-tuned afterwards, so they are searched for once:
    in the first run, on its images.

    :param defence: The defence that is made of the runs; its settings that `UniversalAdversarialFineTuning` has, too,
        are those of every run. Its `min_steps` is the least number of steps of a run.
    """

    def __init__(self, defence: Defence) -> None:
        self.common = {name: getattr(defence, name) for name in _COMMON}
        self.min_steps = defence.get_params()["min_steps"]
        self._found: dict[tuple[Any, ...], UniversalPerturbations] = {}

    def __call__(
        self,
        classifier: PyTorchClassifier,
        settings: Mapping[str, Any],
        images: Images,
        *,
        max_steps: int | None = None,
    ) -> UniversalReport:
        """
        Purify a copy of the infected classifier in place.

        :param classifier: The copy.
        :param settings: Settings of `UniversalAdversarialFineTuning`.
        :param images: The images.
        :param max_steps: The number of Stage 2's steps; None is as many as the settings say, and at least `min_steps`.
        :return: The run's report.
        """
        defence = UniversalAdversarialFineTuning(classifier, **{**settings, **self.common})
        epoch_steps = math.ceil(len(images) / defence.batch_size)
        if max_steps is None:
            least = math.ceil(self.min_steps / epoch_steps)
            epochs = {name: max(getattr(defence, name), least) for name in ("nb_epochs", "label_epochs")}
            defence.set_params(**epochs)
        else:
            defence.set_params(max_steps=max_steps, nb_epochs=math.ceil(max_steps / epoch_steps))
        search = (defence.eps, defence.max_iter)
        if defence.perturbations is None:
            defence.set_params(perturbations=self._found.get(search))
        report = defence.run_within(classifier, images)
        assert isinstance(report, UniversalReport)
        assert report.perturbations is not None
        self._found.setdefault(search, report.perturbations)
        return report

    def remaining_label(self, purified: PyTorchClassifier, settings: Mapping[str, Any], images: Images) -> int | None:
        """
        Search a purified classifier for perturbations afresh, and return the label that they reach much more easily
        than any other, by the lead at which the scan would report it.

        :param purified: The purified classifier; it stays as it is.
        :param settings: Settings of `UniversalAdversarialFineTuning`, with the bound that the infected classifier got.
        :param images: The images.
        :return: The label; None where no label stands out.
        """
        other = {"perturbations": None, "seed": seed_for(self.common["seed"], "second look")}
        search = UniversalAdversarialFineTuning(purified, **{**settings, **self.common, **other})
        return reached_first(purified, images, search.find_perturbations(purified, images).kinds, FOUND)
