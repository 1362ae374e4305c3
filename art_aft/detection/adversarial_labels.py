"""
Adversarial labels: untargeted adversarial examples fall on the target label.

The trigger is a shortcut to the target label, so the nearest way out of any other class leads there. The detector makes
one adversarial example an image with PGD, which only leads away from the true label, and counts the labels that they
get. It tries three L2 and three L-infinity radii, because triggers of few pixels and faint ones over the whole image
show at different ones.

| Score of a label l: the share of adversarial examples of images of other labels that the classifier takes for l.
| Statistic: the greatest score minus the second, at the norm and radius where that is largest.
| Null distribution: the scores of a clean classifier's labels are independent draws from one normal distribution. The
  p-value is that of Grubbs' test times the number of norms and radii. It is uncalibrated here: labels that look alike
  receive each other's examples. The threshold on the statistic decides.
| Threshold: 0.25, set on eight digits models of seed 0. In examples/results/scan_digits.json 20 clean models reach 0.89
  of it at most.
| Fails: on BadNets (AUROC 0.53 on digits, 1.00 on each other all-to-one attack), on CIFAR-10 (0.48 over all attacks,
  examples/results/scan_cifar10.json), and on all-to-all backdoors, which are for `adversarial_shift`.
| Paper link: https://arxiv.org/abs/2202.06312 (Section III, Figs. 1 and 4)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from art_aft.adversarial.norms import default_eps
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import predict_labels
from art_aft.detection.base import THOROUGH, Detector, Evidence, Suspect, register
from art_aft.detection.statistics import greatest, lead
from art_aft.metrics import label_matrix

#: Norms, and radii in units of `default_eps`. The label matrix of the report is that of the last.
RADII = ((2, 1.0), (2, 2.0), (2, 4.0), (np.inf, 1.0), (np.inf, 2.0), (np.inf, 4.0))


@register("adversarial_labels")
class AdversarialLabels(Detector):
    """Untargeted adversarial examples of all classes fall on one label; see the module."""

    cost = THOROUGH
    threshold = 0.25
    supports = True

    def detect(self, suspect: Suspect) -> Evidence:
        """Return how many more adversarial examples fall on one label than on any other."""
        labels, nb_classes = suspect.images.labels, suspect.classifier.nb_classes
        found = []
        for details, predicted in adversarial_predictions(suspect):
            others = [predicted[labels != label] == label for label in range(nb_classes)]
            shares = np.array([each.mean() if len(each) else 0.0 for each in others])
            found.append(lead(self, shares, details))
        return greatest(found)


def adversarial_predictions(suspect: Suspect) -> list[tuple[str, np.ndarray]]:
    """
    Return the labels that the classifier gives to untargeted adversarial examples, at each of `RADII`.

    They are made once for all detectors that ask, and leave their label matrix with the suspect.

    :param suspect: The classifier and its images.
    :return: Pairs of the norm and radius, such as "L2 1.15", and labels of shape (N,).
    """
    return suspect.shared("adversarial predictions", lambda: [*_attacked(suspect)])


def _attacked(suspect: Suspect) -> Iterator[tuple[str, np.ndarray]]:
    classifier, images = suspect.classifier, suspect.images
    for norm, radius in RADII:
        eps = radius * default_eps(norm, classifier.input_shape, images.clip_values)
        attack = TorchAttacksPGD(
            classifier, norm=norm, eps=eps, precision=suspect.precision, seed=suspect.seed, verbose=suspect.verbose
        )
        predicted = predict_labels(classifier, attack.generate(images))
        # Outputs that are NaN are no success.
        predicted = np.where(predicted < 0, images.labels, predicted)
        suspect.label_matrix = label_matrix(images.labels, predicted, classifier.nb_classes)
        yield f"{'L2' if norm == 2 else 'L-infinity'} {eps:.3g}", predicted
