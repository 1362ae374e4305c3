"""
Universal perturbation: one perturbation leads all images to the target label.

A trigger is a perturbation that works on every image, so an infected classifier has a small one towards the target
label. For each label l, the detector searches r_l within an L2 radius that minimises the mean cross entropy with l over
the images of other labels (eq. 14). The radius grows until the perturbation towards an ordinary label, the median one,
works too: beyond that an infected classifier is nothing special.

| Score of a label l: its targeted success rate, the share of images x of other labels that x + r_l leads to l.
| Statistic: the greatest score minus the second, at the radius where that is largest.
| Null distribution: the scores of a clean classifier's labels are independent draws from one normal distribution. The
  p-value is that of Grubbs' test times the number of radii. It is uncalibrated here: where all rates but one are
  0, a clean classifier has a p-value near 0, too. The threshold on the statistic decides.
| Threshold: 0.5, set on eight digits models of seed 0. In examples/results/scan_digits.json 20 clean models reach 0.26
  of it at most.
| Fails: on all-to-all backdoors, which are for `universal_shift`, and on triggers that are large in the L2 norm or
  differ from image to image. On all-to-one attacks AUROC is 0.92 to 1.00 for digits and 0.69 to 1.00 for CIFAR-10
  (examples/results/scan_cifar10.json).
| Paper link: https://arxiv.org/abs/2202.06312 (Section V)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from art_aft.adversarial.budget import images_per_label
from art_aft.adversarial.norms import default_eps
from art_aft.adversarial.universal import targeted_success, universal_perturbations
from art_aft.classifiers.classifier import images_for
from art_aft.detection.base import EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.statistics import greatest, lead

#: L2 radii, in units of `default_eps`.
RADII = (0.5, 1.0, 2.0, 4.0)

# A first look ranks the labels; of more than `_FINALISTS` + 1 only the best and the median one get a whole search.
_FINALISTS = 4

#: The search ends at the radius at which the median label has a higher targeted success rate than this.
ORDINARY = 0.25


@register("universal")
class UniversalPerturbation(Detector):
    """One perturbation for all images leads to one label long before the others; see the module."""

    cost = EXPENSIVE + 1
    threshold = 0.5

    def detect(self, suspect: Suspect) -> Evidence:
        """Return how far one label's perturbation is more successful than any other's."""
        return search(self, suspect, RADII)


def search(
    detector: Detector, suspect: Suspect, sizes: Sequence[float], *, norm: float = 2, shift: bool = False
) -> Evidence:
    """
    Return the largest lead of one label's, or one shift's, universal perturbation over several sizes.

    :param detector: The detector that asks.
    :param suspect: The classifier and its images.
    :param sizes: Bounds in units of `default_eps`, in rising order.
    :param norm: The norm of the bound: 2, or 0 for a number of pixels.
    :param shift: Whether each perturbation leads every label to the one a fixed number after it, not to one label.
    """
    classifier, images = suspect.classifier, suspect.images
    labels = np.arange(int(shift), classifier.nb_classes)
    found: list[Evidence] = []
    for size in sizes:
        eps = size * default_eps(norm, classifier.input_shape, images.clip_values)
        look = _Look(suspect, norm, eps, shift)
        rates, perturbations = look(labels, whole=len(labels) <= _FINALISTS + 1)
        if len(labels) > _FINALISTS + 1:
            ranked = np.argsort(-rates, kind="stable")
            final = np.append(ranked[:_FINALISTS], ranked[len(ranked) // 2])
            rates[final], perturbations[final] = look(labels[final], whole=True)
        bound = f"L2 {eps:.3g}" if norm else f"{eps:.0f} pixels"
        found.append(lead(detector, rates, bound, shift=shift, perturbations=perturbations))
        if np.median(rates) > ORDINARY or (suspect.stop_early and found[-1].score >= 1):
            break
    return greatest(found)


@dataclass(frozen=True)
class _Look:
    """
    How well perturbations of one size do: a whole search, or a first look at an eighth of its cost or less.

    :param suspect: The classifier and its images.
    :param norm: The norm of the bound.
    :param eps: The bound.
    :param shift: Whether labels are shifts.
    """

    suspect: Suspect
    norm: float
    eps: float
    shift: bool

    def __call__(self, labels: np.ndarray, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the targeted success rate towards each of some labels, and the perturbations."""
        suspect = self.suspect
        steps = 20 if self.norm else 30
        # Twice as many images a step find no better perturbations. A rate of 400 images has a standard error of 0.025
        # or less, one of 100 of 0.05.
        n = len(labels)
        size, rated = (64, 400) if whole else (images_per_label(16, n, 4), images_per_label(100, n, 25))
        given = {"labels": labels.tolist(), "relative": self.shift}
        perturbations = universal_perturbations(
            suspect.classifier,
            suspect.images,
            norm=self.norm,
            eps=self.eps,
            max_iter=steps if whole else steps // 2,
            batch_size=size,
            **given,
            precision=suspect.precision,
            seed=suspect.seed,
            verbose=suspect.verbose,
        )
        images = images_for(suspect.classifier, suspect.images, max_images=rated, seed=suspect.seed)
        return targeted_success(suspect.classifier, images, perturbations, **given), perturbations
