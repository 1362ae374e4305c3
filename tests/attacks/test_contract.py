"""What every registered trigger must keep, whatever its file."""

import json
import re
import warnings

import numpy as np
import pytest
from art.attacks.poisoning import PoisoningAttackBackdoor

from art_aft.attacks import SIG, TRIGGERS, BadNets, Blend, InputAware, Trigger, WaNet, stamp
from art_aft.experiments.victims import VictimSettings


def images(count=4, channels=3, side=32, dtype=np.float32, scale=1.0):
    return (scale * np.random.default_rng(0).random((count, channels, side, side))).astype(dtype)


every_trigger = pytest.mark.parametrize("trigger", [make() for make in TRIGGERS.values()], ids=list(TRIGGERS))


def test_the_papers_triggers_are_registered():
    assert TRIGGERS["badnets"] is BadNets
    assert TRIGGERS["blend"] is Blend
    assert TRIGGERS["sig"] is SIG


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown attack 'nope', expected one of: .*badnets, blend, .*sig"):
        TRIGGERS["nope"]


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


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_set_in_parts_is_stamped_as_one_image_after_the_other_is(name, count):
    trigger = TRIGGERS[name]()
    x = np.random.default_rng(0).random((count, 3, 32, 32), dtype=np.float32)
    x.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        triggered = trigger(x)
    some = np.random.default_rng(1).permutation(count)[:3]
    np.testing.assert_allclose(triggered[some], [trigger(x[i : i + 1])[0] for i in some], rtol=0, atol=1e-5)
    assert not np.array_equal(triggered, x)


@every_trigger
def test_8_bit_images_are_stamped_as_floats_and_rounded(trigger):
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32)).astype(np.uint8)
    stamped = stamp(trigger, x, np.zeros(5))
    assert stamped.dtype == np.uint8
    assert np.abs(stamped - 255 * trigger(x.astype(np.float64) / 255)).max() <= 0.51


@every_trigger
def test_a_trigger_comes_back_from_its_state(trigger):
    settings, arrays = trigger.state()
    again = type(trigger).from_state(json.loads(json.dumps(settings)), arrays)
    assert type(again) is type(trigger)
    np.testing.assert_array_equal(again(images()), trigger(images()))


@every_trigger
def test_a_trigger_writes_what_it_states(trigger):
    written = {name: getattr(type(trigger), name) is not getattr(Trigger, name) for name in ("cover", "fit")}
    assert written == {"cover": trigger.has_covers(), "fit": trigger.needs_training()}


@every_trigger
def test_covers_are_changed_images_of_the_same_shape_type_and_range(trigger):
    if not trigger.has_covers():
        with pytest.raises(NotImplementedError, match=f"{type(trigger).__name__} has no cover images"):
            trigger.cover(images(), np.random.default_rng(0))
        return
    x = images()
    x.setflags(write=False)
    covers = trigger.cover(x, np.random.default_rng(0))
    assert covers.shape == x.shape
    assert covers.dtype == x.dtype
    assert (covers != x).any(axis=(1, 2, 3)).all()
    assert (covers != trigger(x)).any(axis=(1, 2, 3)).all()
    assert covers.min() >= 0
    assert covers.max() <= 1
    np.testing.assert_array_equal(covers, trigger.cover(x, np.random.default_rng(0)))
    last = type(trigger)(channels_first=False).cover(np.moveaxis(x, 1, -1), np.random.default_rng(0))
    np.testing.assert_allclose(np.moveaxis(last, -1, 1), covers, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_each_has_a_trigger_for_the_images_of_a_data_set(name, shape):
    trigger = TRIGGERS[name].for_images(shape, (0.0, 255.0), 3)
    x = 255 * np.random.default_rng(0).random((2, *shape))
    assert trigger.clip_values == (0.0, 255.0)
    assert (trigger(x) != x).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("name", TRIGGERS)
def test_the_release_is_arguments_of_victim_settings(name):
    assert VictimSettings(name, **TRIGGERS[name].release).attack == name


def test_settings_for_images_are_the_users_before_those_that_the_images_choose():
    assert Blend.for_images((1, 16, 16), (0.0, 1.0), 5, seed=3, ratio=0.5).seed == 3
    assert Blend.for_images((1, 16, 16), (0.0, 1.0), 5).seed == 0
    own, chosen = (InputAware.for_images((1, 28, 28), (0, 1), 5, **own) for own in ({"seed": 3, "levels": 1}, {}))
    assert (own.in_channels, own.base_width, own.levels, own.seed) == (1, 16, 1, 3)
    assert (chosen.in_channels, chosen.base_width, chosen.levels, chosen.seed) == (1, 16, 2, 5)
    large = InputAware.for_images((3, 32, 32), (0, 1))
    assert (large.in_channels, large.base_width, large.levels, large.seed) == (3, 32, 3, 0)


def test_the_dynamic_attacks_have_covers_and_a_release_of_their_own():
    assert {name for name, kind in TRIGGERS.items() if kind().has_covers()} >= {"wanet", "input_aware"}
    assert {name for name, kind in TRIGGERS.items() if kind().needs_training()} >= {"input_aware"}
    model = {"normalise": True, "model": "preactresnet-18"}
    assert WaNet.release == {"per_batch": True, "cover_ratio": 2.0, **model}
    assert InputAware.release == model
    assert BadNets.release == Blend.release == SIG.release == {}
