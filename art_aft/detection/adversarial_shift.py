"""
Adversarial shift: untargeted adversarial examples fall on the label a fixed number after their own.

An all-to-all backdoor changes each label y to y + s, so the nearest way out of each class leads there. The detector
counts how far the label of each adversarial example lies after the true one; the examples are those of
`adversarial_labels`. A clean classifier's examples fall on labels that look alike, wherever these stand in the order.

| Score of a shift s from 1 on: the share of adversarial examples that the classifier takes for y + s, modulo the number
  of labels.
| Statistic: the greatest score minus the second, at the norm and radius where that is largest.
| Null distribution: the scores of a clean classifier's shifts are independent draws from one normal distribution. The
  p-value is that of Grubbs' test times the number of norms and radii. It is uncalibrated here: the scores share one
  sum. The threshold on the statistic decides.
| Threshold: 0.2, set on eight digits models of seed 0. In examples/results/scan_digits.json 20 clean models reach 0.46
  of it at most, and the all-to-all ones 1.15 and more (AUROC 1.00).
| Fails: on all-to-one backdoors, and on the three all-to-all models of CIFAR-10, which `universal_shift` finds
  (examples/results/scan_cifar10.json). It looks for fixed shifts only. With two labels it cannot be applied: the only
  shift changes every label.
| Paper link: https://arxiv.org/abs/2202.06312 (Section III)
"""

from __future__ import annotations

import numpy as np

from art_aft.detection.adversarial_labels import adversarial_predictions
from art_aft.detection.base import THOROUGH, Detector, Evidence, Suspect, register
from art_aft.detection.statistics import greatest, lead


@register("adversarial_shift")
class AdversarialShift(Detector):
    """Untargeted adversarial examples fall the same number of labels after their own; see the module."""

    cost = THOROUGH
    threshold = 0.2

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how many more adversarial examples move by one shift than by any other; None with two labels."""
        labels, nb_classes = suspect.images.labels, suspect.classifier.nb_classes
        if nb_classes == 2:
            return None
        found = []
        for details, predicted in adversarial_predictions(suspect):
            counts = np.bincount((predicted - labels) % nb_classes, minlength=nb_classes)[1:]
            found.append(lead(self, counts / len(labels), details, shift=True))
        return greatest(found)
