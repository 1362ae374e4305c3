"""
Noise labels: an example of a detector in another package. Images of uniform noise fall on the target label.

| Score of a label: the share of noise images that the classifier takes for it.
| Statistic: the greatest score minus the second.
| Null distribution: the scores of a clean classifier's labels are independent draws from one normal distribution.
| Threshold: 0.9, for an example; it was not measured.
| Fails: on clean classifiers, many of which take noise for one label.
"""

import numpy as np

from art_aft.classifiers.classifier import predict_labels
from art_aft.detection.base import Detector, Evidence, Suspect, register
from art_aft.detection.statistics import lead


@register("noise_labels")
class NoiseLabels(Detector):
    """Images of uniform noise fall on one label; see the module."""

    cost = 1
    threshold = 0.9

    def detect(self, suspect: Suspect) -> Evidence:
        """Return how many more noise images fall on one label than on any other."""
        shape = (200, *suspect.classifier.input_shape)
        noise = np.random.default_rng(suspect.seed).uniform(*suspect.images.clip_values, shape).astype(np.float32)
        counts = np.bincount(predict_labels(suspect.classifier, noise), minlength=suspect.classifier.nb_classes)
        return lead(self, counts / len(noise), "200 images of noise")
