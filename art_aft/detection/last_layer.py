"""A label that stands out in the weights: an infected network has learnt more evidence for its attacker's label."""

from __future__ import annotations

import numpy as np
from scipy.stats import t


def positive_evidence(weights: np.ndarray) -> dict[str, np.ndarray]:
    """
    Return how much speaks for each label, in two measures, each of shape (nb_classes,).

    Features after a ReLU are not negative, so a label's weights add up to what it gains where all of them rise. A
    trigger must outvote whatever else is in the image: the attacker's label is given weights to spare. Where the
    network has many features and many epochs of training, they are few and large; else they are many and small.

    "all features": the sum of its weights. What speaks against a label counts half: counted in full it hides a label
    for which much speaks and much against; not counted, one against which nothing speaks. "strongest features": the
    sum of squares of what speaks for it.

    | Paper link: https://arxiv.org/abs/2109.02836 (mean weights of the last layer; the two measures are this package's)

    :param weights: Of the last layer, of shape (nb_classes, inputs).
    """
    # What is added to the weights of all labels changes no prediction.
    relative = weights - weights.mean(axis=0)
    return {
        "all features": np.where(relative > 0, relative, relative / 2).sum(axis=1),
        "strongest features": (np.maximum(relative, 0) ** 2).sum(axis=1),
    }


def favoured_label(weights: np.ndarray) -> tuple[np.ndarray, float, str]:
    """
    Return the measure in which one label stands out most: its values, how likely that is by chance, and its name.

    :param weights: Of the last layer, of shape (nb_classes, inputs), with three classes or more.
    """
    evidence = positive_evidence(weights)
    chance = {measure: greatest_by_chance(values) for measure, values in evidence.items()}
    best = min(chance, key=chance.__getitem__)
    # The best of several is likelier to be good by chance.
    return evidence[best], min(1.0, len(chance) * chance[best]), best


def greatest_by_chance(values: np.ndarray) -> float:
    """
    Return how likely the greatest of normally distributed values is at least this far above the others, by chance.

    The one-sided Grubbs test, with Bonferroni's bound as in its tables: in (0, 1].

    :param values: Three or more numbers.
    """
    n = len(values)
    others = np.delete(values, values.argmax())
    distance = values.max() - others.mean()
    negligible = 1e-6 * np.abs(values).max()  # of rounding, not of learning
    if distance <= negligible:
        return 1.0
    spread = max(others.std(ddof=1), negligible) * np.sqrt(1 + 1 / (n - 1))
    return float(np.clip(n * t.sf(distance / spread, n - 2), np.finfo(float).tiny, 1.0))
