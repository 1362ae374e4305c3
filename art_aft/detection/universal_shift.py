"""
Universal perturbation towards a shift: one perturbation leads each label to the label a fixed number after it.

An all-to-all backdoor changes each label y to y + s, so one small perturbation does this on every image. A clean
classifier needs another direction for each label. The detector searches one perturbation for each s from 1 on, as
`universal` does for each label.

| Score of a shift s: its targeted success rate, the share of images x that x + r_s leads to y + s, modulo the number of
  labels.
| Statistic: the greatest score minus the second, at the radius where that is largest.
| Null distribution: the scores of a clean classifier's shifts are independent draws from one normal distribution. The
  p-value is that of Grubbs' test times the number of radii. It is uncalibrated here: rates lie in [0, 1]. The threshold
  on the statistic decides.
| Threshold: 0.25, set on eight digits models of seed 0. Clean models reach 0.17 of it at most in
  examples/results/scan_digits.json and 0.53 in scan_cifar10.json, all-to-all ones of CIFAR-10 2.2 and more.
| Fails: on all-to-one backdoors. It looks for fixed shifts only. With two labels it cannot be applied: the only shift
  changes every label.
| Paper link: https://arxiv.org/abs/2202.06312 (Section V)
"""

from __future__ import annotations

from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.universal import search

#: L2 radii, in units of `default_eps`.
RADII = (1.0, 2.0, 4.0)


@register("universal_shift")
class UniversalShift(Detector):
    """One perturbation for all images adds the same number to every label; see the module."""

    cost = EXPENSIVE + 3
    threshold = 0.25

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how far one shift's perturbation is more successful than any other's; None with two labels."""
        if suspect.classifier.nb_classes == 2:
            return None
        return search(self, suspect, RADII, shift=True)
