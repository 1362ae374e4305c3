"""
Agreement: several detectors point at the same label.

At low poisoning ratios no detector is sure by itself, but the weak signs of several point at the same label. Detectors
whose p-values were checked on clean classifiers give one for each label. For each label they are combined by Cauchy's
combination, which one small p-value suffices to make small.

| Score of a label: -log10 of its combined p-value.
| Statistic: -log10 of the smallest combined p-value times the number of labels (Bonferroni's bound).
| Null distribution: each detector's own; their dependence does not matter in the tail.
| Threshold: 2.0, a p-value of 0.01; it was not fitted.
| Paper link: https://doi.org/10.1080/01621459.2018.1554485
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from art_aft.detection.base import Evidence
from art_aft.detection.statistics import cauchy_combination

#: The statistic from which the agreement reports a backdoor.
THRESHOLD = 2.0


def agreement(found: Sequence[Evidence]) -> Evidence | None:
    """
    Return the evidence of all detectors that give a p-value for each label, taken together.

    :param found: What single detectors found on one classifier.
    :return: None where fewer than two of them give such p-values.
    """
    parts = [each for each in found if each.label_p_values]
    if len(parts) < 2:
        return None
    combined = cauchy_combination(np.array([each.label_p_values for each in parts]))
    p_value = min(1.0, len(combined) * float(combined.min()))
    label = int(combined.argmin())
    pointing = [each.detector for each in parts if each.label == label]
    return Evidence(
        detector="agreement",
        label=label,
        statistic=0.0 - math.log10(p_value),  # not -0.0
        threshold=THRESHOLD,
        p_value=p_value,
        scores=tuple((-np.log10(combined)).tolist()),
        details=f"{len(pointing)} of {len(parts)} detectors point at it",
        label_p_values=tuple(combined.tolist()),
    )


def deciding(found: Sequence[Evidence], *, named: bool = False) -> list[Evidence]:
    """
    Return the evidence that decides: the agreement in the place of those that take part in it, if there is one.

    :param found: What single detectors found on one classifier.
    :param named: Whether the user named the detectors. Else one that only supports others does not decide alone.
    """
    together = agreement(found)
    if together is not None:
        return [together, *(each for each in found if not each.label_p_values)]
    return [each for each in found if named or not each.supports]
