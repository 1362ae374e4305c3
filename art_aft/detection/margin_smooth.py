"""
Maximum margin over smooth images: one label can be driven further above the others than any other label.

As `margin_pixels`, over images without fine structure: 8x8 values, enlarged. That finds triggers over the whole image.
It uses no clean images.

| Score of a label: its largest margin, in units of the logits.
| Statistic: -log10 of the p-value.
| Null distribution: the scores of a clean classifier's labels are independent draws from one normal distribution; the
  p-value is that of Grubbs' test.
| Threshold: 2.0, a p-value of 0.01; it was not fitted.
| Fails: on all-to-all backdoors, which favour no label; where several labels are targets, for they hide each
  other; on small patches.
| Paper link: https://arxiv.org/abs/2205.06900 (MM-BD; smooth images are this package's)
"""

from __future__ import annotations

from art_aft.adversarial.families import Smooth
from art_aft.detection.base import Detector, Evidence, Suspect, register
from art_aft.detection.margins import margin_evidence


@register("margin_smooth")
class SmoothMargin(Detector):
    """One label's largest margin over smooth images stands out; see the module."""

    cost = 1
    threshold = 2.0
    uses_images = False

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how far one label's margin is above the others; None with fewer than three labels."""
        return margin_evidence(self, suspect, Smooth())
