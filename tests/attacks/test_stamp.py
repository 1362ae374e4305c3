"""Triggered images from ART's attack, from a trigger, and from any other callable."""

import numpy as np
import pytest
import torch
from art.attacks.poisoning import PoisoningAttackBackdoor
from helpers import SHAPE, TinyNet, tiny_classifier

from art_aft.attacks import BadNets, stamp
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import BatchPoisoning, poison
from art_aft.classifiers.classifier import build_classifier
from art_aft.metrics import evaluate

GRID = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]])


def images(count=4, channels=3, side=32, dtype=np.float32, scale=1.0):
    return (scale * np.random.default_rng(0).random((count, channels, side, side))).astype(dtype)


def test_stamp_takes_arts_attack_and_a_trigger_alike():
    x, y = images(), np.eye(10)[[1, 2, 3, 4]]
    expected = images()
    expected[:, :, 29:, 29:] = GRID
    np.testing.assert_array_equal(stamp(BadNets(), x, y), expected)
    np.testing.assert_array_equal(stamp(PoisoningAttackBackdoor(BadNets()), x, y), expected)


def test_stamp_takes_no_images_though_art_does_not():
    x = images(0)
    result = stamp(PoisoningAttackBackdoor(BadNets()), x, np.zeros((0, 10)))
    assert result.shape == (0, 3, 32, 32)
    assert result is not x


def test_stamp_returns_the_type_of_the_images():
    assert stamp(lambda x: x.astype(np.float64), images(), None).dtype == np.float32


def test_stamp_refuses_what_is_no_attack():
    with pytest.raises(TypeError, match=r"^attack: got str, expected PoisoningAttackBackdoor or a callable"):
        stamp("badnets", images(), None)


def test_stamp_refuses_an_attack_that_changes_the_shape():
    with pytest.raises(ValueError, match=r"^attack: returned shape \(4, 3, 32\), expected .*\(4, 3, 32, 32\)"):
        stamp(lambda x: x.mean(axis=-1), images(), None)


UNUSABLE = {
    "NaN": (lambda x: np.full_like(x, np.nan), "got NaN or infinite pixels"),
    "one NaN": (lambda x: np.where(x == x.max(), np.float32(np.nan), x), "got NaN or infinite pixels"),
    "infinite": (lambda x: np.full_like(x, np.inf), "got NaN or infinite pixels"),
    "too bright": (lambda x: x + 0.5, r"got pixels in \[0.*, 1.5\], expected clip_values \[0, 1\]"),
    "too dark": (lambda x: x - 1, "got pixels in"),
}


@pytest.mark.parametrize("name", UNUSABLE)
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_function_whose_pixels_cannot_be_used_is_no_attack_that_always_succeeds(name, bits, wrapped):
    """A classifier gives all images of NaN the same label: an ASR of 1 or 0 that tells nothing."""
    function, message = UNUSABLE[name]
    attack = PoisoningAttackBackdoor(function) if wrapped else function
    classifier = tiny_classifier()
    x = np.linspace(0, 1, 8 * 3 * 144, dtype=np.float32).reshape(8, 3, 12, 12)
    x, y = (np.rint(255 * x).astype(np.uint8) if bits == 8 else x), np.arange(8) % 4
    message = rf"^attack\(x\): {message}"
    with pytest.raises(ValueError, match=message):
        evaluate(classifier, x, y, attack, AllToOne(0))
    with pytest.raises(ValueError, match=message):
        poison(x, y, attack, AllToOne(0), rate=1.0, seed=0)


def test_a_rounding_error_beyond_the_range_is_none_of_the_attack():
    x, y = np.ones((4, 3, 12, 12), dtype=np.float32), np.arange(4)
    assert evaluate(tiny_classifier(), x, y, lambda x: x * np.float32(1 + 1e-6), AllToOne(0)).n_triggered == 3
    with pytest.raises(ValueError, match=r"^attack\(x\): got pixels"):
        evaluate(tiny_classifier(), x, y, lambda x: x * np.float32(1 + 1e-4), AllToOne(0))


def test_the_range_is_the_classifiers_where_a_function_states_none():
    x, y = np.full((4, 3, 12, 12), 200, dtype=np.float32), np.arange(4)
    classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=4, clip_values=(0.0, 255.0))
    assert evaluate(classifier, x, y, lambda x: x + 50, AllToOne(0)).n_triggered == 3
    with pytest.raises(ValueError, match=r"^attack\(x\): got pixels in \[300, 300\], expected clip_values \[0, 255\]"):
        evaluate(classifier, x, y, lambda x: x + 100, AllToOne(0))
    poison(x, y, lambda x: x + 100, AllToOne(0), rate=0.5, seed=0)  # nothing states the range here


def test_covers_and_batches_are_checked_alike():
    class Covers:
        def __call__(self, x):
            return x

        def cover(self, x, rng):
            return x * np.float32(np.nan)

    x, y = np.ones((8, 3, 12, 12), dtype=np.float32), np.arange(8)
    with pytest.raises(ValueError, match=r"^attack\(x\): got NaN"):
        poison(x, y, Covers(), AllToOne(0), rate=0.25, cover_rate=0.25, seed=0)
    for attack, covers in ((Covers(), 1.0), (lambda x: x + 1, 0.0)):
        with pytest.raises(ValueError, match=r"^attack\(x\): got "):
            BatchPoisoning(attack, AllToOne(0), rate=0.25, cover_ratio=covers)(torch.from_numpy(x), torch.from_numpy(y))
