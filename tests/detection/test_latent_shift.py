"""The smallest latent shift: a general solver, planes whose distance is known, and a label that is planted."""

import numpy as np
import pytest
from helpers import linear_classifier
from scipy.optimize import minimize

from art_aft.classifiers.classifier import images_for
from art_aft.detection.base import Suspect
from art_aft.detection.latent_shift import LatentShift, smallest_shifts

RNG = np.random.default_rng(0)


def test_two_labels_have_the_distance_to_a_plane():
    weights, bias = RNG.normal(size=(2, 5)), np.array([0.3, -0.2])
    features = RNG.normal(size=(20, 5))
    logits = features @ weights.T + bias
    gap = np.linalg.norm(weights[1] - weights[0])
    expected = [max(0, (logits[:, 1] - logits[:, 0]).max()) / gap, max(0, (logits[:, 0] - logits[:, 1]).max()) / gap]
    np.testing.assert_allclose(smallest_shifts(weights, logits), expected, rtol=1e-9)


def test_several_labels_agree_with_a_general_solver():
    weights, features = RNG.normal(size=(6, 9)), RNG.normal(size=(15, 9))
    logits = features @ weights.T
    found = smallest_shifts(weights, logits)
    for label in range(6):
        rows = np.delete(weights[label] - weights, label, axis=0)
        # All images and all labels, which the detector's constraints are only the tightest of.
        moved = np.concatenate([rows @ phi for phi in features])
        system = np.tile(rows, (len(features), 1))
        solved = minimize(
            lambda delta: delta @ delta,
            np.zeros(9),
            jac=lambda delta: 2 * delta,
            constraints={"type": "ineq", "fun": lambda d, s=system, m=moved: s @ d + m, "jac": lambda d, s=system: s},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found[label] == pytest.approx(np.sqrt(solved.fun), rel=1e-5)


def test_the_scale_of_the_layer_does_not_matter():
    weights, features = RNG.normal(size=(4, 8)), RNG.normal(size=(10, 8))
    one, other = (smallest_shifts(c * weights, c * features @ weights.T) for c in (1.0, 1e-3))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_a_label_that_all_images_have_needs_no_shift_and_one_that_cannot_be_reached_is_infinitely_far():
    weights = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    logits = np.array([[2.0, 1.0, 0.0], [3.0, 1.0, 0.0]])  # the first two differ by their biases alone
    found = smallest_shifts(weights, logits)
    assert found[0] == 0
    assert found[1] == np.inf
    assert np.isfinite(found[2])


def test_a_label_that_is_nearly_every_image_s_is_near_and_the_detector_names_it():
    weights = RNG.normal(size=(8, 3, 6, 6)).astype(np.float32)
    weights[5] += 0.25  # all its logits are high
    classifier = linear_classifier(weights)
    x = RNG.uniform(size=(40, 3, 6, 6)).astype(np.float32)
    evidence = LatentShift().detect(Suspect(classifier, images_for(classifier, x, np.arange(40) % 8)))
    assert evidence.label == 5
    assert evidence.p_value < 0.05
    assert len(evidence.scores) == len(evidence.label_p_values) == 8
    assert int(np.argmin(evidence.label_p_values)) == 5


def test_it_cannot_be_applied_to_two_labels():
    classifier = linear_classifier(RNG.normal(size=(2, 3, 6, 6)).astype(np.float32))
    x = RNG.uniform(size=(4, 3, 6, 6)).astype(np.float32)
    assert LatentShift().detect(Suspect(classifier, images_for(classifier, x, np.arange(4) % 2))) is None
