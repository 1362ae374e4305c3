"""One perturbation for all images, towards each label, against closed forms."""

import numpy as np
import pytest
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    linear_classifier,
    tiny_classifier,
    tiny_data,
    untouched,
)

from art_aft.adversarial.norms import default_eps
from art_aft.adversarial.universal import targeted_success, universal_perturbations
from art_aft.classifiers.classifier import images_for

RNG = np.random.default_rng(0)


def lengths(r: np.ndarray) -> np.ndarray:
    return np.linalg.norm(r.reshape(len(r), -1), axis=1)


@pytest.fixture
def two_classes():
    """A linear model of two classes; images so far from 0 and 1 that nothing is clipped."""
    weights = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32) / 20
    x = np.random.default_rng(2).uniform(0.4, 0.6, (60, *SHAPE)).astype(np.float32)
    return linear_classifier(weights), weights, x, np.arange(60) % 2


class TestSearch:
    def test_on_two_classes_it_is_the_difference_of_their_weights_within_an_l2_bound(self, two_classes):
        classifier, weights, x, y = two_classes
        r = universal_perturbations(classifier, x, y, eps=0.5, precision="float32")
        direction = (weights[1] - weights[0]) / np.linalg.norm(weights[1] - weights[0])
        np.testing.assert_allclose(r, 0.5 * np.stack([-direction, direction]), atol=1e-5)

    def test_and_its_sign_within_an_l_infinity_bound(self, two_classes):
        classifier, weights, x, y = two_classes
        r = universal_perturbations(classifier, x, y, norm=np.inf, eps=0.05, precision="float32")
        sign = np.sign(weights[1] - weights[0])
        np.testing.assert_allclose(r, 0.05 * np.stack([-sign, sign]), atol=1e-6)

    def test_the_first_step_follows_the_mean_gradient_over_images_of_other_labels(self):
        weights = RNG.normal(size=(3, *SHAPE)).astype(np.float32) / 10
        x, y = RNG.uniform(0.4, 0.6, (30, *SHAPE)).astype(np.float32), np.arange(30) % 3
        r = universal_perturbations(
            linear_classifier(weights), x, y, eps=1.0, eps_step=0.1, max_iter=1, batch_size=30, precision="float32"
        )
        flat, pixels = weights.reshape(3, -1).astype(float), x.reshape(30, -1).astype(float)
        logits = pixels @ flat.T
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for label in range(3):
            gradient = ((p - np.eye(3)[label]) @ flat)[y != label].mean(axis=0)
            np.testing.assert_allclose(r[label].ravel(), -0.1 * gradient / np.linalg.norm(gradient), atol=1e-5)

    def test_and_the_mean_gradient_towards_the_next_labels_where_they_are_relative(self):
        weights = RNG.normal(size=(3, *SHAPE)).astype(np.float32) / 10
        x, y = RNG.uniform(0.4, 0.6, (30, *SHAPE)).astype(np.float32), np.arange(30) % 3
        settings = {"eps": 1.0, "eps_step": 0.1, "max_iter": 1, "batch_size": 30, "precision": "float32"}
        r = universal_perturbations(linear_classifier(weights), x, y, relative=True, **settings)
        assert r.shape == (2, *SHAPE)
        flat, pixels = weights.reshape(3, -1).astype(float), x.reshape(30, -1).astype(float)
        logits = pixels @ flat.T
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for shift in (1, 2):
            gradient = ((p - np.eye(3)[(y + shift) % 3]) @ flat).mean(axis=0)
            np.testing.assert_allclose(r[shift - 1].ravel(), -0.1 * gradient / np.linalg.norm(gradient), atol=1e-5)

    @pytest.mark.parametrize("random", [0, 2])
    @pytest.mark.parametrize("norm", [2, np.inf])
    def test_it_stays_within_the_bound(self, norm, random):
        x, y = tiny_data(24)
        r = universal_perturbations(
            tiny_classifier(), x, y, norm=norm, eps=0.3, eps_step=0.2, max_iter=7, num_random_init=random
        )
        assert r.shape == (NB_CLASSES, *SHAPE)
        assert (lengths(r) if norm == 2 else np.abs(r)).max() <= 0.3 + 1e-6
        assert (lengths(r) if norm == 2 else np.abs(r).max(axis=(1, 2, 3))).min() > 0.15

    @pytest.mark.parametrize("shape", [SHAPE, (12, 12, 3)])
    def test_or_changes_few_pixels_those_that_the_labels_differ_most_in(self, shape):
        """A linear model of two classes: the best pixels are those with the greatest differences, in all channels."""
        rng = np.random.default_rng(3)
        channel = 0 if shape == SHAPE else 2
        weights = rng.normal(size=(2, *shape)).astype(np.float32) / 50
        row, column = np.unravel_index(rng.permutation(144)[:5], (12, 12))
        np.moveaxis(weights, channel + 1, 1)[1][:, row, column] += 0.5
        x = rng.uniform(0.4, 0.6, (60, *shape)).astype(np.float32)
        classifier = linear_classifier(weights, channels_first=channel == 0)
        r = universal_perturbations(classifier, x, np.arange(60) % 2, norm=0, eps=5, precision="float32")
        by_pixel = np.moveaxis(r, channel + 1, 1)
        changed = np.zeros((12, 12), dtype=bool)
        changed[row, column] = True
        for label, sign in ((0, -1), (1, 1)):
            np.testing.assert_array_equal((by_pixel[label] != 0).all(axis=0), changed)
            np.testing.assert_array_equal((by_pixel[label] != 0).any(axis=0), changed)
            # Where all images have come to the end of the range, nothing is left to win.
            assert (sign * by_pixel[label][:, row, column] > 0.55).all()

    def test_and_no_more_pixels_than_that(self):
        x, y = tiny_data(24)
        r = universal_perturbations(tiny_classifier(), x, y, norm=0, eps=7, max_iter=6, num_random_init=2)
        np.testing.assert_array_equal((r != 0).any(axis=1).sum(axis=(1, 2)), 7)
        assert 0.25 < np.abs(r).max() <= 1

    def test_labels_do_not_depend_on_each_other(self):
        x, y = tiny_data(24)
        settings = {"eps": 0.5, "max_iter": 5, "batch_size": 8, "precision": "float32"}
        together = universal_perturbations(tiny_classifier(), x, y, **settings)
        alone = universal_perturbations(tiny_classifier(), x, y, labels=[2], **settings)
        np.testing.assert_allclose(alone[0], together[2], atol=1e-5)

    @pytest.mark.parametrize("norm", [2, 0])
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_the_same_network_on_other_pixels_has_the_same(self, encoding, norm):
        x, y = tiny_data(24)
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        settings = {"norm": norm, "max_iter": 5, "precision": "float32"}
        eps = {2: (0.5, 0.5 * given.spread), 0: (7, 7)}[norm]
        expected = universal_perturbations(tiny_classifier(), x, y, eps=eps[0], **settings)
        with untouched(given.classifier):
            found = universal_perturbations(given.classifier, given.encode(x), y, eps=eps[1], **settings)
        np.testing.assert_allclose(given.decode(found), expected, atol=1e-4)

    def test_a_seed_fixes_every_bit(self):
        x, y = tiny_data(24)
        first, second, other = (
            universal_perturbations(tiny_classifier(), x, y, batch_size=8, num_random_init=1, seed=seed)
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()

    def test_of_several_starting_points_the_best_counts(self):
        """With one step of no length to speak of, the start is the result, and more starts find a lower loss."""
        x, y = tiny_data(24)
        classifier = tiny_classifier()

        def loss(r):
            logits = classifier.predict(np.clip(x[y != 0] + r[0], 0, 1)).astype(float)
            return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, 0])

        settings = {"eps": 3.0, "eps_step": 1e-9, "max_iter": 1, "batch_size": 24, "precision": "float32"}
        one, many = (
            universal_perturbations(classifier, x, y, num_random_init=starts, **settings) for starts in (1, 10)
        )
        assert loss(many) < loss(one)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"norm": 1}, "norm: got 1"),
            ({"eps": 0}, "eps: got 0"),
            ({"norm": 0, "eps": 0.5}, "eps: got 0.5"),
            ({"eps_step": -1}, "eps_step: got -1"),
            ({"max_iter": 0}, "max_iter: got 0"),
            ({"labels": [9]}, "labels: got 9"),
            ({"labels": [0], "relative": True}, "labels: got 0"),
            ({"num_random_init": -1}, "num_random_init: got -1"),
        ],
    )
    def test_bad_arguments_are_named(self, settings, message):
        classifier = tiny_classifier()
        with untouched(classifier), pytest.raises(ValueError, match=message):
            universal_perturbations(classifier, *tiny_data(8), **settings)

    def test_the_default_bound_keeps_the_length_per_pixel(self):
        assert default_eps(2, (3, 32, 32), (0, 1)) == 1.0
        assert default_eps(2, (3, 224, 224), (0, 1)) == pytest.approx(7.0)
        assert default_eps(np.inf, (3, 32, 32), (0, 255)) == pytest.approx(4.0)

    def test_and_for_pixels_their_share_but_one_at_least(self):
        sides = {4: 1, 16: 3, 32: 12, 64: 48, 224: 588}
        assert {side: default_eps(0, (3, side, side), (0, 255)) for side in sides} == sides
        assert default_eps(0, (64, 64, 3), (0, 1)) == default_eps(0, (1, 64, 64), (0, 1)) == 48


def test_targeted_success_counts_images_of_other_labels(two_classes):
    classifier, weights, x, y = two_classes
    r = np.stack([np.full(SHAPE, 0.3), -np.full(SHAPE, 0.2)]).astype(np.float32)
    expected = []
    for label in (0, 1):
        logits = (x[y != label] + r[label]).reshape(30, -1) @ weights.reshape(2, -1).T
        expected.append(np.mean(logits.argmax(axis=1) == label))
    found = targeted_success(classifier, images_for(classifier, x, y), r, [0, 1])
    np.testing.assert_allclose(found, expected)


def test_targeted_success_counts_images_of_all_labels_where_they_are_relative():
    weights = RNG.normal(size=(3, *SHAPE)).astype(np.float32)
    x, y = RNG.uniform(0.4, 0.6, (30, *SHAPE)).astype(np.float32), np.arange(30) % 3
    r = RNG.normal(size=(2, *SHAPE)).astype(np.float32) / 5
    predicted = [(np.clip(x + each, 0, 1).reshape(30, -1) @ weights.reshape(3, -1).T).argmax(axis=1) for each in r]
    expected = [np.mean((predicted[shift - 1] - y) % 3 == shift) for shift in (1, 2)]
    classifier = linear_classifier(weights)
    found = targeted_success(classifier, images_for(classifier, x, y), r, [1, 2], relative=True)
    np.testing.assert_allclose(found, expected, atol=1e-9)
