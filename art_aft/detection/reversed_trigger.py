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

from dataclasses import replace

import numpy as np

from art_aft.adversarial.budget import images_per_label
from art_aft.adversarial.inversion import InversionRecipe, Triggers, invert_triggers
from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.statistics import grubbs_p_value

#: A trigger works if it leads this share of the images to its label. The search asks for 0.99; some images of few need
#: not follow.
WORKS = 0.9

# Images a step, and the labels that a whole search is for, after a first look at all.
_IMAGES, _FINALISTS = 64, 4


@register("reversed_trigger")
class ReversedTrigger(Detector):
    """
    One label's reversed trigger is much smaller than any other's; see the module.

    Its entry in `Suspect.settings` is the `InversionRecipe` of the search. The default looks at all labels for 25 steps
    of 64 images or fewer, and then for 100 steps at the four labels of the smallest triggers. A recipe of one's own is
    used for all labels.
    """

    cost = EXPENSIVE + 2
    settings = InversionRecipe
    threshold = 0.5

    def detect(self, suspect: Suspect) -> Evidence:
        """Return by which share the smallest trigger is smaller than the second smallest."""
        given = suspect.settings.get(self.name)
        whole = given or InversionRecipe(
            steps=100, images_per_step=_IMAGES, precision=suspect.precision, seed=suspect.seed
        )
        labels = np.arange(suspect.classifier.nb_classes)
        height, width = sorted(suspect.classifier.input_shape)[1:]  # channels are fewer
        largest = float(height * width) ** (1 / whole.norm)
        norms, final = np.full(len(labels), np.inf), labels
        if given is None and len(labels) > _FINALISTS:
            # The first look need only rank them.
            few = images_per_label(_IMAGES, len(labels), 8)
            found = self._search(suspect, replace(whole, steps=25, patience=2, images_per_step=few), labels)
            norms = _working(found)
            # Those that do not work yet come behind, in the order of their success.
            rank = np.where(np.isfinite(norms), norms, largest * (2 - found.success))
            final = np.argsort(rank, kind="stable")[:_FINALISTS]
        norms[final] = _working(self._search(suspect, whole, final))
        first, second = np.sort(norms)[:2]
        statistic = 1 - first / second if np.isfinite(second) else float(np.isfinite(first))
        return self.evidence(
            norms,
            label=int(norms.argmin()),
            statistic=float(statistic),
            p_value=grubbs_p_value(-np.log(np.minimum(norms, largest))),
            details="reversed triggers",
        )

    @staticmethod
    def _search(suspect: Suspect, recipe: InversionRecipe, labels: np.ndarray) -> Triggers:
        """Return a trigger for each of some labels."""
        return invert_triggers(
            suspect.classifier, suspect.images, recipe, labels=labels.tolist(), verbose=suspect.verbose
        )


def _working(found: Triggers) -> np.ndarray:
    """Return the norm of each mask; infinite where its trigger does not work."""
    return np.where(found.success >= WORKS, found.norms, np.inf)
