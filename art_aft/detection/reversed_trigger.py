"""
Reversed trigger: the smallest trigger of the target label is much smaller than that of any other label.

Neural Cleanse searches, for every label, the smallest mask and its pattern that lead images of all labels there. The
attacker's trigger is such a pair, and small. Towards another label, the mask must cover what makes an image of that
label.

| Score of a label: the norm of its mask; infinite where the trigger works on fewer than nine of ten images. Small norms
  are suspicious.
| Statistic: 1 - smallest norm / second smallest; 1 where only one label has a trigger.
| Null distribution: the logarithms of the norms of a clean classifier's labels are independent draws from one normal
  distribution. The p-value is that of Grubbs' test on the smallest, with the norm of a mask over the whole image in
  place of infinite ones. It is uncalibrated here: some labels have larger triggers by nature. The threshold on the
  statistic decides.
| Threshold: 0.5, set on eight digits models of seed 0. In examples/results/scan_digits.json 20 clean models reach 0.62
  of it at most.
| Fails: where the trigger covers the whole image or differs from image to image, on all-to-all backdoors, and on 1 % of
  poisoned images (0.61 of the threshold at most, examples/results/scan_cifar10_1_percent.json).
| Paper link: https://people.cs.uchicago.edu/~ravenben/publications/pdf/backdoor-sp19.pdf
"""

from __future__ import annotations

import numpy as np

from art_aft.adversarial.inversion import InversionRecipe, invert_triggers
from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.statistics import grubbs_p_value

#: A trigger works if it leads this share of the images to its label. The search asks for 0.99; some images of few need
#: not follow.
WORKS = 0.9


@register("reversed_trigger")
class ReversedTrigger(Detector):
    """
    One label's reversed trigger is much smaller than any other's; see the module.

    Its entry in `Suspect.settings` is the `InversionRecipe` of the search. The default takes 100 steps of 250 images.
    """

    cost = EXPENSIVE + 1
    settings = InversionRecipe
    threshold = 0.5

    def detect(self, suspect: Suspect) -> Evidence:
        """Return by which share the smallest trigger is smaller than the second smallest."""
        recipe = suspect.settings.get(self.name) or InversionRecipe(
            steps=100, images_per_step=250, precision=suspect.precision, seed=suspect.seed
        )
        found = invert_triggers(suspect.classifier, suspect.images, recipe, verbose=suspect.verbose)
        norms = np.where(found.success >= WORKS, found.norms, np.inf)
        first, second = np.sort(norms)[:2]
        statistic = 1 - first / second if np.isfinite(second) else float(np.isfinite(first))
        whole = float(found.masks[0].size) ** (1 / recipe.norm)  # the norm of a mask of ones
        return self.evidence(
            norms,
            label=int(norms.argmin()),
            statistic=float(statistic),
            p_value=grubbs_p_value(-np.log(np.where(np.isfinite(norms), norms, whole))),
            details="reversed triggers",
        )
