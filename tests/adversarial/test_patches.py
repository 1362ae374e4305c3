"""Patches at the best place: a linear model has one window that decides, and everything else is known."""

import numpy as np
import pytest
from helpers import SHAPE, linear_classifier, untouched

from art_aft.adversarial.patches import Patches, _places, find_patches
from art_aft.classifiers.classifier import images_for, predict_labels

ROW, COLUMN, SIDE = 6, 2, 4


def planted(nb_classes=4, target=2, window=0.25):
    """
    A model that tells classes apart by a code over the right half, and has one window that decides for the target.

    The code leads by 4, and the whole window is worth 6: neither half of the window nor a patch on the code suffices.
    """
    code = np.random.default_rng(0).choice([-1.0, 1.0], size=(nb_classes, 3, 12, 6))
    weights = np.zeros((nb_classes, *SHAPE), dtype=np.float32)
    weights[..., 6:] = code / 27
    weights[target, :, ROW : ROW + 2, COLUMN : COLUMN + SIDE] = window
    weights[target, :, ROW + 2 : ROW + SIDE, COLUMN : COLUMN + SIDE] = -window
    y = np.arange(60) % nb_classes
    x = np.full((60, *SHAPE), 0.5, dtype=np.float32)
    x[..., 6:] += code[y] / 2
    return weights, x, y


@pytest.mark.parametrize("channels_first", [True, False])
def test_the_patch_is_found_where_it_decides(channels_first):
    weights, x, y = planted()
    if not channels_first:
        weights, x = weights.transpose(0, 2, 3, 1), x.transpose(0, 2, 3, 1)
    classifier = linear_classifier(weights, channels_first=channels_first)
    assert (predict_labels(classifier, x) == y).all()
    with untouched(classifier):
        found = find_patches(classifier, images_for(classifier, x, y), SIDE, precision="float32")
    assert found.places[2].tolist() == [ROW, COLUMN]
    assert found.success[2] == 1.0
    assert np.delete(found.success, 2).max() == 0.0


def test_without_a_window_no_patch_leads_far():
    weights, x, y = planted(window=0.0)
    classifier = linear_classifier(weights)
    found = find_patches(classifier, images_for(classifier, x, y), SIDE, precision="float32")
    assert found.success.max() == 0.0


def test_of_many_labels_the_right_one_is_searched_for():
    weights, x, y = planted(nb_classes=12, target=7)
    classifier = linear_classifier(weights)
    found = find_patches(classifier, images_for(classifier, x, y), SIDE, precision="float32")
    assert found.success.shape == (12,)
    assert found.places.shape == (12, 2)
    assert int(found.success.argmax()) == 7
    assert found.success[7] == 1.0
    assert found.places[7].tolist() == [ROW, COLUMN]


def test_places_reach_every_border():
    places = _places(12, 10, 4)
    assert places.min(dim=0).values.tolist() == [0, 0]
    assert places.max(dim=0).values.tolist() == [8, 6]


@pytest.mark.parametrize("side", [0, 13])
def test_a_patch_that_does_not_fit_is_refused(side):
    weights, x, y = planted()
    classifier = linear_classifier(weights)
    with pytest.raises(ValueError, match="side: got"):
        find_patches(classifier, images_for(classifier, x, y), side)


@pytest.mark.parametrize("channels_first", [True, False])
def test_added_to_images_a_black_and_white_patch_takes_their_place(channels_first):
    pixels = np.random.default_rng(1).integers(0, 2, size=(2, 3, 4, 4)).astype(np.float32)
    patches = Patches(np.ones(2), np.array([[0, 8], [3, 5]]), pixels)
    shape = SHAPE if channels_first else (12, 12, 3)
    found = patches.as_perturbations(shape, (-1.0, 3.0), channels_first=channels_first)
    assert (found.shape, found.dtype) == ((2, *shape), np.float32)
    x = np.random.default_rng(2).uniform(-1, 3, size=(5, *SHAPE)).astype(np.float32)
    for added, content, (row, column) in zip(found, pixels, patches.places, strict=True):
        shown = np.clip(x + (added if channels_first else np.moveaxis(added, -1, 0)), -1, 3)
        expected = x.copy()
        expected[:, :, row : row + 4, column : column + 4] = 4 * content - 1
        np.testing.assert_allclose(shown, expected)
