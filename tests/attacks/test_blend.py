"""Blend against its formula, and its own picture against an enlargement by hand."""

import math
import re

import numpy as np
import pytest

from art_aft.attacks import Blend


def images(count=4, channels=3, side=32, dtype=np.float32, scale=1.0):
    return (scale * np.random.default_rng(0).random((count, channels, side, side))).astype(dtype)


def black(channels=1, height=32, width=32):
    return np.zeros((1, channels, height, width))


@pytest.mark.parametrize("ratio", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_blend_with_a_given_pattern_is_the_weighted_mean(ratio, channels):
    x, p = images(3, channels, dtype=np.float64), np.random.default_rng(1).random((channels, 32, 32))
    np.testing.assert_allclose(Blend(p, ratio=ratio)(x), (1 - ratio) * x + ratio * p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.1, 0.2])
def test_blend_is_right_in_float32_and_with_another_range(ratio):
    x = images(scale=255) - 100
    p = np.random.default_rng(1).random((3, 32, 32)) * 255 - 100
    expected = (1 - ratio) * x.astype(np.float64) + ratio * p
    np.testing.assert_allclose(Blend(p, ratio=ratio, clip_values=(-100, 155))(x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("clip_values", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (0.1, 0.7), (-3.3, 1.7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blend_never_rounds_out_of_the_range(clip_values, dtype):
    ends = np.full((2, 1, 4, 4), clip_values[0], dtype)
    ends[1] = clip_values[1]
    low, high = (dtype(end) for end in clip_values)
    for ratio in np.random.default_rng(0).uniform(0.01, 1, 100):
        for end in clip_values:
            triggered = Blend(np.full((1, 4, 4), end), ratio=ratio, clip_values=clip_values)(ends)
            assert (low <= triggered).all()
            assert (triggered <= high).all()


def test_blend_has_a_ratio_of_a_fifth():
    x, p = images(dtype=np.float64), np.ones((3, 32, 32))
    np.testing.assert_allclose(Blend(p)(x), 0.8 * x + 0.2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.1, 0.2])
@pytest.mark.parametrize("seed", [0, 3])
def test_blends_own_picture_is_blended_with_the_same_weights(ratio, seed):
    picture = Blend(ratio=1.0, seed=seed)(black(3))[0]
    x = images(dtype=np.float64)
    expected = (1 - ratio) * x + ratio * picture
    np.testing.assert_allclose(Blend(ratio=ratio, seed=seed)(x), expected, rtol=0, atol=1e-12)


def test_blends_own_picture_depends_on_the_seed_only():
    first, again, other = (Blend(ratio=1.0, seed=seed)(black(3)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.1


def test_blends_own_picture_is_smooth_coloured_and_of_high_contrast():
    picture = Blend(ratio=1.0)(black(3, 64, 64))[0]
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert picture.std() > 0.15
    assert np.abs(np.diff(picture, axis=1)).max() < 0.25  # independent noise comes close to 1
    assert np.abs(np.diff(picture, axis=2)).max() < 0.25
    assert np.abs(picture[0] - picture[1]).mean() > 0.1
    assert np.abs(picture[1] - picture[2]).mean() > 0.1


def test_blends_own_picture_looks_alike_at_every_size():
    small, large = (Blend(ratio=1.0)(black(3, side, side))[0] for side in (32, 64))
    shrunk = large.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(shrunk, small, rtol=0, atol=0.05)


def keys_kernel(distance):
    """Bicubic weights with a = -3/4, as PyTorch has them."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 16, 24)])
def test_blends_own_picture_is_an_8x8_grid_of_noise_enlarged_bicubically(channels, height, width):
    def weights(size):
        matrix = np.zeros((size, 8))
        for index in range(size):
            position = (index + 0.5) * 8 / size - 0.5
            for tap in range(math.floor(position) - 1, math.floor(position) + 3):
                matrix[index, min(max(tap, 0), 7)] += keys_kernel(position - tap)
        return matrix

    grid = np.random.default_rng(5).random((channels, 8, 8))
    expected = np.clip(weights(height) @ grid @ weights(width).T, 0, 1)
    picture = Blend(ratio=1.0, seed=5)(black(channels, height, width))[0]
    np.testing.assert_allclose(picture, expected, rtol=0, atol=1e-9)


def test_blends_picture_can_be_noise_pixel_by_pixel_or_a_single_colour():
    by_pixel = Blend(ratio=1.0, seed=5, grid_size=None)(black(3))[0]
    np.testing.assert_array_equal(by_pixel, np.random.default_rng(5).random((3, 32, 32)))
    colour = Blend(ratio=1.0, seed=5, grid_size=1)(black(3))[0]
    expected = np.random.default_rng(5).random((3, 1, 1))
    np.testing.assert_allclose(colour, np.broadcast_to(expected, colour.shape), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="grid_size"):
        Blend(grid_size=0)


def test_blend_keeps_its_own_copy_of_the_pattern():
    pattern = np.ones((1, 32, 32))
    trigger = Blend(pattern, ratio=0.5)
    pattern[:] = 0
    assert (trigger(black()) == 0.5).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratio": 0}, ValueError, "ratio: got 0, expected a number > 0 and <= 1"),
        ({"ratio": 1.1}, ValueError, "ratio: got 1.1"),
        ({"ratio": -0.2}, ValueError, "ratio: got -0.2"),
        ({"ratio": np.nan}, ValueError, "ratio: got nan"),
        ({"ratio": "0.2"}, TypeError, "ratio: got '0.2'"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"seed": 1.5}, TypeError, "seed: got 1.5"),
        ({"seed": None}, TypeError, "seed: got None"),
        ({"pattern": np.ones((32, 32))}, ValueError, "pattern: got shape (32, 32), expected (C, H, W)"),
        ({"pattern": np.full((3, 4, 4), 2)}, ValueError, "pattern: got values outside clip_values [0, 1]"),
        ({"pattern": np.full((3, 4, 4), np.nan)}, ValueError, "pattern: got NaN or infinite values"),
    ],
)
def test_blend_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        Blend(**arguments)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 31), (32, 32, 3)])
def test_blend_refuses_images_that_the_pattern_does_not_fit(shape):
    with pytest.raises(ValueError, match=rf"^pattern: got shape {re.escape(str(shape))}, expected that of the images"):
        Blend(np.ones(shape))(images())
