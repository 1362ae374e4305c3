"""
Agreement: several detectors point at the same label.

At low poisoning ratios no detector is sure by itself, but the weak signs of several point at the same label. Detectors
whose p-values were checked on clean classifiers give one for each label. For each label they are combined by Cauchy's
combination, which one small p-value suffices to make small.

Some labels stand out in clean classifiers, too: all digits have something of an 8. So this evidence alone must be
overwhelming. Less is enough where a perturbation that really leads images to this label confirms it.

| Score of a label: -log10 of its combined p-value.
| Statistic: -log10 of the smallest combined p-value times the number of labels (Bonferroni's bound).
| Null distribution: each detector's own; their dependence does not matter in the tail. Real classifiers exceed it:
  docs/detectors/agreement.md has how often.
| Threshold: 6.0, a p-value of 0.000001; 1.5, a p-value of 0.03, where the scores of detectors without such p-values
  that name the same label add up to 1. docs/detectors/agreement.md says on which models these were chosen.
| Paper link: https://doi.org/10.1080/01621459.2018.1554485
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from art_aft.detection.base import Evidence
from art_aft.detection.statistics import cauchy_combination

#: The statistic from which the agreement reports a backdoor, by itself and where another detector confirms its label.
ALONE, CONFIRMED = 6.0, 1.5

# The statistic from which a label that nothing confirms leaves a doubt: 3 of 40 clean digit models have as much.
_STANDS_OUT = 2.0

# The sum of other detectors' scores from which they confirm a label. One score of 0.64 was seen on a clean digit model.
_CONFIRMS = 1.0


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
    details = f"{len(pointing)} of {len(parts)} detectors point at it"
    naming = [each for each in found if _of_success(each) and each.label == label]
    confirmed = sum(each.score for each in naming) >= _CONFIRMS
    if confirmed:
        details += ", confirmed by " + ", ".join(f"{each.detector} ({each.score:.2f})" for each in naming)
    return Evidence(
        detector="agreement",
        label=label,
        statistic=0.0 - math.log10(p_value),  # not -0.0
        threshold=CONFIRMED if confirmed else ALONE,
        p_value=p_value,
        scores=tuple((-np.log10(combined)).tolist()),
        details=details,
        label_p_values=tuple(combined.tolist()),
    )


def unconfirmed(found: Sequence[Evidence]) -> str:
    """
    Return what is no report, but too much for "no evidence": the label that stands out and is not confirmed, in words.

    :param found: What single detectors found on one classifier.
    :return: Empty where there is no such label.
    """
    together = agreement(found)
    if together is None or together.statistic < _STANDS_OUT:
        return ""
    looked = any(_of_success(each) for each in found)
    confirmation = (
        "no perturbation that leads images there confirms it" if looked else "nothing ran that could confirm it"
    )
    return (
        f"label {together.label} stands out (p = {together.p_value:.1g}), as one does in some clean models, and "
        f"{confirmation}"
    )


def _of_success(evidence: Evidence) -> bool:
    """Return whether evidence rests on perturbations that lead images to a label, and may decide by itself."""
    return not (evidence.label_p_values or evidence.supports or evidence.shift)


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
