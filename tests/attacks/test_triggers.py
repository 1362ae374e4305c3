"""Triggers: a contract that all of them keep, then each one against its formula."""

import math
import re

import numpy as np
import pytest
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.attacks.poisoning.perturbations import add_pattern_bd

from art_aft.attacks import PERTURBATIONS, SIG, BadNets, Blend, stamp

GRID = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]])


def images(count=4, channels=3, side=32, dtype=np.float32, scale=1.0):
    return (scale * np.random.default_rng(0).random((count, channels, side, side))).astype(dtype)


def black(channels=1, height=32, width=32):
    return np.zeros((1, channels, height, width))


every_trigger = pytest.mark.parametrize("trigger", [make() for make in PERTURBATIONS.values()], ids=list(PERTURBATIONS))


def test_the_papers_triggers_are_registered():
    assert PERTURBATIONS["badnets"] is BadNets
    assert PERTURBATIONS["blend"] is Blend
    assert PERTURBATIONS["sig"] is SIG


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown attack 'nope', expected one of: .*badnets, blend, .*sig"):
        PERTURBATIONS["nope"]


# The contract


@every_trigger
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_shape_and_type_are_kept(trigger, dtype, count):
    x = images(count, dtype=dtype)
    result = trigger(x)
    assert result.shape == x.shape
    assert result.dtype == dtype


@every_trigger
def test_all_images_change_and_stay_in_range(trigger):
    x = images()
    result = trigger(x)
    assert (result != x).any(axis=(1, 2, 3)).all()
    assert result.min() >= 0
    assert result.max() <= 1


@every_trigger
def test_the_input_is_left_alone(trigger):
    x = images()
    x.setflags(write=False)
    result = trigger(x)
    assert not np.shares_memory(result, x)
    np.testing.assert_array_equal(x, images())


@every_trigger
def test_the_trigger_is_the_same_every_time(trigger):
    first = trigger(images())
    trigger(1 - images(7))  # other calls in between leave no trace
    np.testing.assert_array_equal(trigger(images()), first)


@every_trigger
def test_a_new_object_makes_the_same_trigger(trigger):
    np.testing.assert_array_equal(type(trigger)()(images()), trigger(images()))


@every_trigger
def test_each_image_is_independent_of_its_batch(trigger):
    x = images(5)
    together = trigger(x)
    alone = np.concatenate([trigger(x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(trigger(x[::-1]), together[::-1], rtol=0, atol=1e-6)


@every_trigger
def test_channels_last_is_channels_first_transposed(trigger):
    x = images()
    last = type(trigger)(channels_first=False)
    np.testing.assert_allclose(last(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), trigger(x), rtol=0, atol=1e-6)


@every_trigger
def test_a_range_of_255_scales_the_trigger(trigger):
    bytes_like = type(trigger)(clip_values=(0, 255))(images(dtype=np.float64, scale=255))
    np.testing.assert_allclose(bytes_like / 255, trigger(images(dtype=np.float64)), rtol=0, atol=1e-6)


@every_trigger
@pytest.mark.parametrize("broadcast", [True, False])
@pytest.mark.parametrize("as_list", [True, False])
def test_arts_backdoor_attack_runs_it(trigger, broadcast, as_list):
    x, target = images(), np.eye(10, dtype=np.float32)[7]
    attack = PoisoningAttackBackdoor([trigger] if as_list else trigger)
    poisoned, labels = attack.poison(x, y=target if broadcast else np.tile(target, (4, 1)), broadcast=broadcast)
    assert poisoned.dtype == x.dtype
    np.testing.assert_array_equal(poisoned, trigger(x))
    assert labels.shape == (4, 10)
    assert labels.argmax(axis=1).tolist() == [7] * 4
    np.testing.assert_array_equal(x, images())


@every_trigger
def test_the_global_random_state_is_left_alone(trigger):
    before = np.random.get_state()[1].copy()
    type(trigger)()(images())
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@every_trigger
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (images() * np.nan, ValueError, "got NaN or infinite pixels"),
        (np.where(images() > 0.5, np.inf, 0), ValueError, "got NaN or infinite pixels"),
        (np.zeros((1, 3, 32, 32), dtype=np.uint8), TypeError, "got dtype uint8, expected floating-point"),
        (np.zeros((3, 32, 32)), ValueError, "got shape (3, 32, 32), expected (N, C, H, W)"),
        (np.full((1, 3, 32, 32), 1.01), ValueError, "got pixels in [1.01, 1.01], expected clip_values [0, 1]"),
        (np.full((1, 3, 32, 32), -0.01), ValueError, "got pixels in [-0.01, -0.01], expected clip_values [0, 1]"),
        (images().tolist(), TypeError, "got list, expected a numpy array"),
    ],
    ids=["nan", "inf", "integers", "rank 3", "above", "below", "list"],
)
def test_bad_images_are_refused(trigger, x, error, message):
    with pytest.raises(error, match=f"^x: {re.escape(message)}"):
        trigger(x)


@every_trigger
@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        ({"channels_first": 1}, TypeError, r"^channels_first: got 1 \(int\), expected True or False"),
        ({"channels_first": "NCHW"}, TypeError, r"^channels_first: got 'NCHW'"),
        ({"channels_first": None}, TypeError, r"^channels_first: got None"),
        ({"clip_values": (1, 0)}, ValueError, r"^clip_values: got \(1, 0\)"),
        ({"clip_values": None}, ValueError, r"^clip_values: got None"),
    ],
)
def test_a_bad_layout_is_refused(trigger, layout, error, message):
    with pytest.raises(error, match=message):
        type(trigger)(**layout)


# BadNets


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
        ({"pattern": [[np.nan]]}, ValueError, "pattern: got values outside clip_values [0, 1]"),
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


# Blend


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
        ({"pattern": np.full((3, 4, 4), np.nan)}, ValueError, "pattern: got values outside clip_values [0, 1]"),
    ],
)
def test_blend_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        Blend(**arguments)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 31), (32, 32, 3)])
def test_blend_refuses_images_that_the_pattern_does_not_fit(shape):
    with pytest.raises(ValueError, match=rf"^pattern: got shape {re.escape(str(shape))}, expected that of the images"):
        Blend(np.ones(shape))(images())


# SIG


def wave(column, width, delta=20 / 255, frequency=6.0):
    return delta * math.sin(2 * math.pi * column * frequency / width)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 20)])
@pytest.mark.parametrize("settings", [{}, {"delta": 0.3, "frequency": 2.5}])
def test_sig_adds_a_sine_along_the_columns_and_clips(channels, height, width, settings):
    x = np.random.default_rng(0).random((2, channels, height, width))
    result = SIG(**settings)(x)
    for image in range(2):
        for channel in range(channels):
            for row in range(height):
                for column in range(width):
                    value = x[image, channel, row, column] + wave(column, width, **settings)
                    assert result[image, channel, row, column] == pytest.approx(min(max(value, 0), 1), abs=1e-12)


def test_sig_clips_at_both_ends():
    high, low = SIG()(np.ones((1, 1, 1, 32)))[0, 0, 0], SIG()(np.zeros((1, 1, 1, 32)))[0, 0, 0]
    for column in range(32):
        assert high[column] == pytest.approx(1 + min(wave(column, 32), 0), abs=1e-12)
        assert low[column] == pytest.approx(max(wave(column, 32), 0), abs=1e-12)
    assert high.max() == 1
    assert low.min() == 0
    assert high.min() < 0.93
    assert low.max() > 0.07


def test_sig_amplitude_is_a_share_of_the_range():
    row = SIG(delta=0.1, frequency=1, clip_values=(-100, 155))(np.zeros((1, 1, 1, 4)))[0, 0, 0]
    np.testing.assert_allclose(row, [0, 25.5, 0, -25.5], rtol=0, atol=1e-12)


def test_sig_has_six_waves_at_every_width():
    for width in (48, 224):
        row = SIG()(np.full((1, 1, 1, width), 0.5))[0, 0, 0] - 0.5
        assert np.abs(np.fft.rfft(row)).argmax() == 6


def test_sig_keeps_zero_crossings_after_rounding_to_8_bits():
    grey = np.full((1, 1, 1, 32), 100 / 255, dtype=np.float32)
    assert np.rint(SIG()(grey) * 255)[0, 0, 0, [0, 8, 16, 24]].tolist() == [100, 100, 100, 100]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"delta": 0}, ValueError, "delta: got 0, expected a number > 0 and <= 1"),
        ({"delta": 20}, ValueError, "delta: got 20"),
        ({"delta": np.nan}, ValueError, "delta: got nan"),
        ({"delta": "20/255"}, TypeError, "delta: got '20/255'"),
        ({"frequency": 0}, ValueError, "frequency: got 0, expected a number > 0"),
        ({"frequency": np.inf}, ValueError, "frequency: got inf"),
        ({"frequency": None}, TypeError, "frequency: got None"),
    ],
)
def test_sig_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        SIG(**arguments)


# stamp


def test_stamp_takes_arts_attack_and_a_bare_perturbation_alike():
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
