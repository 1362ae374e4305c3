"""
Universal warp: one small warp of all images leads them to the target label.

A warping trigger such as WaNet's moves pixels and leaves their values. No addition reproduces it, but another warp
does. For each label the detector searches a field of 4x4 displacements, enlarged, of at most a 64th, a 32nd and then a
16th of the image's side, that drives the label's mean margin over clean images highest.

| Score of a label l: its targeted success rate, the share of images of other labels that its warp leads to l.
| Statistic: the greatest score minus the second, at the size where that is largest.
| Null distribution: as for `universal`, and uncalibrated like there. The threshold on the statistic decides.
| Threshold: 0.8. It was 0.5, that of `universal`, and then 0.7, until clean digit models reached 0.55 and 0.72.
| Fails: on triggers that change the values of pixels; on all-to-all backdoors.
| Paper link: https://arxiv.org/abs/2202.06312 (Section V; warps are this package's)
"""

from __future__ import annotations

from art_aft.adversarial.families import Warped
from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.families import success_evidence

#: The largest displacement, as a share of the image's side.
SIZES = (1 / 64, 1 / 32, 1 / 16)


@register("universal_warp")
class UniversalWarp(Detector):
    """One warp of all images leads to one label long before the others; see the module."""

    cost = EXPENSIVE + 1
    threshold = 0.8

    def detect(self, suspect: Suspect) -> Evidence:
        """Return how far one label's warp is more successful than any other's."""
        return success_evidence(self, suspect, [Warped(size) for size in SIZES])
