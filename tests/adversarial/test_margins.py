"""The largest margins over families of images: linear models, whose largest margins are known, and what stays."""

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES, SHAPE, TinyNet, linear_classifier, same_weights, weights
from torch.nn import functional as F

from art_aft.adversarial.families import Added, Blended, FreePixels, Profile, Smooth, Warped
from art_aft.adversarial.margins import family_success, maximum_margins
from art_aft.classifiers.classifier import build_classifier, images_for

RNG = np.random.default_rng(0)
TWO = RNG.normal(size=(2, *SHAPE)).astype(np.float32)
FAMILIES = [FreePixels(), Smooth(4), Blended(0.2), Profile("rows"), Profile("columns"), Added(0.1, 4), Warped(0.1)]


@pytest.fixture
def images():
    x = RNG.uniform(0.2, 0.8, size=(30, *SHAPE)).astype(np.float32)
    return x, np.arange(30) % 2


def gap(label):
    """The weights of the margin of one of two labels."""
    return TWO[label] - TWO[1 - label]


def positive(values):
    return np.maximum(values, 0).sum(dtype=np.float64)


def test_free_pixels_reach_the_sum_of_all_positive_weights():
    found = maximum_margins(linear_classifier(TWO), FreePixels(), precision="float32")
    np.testing.assert_allclose(found, [positive(gap(0)), positive(gap(1))], rtol=1e-4)


def test_smooth_images_reach_what_their_few_values_can():
    found = maximum_margins(linear_classifier(TWO), Smooth(4), precision="float32")
    # The transpose of the enlargement, from autograd: the weight of each of the few values.
    few = torch.zeros(2, 3, 4, 4, requires_grad=True)
    large = F.interpolate(few, size=SHAPE[1:], mode="bilinear", align_corners=False)
    (large * torch.from_numpy(np.stack([gap(0), gap(1)]))).sum().backward()
    np.testing.assert_allclose(found, [positive(g) for g in few.grad.numpy()], rtol=1e-4)


def test_a_picture_adds_its_share_to_the_images_of_other_labels(images):
    x, y = images
    classifier = linear_classifier(TWO)
    found = maximum_margins(classifier, Blended(0.2), images_for(classifier, x, y), precision="float32")
    for label in (0, 1):
        clean = (x[y != label] * gap(label)).sum(axis=(1, 2, 3)).mean()
        assert found[label] == pytest.approx(0.8 * clean + 0.2 * positive(gap(label)), rel=1e-3)


@pytest.mark.parametrize(("axis", "summed"), [("rows", 1), ("columns", 2)])
def test_a_profile_is_the_same_in_all_rows_or_columns(images, axis, summed):
    x, y = images
    classifier = linear_classifier(TWO)
    found = maximum_margins(classifier, Profile(axis, 0.1), images_for(classifier, x, y), precision="float32")
    for label in (0, 1):
        clean = (x[y != label] * gap(label)).sum(axis=(1, 2, 3)).mean()
        assert found[label] == pytest.approx(clean + 0.1 * np.abs(gap(label).sum(axis=summed)).sum(), rel=1e-3)


def test_a_smooth_change_adds_what_its_few_values_can(images):
    x, y = images
    classifier = linear_classifier(TWO)
    found = maximum_margins(classifier, Added(0.1, 4), images_for(classifier, x, y), precision="float32")
    few = torch.zeros(2, 3, 4, 4, requires_grad=True)
    large = F.interpolate(few, size=SHAPE[1:], mode="bilinear", align_corners=False)
    (large * torch.from_numpy(np.stack([gap(0), gap(1)]))).sum().backward()
    for label in (0, 1):
        clean = (x[y != label] * gap(label)).sum(axis=(1, 2, 3)).mean()
        most = 0.1 * np.abs(few.grad.numpy()[label]).sum()
        assert found[label] == pytest.approx(clean + most, rel=1e-3)


class TestWarp:
    def test_displacements_of_one_half_change_nothing(self):
        x = torch.from_numpy(RNG.random((3, *SHAPE)).astype(np.float32))
        warped = Warped(0.25).shown(torch.full((2, 2, 4, 4), 0.5), x)
        np.testing.assert_allclose(warped, x.expand(2, -1, -1, -1, -1), atol=1e-5)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_equal_displacements_move_all_pixels_by_a_share_of_the_side(self, axis):
        x = torch.from_numpy(RNG.random((3, *SHAPE)).astype(np.float32))
        members = torch.full((1, 2, 4, 4), 0.5)
        members[:, axis] = 1.0  # as far as they may
        pixels = 3
        warped = Warped(pixels / (SHAPE[1] - 1)).shown(members, x)[0]
        kept = slice(0, SHAPE[1] - pixels)
        along = (..., kept) if axis == 0 else (..., kept, slice(None))
        expected = x.roll(-pixels, dims=3 - axis)[along]
        np.testing.assert_allclose(warped[along], expected, atol=1e-4)


class TestSuccess:
    def test_it_is_the_share_of_images_of_other_labels_that_follow(self):
        """The margin of label 1 is how much brighter one channel is than another: a change of 0.1 of both adds 0.2."""
        weights = np.zeros((2, *SHAPE), dtype=np.float32)
        weights[1, 0], weights[1, 1] = 1.0, -1.0
        classifier = linear_classifier(weights / weights[1, 0].size)
        x = np.full((30, *SHAPE), 0.5, dtype=np.float32)
        missing = np.linspace(0.0, 0.39, 30, dtype=np.float32)
        x[:, 0] -= missing[:, None, None] / 2
        x[:, 1] += missing[:, None, None] / 2
        y = np.zeros(30, dtype=int)
        found = family_success(classifier, Added(0.1, 4), images_for(classifier, x, y), precision="float32")
        assert found[1] == pytest.approx((missing < 0.2).mean())
        assert found[0] == 0.0  # there are no images of other labels

    def test_whole_images_are_refused(self, images):
        classifier = linear_classifier(TWO)
        with pytest.raises(ValueError, match=r"^family: got 'free pixels', expected one that is shown on clean images"):
            family_success(classifier, FreePixels(), images_for(classifier, *images))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_pixels_in_another_range_and_order_have_the_same_margins(family):
    x, y = RNG.uniform(size=(12, *SHAPE)).astype(np.float32), np.arange(12) % NB_CLASSES
    net = TinyNet()
    plain = build_classifier(net, input_shape=SHAPE, nb_classes=NB_CLASSES)
    other = build_classifier(
        torch.nn.Sequential(_Reordered(), net),
        input_shape=(*SHAPE[1:], SHAPE[0]),
        nb_classes=NB_CLASSES,
        channels_first=False,
        clip_values=(-1.0, 3.0),
    )
    expected = maximum_margins(plain, family, images_for(plain, x, y), max_iter=5, precision="float32")
    moved = np.ascontiguousarray(4 * x.transpose(0, 2, 3, 1) - 1)
    found = maximum_margins(other, family, images_for(other, moved, y), max_iter=5, precision="float32")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


class _Reordered(torch.nn.Module):
    def forward(self, x):
        return ((x + 1) / 4).permute(0, 3, 1, 2)


def test_probabilities_have_the_margins_of_their_logarithms():
    def margins(*more):
        classifier = build_classifier(torch.nn.Sequential(TinyNet(), *more), input_shape=SHAPE, nb_classes=NB_CLASSES)
        return maximum_margins(classifier, FreePixels(), max_iter=10, precision="float32")

    np.testing.assert_allclose(margins(torch.nn.Softmax(dim=1)), margins(), rtol=1e-3)


def test_more_steps_and_starts_never_lose(images):
    classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES)
    few, many = (maximum_margins(classifier, FreePixels(), max_iter=n, precision="float32") for n in (3, 30))
    assert (many >= few).all()
    assert (many > few).any()


def test_the_classifier_and_the_generators_stay_as_they_are(images):
    classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES)
    classifier.model.train()
    before, state = weights(classifier), torch.get_rng_state()
    for family in FAMILIES:
        one, two = (
            maximum_margins(classifier, family, images_for(classifier, *images), max_iter=2, seed=1) for _ in range(2)
        )
        np.testing.assert_array_equal(one, two)
    assert same_weights(before, classifier)
    assert classifier.model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_families_that_need_images_say_so():
    classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES)
    with pytest.raises(ValueError, match=r"^images: got None for the family 'blended', expected clean images"):
        maximum_margins(classifier, Blended())
    with pytest.raises(ValueError, match=r"^starts: got 0"):
        maximum_margins(classifier, FreePixels(), starts=0)
    with pytest.raises(ValueError, match=r"^axis: got 'diagonal'"):
        Profile("diagonal")
