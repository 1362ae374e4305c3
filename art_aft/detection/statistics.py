"""What detectors ask of the scores of the labels: how far is the first ahead, and how likely is that by chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import t

from art_aft.detection.base import Detector, Evidence


def grubbs_p_value(values: np.ndarray) -> float:
    """
    Return how likely the greatest of normally distributed values is at least this far above the others, by chance.

    The one-sided Grubbs test: the smallest of `tail_probabilities`, times their number (Bonferroni's bound, as in the
    test's tables).

    >>> import numpy as np
    >>> round(grubbs_p_value(np.array([0.1, 0.2, 0.3, 0.2, 0.1])), 2)
    0.26

    | Paper link: https://doi.org/10.1080/00401706.1969.10490657

    :param values: Numbers of shape (n,). Of fewer than three none can be told to be an outlier.
    :return: The p-value in (0, 1].
    """
    return float(np.minimum(1.0, len(values) * tail_probabilities(values)[values.argmax()]))


def tail_probabilities(values: np.ndarray) -> np.ndarray:
    """
    Return how likely each of normally distributed values is at least this far above the others, by chance.

    With G the distance of a value from the mean of the n - 1 others, in units of their standard deviation times
    sqrt(1 + 1 / (n - 1)), that is P(t > G) for Student's t with n - 2 degrees of freedom.

    :param values: Numbers of shape (n,).
    :return: Probabilities in (0, 1], of shape (n,), each for a value that was chosen before looking at them; 1 where n
        is less than 3, or a value is not above the mean of the others.
    """
    n = len(values)
    if n < 3:
        return np.ones(n)
    others = (values.sum() - values) / (n - 1)
    distance = values - others
    # Two passes, for squares of numbers far from 0 lose all digits.
    deviations = np.array([np.delete(values, place).std(ddof=1) for place in range(n)])
    negligible = 1e-6 * np.abs(values).max()  # of rounding, not of learning
    spread = np.maximum(deviations, negligible) * np.sqrt(1 + 1 / (n - 1))
    above = distance > negligible
    tail = t.sf(distance / np.where(spread > 0, spread, 1.0), n - 2)
    return np.where(above, np.clip(tail, np.finfo(float).tiny, 1.0), 1.0)


def cauchy_combination(p_values: np.ndarray) -> np.ndarray:
    """
    Return one p-value for several tests of the same hypothesis, which may depend on each other.

    The mean of tan((1/2 - p) pi) has about a Cauchy distribution under the null hypothesis, in its tail, whatever the
    tests' correlation. One small p-value is enough for a small result; several that are nearly so help each other.

    >>> import numpy as np
    >>> cauchy_combination(np.array([[0.01], [0.02], [0.6]])).round(4)
    array([0.0201])

    | Paper link: https://doi.org/10.1080/01621459.2018.1554485

    :param p_values: Of shape (tests, hypotheses), in (0, 1].
    :return: Of shape (hypotheses,), in (0, 1].
    """
    # A p-value of 1 would count as minus infinity, and outvote all others.
    inner = np.clip(p_values, 1e-15, 0.99)
    combined = np.tan((0.5 - inner) * np.pi).mean(axis=0)
    # 1/2 - arctan(x)/pi, without loss of digits where x is large.
    return np.arctan2(1.0, combined) / np.pi


def lead(
    detector: Detector,
    scores: np.ndarray,
    details: str,
    *,
    shift: bool = False,
    perturbations: np.ndarray | None = None,
) -> Evidence:
    """
    Return evidence whose statistic is the greatest score minus the second, with the p-value of `grubbs_p_value`.

    :param detector: The detector that found it.
    :param scores: The score of each label, of shape (nb_classes,); of each shift from 1 on, (nb_classes - 1,).
    :param details: Where it was found.
    :param shift: Whether the scores are those of shifts.
    :param perturbations: What was added to images for each score, of shape (len(scores), *input_shape).
    """
    (second, first), best = np.sort(scores)[-2:], int(scores.argmax())
    return detector.evidence(
        scores,
        label=int(shift) + best,
        statistic=float(first - second),
        p_value=grubbs_p_value(scores),
        details=details,
        shift=shift,
        perturbation=None if perturbations is None else perturbations[best].copy(),  # not a view of all
    )


def outlier(detector: Detector, scores: np.ndarray, details: str, *, looks: int = 1, least: float = 0.0) -> Evidence:
    """
    Return evidence whose statistic is -log10 of the p-value of `grubbs_p_value`, with a p-value for each label.

    :param detector: The detector that found it.
    :param scores: The score of each label, of shape (nb_classes,).
    :param details: Where it was found.
    :param looks: Among how many measures this one was chosen, with which p-values are multiplied (Bonferroni's bound).
    :param least: What a label's own p-value is at least, where the detector is to support others and not to decide.
    """
    p_value = min(1.0, looks * grubbs_p_value(scores))
    return detector.evidence(
        scores,
        label=int(scores.argmax()),
        statistic=0.0 - math.log10(p_value),  # not -0.0
        p_value=p_value,
        details=details,
        label_p_values=np.clip(looks * tail_probabilities(scores), least, 1.0),
    )


def greatest(found: Sequence[Evidence]) -> Evidence:
    """
    Return the evidence of the greatest statistic, out of several looks at the same classifier.

    :param found: One or more. The p-value is multiplied by their number (Bonferroni's bound), for the best of several
        is likelier to be good by chance.
    """
    best = max(found, key=lambda evidence: evidence.statistic)
    return replace(best, p_value=min(1.0, len(found) * best.p_value))
