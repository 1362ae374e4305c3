"""Every check returns a clean value, or an error that names the argument and what came."""

import re

import numpy as np
import pytest

from art_aft.checks import (
    at_most,
    check_choice,
    check_clip_values,
    check_flag,
    check_images,
    check_integer,
    check_labels,
    check_number,
    whole,
)

UNIT = (0.0, 1.0)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_any_kind_become_int(value):
    result = check_integer("size", value, 3)
    assert result == 3
    assert type(result) is int


@pytest.mark.parametrize(
    ("value", "shown"),
    [(True, "True"), (np.bool_(True), "True"), (2.0, "2.0"), ("2", "'2'"), (None, "None"), ([2], r"\[2\]")],
)
def test_integers_are_not_guessed_from_other_types(value, shown):
    with pytest.raises(TypeError, match=rf"^size: got .*{shown}.*expected an integer"):
        check_integer("size", value, 0)


def test_an_integer_below_the_minimum_is_refused():
    with pytest.raises(ValueError, match=r"^size: got 2, expected an integer >= 3"):
        check_integer("size", 2, 3)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int8(1)])
def test_numbers_of_any_kind_become_float(value):
    result = check_number("rate", value, minimum=0, maximum=1)
    assert result == 1.0
    assert type(result) is float


@pytest.mark.parametrize("value", [True, np.bool_(False), "1", None, 1j, [1.0]])
def test_numbers_are_not_guessed_from_other_types(value):
    with pytest.raises(TypeError, match=r"^rate: got .*expected a number"):
        check_number("rate", value)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (-0.1, {"minimum": 0}, "got -0.1, expected a number >= 0"),
        (1.5, {"minimum": 0, "maximum": 1}, "got 1.5, expected a number >= 0 and <= 1"),
        (0, {"minimum": 0, "above": True}, "got 0, expected a number > 0"),
        (float("nan"), {}, "got nan, expected a number finite"),
        (float("nan"), {"minimum": 0}, "got nan, expected a number >= 0"),
        (float("inf"), {"minimum": 0}, "got inf, expected a number >= 0"),
        (float("-inf"), {}, "got -inf, expected a number finite"),
    ],
)
def test_a_number_out_of_bounds_is_refused(value, bounds, message):
    with pytest.raises(ValueError, match=f"^rate: {message}$"):
        check_number("rate", value, **bounds)


def test_bounds_belong_to_the_range_unless_above_is_asked():
    assert check_number("rate", 0, minimum=0, maximum=1) == 0
    assert check_number("rate", 1, minimum=0, maximum=1, above=True) == 1


def test_a_choice_is_returned_as_it_came():
    assert check_choice("norm", 2, ("inf", 2)) == 2


@pytest.mark.parametrize("value", ["l1", True, 1.0, None])
def test_a_choice_must_equal_an_option_in_type_too(value):
    with pytest.raises(ValueError, match=rf"^norm: got {value!r}, expected one of 'inf', 1$"):
        check_choice("norm", value, ("inf", 1))


@pytest.mark.parametrize("value", [True, np.bool_(True)])
def test_flags_become_bool(value):
    assert check_flag("verbose", value) is True


@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_flags_are_not_guessed_from_other_types(value):
    with pytest.raises(TypeError, match=rf"^verbose: got {value!r} .*expected True or False"):
        check_flag("verbose", value)


@pytest.mark.parametrize("value", [(0, 255), [0.0, 255.0], np.array([0, 255]), (np.zeros(3), np.full(3, 255))])
def test_clip_values_become_two_floats(value):
    result = check_clip_values("clip_values", value)
    assert result == (0.0, 255.0)
    assert [type(bound) for bound in result] == [float, float]


@pytest.mark.parametrize(
    "value",
    [None, (0,), (0, 1, 2), (1, 0), (1, 1), (0, np.inf), (np.nan, 1), (None, 1), (np.zeros(3), np.array([1, 1, 2]))],
)
def test_clip_values_must_be_one_finite_range(value):
    with pytest.raises(ValueError, match=r"^clip_values: got .*expected \(low, high\)"):
        check_clip_values("clip_values", value)


@pytest.mark.parametrize("value", [255, "01", ("a", "b")])
def test_clip_values_that_are_no_pair_of_numbers_are_refused_by_name(value):
    with pytest.raises((TypeError, ValueError), match=r"^clip_values: got "):
        check_clip_values("clip_values", value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_good_images_are_returned_as_they_are(dtype):
    x = np.array([0, 1], dtype=dtype).reshape(2, 1, 1, 1)
    assert check_images("x", x, clip_values=UNIT, input_shape=(1, 1, 1)) is x


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[[[0.5]]]], TypeError, "got list, expected a numpy array"),
        (np.zeros((2, 3, 3)), ValueError, "got shape (2, 3, 3), expected (N, C, H, W)"),
        (np.zeros((2, 3, 4, 4), dtype=int), TypeError, "got dtype int64, expected floating-point"),
        (np.zeros((2, 3, 4, 4), dtype=complex), TypeError, "got dtype complex128, expected floating-point"),
        (np.full((1, 1, 1, 1), np.nan), ValueError, "got NaN or infinite pixels"),
        (np.array([0, np.inf]).reshape(2, 1, 1, 1), ValueError, "got NaN or infinite pixels"),
        (np.array([0, -np.inf]).reshape(2, 1, 1, 1), ValueError, "got NaN or infinite pixels"),
        (np.array([0, 1.5]).reshape(2, 1, 1, 1), ValueError, "got pixels in [0, 1.5], expected clip_values [0, 1]"),
        (np.array([-0.5, 1]).reshape(2, 1, 1, 1), ValueError, "got pixels in [-0.5, 1], expected clip_values [0, 1]"),
        (np.zeros((0, 3, 4, 4)), ValueError, "got an empty set of shape (0, 3, 4, 4)"),
    ],
)
def test_bad_images_are_refused(x, error, message):
    with pytest.raises(error, match=f"^x: {re.escape(message)}"):
        check_images("x", x, clip_values=UNIT)


def test_images_must_have_the_known_shape():
    with pytest.raises(ValueError, match=r"^x: got shape \(2, 8, 8, 3\), expected \(N, 3, 8, 8\)"):
        check_images("x", np.zeros((2, 8, 8, 3)), clip_values=UNIT, input_shape=(3, 8, 8))


def test_an_empty_batch_passes_only_where_it_is_allowed():
    x = np.zeros((0, 3, 4, 4))
    assert check_images("x", x, clip_values=UNIT, allow_empty=True) is x
    with pytest.raises(ValueError, match=r"^x: got an empty set of shape \(2, 0, 4, 4\)"):
        check_images("x", np.zeros((2, 0, 4, 4)), clip_values=UNIT, allow_empty=True)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_pixels_may_overshoot_by_a_rounding_error_of_the_range_but_no_more(scale):
    x = np.full((1, 1, 1, 1), scale)
    slightly, clearly = x * (1 + 1e-6), x * (1 + 1e-4)
    assert check_images("x", slightly, clip_values=(0.0, scale)) is slightly
    with pytest.raises(ValueError, match=r"^x: got pixels in .*expected clip_values"):
        check_images("x", clearly, clip_values=(0.0, scale))


@pytest.mark.parametrize(
    "y",
    [
        [2, 0, 1],
        (2, 0, 1),
        np.array([2, 0, 1], dtype=np.uint8),
        np.array([2.0, 0.0, 1.0], dtype=np.float32),
        np.array([[2], [0], [1]]),
        np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
        np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=np.float32),
        np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=bool),
    ],
    ids=["list", "tuple", "uint8", "float", "column", "one-hot", "float one-hot", "bool one-hot"],
)
def test_labels_of_any_form_become_indices(y):
    labels = check_labels("y", y, nb_classes=3, nb_samples=3)
    assert labels.dtype == np.int64
    assert labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "got None, expected labels"),
        (["cat", "dog", "cow"], "got an array of dtype <U3 and shape (3,)"),
        (1, "got an array of dtype int64 and shape ()"),
        (np.zeros((3, 3, 1)), "got an array of dtype float64 and shape (3, 3, 1)"),
        ([0, 1, 3], "got labels in [0, 3], expected 0 to 2"),
        ([-1, 1, 2], "got labels in [-1, 2], expected 0 to 2"),
        ([0, 1], "got 2 labels, expected one for each of the 3 images"),
        ([0.5, 1, 2], "got labels that are not whole numbers"),
        ([np.nan, 1, 2], "got labels that are not whole numbers"),
        ([np.inf, 1, 2], "got labels that are not whole numbers"),
        (np.eye(4)[:3], "got one-hot rows of length 4, expected nb_classes 3"),
        (np.full((3, 3), 1 / 3), "got rows that are not one-hot (soft labels or scores?), expected a single 1"),
        (0.9 * np.eye(3) + 0.1 / 3, "got rows that are not one-hot (soft labels or scores?)"),
        (np.eye(3, dtype=int) * 2, "got rows that are not one-hot (soft labels or scores?)"),
        (np.zeros((3, 3)), "got rows that are not one-hot (multi-label rows?)"),
        (np.tri(3, dtype=bool), "got rows that are not one-hot (multi-label rows?), expected a single 1"),
    ],
)
def test_bad_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=f"^y: {re.escape(message)}"):
        check_labels("y", y, nb_classes=3, nb_samples=3)


def test_negative_labels_are_refused_without_a_number_of_classes():
    with pytest.raises(ValueError, match=r"^y: got labels in \[-1, 7\], expected 0 to inf"):
        check_labels("y", [-1, 7])


@pytest.mark.parametrize(
    ("value", "bound", "expected"),
    [(0.8 - 0.7, 0.1, True), (0.1, 0.1, True), (0.1 + 1e-6, 0.1, False), (0.0, 0.1, True), (0.05, 0.0, False)],
)
def test_a_share_of_whole_images_does_not_fall_to_the_side_of_a_rounding_error(value, bound, expected):
    assert at_most(value, bound) is expected


@pytest.mark.parametrize(("value", "expected"), [(0.29 * 100, 29), (3.0, 3), (2.999, 2), (0.0, 0)])
def test_a_number_of_images_is_not_lost_to_rounding(value, expected):
    assert whole(value) == expected
