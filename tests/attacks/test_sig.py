"""SIG against a sine by hand."""

import math
import re

import numpy as np
import pytest

from art_aft.attacks import SIG


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
