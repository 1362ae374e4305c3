"""WaNet against hand-made fields."""

import numpy as np
import pytest
import torch

from art_aft.attacks import WaNet


def images(count=3, channels=3, side=32, dtype=np.float32):
    return np.random.default_rng(0).random((count, channels, side, side)).astype(dtype)


def test_a_zero_field_changes_nothing():
    x = images()
    np.testing.assert_allclose(WaNet(np.zeros((2, 4, 4)))(x), x, atol=1e-5)


def test_a_constant_field_shifts_by_the_stated_part_of_a_pixel():
    # Displacement s * field * (W - 1) / (2 W) pixels to the right: field 1, s = 1, W = 32 gives 31/64 of a pixel.
    points = np.stack([np.ones((4, 4)), np.zeros((4, 4))])
    ramp = np.broadcast_to(np.arange(32) / 64, (1, 1, 32, 32)).astype(np.float32)
    shifted = WaNet(points, strength=1.0)(ramp)
    expected = np.minimum(np.arange(32) + 31 / 64, 31) / 64
    np.testing.assert_allclose(shifted[0, 0], np.broadcast_to(expected, (32, 32)), atol=1e-6)


def test_the_second_channel_moves_vertically():
    points = np.stack([np.zeros((4, 4)), np.ones((4, 4))])
    ramp = np.broadcast_to(np.arange(32)[:, None] / 64, (1, 1, 32, 32)).astype(np.float32)
    expected = np.minimum(np.arange(32) + 31 / 64, 31) / 64
    np.testing.assert_allclose(WaNet(points, strength=1.0)(ramp)[0, 0, :, 5], expected, atol=1e-6)


def test_rounding_does_not_leave_the_range():
    x = np.full((2, 3, 32, 32), 0.7, dtype=np.float32)
    grids = torch.from_numpy(WaNet().grid(32, 32)).float().expand(2, -1, -1, -1)
    sampled = torch.nn.functional.grid_sample(torch.from_numpy(x), grids, align_corners=True)
    assert sampled.max() > x.max()
    assert WaNet(clip_values=(0, x.max().item()))(x).max() <= x.max()


def test_sampling_is_bilinear_at_the_grid():
    trigger = WaNet(seed=3)
    x, grid = images(1, 2, 16, np.float64), trigger.grid(16, 16)
    warped = trigger(x)
    for row, column in [(0, 0), (5, 9), (15, 15), (8, 3)]:
        across, down = (grid[row, column] + 1) / 2 * 15
        left, top = min(int(across), 14), min(int(down), 14)
        u, v = across - left, down - top
        square = x[0, :, top : top + 2, left : left + 2]
        value = (
            square[:, 0, 0] * (1 - u) * (1 - v)
            + square[:, 0, 1] * u * (1 - v)
            + square[:, 1, 0] * (1 - u) * v
            + square[:, 1, 1] * u * v
        )
        np.testing.assert_allclose(warped[0, :, row, column], value, atol=1e-12)


def test_the_field_meets_its_control_points_at_the_corners():
    trigger = WaNet(seed=1, strength=0.5)
    grid = trigger.grid(32, 32)
    # Bottom right: identity 1, moved by s * c / 32 and clipped; top left likewise from -1.
    for (row, column), corner in {(0, 0): (0, 0), (0, 31): (0, 3), (31, 0): (3, 0), (31, 31): (3, 3)}.items():
        identity = np.array([-1 + 2 * column / 31, -1 + 2 * row / 31])
        moved = identity + 0.5 * trigger.control_points[:, corner[0], corner[1]] / 32
        np.testing.assert_allclose(grid[row, column], np.clip(moved, -1, 1), atol=1e-12)


def test_drawn_control_points_have_mean_magnitude_one_and_given_ones_stay():
    assert np.abs(WaNet(seed=5).control_points).mean() == pytest.approx(1.0)
    given = np.full((2, 3, 3), 0.3)
    np.testing.assert_array_equal(WaNet(given).control_points, given)


@pytest.mark.parametrize(("side", "factor"), [(28, 1), (32, 1), (64, 2), (224, 7)])
def test_strength_grows_with_the_side_above_32(side, factor):
    points = np.full((2, 4, 4), 0.25)
    moved = WaNet(points).grid(side, side)[side // 2, side // 2] - (-1 + 2 * (side // 2) / (side - 1))
    np.testing.assert_allclose(moved, factor * 0.5 * 0.25 / side, rtol=1e-9)


def test_covers_have_their_own_noise_and_come_again_from_the_same_generator():
    x = np.repeat(images(1), 3, axis=0)
    trigger = WaNet()
    covers = trigger.cover(x, np.random.default_rng(0))
    assert (covers[0] != covers[1]).any()
    np.testing.assert_array_equal(covers, trigger.cover(x, np.random.default_rng(0)))
    assert (covers != trigger(x)).mean() > 0.9


def test_nhwc_covers_are_those_of_nchw():
    x = images()
    first = WaNet().cover(x, np.random.default_rng(0))
    last = WaNet(channels_first=False).cover(np.moveaxis(x, 1, -1), np.random.default_rng(0))
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), first)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 64, 224])
def test_any_size(channels, side):
    x = images(2, channels, side)
    warped = WaNet()(x)
    assert warped.shape == x.shape
    assert 0 < np.abs(warped - x).mean() < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"control_points": np.zeros((3, 4, 4))}, r"control_points: got shape \(3, 4, 4\)"),
        ({"control_points": np.full((2, 4, 4), np.nan)}, "control_points: got NaN"),
        ({"strength": -1.0}, "strength: got -1.0"),
        ({"grid_size": 1}, "grid_size: got 1"),
        ({"grid_rescale": 0.0}, "grid_rescale: got 0.0"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WaNet(**arguments)
