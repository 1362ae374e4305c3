"""
Maximum margin over profiles: one pattern of stripes leads all images further to one label than to any other.

For each label one profile is searched that, added to all rows or to all columns of clean images by at most a tenth of
the pixel range, drives the mean margin of the label highest. That finds stripes, such as SIG's.

| Score of a label: its largest mean margin along the axis at which one label stands out more.
| Statistic: -log10 of the p-value.
| Null distribution: the scores of a clean classifier's labels are independent draws from one normal distribution; the
  p-value is that of Grubbs' test times two, the number of axes.
| Threshold: 2.0, a p-value of 0.01; it was not fitted.
| Fails: on all-to-all backdoors, which favour no label; where several labels are targets, for they hide each
  other; on triggers without such a direction.
| Paper link: https://arxiv.org/abs/2205.06900 (MM-BD; profiles are this package's)
"""

from __future__ import annotations

from art_aft.adversarial.families import Profile
from art_aft.detection.base import Detector, Evidence, Suspect, register
from art_aft.detection.margins import margin_evidence


@register("margin_profile")
class ProfileMargin(Detector):
    """One label's largest margin over profiles stands out; see the module."""

    cost = 1
    threshold = 2.0

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how far one label's margin is above the others; None with fewer than three labels."""
        return margin_evidence(self, suspect, Profile("rows"), Profile("columns"))
