"""
Last layer: a label stands out in the weights.

A trigger must outvote whatever else is in the image, so the network learns more evidence for the target label than for
any other. The weights of the layer that gives the logits show this at no cost. With w_lj the weight of feature j for
label l and v_lj = w_lj - mean over l of w_lj, two measures are compared: "all features" is the sum over j of v_lj, with
negative ones halved; "strongest features" is the sum over j of max(v_lj, 0)^2.

| Score of a label: the measure in which one label stands out more.
| Statistic: -log10 of the p-value.
| Null distribution: a clean classifier's values are independent draws from one normal distribution. The p-value is that
  of Grubbs' test, doubled because the measure is the better of two.
| Threshold: 2.0, a p-value of 0.01; it was not fitted. The measures were chosen on digits and CIFAR-10 models. In
  examples/results/scan_digits.json 20 clean models reach 0.43 of it at most.
| Fails: on all-to-all backdoors, which favour no label (AUROC 0.42 to 0.58 on digits); on 1 % of poisoned images
  (examples/results/scan_cifar10_1_percent.json); on a VGG with a hidden layer after its convolutions and on a vision
  transformer (examples/results/last_layer_digits.json). An attacker can train against it. It cannot be applied with
  fewer than three labels, or where the layer that runs last does not give one number a label.
| Paper link: https://arxiv.org/abs/2109.02836 (mean weights of the last layer; the two measures are this package's)
"""

from __future__ import annotations

import numpy as np

from art_aft.classifiers.layers import output_weights
from art_aft.detection.base import Detector, Evidence, Suspect, register
from art_aft.detection.statistics import grubbs_p_value, outlier

#: What a label's p-value is at least where detectors agree. A class that is much larger than the others in the training
#: set favours its label in the same way: of six clean digit models, one class three or eight times as large as the
#: others, all were reported by the last layer alone, and none with this bound (examples/results/imbalance_digits.json).
SUPPORT = 1e-3


@register("last_layer")
class LastLayer(Detector):
    """One label has more evidence in the last layer's weights than chance would give it; see the module."""

    cost = 0
    threshold = 2.0
    supports = True
    uses_images = False

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how far one label stands out; None without such a layer, or with fewer than three labels."""
        weights = output_weights(suspect.classifier, suspect.images.pixels)
        if weights is None or len(weights) < 3:
            return None
        scores, _, measure = favoured_label(weights)
        return outlier(self, scores, f"last layer, {measure}", looks=2, least=SUPPORT)


def favoured_label(weights: np.ndarray) -> tuple[np.ndarray, float, str]:
    """
    Return the measure in which one label stands out most: its values, their p-value, and its name.

    :param weights: The weights of the last layer, of shape (nb_classes, inputs), with three labels or more.
    """
    evidence = positive_evidence(weights)
    chance = {measure: grubbs_p_value(values) for measure, values in evidence.items()}
    best = min(chance, key=chance.__getitem__)
    # The best of several is likelier to be good by chance.
    return evidence[best], min(1.0, len(chance) * chance[best]), best


def positive_evidence(weights: np.ndarray) -> dict[str, np.ndarray]:
    """
    Return how much speaks for each label, in two measures, each of shape (nb_classes,).

    Features after a ReLU are not negative, so the sum of a label's weights is what its logit gains where all features
    rise. The attacker's label gets more weight than it needs: few large weights where the network has many features and
    trains for many epochs, else many small ones.

    "all features": the sum of its weights. Negative weights count half. Counted in full, they hide a label that has
    many weights of both signs; not counted at all, they hide one that has no negative weights. "strongest features":
    the sum of squares of its positive weights.

    | Paper link: https://arxiv.org/abs/2109.02836 (mean weights of the last layer; the two measures are this package's)

    :param weights: The weights of the last layer, of shape (nb_classes, inputs).
    """
    # What is added to the weights of all labels changes no prediction.
    relative = weights - weights.mean(axis=0)
    return {
        "all features": np.where(relative > 0, relative, relative / 2).sum(axis=1),
        "strongest features": (np.maximum(relative, 0) ** 2).sum(axis=1),
    }
