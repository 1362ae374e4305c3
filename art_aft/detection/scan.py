"""Test a classifier for a backdoor, from a few clean images and without knowing the trigger."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from art.data_generators import PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from art_aft.checks import (
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_mapping,
    check_number,
    check_seed,
    check_sequence,
)
from art_aft.classifiers.bar import Judgement, judge
from art_aft.classifiers.classifier import check_classifier, check_outputs, images_for, predict_labels
from art_aft.data.images import Images
from art_aft.detection.agreement import agreement, deciding, unconfirmed
from art_aft.detection.base import DETECTORS, EXPENSIVE, THOROUGH, Detector, Evidence, Suspect
from art_aft.detection.report import ScanReport
from art_aft.runtime.devices import PRECISIONS

#: Which detectors run; see `BackdoorScan`.
EFFORTS = ("fast", "normal", "full")

# From this score on, a scan that reports nothing does not say "no evidence" either. The eight clean models of the zoo's
# choosing half have 0.46 at most (examples/results/scan_zoo_choose.json).
_DOUBT = 0.6

# A class with more than so many times the median number of images is not used whole. Of GTSRB, the largest has five.
_SKEWED = 10


class BackdoorScan:
    """
    Test a classifier for a backdoor, cheapest detectors first.

    Each detector measures how far one label, or one shift of the labels, is ahead of the others. Its score is that
    statistic in units of its threshold: 1 and more report a backdoor. Detectors whose p-values were checked on clean
    classifiers report together, as `agreement`. The score of the scan is the highest of all. "no evidence" only means
    that none of those that ran reported a backdoor; `ScanReport.omitted` names the others.

    It assumes one backdoor, with one target label or one shift, that works on images of all other classes, and training
    classes of about one size. Of several backdoors or of one that works on a single class, it may accuse a wrong label
    or none; a clean model that was trained with one class much larger than the others may be reported.

    | Paper link: https://arxiv.org/abs/2202.06312 (Sections III and V)

    :param classifier: The classifier; it stays as it is.
    :param effort: Which detectors run: "fast", those of cost 0 and 1; "normal", cheapest first until a backdoor is
        reported and its label is clear, without the two that seldom add to the others; or "full", all.
    :param detectors: Names of detectors to run, all of them, in the place of what `effort` asks for.
    :param reference: Scores of classifiers that are known to be clean, at the same effort, for `false_alarm_rate`.
    :param max_images: How many images are used at most, drawn at random.
    :param settings: Settings for single detectors, by the detector's name, such as
        `{"reversed_trigger": InversionRecipe(steps=200)}`.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If the classifier is not ART's `PyTorchClassifier`.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        effort: str = "normal",
        detectors: Sequence[str] | None = None,
        reference: Sequence[float] = (),
        max_images: int = 1000,
        settings: Mapping[str, Any] | None = None,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        check_classifier("classifier", classifier)
        self.classifier = classifier
        self.effort = check_choice("effort", effort, EFFORTS)
        self.detectors = None if detectors is None else tuple(check_sequence("detectors", detectors))
        for name in self.detectors or ():
            check_choice("detectors", name, tuple(DETECTORS))
        self.reference = tuple(
            check_number("reference", score, minimum=0.0) for score in check_sequence("reference", reference)
        )
        self.max_images = check_integer("max_images", max_images, 1)
        self.settings = {} if settings is None else dict(check_mapping("settings", settings))
        for name, value in self.settings.items():
            kind = DETECTORS[check_choice("settings", name, tuple(DETECTORS))].settings
            check_instance("settings", value, kind, f"{kind.__name__} for {name}")
        self.precision = check_choice("precision", precision, PRECISIONS)
        self.seed = check_seed("seed", seed)
        self.verbose = check_flag("verbose", verbose)

    def __call__(
        self, x: np.ndarray | DataLoader | PyTorchDataGenerator | Images, y: np.ndarray | None = None
    ) -> ScanReport:
        """
        Scan the classifier, on the images that it gets right.

        :param x: Clean images in `clip_values`, of shape (N, *input_shape), or uint8 images that stand for that range;
            or a loader of images and labels; or checked `Images`.
        :param y: Their true labels, as indices or one-hot rows; None with a loader or checked images.
        :raises ValueError: If the data do not fit the classifier.
        """
        start = time.perf_counter()
        draw: dict[str, Any] = {"max_images": self.max_images, "seed": self.seed}
        # Classes are those of all images: a draw that misses one of many classes is no fault of theirs.
        labels = [x.labels] if isinstance(x, Images) else []
        images = images_for(self.classifier, x, y, **draw, all_labels=labels)
        remarks = check_outputs(self.classifier, images)
        images, uneven = _evened(images, self.seed)
        remarks += (uneven,) if uneven else ()
        right = predict_labels(self.classifier, images.pixels) == images.labels
        judgement = judge(np.concatenate(labels), float(right.mean()), len(images), self.classifier.nb_classes)
        suspect = Suspect(
            self.classifier,
            images[right] if right.any() else images,
            precision=self.precision,
            seed=self.seed,
            stop_early=self.effort == "normal",
            settings=self.settings,
            verbose=self.verbose,
        )
        evidence = self._detect(suspect, judgement)
        report = self._report(evidence, suspect.label_matrix, judgement)
        return replace(report, remarks=remarks, seconds=time.perf_counter() - start)

    def _report(self, found: list[Evidence], matrix: np.ndarray | None, judgement: Judgement) -> ScanReport:
        """Return the report, with the verdict."""
        notes = list(judgement.notes)
        weak = bool(judgement.few or judgement.missing)
        trusted = [each for each in found if not (weak and DETECTORS[each.detector].uses_images)]
        counted = self._deciding(trusted)
        if any(each.score >= 1 for each in self._deciding(found)) and not any(each.score >= 1 for each in counted):
            notes.append("a report of a detector that needs images does not count with so few images or classes")
        if not found:
            notes.append("no detector that was asked for can be applied to this model")
        score = max((each.score for each in self._deciding(found)), default=0.0)
        verdict = "infected" if any(each.score >= 1 for each in counted) else "no evidence"
        together = agreement(trusted)
        doubts = [unconfirmed(trusted), _too_close(self._deciding(found))] if verdict == "no evidence" else []
        notes += [doubt for doubt in doubts if doubt]
        unclear = judgement.inaccurate or judgement.hopeless
        if unclear or (verdict == "no evidence" and notes):
            verdict = "cannot tell"
        kind, targets = self._accused(counted) if verdict == "infected" else (None, ())
        ran = {each.detector for each in found}
        return ScanReport(
            verdict=verdict,
            kind=kind,
            targets=targets,
            score=score,
            false_alarm_rate=self._false_alarm_rate(score),
            evidence=(*found, *([together] if together else [])),
            label_matrix=matrix,
            notes=tuple(notes),
            omitted=tuple(name for name, _ in _ordered() if name not in ran),
            seconds=0.0,
        )

    def _detect(self, suspect: Suspect, judgement: Judgement) -> list[Evidence]:
        """
        Return the evidence of as many detectors as were asked for, one group of equal cost after the other; where the
        images are hopeless, of those that use none.
        """
        found: list[Evidence] = []
        asked = [
            (name, detector)
            for name, detector in _ordered()
            if (self.detectors is None or name in self.detectors) and not (judgement.hopeless and detector.uses_images)
        ]
        # As long as nothing is reported; a report may end the scan earlier.
        most = sum(self._asks_for(detector.cost, ()) for _, detector in asked)
        with tqdm(total=most, desc="Scan", unit="test", disable=None if self.verbose else True, leave=False) as bar:
            for cost, group in groupby(asked, key=lambda entry: entry[1].cost):
                for name, detector in group if self._asks_for(cost, found) else ():
                    bar.set_postfix_str(name.replace("_", " "))
                    evidence = detector().detect(suspect)
                    found += [] if evidence is None else [evidence]
                    bar.update()
        return found

    def _asks_for(self, cost: int, found: Sequence[Evidence]) -> bool:
        """Return whether detectors of a cost run, after those that found this."""
        if self.detectors is None and self.effort == "normal":
            return cost < THOROUGH and not any(each.names_its_label for each in self._deciding(found))
        return self.detectors is not None or self.effort == "full" or cost < EXPENSIVE

    def _deciding(self, found: Sequence[Evidence]) -> list[Evidence]:
        """Return the evidence that decides."""
        return deciding(found, named=self.detectors is not None)

    def _accused(self, evidence: Sequence[Evidence]) -> tuple[str, tuple[int, ...]]:
        """Return the kind of the backdoor, and the suspected target labels."""
        reporting = sorted((e for e in evidence if e.score >= 1), key=lambda each: (each.ambiguous, -each.score))
        strongest = reporting[0]
        nb_classes = self.classifier.nb_classes
        if strongest.shift:
            return "all-to-all", tuple((label + strongest.label) % nb_classes for label in range(nb_classes))
        return "all-to-one", tuple(dict.fromkeys(each.label for each in reporting if not each.shift))

    def _false_alarm_rate(self, score: float) -> float | None:
        """Return the share of clean classifiers, this one counted as one of them, that score as high or higher."""
        if not self.reference:
            return None
        return (1 + sum(other >= score for other in self.reference)) / (1 + len(self.reference))


def _evened(images: Images, seed: int) -> tuple[Images, str]:
    """
    Return images without most of those of a class that dominates the others, and what was left out, in words.

    A detector measures how images of other labels are led to a label. Where nearly all images are of one class, that
    says how this class is led, and clean models were reported.
    """
    counts = np.bincount(images.labels)
    most = int(_SKEWED * np.median(counts[counts > 0]))
    if counts.max() <= most:
        return images, ""
    order = np.random.default_rng(seed).permutation(len(images))
    kept = np.concatenate([order[images.labels[order] == label][:most] for label in range(len(counts))])
    large = ", ".join(map(str, np.flatnonzero(counts > most)))
    return images[np.sort(kept)], (
        f"only {most} images of class {large} are used: {_SKEWED} times the median of the classes"
    )


def _too_close(counted: Sequence[Evidence]) -> str:
    """Return which detector is too close to a report for "no evidence", in words; empty where none is."""
    strongest = max(counted, key=lambda each: each.score, default=None)
    if strongest is None or not _DOUBT <= strongest.score < 1:
        return ""
    what = f"shift by {strongest.label}" if strongest.shift else f"label {strongest.label}"
    score = f"{strongest.detector} has a score of {strongest.score:.2f} for {what}"
    return f"{score}: from 1 on that is a report, and only below {_DOUBT} nothing"


def _ordered() -> list[tuple[str, type[Detector]]]:
    """Return the detectors, cheapest first, then by name: not in the order in which their modules were imported."""
    return sorted(DETECTORS.items(), key=lambda entry: (entry[1].cost, entry[0]))
