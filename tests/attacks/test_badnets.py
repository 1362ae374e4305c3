"""BadNets against hand-made patches."""

import re

import numpy as np
import pytest
from art.attacks.poisoning.perturbations import add_pattern_bd

from art_aft.attacks import BadNets

GRID = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]])


def images(count=4, channels=3, side=32, dtype=np.float32, scale=1.0):
    return (scale * np.random.default_rng(0).random((count, channels, side, side))).astype(dtype)


def black(channels=1, height=32, width=32):
    return np.zeros((1, channels, height, width))


@pytest.mark.parametrize("channels", [1, 3])
def test_badnets_puts_the_grid_into_the_corner_of_all_channels(channels):
    x = images(2, channels)
    expected = x.copy()
    expected[:, :, 29, 29:] = [0, 0, 1]
    expected[:, :, 30, 29:] = [0, 1, 0]
    expected[:, :, 31, 29:] = [1, 0, 1]
    np.testing.assert_array_equal(BadNets()(x), expected)


def test_badnets_at_64_has_cells_of_2x2():
    expected = images(2, side=64)
    expected[:, :, 58:, 58:] = [
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(BadNets()(images(2, side=64)), expected)


def test_badnets_at_224_has_cells_of_7x7():
    expected = images(1, side=224)
    for row in range(21):
        for column in range(21):
            expected[:, :, 203 + row, 203 + column] = GRID[row // 7, column // 7]
    np.testing.assert_array_equal(BadNets()(images(1, side=224)), expected)


@pytest.mark.parametrize(
    ("height", "width", "cell"), [(3, 3, 1), (16, 16, 1), (47, 47, 1), (49, 49, 2), (32, 224, 1), (224, 64, 2)]
)
def test_badnets_cells_grow_with_the_shorter_side(height, width, cell):
    x = BadNets()(black(1, height, width))
    assert x.sum() == 4 * cell**2  # the grid has four white cells
    assert x[0, 0, -cell:, -cell:].all()
    assert x[0, 0, -cell:, -3 * cell : -2 * cell].all()


def test_badnets_white_cells_are_those_of_arts_pattern():
    x = np.zeros((2, 32, 32, 3))
    np.testing.assert_array_equal(BadNets(channels_first=False)(x), add_pattern_bd(x, distance=1))


def test_badnets_uses_the_ends_of_the_range():
    x = np.full((1, 1, 8, 8), 100.0)
    x = BadNets(clip_values=(-50, 255))(x)
    np.testing.assert_array_equal(x[0, 0, 5:, 5:], [[-50, -50, 255], [-50, 255, -50], [255, -50, 255]])
    assert (x == 100).sum() == 64 - 9


def test_badnets_margin_moves_the_patch_off_both_borders():
    expected = images(2)
    expected[:, :, 28:31, 28:31] = 1  # "square" of the NAD release
    np.testing.assert_array_equal(BadNets(np.ones((3, 3)), margin=1)(images(2)), expected)


def test_badnets_margin_moves_the_default_grid_too():
    expected = images(2)
    expected[:, :, 27:30, 27:30] = GRID
    np.testing.assert_array_equal(BadNets(margin=2)(images(2)), expected)


def test_badnets_mask_keeps_the_image_where_it_is_zero():
    pattern = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]
    mask = [[1, 0, 0, 1], [0, 1, 0, 0]]
    expected = images(2, dtype=np.float64)
    expected[:, :, 30, 28] = 0.1
    expected[:, :, 30, 31] = 0.4
    expected[:, :, 31, 29] = 0.6
    np.testing.assert_array_equal(BadNets(pattern, mask)(images(2, dtype=np.float64)), expected)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("mask_of_channels", [True, False])
def test_badnets_takes_a_whole_image_with_a_mask(channels_first, mask_of_channels):
    rng = np.random.default_rng(1)
    x, p = rng.random((4, 3, 8, 10)), rng.random((3, 8, 10))
    m = rng.integers(0, 2, (3, 8, 10) if mask_of_channels else (8, 10))
    trigger = BadNets(p, m.astype(bool), channels_first=channels_first)
    result = trigger(x) if channels_first else trigger(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(result, (1 - m) * x + m * p)


def test_badnets_keeps_its_own_copy_of_the_pattern():
    pattern, mask = np.ones((2, 2)), np.ones((2, 2), dtype=int)
    trigger = BadNets(pattern, mask)
    pattern[:], mask[:] = 0, 0
    assert trigger(black()).sum() == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"margin": -1}, ValueError, "margin: got -1, expected an integer >= 0"),
        ({"margin": 1.0}, TypeError, "margin: got 1.0"),
        ({"margin": True}, TypeError, "margin: got True"),
        ({"pattern": 1.0}, ValueError, "pattern: got shape (), expected (h, w) or (C, H, W)"),
        ({"pattern": np.ones((0, 3))}, ValueError, "pattern: got shape (0, 3)"),
        ({"pattern": np.ones((1, 3, 3, 3))}, ValueError, "pattern: got shape (1, 3, 3, 3)"),
        ({"pattern": [[255.0]]}, ValueError, "pattern: got values outside clip_values [0, 1]"),
        ({"pattern": [[np.nan]]}, ValueError, "pattern: got NaN or infinite values"),
        (
            {"pattern": [[-1.0]], "clip_values": (0, 255)},
            ValueError,
            "pattern: got values outside clip_values [0, 255]",
        ),
        ({"pattern": np.ones((3, 8, 8))}, ValueError, "mask: got None, expected a mask"),
        ({"mask": np.ones((3, 3))}, ValueError, "mask: got a mask without a pattern"),
        ({"pattern": np.ones((3, 3)), "mask": np.ones((3, 2))}, ValueError, "mask: got shape (3, 2)"),
        ({"pattern": np.ones((3, 8, 8)), "mask": np.ones((8, 7))}, ValueError, "mask: got shape (8, 7)"),
        ({"pattern": np.ones((1, 2)), "mask": [[0, 0.5]]}, ValueError, "mask: got other values"),
    ],
)
def test_badnets_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        BadNets(**arguments)


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (BadNets(np.ones((9, 3))), "pattern: got (9, 3) with margin 0, expected one that fits 8x8"),
        (BadNets(np.ones((3, 9))), "pattern: got (3, 9) with margin 0, expected one that fits 8x8"),
        (BadNets(margin=6), "pattern: got (3, 3) with margin 6, expected one that fits 8x8"),
        (BadNets(np.ones((3, 8, 9)), np.ones((8, 9))), "pattern: got shape (3, 8, 9), expected that of the images, (3"),
        (BadNets(np.ones((1, 8, 8)), np.ones((8, 8))), "pattern: got shape (1, 8, 8), expected that of the images, (3"),
    ],
)
def test_badnets_refuses_images_that_the_pattern_does_not_fit(trigger, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        trigger(images(side=8))


def test_badnets_fits_exactly():
    assert (BadNets(np.ones((8, 8)))(images(side=8)) == 1).all()
    assert BadNets(margin=5)(black(1, 8, 8))[0, 0, :3, :3].tolist() == GRID.tolist()


def test_badnets_result_is_in_range_for_pixels_that_overshoot_by_a_rounding_error():
    assert BadNets()(np.full((1, 1, 8, 8), 1 + 5e-6)).max() <= 1


def test_badnets_refuses_a_margin_that_a_whole_image_cannot_keep():
    with pytest.raises(ValueError, match=r"^margin: got 2"):
        BadNets(np.ones((3, 8, 8)), np.ones((8, 8)), margin=2)
