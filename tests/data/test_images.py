"""The checked value: what it holds, how it is cut, and that it passes a door once."""

import dataclasses

import numpy as np
import pytest
from helpers import SHAPE, tiny_classifier, tiny_data
from torch.utils.data import DataLoader, TensorDataset

from art_aft import checks
from art_aft.classifiers import classifier as classifiers
from art_aft.classifiers.classifier import images_for
from art_aft.data.images import Images


@pytest.fixture
def images():
    x, y = tiny_data(10)
    return Images(x, y)


def test_it_cannot_be_changed(images):
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.labels = None


@pytest.mark.parametrize(
    "index", [slice(2, 5), [7, 0, 7], np.array([3]), np.arange(10) % 2 == 0, np.zeros(10, dtype=bool)], ids=str
)
def test_some_images_keep_their_labels(index, images):
    some = images[index]
    np.testing.assert_array_equal(some.pixels, images.pixels[index])
    np.testing.assert_array_equal(some.labels, images.labels[index])
    assert (some.clip_values, some.channels_first) == (images.clip_values, images.channels_first)


def test_8_bit_pixels_stand_for_the_whole_range():
    images = Images(np.array([[[[0, 255, 51]]]], dtype=np.uint8), np.zeros(1, dtype=np.int64), clip_values=(-1.0, 1.0))
    np.testing.assert_allclose(images.floats(), [[[[-1.0, 1.0, -0.6]]]], atol=1e-6)


@pytest.mark.parametrize(("share", "size"), [(0.3, 3), (1e-9, 1), (0.999, 9)])
def test_held_out_images_and_the_rest_are_all_of_them(share, size, images):
    rest, held_out = images.hold_out(share, seed=4)
    assert (len(rest), len(held_out)) == (10 - size, size)
    parts = {image.tobytes() for part in (rest, held_out) for image in part.pixels}
    assert parts == {image.tobytes() for image in images.pixels}
    again, other = images.hold_out(share, seed=4)[1], images.hold_out(share, seed=5)[1]
    np.testing.assert_array_equal(again.pixels, held_out.pixels)
    assert size > 5 or not np.array_equal(other.pixels, held_out.pixels)


def test_one_image_cannot_be_split(images):
    with pytest.raises(ValueError, match=r"^x: got 1 image, expected at least two"):
        images[:1].hold_out(0.5, seed=0)


def test_what_has_passed_the_door_passes_again_unchecked(images, monkeypatch):
    classifier = tiny_classifier()
    checked = images_for(classifier, images.pixels, images.labels)
    monkeypatch.setattr(classifiers, "check_images", None)
    monkeypatch.setattr(checks, "check_pixels", None)
    assert images_for(classifier, checked) is checked


def test_checked_images_of_another_kind_are_refused(images):
    other = dataclasses.replace(images, clip_values=(0.0, 255.0))
    with pytest.raises(ValueError, match=r"^x: got images checked for .*255"):
        images_for(tiny_classifier(), other)
    with pytest.raises(ValueError, match=r"^x: got images checked for"):
        images_for(tiny_classifier(channels=1), images)


def test_checked_images_are_drawn_from_too_and_may_lack_labels_only_where_none_are_needed():
    x, y = tiny_data(30)
    classifier = tiny_classifier()
    from_arrays = images_for(classifier, x, y, max_images=8, seed=1)
    from_checked = images_for(classifier, images_for(classifier, x, y), max_images=8, seed=1)
    np.testing.assert_array_equal(from_checked.pixels, from_arrays.pixels)
    unlabelled = images_for(classifier, x, labelled=False)
    assert images_for(classifier, unlabelled, labelled=False) is unlabelled
    with pytest.raises(ValueError, match=r"^y: got checked images without labels"):
        images_for(classifier, unlabelled)


def test_labels_beside_checked_images_or_a_loader_are_refused(images):
    import torch

    loader = DataLoader(TensorDataset(torch.from_numpy(images.pixels), torch.from_numpy(images.labels)))
    for x in (images, loader):
        with pytest.raises(ValueError, match=r"^y: got labels beside (Images|DataLoader), expected None"):
            images_for(tiny_classifier(), x, images.labels)


def test_images_without_labels_have_none_of_a_class():
    x, _ = tiny_data(3)
    images = images_for(tiny_classifier(), x, labelled=False)
    assert images.labels.tolist() == [-1, -1, -1]
    with pytest.raises(ValueError, match=r"^y: got None, expected labels"):
        images_for(tiny_classifier(), x)


def test_at_most_so_many_are_drawn_at_random():
    x, y = tiny_data(30)
    some = images_for(tiny_classifier(), x, y, max_images=8, seed=1)
    places = [next(i for i in range(30) if np.array_equal(x[i], image)) for image in some.pixels]
    assert len(set(places)) == 8
    np.testing.assert_array_equal(some.labels, y[places])
    assert some.pixels.shape == (8, *SHAPE)
