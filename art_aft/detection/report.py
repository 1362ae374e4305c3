"""What a scan found: the verdict, and the evidence of each detector."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from art_aft.detection.base import Evidence


@dataclass(frozen=True)
class ScanReport:
    """
    What a scan found.

    :param verdict: "infected", "no evidence", or "cannot tell".
    :param kind: "all-to-one" or "all-to-all" where infected, else None.
    :param targets: The suspected target labels, the most suspicious first; all-to-all, the target label of each class.
    :param score: The highest score of a detector: its statistic in units of its threshold.
    :param false_alarm_rate: The share of clean classifiers with this score or more, by the reference, in (0, 1]; None
        without a reference.
    :param evidence: What each detector found, in the order in which they ran, and their agreement.
    :param label_matrix: The labels of untargeted adversarial examples at the largest L-infinity radius: shares of shape
        (nb_classes, nb_classes), row = true label; None where no detector made such examples.
    :param notes: Why the evidence is weak, where it is.
    :param omitted: The detectors that did not run, or could not be applied.
    :param seconds: How long the scan took.
    :param remarks: What is worth knowing and weakens nothing, such as that the model returns probabilities.
    """

    verdict: str
    kind: str | None
    targets: tuple[int, ...]
    score: float
    false_alarm_rate: float | None
    evidence: tuple[Evidence, ...]
    label_matrix: np.ndarray | None = field(repr=False)
    notes: tuple[str, ...]
    omitted: tuple[str, ...]
    seconds: float
    remarks: tuple[str, ...] = ()
