"""The label that a purification has in mind: a guess that costs little, not a verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.perturbation_sets import easiest_labels
from art_aft.adversarial.universal import targeted_success
from art_aft.classifiers.classifier import images_for
from art_aft.classifiers.layers import output_weights
from art_aft.data.images import Images
from art_aft.detection.last_layer import favoured_label
from art_aft.runtime.processes import number_of_first

#: The lead in targeted success from which a label is suspected: half of what the detector `universal` wants.
LEAD = 0.25

#: The lead from which a label counts as found: that of the detectors `universal` and `universal_sparse`.
FOUND = 2 * LEAD

#: The p-value up to which the last layer's label is suspected. It is more generous than the detector's threshold, for a
#: defence that is given a wrong label loses little.
SUSPICIOUS = 0.1

# So many images tell a lead of a quarter between ten labels.
_IMAGES = 250


def suspected_label(
    classifier: PyTorchClassifier, x: Images | np.ndarray, perturbations: Sequence[np.ndarray] = ()
) -> int | None:
    """
    Return the label that universal perturbations reach much more easily than any other; else the one that stands out in
    the last layer.

    The first shows patches in networks whose last layer tells nothing, the second triggers that differ from image to
    image.

    :param classifier: The classifier; it stays as it is.
    :param x: Images of shape (N, *input_shape); with perturbations, checked images with labels.
    :param perturbations: One towards each label, of shape (nb_classes, *input_shape), for each kind.
    :return: The label. None where no perturbation has a lead of `LEAD` and none stands out by a p-value of `SUSPICIOUS`
        or less, the last layer does not give the logits, or there are fewer than three labels.
    """
    label = reached_first(classifier, x, perturbations) if isinstance(x, Images) and len(perturbations) else None
    if label is not None or classifier.nb_classes < 3:
        return label
    weights = output_weights(classifier, x.pixels if isinstance(x, Images) else x)
    if weights is None or len(weights) < 3:
        return None
    scores, p_value, _ = favoured_label(weights)
    return int(scores.argmax()) if p_value <= SUSPICIOUS else None


def reached_first(
    classifier: PyTorchClassifier, images: Images, perturbations: Sequence[np.ndarray], lead: float = LEAD
) -> int | None:
    """
    Return the label whose perturbation has the largest lead in targeted success over any other label's.

    :param classifier: The classifier; it stays as it is.
    :param images: Checked images with labels.
    :param perturbations: One towards each label, of shape (nb_classes, *input_shape), for each kind.
    :param lead: The least lead, in [0, 1].
    :return: The label; None where the lead is smaller, or there are fewer than three labels.
    """
    if classifier.nb_classes < 3:
        return None
    few = images_for(classifier, images, max_images=_IMAGES, seed=0)
    best, label = 0.0, -1
    for each in perturbations:
        labels = easiest_labels(classifier, images, each)
        rates = targeted_success(classifier, few, each[labels], labels)
        second, first = np.sort(rates)[-2:]
        if first - second > best:
            best, label = float(first - second), labels[int(rates.argmax())]
    # Processes that round differently must not go apart.
    label = int(number_of_first(float(label if best >= lead else -1), classifier.device))
    return label if label >= 0 else None
