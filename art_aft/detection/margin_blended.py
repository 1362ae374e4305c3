"""
Maximum margin over blended images: one picture leads all images further to one label than to any other.

For each label one picture is searched that, blended into clean images of the other labels at a ratio of 0.1, drives the
mean margin of the label highest. That finds triggers over the whole image. How many images follow says little: nearly
all do, for every label.

| Score of a label: its largest mean margin, in units of the logits.
| Statistic: -log10 of the p-value.
| Null distribution: the scores of a clean classifier's labels are independent draws from one normal distribution; the
  p-value is that of Grubbs' test.
| Threshold: 2.0, a p-value of 0.01; it was not fitted.
| Fails: on all-to-all backdoors, which favour no label; where several labels are targets, for they hide each other.
| Paper link: https://arxiv.org/abs/2205.06900 (MM-BD; the blended picture is this package's)
"""

from __future__ import annotations

from art_aft.adversarial.families import Blended
from art_aft.detection.base import Detector, Evidence, Suspect, register
from art_aft.detection.margins import margin_evidence


@register("margin_blended")
class BlendedMargin(Detector):
    """One label's largest margin over blended images stands out; see the module."""

    cost = 1
    threshold = 2.0

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how far one label's margin is above the others; None with fewer than three labels."""
        return margin_evidence(self, suspect, Blended())
