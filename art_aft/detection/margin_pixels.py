"""
Maximum margin over all images: one label can be driven further above the others than any other label.

A trigger makes the classifier surer of its target label than any natural image does. So the largest margin, the label's
logit minus the greatest other one, is largest for the target label. All pixels are free, which finds patches best. It
uses no clean images.

| Score of a label: its largest margin, in units of the logits.
| Statistic: -log10 of the p-value.
| Null distribution: the scores of a clean classifier's labels are independent draws from one normal distribution; the
  p-value is that of Grubbs' test.
| Threshold: 2.0, a p-value of 0.01; it was not fitted.
| Fails: on all-to-all backdoors, which favour no label; where several labels are targets, for they hide each other.
| Paper link: https://arxiv.org/abs/2205.06900 (MM-BD)
"""

from __future__ import annotations

from art_aft.adversarial.families import FreePixels
from art_aft.detection.base import Detector, Evidence, Suspect, register
from art_aft.detection.margins import margin_evidence


@register("margin_pixels")
class PixelMargin(Detector):
    """One label's largest margin over all images stands out; see the module."""

    cost = 1
    threshold = 2.0
    uses_images = False

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how far one label's margin is above the others; None with fewer than three labels."""
        return margin_evidence(self, suspect, FreePixels())
