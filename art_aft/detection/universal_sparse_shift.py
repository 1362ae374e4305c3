"""
Sparse universal perturbation towards a shift: a change of few pixels leads each label to the one a fixed number after.

What `universal_sparse` is to `universal`, this is to `universal_shift`: an all-to-all backdoor whose trigger is a patch
moves all labels on with few pixels.

| Score of a shift s: its targeted success rate, the share of images x that x + r_s leads to y + s, modulo the number of
  labels.
| Statistic: the greatest score minus the second, at the number of pixels where that is largest.
| Null distribution: as for `universal_shift`, and uncalibrated like there. The threshold on the statistic decides.
| Threshold: 0.25, that of `universal_shift`; it was not fitted. docs/detectors/universal_sparse_shift.md has
  what clean models reach.
| Fails: on all-to-one backdoors, and on triggers of many pixels. It looks for fixed shifts only. With two labels it
  cannot be applied: the only shift changes every label.
| Paper link: https://arxiv.org/abs/2202.06312 (Section V; the limited number of pixels is this package's)
"""

from __future__ import annotations

from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.universal import search
from art_aft.detection.universal_sparse import SIZES


@register("universal_sparse_shift")
class SparseUniversalShift(Detector):
    """One change of few pixels adds the same number to every label; see the module."""

    cost = EXPENSIVE + 3
    threshold = 0.25

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how far one shift's perturbation is more successful than any other's; None with two labels."""
        if suspect.classifier.nb_classes == 2:
            return None
        return search(self, suspect, SIZES, norm=0, shift=True)
