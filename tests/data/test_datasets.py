"""The embedded digits are scikit-learn's, whole and exact; the defender's share is drawn fairly."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from art_aft.data.datasets import digits, split_clean


@pytest.fixture(scope="module")
def data():
    return digits()


def test_digits_have_the_documented_shapes_types_and_range(data):
    assert data.name == "digits"
    assert data.x_train.shape == (1200, 1, 16, 16)
    assert data.x_test.shape == (597, 1, 16, 16)
    assert data.y_train.shape == (1200,)
    assert data.y_test.shape == (597,)
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert data.clip_values == (0.0, 1.0)
    assert data.nb_classes == 10
    assert data.input_shape == (1, 16, 16)
    assert data.horizontal_flip is False


def test_each_raw_digit_appears_exactly_once_with_its_label(data):
    raw = load_digits()
    expected = Counter((image.tobytes(), label) for image, label in zip(raw.images, raw.target, strict=True))
    # Every pixel is a number of 16ths, so float32 holds it exactly.
    images = np.concatenate([data.x_train, data.x_test])[:, 0, ::2, ::2].astype(np.float64) * 16
    labels = np.concatenate([data.y_train, data.y_test])
    assert Counter((image.tobytes(), label) for image, label in zip(images, labels, strict=True)) == expected


@pytest.mark.parametrize("part", ["x_train", "x_test"])
def test_each_raw_pixel_became_a_square_of_2x2(data, part):
    x = getattr(data, part)
    corner = x[:, :, ::2, ::2]
    for row, column in ((0, 1), (1, 0), (1, 1)):
        np.testing.assert_array_equal(x[:, :, row::2, column::2], corner)


def test_both_parts_hold_all_classes(data):
    assert set(data.y_train.tolist()) == set(data.y_test.tolist()) == set(range(10))


def test_the_seed_fixes_the_split(data):
    again, other = digits(seed=0), digits(seed=1)
    np.testing.assert_array_equal(again.x_train, data.x_train)
    np.testing.assert_array_equal(again.y_test, data.y_test)
    assert (other.y_train != data.y_train).any()


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), (None, TypeError)])
def test_digits_refuse_a_bad_seed(seed, error):
    with pytest.raises(error, match=f"^seed: got {seed}"):
        digits(seed=seed)


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize(("share", "size"), [(0.05, 50), (0.2, 200), (0.99, 990)])
def test_the_defenders_share_and_the_rest_make_up_the_whole(share, size, stratify):
    clean, rest = split_clean(np.arange(1000) % 10, share, seed=0, stratify=stratify)
    assert len(clean) == size
    assert np.concatenate([clean, rest]).size == 1000
    assert set(clean.tolist()) | set(rest.tolist()) == set(range(1000))
    assert clean.tolist() == sorted(clean.tolist())
    assert rest.tolist() == sorted(rest.tolist())


def test_a_stratified_share_is_the_share_of_each_class():
    y = np.repeat([0, 1, 2], [10, 20, 30])
    clean, rest = split_clean(y, 0.2, seed=0, stratify=True)
    assert np.bincount(y[clean]).tolist() == [2, 4, 6]
    assert np.bincount(y[rest]).tolist() == [8, 16, 24]


def test_a_uniform_share_is_not_stratified():
    y = np.repeat([0, 1], 50)
    counts = {int((y[split_clean(y, 0.2, seed=seed)[0]] == 0).sum()) for seed in range(10)}
    assert len(counts) > 1


def test_the_share_rounds():
    assert len(split_clean(np.zeros(29), 0.1, seed=0)[0]) == 3
    assert len(split_clean(np.zeros(31), 0.1, seed=0)[0]) == 3


@pytest.mark.parametrize("stratify", [False, True])
def test_the_seed_fixes_the_share(stratify):
    y = np.arange(100) % 10

    def draw(seed):
        return split_clean(y, 0.3, seed=seed, stratify=stratify)[0].tolist()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_one_hot_labels_give_the_same_share():
    y = np.arange(100) % 10
    for left, right in zip(
        split_clean(y, 0.3, seed=0, stratify=True),
        split_clean(np.eye(10)[y], 0.3, seed=0, stratify=True),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()
    digits(seed=5)
    split_clean(np.arange(10), 0.5, seed=5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"share": 0}, ValueError, r"^share: got 0, expected a number > 0"),
        ({"share": 1.1}, ValueError, r"^share: got 1.1, expected"),
        ({"share": np.nan}, ValueError, r"^share: got nan"),
        ({"share": "5%"}, TypeError, r"^share: got '5%'"),
        ({"share": 1.0}, ValueError, r"^share: got 1 of 20 samples, expected both parts"),
        ({"share": 0.01}, ValueError, r"^share: got 0.01 of 20 samples, expected both parts"),
        ({"seed": -1}, ValueError, r"^seed: got -1"),
        ({"seed": None}, TypeError, r"^seed: got None"),
        ({"stratify": 1}, TypeError, r"^stratify: got 1"),
        ({"y": None}, ValueError, r"^y: got None"),
        ({"y": np.array([])}, ValueError, r"^y: got no labels"),
    ],
)
def test_a_bad_share_is_refused(change, error, message):
    arguments = {"y": np.arange(20) % 2, "share": 0.5, "seed": 0} | change
    with pytest.raises(error, match=message):
        split_clean(**arguments)
