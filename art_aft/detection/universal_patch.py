"""
Universal patch: one square patch at one place, the same for all images, leads them to the target label.

A patch as a trigger is small, so on an infected classifier a small patch leads images of all classes to the target
label. For each label l, the detector tries out places, and searches the pixels of a patch there.

| Score of a label l: its targeted success rate, the share of images of other labels that its patch leads to l.
| Statistic: the greatest score minus the second, at the side of the patch where that is largest. With the smaller patch
  the second counts as 0.5 at most. A classifier that has learned to obey one patch may obey others, towards any label,
  as infected vision transformers do. Where only that makes the statistic reach the threshold, the label is uncertain,
  and the evidence is marked as ambiguous.
| Null distribution: as for `universal`, and uncalibrated like there. The threshold on the statistic decides.
| Threshold: 0.4; see docs/detectors/universal_patch.md for the models that it was chosen on.
| Fails: on triggers over the whole image; on all-to-all backdoors; where patches of that size mislead clean
  classifiers, too, as on large photographs.
| Paper link: https://arxiv.org/abs/1712.09665 (patches on clean classifiers; the search for places is this package's)
"""

from __future__ import annotations

import numpy as np

from art_aft.adversarial.patches import Patches, find_patches, patch_side
from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.statistics import greatest, grubbs_p_value

#: Sides of the smaller and the larger patch, as shares of the image's shorter side.
SMALL, LARGE = 1 / 8, 3 / 16

#: What the second label's success counts as at most with the smaller patch.
ORDINARY = 0.5


@register("universal_patch")
class UniversalPatch(Detector):
    """One patch at one place leads all images to one label long before the others; see the module."""

    cost = EXPENSIVE
    threshold = 0.4

    def detect(self, suspect: Suspect) -> Evidence:
        """Return how far one label's patch is more successful than any other's."""
        small, large = (patch_side(suspect.classifier, share) for share in (SMALL, LARGE))
        found = [self._look(suspect, small, ORDINARY)]
        if large > small and not (suspect.stop_early and found[0].names_its_label):
            found.append(self._look(suspect, large, 1.0))
        return greatest(found)

    def _look(self, suspect: Suspect, side: int, ordinary: float) -> Evidence:
        """Return the lead of the first label with patches of one size, over what the second counts as at most."""
        patches = find_patches(
            suspect.classifier,
            suspect.images,
            side,
            precision=suspect.precision,
            seed=suspect.seed,
            verbose=suspect.verbose,
        )
        second, first = np.sort(patches.success)[-2:]
        label = int(patches.success.argmax())
        row, column = patches.places[label]
        classifier, only = suspect.classifier, [label]
        (added,) = Patches(patches.success[only], patches.places[only], patches.pixels[only]).as_perturbations(
            classifier.input_shape, suspect.images.clip_values, channels_first=classifier.channels_first
        )
        return self.evidence(
            patches.success,
            label=label,
            statistic=float(first - min(second, ordinary)),
            p_value=grubbs_p_value(patches.success),
            details=f"{side}x{side} pixels at row {row}, column {column}",
            ambiguous=bool(first - second < self.threshold <= first - ordinary),
            perturbation=added,
        )
