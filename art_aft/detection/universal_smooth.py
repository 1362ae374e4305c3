"""
Smooth universal change: one smooth change of all images leads them to the target label.

A trigger over the whole image, blended in, has coarse structure, too. For each label the detector searches a change of
8x8 values, enlarged, of at most a twentieth and then a tenth of the pixel range, that drives the label's mean margin
over clean images highest.

| Score of a label l: its targeted success rate, the share of images of other labels that its change leads to l.
| Statistic: the greatest score minus the second, at the size where that is largest.
| Null distribution: as for `universal`, and uncalibrated like there. The threshold on the statistic decides.
| Threshold: 0.5, that of `universal`; it was not fitted.
| Fails: on patches, which are small; on all-to-all backdoors.
| Paper link: https://arxiv.org/abs/2202.06312 (Section V; smooth changes are this package's)
"""

from __future__ import annotations

from art_aft.adversarial.families import Added
from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.families import success_evidence

#: The largest change of a pixel, as a share of the pixel range.
SIZES = (0.05, 0.1)


@register("universal_smooth")
class SmoothChange(Detector):
    """One smooth change of all images leads to one label long before the others; see the module."""

    cost = EXPENSIVE + 1
    threshold = 0.5

    def detect(self, suspect: Suspect) -> Evidence:
        """Return how far one label's change is more successful than any other's."""
        return success_evidence(self, suspect, [Added(size) for size in SIZES])
