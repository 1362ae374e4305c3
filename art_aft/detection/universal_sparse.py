"""
Sparse universal perturbation: a change of few pixels, the same for all images, leads them to the target label.

A patch is small in its number of pixels and large in every other norm, so `universal` reaches it late or never. This
detector searches, for each label l, a perturbation of a limited number of pixels, each of which may take any value. The
number grows until the perturbation towards an ordinary label, the median one, works too.

| Score of a label l: its targeted success rate, the share of images x of other labels that x + r_l leads to l.
| Statistic: the greatest score minus the second, at the number of pixels where that is largest.
| Null distribution: as for `universal`, and uncalibrated like there. The threshold on the statistic decides.
| Threshold: 0.5, that of `universal`; it was not fitted. docs/detectors/universal_sparse.md has what clean models
  reach.
| Fails: on triggers of many pixels; on all-to-all backdoors, which are for `universal_sparse_shift`; on a classifier
  that any few pixels mislead, as a vision transformer of the zoo.
| Paper link: https://arxiv.org/abs/2202.06312 (Section V; the limited number of pixels is this package's)
"""

from __future__ import annotations

from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.universal import search

#: Numbers of pixels, in units of `default_eps`: 12 to 96 of 32x32.
SIZES = (1.0, 2.0, 4.0, 8.0)


@register("universal_sparse")
class SparseUniversalPerturbation(Detector):
    """One change of few pixels leads all images to one label long before the others; see the module."""

    cost = EXPENSIVE + 1
    threshold = 0.5

    def detect(self, suspect: Suspect) -> Evidence:
        """Return how far one label's perturbation is more successful than any other's."""
        return search(self, suspect, SIZES, norm=0)
