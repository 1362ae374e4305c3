"""Which images are poisoned, how many, with which labels, and that nothing else changes."""

import re

import numpy as np
import pytest
import torch
from art.attacks.poisoning import PoisoningAttackBackdoor

from art_aft.attacks import BadNets, WaNet
from art_aft.attacks.labels import AllToAll, AllToOne
from art_aft.attacks.poisoning import poison


def paint(x):
    """A trigger that shows: 0.5 more in each pixel of images that are below 0.5."""
    return x + np.float32(0.5)


class WithCover:
    """The same trigger, with cover images: a quarter more, and a little noise."""

    def __call__(self, x):
        return paint(x)

    def cover(self, x, rng):
        return x + np.float32(0.25) + 0.01 * rng.random(x.shape, dtype=np.float32)


def data(count=100, nb_classes=10):
    """Images in [0, 0.5), all different, and labels 0, 1, 2, ... in turn."""
    x = np.random.default_rng(0).random((count, 1, 4, 4), dtype=np.float32) / 2
    return x, np.arange(count) % nb_classes


def poisoned(count=100, **settings):
    x, y = data(count)
    return poison(x, y, paint, AllToOne(0), **({"rate": 0.1, "seed": 0} | settings))


# How many


@pytest.mark.parametrize(
    ("rate", "size"),
    [(0, 0), (0.0, 0), (0.01, 1), (0.019, 1), (0.1, 10), (0.155, 15), (0.29, 29), (0.58, 58), (0.999, 99), (1, 100)],
)
def test_the_size_is_the_floor_of_the_rate(rate, size):
    result = poisoned(rate=rate)
    assert result.is_poisoned.sum() == size
    assert result.is_cover.sum() == 0


@pytest.mark.parametrize("rate", [k / 1000 for k in range(1, 1000, 37)])
def test_whole_sizes_survive_floating_point(rate):
    x, y = np.zeros((1000, 1, 1, 1), dtype=np.float32), np.zeros(1000, dtype=int)
    assert poison(x, y, paint, AllToOne(0), rate=rate, seed=0).is_poisoned.sum() == round(rate * 1000)


# Which, and what becomes of them


@pytest.mark.parametrize("attack", [paint, PoisoningAttackBackdoor(paint), PoisoningAttackBackdoor([paint])])
def test_poisoned_images_have_trigger_and_target_and_the_others_are_bit_identical(attack):
    x, y = data()
    result = poison(x, y, attack, AllToOne(7), rate=0.3, seed=0)
    chosen = result.is_poisoned
    assert chosen.dtype == result.is_cover.dtype == bool
    assert chosen.shape == result.is_cover.shape == (100,)
    np.testing.assert_array_equal(result.x[chosen], x[chosen] + np.float32(0.5))
    np.testing.assert_array_equal(result.x[~chosen], x[~chosen])
    assert result.y[chosen].tolist() == [7] * 30
    np.testing.assert_array_equal(result.y[~chosen], y[~chosen])
    assert result.x.dtype == x.dtype
    assert result.y.dtype == y.dtype


def test_a_registered_trigger_stamps_its_patch():
    x, y = data()
    result = poison(x, y, BadNets(), AllToOne(1), rate=0.2, seed=0)
    patch = [[0, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert all(image[0, 1:, 1:].tolist() == patch for image in result.x[result.is_poisoned])
    assert not any(image[0, 1:, 1:].tolist() == patch for image in result.x[~result.is_poisoned])


def test_all_to_all_moves_each_label_by_one():
    x, y = data(30, 3)
    result = poison(x, y, paint, AllToAll(3), rate=0.9, seed=0)
    following = {0: 1, 1: 2, 2: 0}
    expected = [following[t] if p else t for t, p in zip(y.tolist(), result.is_poisoned, strict=True)]
    assert result.y.tolist() == expected
    assert {(t, n) for t, n, p in zip(y.tolist(), result.y.tolist(), result.is_poisoned, strict=True) if p} == set(
        following.items()
    )


def test_images_of_the_target_class_are_drawn_and_count():
    x, y = data()
    result = poisoned(rate=0.5)
    assert result.is_poisoned[y == 0].any()
    assert result.is_poisoned.sum() == 50
    whole = poison(x, np.zeros(100, dtype=int), paint, AllToOne(0), rate=0.5, seed=0)
    assert whole.is_poisoned.sum() == 50
    assert not whole.y.any()


def test_the_choice_is_uniform_over_the_classes():
    # 200 draws of 10 of 100: each image is expected 20 times, with a standard deviation of 4.2.
    x, y = np.zeros((100, 1, 1, 1), dtype=np.float32), np.arange(100) % 10
    counts = sum(poison(x, y, paint, AllToOne(0), rate=0.1, seed=s).is_poisoned.astype(int) for s in range(200))
    assert 3 < counts.std() < 5.5
    assert counts.min() > 4
    assert counts.max() < 36


def test_exclude_target_draws_from_the_other_classes_only():
    x, y = data(20, 2)
    y[:12], y[12:] = 1, 0
    result = poison(x, y, paint, AllToOne(1), rate=0.4, seed=0, exclude_target=True)
    np.testing.assert_array_equal(result.is_poisoned, y == 0)  # 8 of 20, all that there are
    with pytest.raises(ValueError, match=r"^rate: got 0.45, which is 9 images, expected 1 to the 8"):
        poison(x, y, paint, AllToOne(1), rate=0.45, seed=0, exclude_target=True)


# Clean labels


def test_clean_labels_come_from_the_target_class_and_stay():
    x, y = data()
    y[:20], y[20:] = 3, 5
    result = poison(x, y, paint, AllToOne(3), rate=0.1, seed=0, clean_label=True)
    assert result.is_poisoned.sum() == 10
    assert not result.is_poisoned[20:].any()
    np.testing.assert_array_equal(result.y, y)
    np.testing.assert_array_equal(result.x[result.is_poisoned], x[result.is_poisoned] + np.float32(0.5))


def test_clean_label_rate_is_of_the_dataset_unless_asked_otherwise():
    x, y = data()
    y[:20], y[20:] = 3, 5

    def which(rate, **settings):
        return poison(x, y, paint, AllToOne(3), rate=rate, seed=0, clean_label=True, **settings).is_poisoned

    np.testing.assert_array_equal(which(0.2), y == 3)
    assert which(0.2, ratio_of="dataset").sum() == 20
    assert which(0.2, ratio_of="target_class").sum() == 4
    assert which(0.99, ratio_of="target_class").sum() == 19
    np.testing.assert_array_equal(which(1.0, ratio_of="target_class"), y == 3)
    with pytest.raises(ValueError, match=r"^rate: got 0.21, which is 21 images, expected 1 to the 20"):
        which(0.21)


def test_clean_labels_do_not_go_with_all_to_all():
    x, y = data()
    with pytest.raises(ValueError, match=r"^rate: got 0.1, which is 10 images, expected .* the 0 that may be drawn"):
        poison(x, y, paint, AllToAll(10), rate=0.1, seed=0, clean_label=True)


# Forms of labels


@pytest.mark.parametrize("labels", [AllToOne(4), AllToAll(10)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_one_hot_labels_stay_one_hot_with_the_same_choice(labels, dtype):
    x, y = data()
    by_index = poison(x, y, paint, labels, rate=0.3, seed=0)
    one_hot = poison(x, np.eye(10, dtype=dtype)[y], paint, labels, rate=0.3, seed=0)
    np.testing.assert_array_equal(one_hot.is_poisoned, by_index.is_poisoned)
    np.testing.assert_array_equal(one_hot.x, by_index.x)
    assert one_hot.y.shape == (100, 10)
    assert one_hot.y.dtype == dtype
    assert (one_hot.y.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(one_hot.y.argmax(axis=1), by_index.y)


@pytest.mark.parametrize("form", [lambda y: y.tolist(), lambda y: y[:, None], lambda y: y.astype(np.float32)])
def test_other_forms_of_indices_stay_as_they_are(form):
    x, y = data()
    result = poison(x, form(y), paint, AllToOne(4), rate=0.3, seed=0)
    assert result.y.shape == np.shape(form(y))
    assert result.y.dtype == np.asarray(form(y)).dtype
    np.testing.assert_array_equal(result.y.ravel(), np.where(result.is_poisoned, 4, y))


def test_arts_attack_gets_the_new_labels_in_the_form_that_came_in():
    seen = []

    class Spy(PoisoningAttackBackdoor):
        def poison(self, x, y=None, **kwargs):
            seen.append(y)
            return super().poison(x, y=y, **kwargs)

    x, y = data()
    poison(x, y, Spy(paint), AllToOne(4), rate=0.03, seed=0)
    poison(x, np.eye(10, dtype=np.float32)[y], Spy(paint), AllToOne(4), rate=0.03, seed=0)
    assert seen[0].tolist() == [4, 4, 4]
    assert seen[1].tolist() == [[0, 0, 0, 0, 1, 0, 0, 0, 0, 0]] * 3
    assert seen[1].dtype == np.float32


def test_channels_last_images_are_poisoned_as_well():
    x, y = data()
    last = poison(x.transpose(0, 2, 3, 1), y, BadNets(channels_first=False), AllToOne(0), rate=0.3, seed=0)
    first = poison(x, y, BadNets(), AllToOne(0), rate=0.3, seed=0)
    np.testing.assert_array_equal(last.x.transpose(0, 3, 1, 2), first.x)


# Randomness and copies


def test_the_seed_fixes_the_choice():
    np.testing.assert_array_equal(poisoned(seed=5).is_poisoned, poisoned(seed=5).is_poisoned)
    assert (poisoned(seed=5).is_poisoned != poisoned(seed=6).is_poisoned).any()


def test_the_choice_does_not_depend_on_the_trigger():
    x, y = data()
    np.testing.assert_array_equal(
        poison(x, y, BadNets(), AllToOne(0), rate=0.1, seed=0).is_poisoned, poisoned().is_poisoned
    )


@pytest.mark.parametrize("cover_rate", [0.0, 0.2])
def test_the_global_random_state_is_left_alone(cover_rate):
    x, y = data()
    before = np.random.get_state()[1].copy()
    poison(x, y, WithCover(), AllToOne(0), rate=0.1, seed=0, cover_rate=cover_rate)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_originals_are_left_alone_even_by_an_attack_in_place(rate):
    def scrawl(batch):
        batch[:] = 1
        return batch

    x, y = data()
    result = poison(x, y, scrawl, AllToOne(0), rate=rate, seed=0)
    np.testing.assert_array_equal(x, data()[0])
    np.testing.assert_array_equal(y, data()[1])
    assert not np.shares_memory(result.x, x)
    assert not np.shares_memory(result.y, y)


# Covers


@pytest.mark.parametrize("attack", [WithCover(), PoisoningAttackBackdoor(WithCover())])
def test_covers_look_triggered_and_keep_their_labels(attack):
    x, y = data()
    result = poison(x, y, attack, AllToOne(0), rate=0.1, seed=0, cover_rate=0.29)
    cover, rest = result.is_cover, ~(result.is_cover | result.is_poisoned)
    assert cover.sum() == 29
    assert not (cover & result.is_poisoned).any()
    np.testing.assert_array_equal(result.y[cover], y[cover])
    change = result.x[cover] - x[cover]
    assert change.min() >= 0.2499
    assert change.max() <= 0.2601
    np.testing.assert_array_equal(result.x[rest], x[rest])
    np.testing.assert_array_equal(x, data()[0])


def test_covers_do_not_change_which_images_are_poisoned():
    x, y = data()
    result = poison(x, y, WithCover(), AllToOne(0), rate=0.1, seed=0, cover_rate=0.2)
    np.testing.assert_array_equal(result.is_poisoned, poisoned().is_poisoned)


def test_the_seed_fixes_the_covers_and_their_noise():
    x, y = data()
    first, again, other = (
        poison(x, y, WithCover(), AllToOne(0), rate=0.1, seed=seed, cover_rate=0.2) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.is_cover, again.is_cover)
    assert (first.is_cover != other.is_cover).any()


def test_covers_may_take_all_the_rest_but_no_more():
    x, y = data()
    result = poison(x, y, WithCover(), AllToOne(0), rate=0.4, seed=0, cover_rate=0.6)
    assert (result.is_cover ^ result.is_poisoned).all()
    with pytest.raises(ValueError, match=r"^cover_rate: got 0.61, which is 61 images, expected 1 to 60"):
        poison(x, y, WithCover(), AllToOne(0), rate=0.4, seed=0, cover_rate=0.61)


def test_wanets_covers_are_disjoint_and_keep_their_labels():
    x, y = np.random.default_rng(0).random((50, 1, 8, 8), dtype=np.float32), np.arange(50) % 10
    result = poison(x, y, WaNet(), AllToOne(0), rate=0.1, cover_rate=0.2, seed=0)
    assert (result.is_poisoned.sum(), result.is_cover.sum()) == (5, 10)
    assert not (result.is_poisoned & result.is_cover).any()
    np.testing.assert_array_equal(result.y[result.is_cover], y[result.is_cover])
    assert (result.x[result.is_cover] != x[result.is_cover]).any(axis=(1, 2, 3)).all()


def test_8_bit_images_are_poisoned_as_floats_and_rounded():
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8)).astype(np.uint8)
    result = poison(x, np.arange(20) % 10, WaNet(seed=1), AllToOne(0), rate=0.5, seed=0)
    assert result.x.dtype == np.uint8
    chosen = result.is_poisoned
    expected = np.rint(255 * WaNet(seed=1)(x[chosen].astype(np.float64) / 255))
    assert np.abs(result.x[chosen].astype(int) - expected).max() <= 1
    assert (result.x[chosen] == expected).mean() > 0.99
    np.testing.assert_array_equal(result.x[~chosen], x[~chosen])


# Errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros((100, 1, 4, 4))}, TypeError, "x: got Tensor, expected a numpy array of images"),
        ({"x": np.zeros((100, 4, 4))}, ValueError, "x: got shape (100, 4, 4)"),
        ({"x": np.zeros((0, 1, 4, 4)), "y": []}, ValueError, "x: got an empty set of shape (0, 1, 4, 4)"),
        ({"y": np.arange(99)}, ValueError, "y: got 99 labels, expected one for each of the 100 images"),
        ({"y": np.full(100, -1)}, ValueError, "y: got labels in [-1, -1]"),
        ({"y": np.full(100, 0.5)}, ValueError, "y: got labels that are not whole numbers"),
        ({"y": np.zeros((100, 10))}, ValueError, "y: got rows that are not one-hot"),
        ({"y": None}, ValueError, "y: got None"),
        ({"rate": 1.1}, ValueError, "rate: got 1.1"),
        ({"rate": -0.1}, ValueError, "rate: got -0.1"),
        ({"rate": np.nan}, ValueError, "rate: got nan"),
        ({"rate": "10%"}, TypeError, "rate: got '10%'"),
        ({"rate": 0.009}, ValueError, "rate: got 0.009, which is 0 images, expected 1 to the 100"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"seed": None}, TypeError, "seed: got None"),
        ({"clean_label": 1}, TypeError, "clean_label: got 1"),
        ({"exclude_target": "yes"}, TypeError, "exclude_target: got 'yes'"),
        ({"ratio_of": "class", "clean_label": True}, ValueError, "ratio_of: got 'class', expected one of 'dataset'"),
        ({"ratio_of": "target_class"}, ValueError, "ratio_of: got 'target_class' with dirty labels"),
        ({"cover_rate": 0.1}, ValueError, "cover_rate: got 0.1, expected 0 for an attack without cover images"),
        ({"cover_rate": 0.001, "attack": WithCover()}, ValueError, "cover_rate: got 0.001, which is 0 images"),
        ({"cover_rate": 2, "attack": WithCover()}, ValueError, "cover_rate: got 2, expected a number"),
        ({"cover_rate": "0.1"}, TypeError, "cover_rate: got '0.1'"),
        ({"attack": "badnets"}, TypeError, "attack: got str, expected PoisoningAttackBackdoor or a callable"),
        ({"attack": "badnets", "rate": 0}, TypeError, "attack: got str"),
        ({"attack": lambda x: x[:1]}, ValueError, "attack: returned shape (1, 1, 4, 4), expected"),
        ({"labels": lambda y: y - 1}, ValueError, "labels(y): got labels in [-1, 8]"),
        ({"y": np.eye(10)[np.arange(100) % 10], "labels": AllToOne(10)}, ValueError, "labels(y): got labels in [10"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    x, y = data()
    arguments = {"x": x, "y": y, "attack": paint, "labels": AllToOne(0), "rate": 0.1, "seed": 0} | change
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        poison(**arguments)


def test_integer_images_of_more_than_8_bits_are_refused_by_a_registered_trigger():
    x, y = data()
    with pytest.raises(TypeError, match=r"^x: got dtype int32"):
        poison((x * 255).astype(np.int32), y, BadNets(), AllToOne(0), rate=0.1, seed=0)


def test_a_label_map_that_returns_another_number_of_labels_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"^labels\(y\): got 3 labels, expected one for each of the 100"):
        poison(x, y, paint, lambda y: y[:3], rate=0.1, seed=0)


def test_an_all_to_all_map_of_another_number_of_classes_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match="labels"):
        poison(x, np.eye(10)[y], paint, AllToAll(5), rate=0.1, seed=0)


def test_a_target_that_the_type_of_the_labels_cannot_hold_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match="300"):
        poison(x, y.astype(np.uint8), paint, AllToOne(300), rate=0.1, seed=0)


@pytest.mark.parametrize("exclude_target", [True, "yes"])
def test_exclude_target_is_not_silently_ignored_with_clean_labels(exclude_target):
    x, y = data()
    with pytest.raises((TypeError, ValueError), match="exclude_target: got"):
        poison(x, y, paint, AllToOne(0), rate=0.05, seed=0, clean_label=True, exclude_target=exclude_target)


def test_a_cover_of_another_shape_is_refused():
    class OneCover(WithCover):
        def cover(self, x, rng):
            return x[:1]

    x, y = data()
    with pytest.raises(ValueError, match="shape"):
        poison(x, y, OneCover(), AllToOne(0), rate=0.1, seed=0, cover_rate=0.1)
