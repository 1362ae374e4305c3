"""What detectors ask of the scores of the labels: how far is the first ahead, and how likely is that by chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import t

from art_aft.detection.base import Detector, Evidence


def grubbs_p_value(values: np.ndarray) -> float:
    """
    Return how likely the greatest of normally distributed values is at least this far above the others, by chance.

    The one-sided Grubbs test. With G the distance of the greatest from the mean of the n - 1 others, in units of their
    standard deviation times sqrt(1 + 1 / (n - 1)), p = n P(t > G) for Student's t with n - 2 degrees of freedom;
    the factor n is Bonferroni's bound, as in the test's tables.

    >>> import numpy as np
    >>> round(grubbs_p_value(np.array([0.1, 0.2, 0.3, 0.2, 0.1])), 2)
    0.26

    | Paper link: https://doi.org/10.1080/00401706.1969.10490657

    :param values: Numbers of shape (n,). Of fewer than three none can be told to be an outlier.
    :return: The p-value in (0, 1].
    """
    n = len(values)
    if n < 3:
        return 1.0
    others = np.delete(values, values.argmax())
    distance = values.max() - others.mean()
    negligible = 1e-6 * np.abs(values).max()  # of rounding, not of learning
    if distance <= negligible:
        return 1.0
    spread = max(others.std(ddof=1), negligible) * np.sqrt(1 + 1 / (n - 1))
    return float(np.clip(n * t.sf(distance / spread, n - 2), np.finfo(float).tiny, 1.0))


def lead(detector: Detector, scores: np.ndarray, details: str, *, shift: bool = False) -> Evidence:
    """
    Return evidence whose statistic is the greatest score minus the second, with the p-value of `grubbs_p_value`.

    :param detector: The detector that found it.
    :param scores: The score of each label, of shape (nb_classes,); of each shift from 1 on, (nb_classes - 1,).
    :param details: Where it was found.
    :param shift: Whether the scores are those of shifts.
    """
    second, first = np.sort(scores)[-2:]
    return detector.evidence(
        scores,
        label=int(shift) + int(scores.argmax()),
        statistic=float(first - second),
        p_value=grubbs_p_value(scores),
        details=details,
        shift=shift,
    )


def greatest(found: Sequence[Evidence]) -> Evidence:
    """
    Return the evidence of the greatest statistic, out of several looks at the same classifier.

    :param found: One or more. The p-value is multiplied by their number (Bonferroni's bound), for the best of several
        is likelier to be good by chance.
    """
    best = max(found, key=lambda evidence: evidence.statistic)
    return replace(best, p_value=min(1.0, len(found) * best.p_value))
