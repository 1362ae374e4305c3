"""ACC, ASR, RA and other numbers. Arrays go in; a classifier is anything with `predict`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from art.data_generators import PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from scipy.stats import median_abs_deviation
from sklearn.metrics import confusion_matrix
from torch.utils.data import DataLoader

from art_aft.attacks.base import stamp
from art_aft.attacks.labels import LabelMap, wanted_labels
from art_aft.checks import (
    check_array,
    check_clip_values,
    check_flag,
    check_images,
    check_instance,
    check_integer,
    check_labels,
    check_layout,
)
from art_aft.classifiers.model_checks import check_outputs
from art_aft.data.images import Images
from art_aft.data.loaders import batches_of, is_loader
from art_aft.data.pixels import to_float
from art_aft.runtime.modes import evaluation_mode
from art_aft.runtime.random_state import isolated_rng

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """
    Clean accuracy, attack success rate and recovery accuracy of a classifier, as shares in [0, 1].

    :param acc: ACC, clean accuracy: the share of clean images that get their true label.
    :param asr: ASR, attack success rate: the share of triggered images that get the attacker's label.
    :param ra: RA, recovery accuracy: the share of triggered images that get their true label.
    :param n_clean: Number of clean images behind ACC.
    :param n_triggered: Number of triggered images behind ASR and RA.
    """

    acc: float
    asr: float
    ra: float
    n_clean: int
    n_triggered: int


def defence_effectiveness(before: Scores, after: Scores) -> float:
    """
    Return DER, the defence effectiveness rating: (max(0, ASR lost) - max(0, ACC lost) + 1) / 2.

    >>> defence_effectiveness(Scores(0.9, 1.0, 0.0, 100, 90), Scores(0.9, 0.0, 0.9, 100, 90))
    1.0

    | Paper link: https://arxiv.org/abs/2304.11823

    :param before: The infected classifier's scores.
    :param after: The purified classifier's scores.
    :return: A share in [0, 1]: 1 for a backdoor removed at no cost, 0.5 for an unchanged classifier.
    """
    for name, scores in (("before", before), ("after", after)):
        check_instance(name, scores, Scores, "Scores")
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2


def evaluate(
    classifier: Any,
    x: np.ndarray | DataLoader | PyTorchDataGenerator | Images,
    y: np.ndarray | None,
    attack: Any,
    labels: LabelMap,
    *,
    include_target: bool = False,
    batch_size: int = 128,
) -> Scores:
    """
    Measure ACC on clean test images, ASR and RA on the same images with the trigger.

    Images whose true label is the attacker's are left out of ASR and RA, as in the paper's tables. A good classifier
    gives them that label without any trigger, so they would count as successes: 9 points of ASR on CIFAR-10 for a
    perfect defence.

    :param classifier: An ART classifier. It is measured in evaluation mode; PyTorch modules get their modes back.
    :param x: Test images in `clip_values`, of shape (N, *input_shape), or uint8 images that stand for that range; or a
        loader of images and labels, of which one batch at a time is in memory; or checked `Images`.
    :param y: Their true labels, as indices or one-hot; None with a loader or checked images.
    :param attack: ART's `PoisoningAttackBackdoor`, or a bare trigger.
    :param labels: The label that a triggered image should get: `AllToOne` or `AllToAll`.
    :param include_target: Whether images whose label the map does not change count for ASR and RA, as in some
        releases. Such scores do not compare with the paper's.
    :param batch_size: The batch size of `predict`.
    :return: The scores, with the number of images behind each.
    :raises ValueError: If the data do not fit the classifier, `predict` does not give one number a class, or no image
        is left to trigger.
    """
    if not hasattr(classifier, "predict") or not hasattr(classifier, "clip_values"):
        raise TypeError(f"classifier: got {type(classifier).__name__}, expected an ART classifier")
    check_integer("batch_size", batch_size, 1)
    check_flag("include_target", include_target)
    if y is not None and (is_loader(x) or isinstance(x, Images)):
        raise ValueError(f"y: got labels beside {type(x).__name__}, expected None: it has them")
    counts = np.zeros(5, dtype=np.int64)
    # ART's predict draws from torch's global generator, though nothing in it is random, and changes the modes.
    with isolated_rng(), evaluation_mode(getattr(classifier, "_model", None)):
        for images, truth in batches_of(x) if is_loader(x) else [(x, y)]:
            checked = _checked(classifier, images, truth)
            counts += _counts(classifier, checked, attack, labels, include_target, batch_size)
    n_clean, right, n_triggered, led, kept = map(int, counts)
    if n_clean == 0:
        raise ValueError("x: got a loader without batches, expected at least one image")
    if n_triggered == 0:
        raise ValueError("y: got only images that have the attacker's label already, expected some others")
    return Scores(right / n_clean, led / n_triggered, kept / n_triggered, n_clean, n_triggered)


def _checked(classifier: Any, x: Any, y: Any) -> Images:
    """Return images and labels that fit the classifier. Pixels that were checked before are not checked again."""
    clip_values, shape = check_clip_values("classifier.clip_values", classifier.clip_values), classifier.input_shape
    if isinstance(x, Images):
        check_layout("x", x.pixels, input_shape=shape, allow_8bit=True)
        if x.clip_values != clip_values:
            raise ValueError(f"x: got images checked for clip_values {x.clip_values}, expected {clip_values}")
        return x
    check_images("x", x, clip_values=clip_values, input_shape=shape, allow_8bit=True)
    return Images(x, check_labels("y", y, nb_classes=classifier.nb_classes, nb_samples=len(x)), clip_values)


def _counts(
    classifier: Any, images: Images, attack: Any, labels: LabelMap, include_target: bool, batch_size: int
) -> tuple[int, int, int, int, int]:
    """Count images, right ones, triggered ones, and of these those with the wanted and those with the true label."""
    x, truth, clip_values = images.pixels, images.labels, images.clip_values
    wanted = wanted_labels(labels, truth, classifier.nb_classes)
    chosen = np.full(len(x), True) if include_target else wanted != truth
    right = _predict(classifier, x, clip_values, batch_size) == truth
    if not chosen.any():
        return len(x), int(right.sum()), 0, 0, 0
    truth, wanted = truth[chosen], wanted[chosen]
    one_hot = np.eye(classifier.nb_classes, dtype=np.float32)[wanted]
    triggered = _predict(
        classifier, stamp(attack, x[chosen], one_hot, clip_values=clip_values), clip_values, batch_size
    )
    return len(x), int(right.sum()), len(truth), int((triggered == wanted).sum()), int((triggered == truth).sum())


def _predict(classifier: Any, x: np.ndarray, clip_values: tuple[float, float], batch_size: int) -> np.ndarray:
    """Return predicted labels, -1 for NaN; ART preprocesses a whole array at once, so large ones go in parts."""
    labels = []
    for start in range(0, len(x), 32 * batch_size):
        part = to_float(x[start : start + 32 * batch_size], clip_values)
        try:
            outputs = np.asarray(classifier.predict(part, batch_size=batch_size))
        except AttributeError:
            if isinstance(classifier, PyTorchClassifier):
                check_outputs(classifier)  # names what the model returns, where that is no tensor
            raise
        if outputs.shape != (len(part), classifier.nb_classes):
            expected = f"expected ({len(part)}, {classifier.nb_classes})"
            raise ValueError(f"classifier.predict: got outputs of shape {outputs.shape}, {expected}")
        labels.append(np.where(np.isnan(outputs).any(axis=1), -1, outputs.argmax(axis=1)))
    found = np.concatenate(labels)
    if (found < 0).any():
        logger.warning("outputs are NaN for %d of %d images: they count as no label", (found < 0).sum(), len(found))
    return found


def label_matrix(y_true: np.ndarray, y_predicted: np.ndarray, nb_classes: int) -> np.ndarray:
    """
    Return which labels the adversarial examples of each class get (the paper's Figs. 1 and 4, by class).

    In an infected all-to-one model the column of the target label stands out.

    >>> label_matrix(np.array([0, 0, 1]), np.array([1, 0, 1]), nb_classes=3)
    array([[0.5, 0.5, 0. ],
           [0. , 1. , 0. ],
           [0. , 0. , 0. ]])

    :param y_true: True labels, as indices or one-hot.
    :param y_predicted: Predicted labels of the adversarial examples, as indices or one-hot.
    :param nb_classes: The number of classes K.
    :return: Shares of shape (K, K), row = true label, column = predicted label. Rows sum to 1; the row of a
        class without images is zero.
    :raises ValueError: If the labels are out of range or of different numbers.
    """
    nb_classes = check_integer("nb_classes", nb_classes, 2)
    truth = check_labels("y_true", y_true, nb_classes=nb_classes)
    predicted = check_labels("y_predicted", y_predicted, nb_classes=nb_classes, nb_samples=len(truth))
    return confusion_matrix(truth, predicted, labels=range(nb_classes), normalize="true")


def target_share(y_true: np.ndarray, y_predicted: np.ndarray, labels: LabelMap) -> float:
    """
    Return the share of adversarial examples that get the attacker's label (the paper's observation, Section III).

    :param y_true: True labels, as indices or one-hot.
    :param y_predicted: Predicted labels of the adversarial examples, as indices or one-hot.
    :param labels: The label that a triggered image should get. Images whose label it does not change are left out.
    :return: A share in [0, 1].
    :raises ValueError: If no image is left.
    """
    truth = check_labels("y_true", y_true)
    predicted = check_labels("y_predicted", y_predicted, nb_samples=len(truth))
    wanted = wanted_labels(labels, truth)
    others = wanted != truth
    if not others.any():
        raise ValueError("y_true: got only images that have the attacker's label already, expected some others")
    return float(np.mean(predicted[others] == wanted[others]))


def anomaly_indices(norms: np.ndarray) -> np.ndarray:
    """
    Return the distance of each number from the median, in units of the median absolute deviation times 1.4826.

    >>> anomaly_indices(np.array([1.0, 2.0, 3.0, 4.0, 100.0])).round(2)
    array([ 1.35,  0.67,  0.  ,  0.67, 65.43])

    :param norms: Numbers of shape (K,).
    :return: Indices of shape (K,), at least 0. Where more than half of the numbers are the same, the deviation is 0;
        then these have index 0, and all others infinity.
    """
    norms = np.atleast_1d(check_array("norms", norms))
    if norms.ndim != 1 or not norms.size:
        raise ValueError(f"norms: got shape {norms.shape}, expected (K,) with K of at least 1")
    distances = np.abs(norms - np.median(norms))
    # The digits of Neural Cleanse; scipy's scale="normal" has more.
    deviation = 1.4826 * median_abs_deviation(norms)
    same = np.isclose(distances, 0, atol=1e-9 * max(1.0, float(np.abs(norms).max())))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(same, 0.0, distances / deviation)
