"""Triggered images from ART's attack, from a trigger, and from any other callable."""

import numpy as np
import pytest
from art.attacks.poisoning import PoisoningAttackBackdoor

from art_aft.attacks import BadNets, stamp

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
