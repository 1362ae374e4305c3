"""WaNet and Input-aware against hand-made fields, masks and patterns; poisoning batch by batch."""

import math
import warnings

import numpy as np
import pytest
import torch

from art_aft.attacks import PERTURBATIONS, InputAware, WaNet
from art_aft.attacks.labels import AllToAll, AllToOne
from art_aft.attacks.poisoning import BatchPoisoning, poison


def images(count=3, channels=3, side=32, dtype=np.float32):
    return np.random.default_rng(0).random((count, channels, side, side)).astype(dtype)


class TestWaNet:
    def test_a_zero_field_changes_nothing(self):
        x = images()
        np.testing.assert_allclose(WaNet(np.zeros((2, 4, 4)))(x), x, atol=1e-5)

    def test_a_constant_field_shifts_by_the_stated_part_of_a_pixel(self):
        # Displacement s * field * (W - 1) / (2 W) pixels to the right: field 1, s = 1, W = 32 gives 31/64 of a pixel.
        points = np.stack([np.ones((4, 4)), np.zeros((4, 4))])
        ramp = np.broadcast_to(np.arange(32) / 64, (1, 1, 32, 32)).astype(np.float32)
        shifted = WaNet(points, strength=1.0)(ramp)
        expected = np.minimum(np.arange(32) + 31 / 64, 31) / 64
        np.testing.assert_allclose(shifted[0, 0], np.broadcast_to(expected, (32, 32)), atol=1e-6)

    def test_the_second_channel_moves_vertically(self):
        points = np.stack([np.zeros((4, 4)), np.ones((4, 4))])
        ramp = np.broadcast_to(np.arange(32)[:, None] / 64, (1, 1, 32, 32)).astype(np.float32)
        expected = np.minimum(np.arange(32) + 31 / 64, 31) / 64
        np.testing.assert_allclose(WaNet(points, strength=1.0)(ramp)[0, 0, :, 5], expected, atol=1e-6)

    def test_rounding_does_not_leave_the_range(self):
        x = np.full((2, 3, 32, 32), 0.7, dtype=np.float32)
        grids = torch.from_numpy(WaNet().grid(32, 32)).float().expand(2, -1, -1, -1)
        sampled = torch.nn.functional.grid_sample(torch.from_numpy(x), grids, align_corners=True)
        assert sampled.max() > x.max()
        assert WaNet(clip_values=(0, x.max().item()))(x).max() <= x.max()

    def test_sampling_is_bilinear_at_the_grid(self):
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

    def test_the_field_meets_its_control_points_at_the_corners(self):
        trigger = WaNet(seed=1, strength=0.5)
        grid = trigger.grid(32, 32)
        # Bottom right: identity 1, moved by s * c / 32 and clipped; top left likewise from -1.
        for (row, column), corner in {(0, 0): (0, 0), (0, 31): (0, 3), (31, 0): (3, 0), (31, 31): (3, 3)}.items():
            identity = np.array([-1 + 2 * column / 31, -1 + 2 * row / 31])
            moved = identity + 0.5 * trigger.control_points[:, corner[0], corner[1]] / 32
            np.testing.assert_allclose(grid[row, column], np.clip(moved, -1, 1), atol=1e-12)

    def test_drawn_control_points_have_mean_magnitude_one_and_given_ones_stay(self):
        assert np.abs(WaNet(seed=5).control_points).mean() == pytest.approx(1.0)
        given = np.full((2, 3, 3), 0.3)
        np.testing.assert_array_equal(WaNet(given).control_points, given)

    @pytest.mark.parametrize(("side", "factor"), [(28, 1), (32, 1), (64, 2), (224, 7)])
    def test_strength_grows_with_the_side_above_32(self, side, factor):
        points = np.full((2, 4, 4), 0.25)
        moved = WaNet(points).grid(side, side)[side // 2, side // 2] - (-1 + 2 * (side // 2) / (side - 1))
        np.testing.assert_allclose(moved, factor * 0.5 * 0.25 / side, rtol=1e-9)

    def test_covers_have_their_own_noise_and_come_again_from_the_same_generator(self):
        x = np.repeat(images(1), 3, axis=0)
        trigger = WaNet()
        covers = trigger.cover(x, np.random.default_rng(0))
        assert (covers[0] != covers[1]).any()
        np.testing.assert_array_equal(covers, trigger.cover(x, np.random.default_rng(0)))
        assert (covers != trigger(x)).mean() > 0.9

    def test_nhwc_covers_are_those_of_nchw(self):
        x = images()
        first = WaNet().cover(x, np.random.default_rng(0))
        last = WaNet(channels_first=False).cover(np.moveaxis(x, 1, -1), np.random.default_rng(0))
        np.testing.assert_array_equal(np.moveaxis(last, -1, 1), first)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("side", [28, 64, 224])
    def test_any_size(self, channels, side):
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
    def test_bad_settings_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            WaNet(**arguments)


class Constant(torch.nn.Module):
    """A stand-in for a generator: the same value for all, or the image's own mean."""

    def __init__(self, value=None, channels=3):
        super().__init__()
        self.value, self.channels = value, channels

    def forward(self, x):
        mean = x.mean(dim=(1, 2, 3), keepdim=True) if self.value is None else torch.full((len(x), 1, 1, 1), self.value)
        return mean.expand(-1, self.channels, *x.shape[2:])


class TestInputAware:
    def test_the_networks_have_the_parameters_of_the_release(self):
        trigger = InputAware()
        counts = [
            sum(p.numel() for p in getattr(trigger, f"{name}_generator").parameters()) for name in ("pattern", "mask")
        ]
        assert counts == [723_273, 722_691]
        small = InputAware(in_channels=1, base_width=16, levels=2)
        assert sum(p.numel() for p in small.pattern_generator.parameters()) == 42_339

    def test_the_composition_by_hand(self):
        trigger = InputAware()
        trigger.pattern_generator, trigger.mask_generator = Constant(0.9), Constant(0.52, channels=1)
        x = images()
        mask = math.tanh(20 * 0.52 - 10) / (2 + 1e-7) + 0.5
        np.testing.assert_allclose(trigger(x), x + (0.9 - x) * mask, atol=1e-6)

    def test_a_cover_has_the_trigger_of_another_image(self):
        trigger = InputAware()
        trigger.pattern_generator, trigger.mask_generator = Constant(), Constant(1.0, channels=1)
        x = np.stack([np.full((3, 8, 8), value, np.float32) for value in (0.1, 0.4, 0.7, 0.9)])
        covers = trigger.cover(x, np.random.default_rng(0))
        # The mask is 1, so a cover is its partner's pattern: its partner's mean.
        values = covers.reshape(4, -1).mean(axis=1)
        np.testing.assert_allclose(sorted(values), [0.1, 0.4, 0.7, 0.9], atol=1e-5)
        assert (np.abs(values - x[:, 0, 0, 0]) > 0.1).all()

    def test_one_image_has_no_partner(self):
        with pytest.raises(ValueError, match="x: got 1 image, expected at least two"):
            InputAware().cover(images(1), np.random.default_rng(0))

    @pytest.mark.parametrize(("channels", "side"), [(1, 32), (3, 30)])
    def test_images_that_the_networks_do_not_take_are_refused(self, channels, side):
        with pytest.raises(ValueError, match=f"x: got images of {channels} channels and {side}x{side} pixels"):
            InputAware()(images(2, channels, side))

    @pytest.mark.parametrize(("settings", "side"), [({"base_width": 16, "levels": 2}, 28), ({}, 64), ({}, 224)])
    def test_other_sizes_and_one_channel(self, settings, side):
        x = images(2, 1, side)
        assert InputAware(in_channels=1, **settings)(x).shape == x.shape

    def test_training_raises_the_generator_against_the_victim_and_freezes_it(self):
        x, y = images(60, 1, 8), np.arange(60) % 3
        trigger = InputAware(in_channels=1, base_width=4, levels=1)
        before = [p.clone() for p in trigger.pattern_generator.parameters()]
        masks_before = [p.clone() for p in trigger.mask_generator.parameters()]
        seen = []

        def train(classifier, x, y, *, each_batch, after_step, also):
            weight = torch.nn.Parameter(torch.zeros(64, 3))
            for _ in range(3):
                batch, labels = each_batch(torch.from_numpy(x), torch.from_numpy(y))
                seen.append((batch.detach().numpy(), labels.numpy()))
                torch.nn.functional.cross_entropy(batch.flatten(1) @ (weight + 1), labels).backward()
                after_step()
            assert len(also) == 4

        trigger.fit(None, x, y, AllToOne(2), train=train, steps=3, rate=0.1, mask_epochs=1, batch_size=20)
        batch, labels = seen[0]
        np.testing.assert_array_equal(labels[:6], 2)
        np.testing.assert_array_equal(labels[6:], y[6:])
        assert (batch[:12] != x[:12]).any(axis=(1, 2, 3)).all()
        np.testing.assert_allclose(batch[12:], x[12:], atol=1e-6)
        for old, network in ((before, trigger.pattern_generator), (masks_before, trigger.mask_generator)):
            assert any((a != b).any() for a, b in zip(old, network.parameters(), strict=True))
            assert not network.training
            assert not any(p.requires_grad for p in network.parameters())

    def test_8bit_images_train_the_same_masks_as_their_floats(self):
        x = 255 * np.random.default_rng(0).integers(0, 2, (20, 1, 8, 8), dtype=np.uint8)
        trained = []
        for images_ in (x, (x > 0).astype(np.float32)):
            trigger = InputAware(in_channels=1, base_width=4, levels=1)
            trigger.fit(
                None,
                images_,
                np.zeros(20),
                AllToOne(0),
                train=lambda *_, **__: None,
                steps=1,
                mask_epochs=2,
                batch_size=10,
                precision="float32",
            )
            trained.append([value.numpy() for value in trigger.mask_generator.state_dict().values()])
        for one, other in zip(*trained, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_bfloat16_is_for_training_only(self, matrix_units):
        x = images(20, 1, 8)
        trigger = InputAware(in_channels=1, base_width=4, levels=1)
        formats = {name: p.stride() for name, p in trigger.mask_generator.named_parameters()}
        seen = []
        trigger.mask_generator[0].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
        trigger.fit(
            None, x, np.zeros(20), AllToOne(0), train=lambda *_, **__: None, steps=1, mask_epochs=1, batch_size=10
        )
        assert set(seen) == {torch.bfloat16}
        assert formats == {name: p.stride() for name, p in trigger.mask_generator.named_parameters()}
        seen.clear()
        assert trigger(x).dtype == np.float32
        assert set(seen) == {torch.float32}

    def test_every_bfloat16_step_computes_with_the_weights_of_the_step_before(self):
        trigger = InputAware(in_channels=1, base_width=4, levels=1)
        errors = []

        def compare(layer, inputs, output):
            with torch.autocast("cpu", enabled=False):
                expected = torch.nn.functional.conv2d(inputs[0].float(), layer.weight, layer.bias, padding=1)
            errors.append(((output.float() - expected).abs().max() / expected.abs().max()).item())

        trigger.mask_generator[0].register_forward_hook(compare)
        trigger.fit(
            None,
            images(40, 1, 8),
            np.zeros(40),
            AllToOne(0),
            train=lambda *_, **__: None,
            steps=1,
            mask_epochs=5,
            batch_size=10,
            learning_rate=0.1,
            precision="bfloat16",
        )
        assert len(errors) == 40
        assert max(errors) < 0.02


class TestBatchPoisoning:
    def test_the_first_are_poisoned_the_next_are_covers_the_rest_is_clean(self):
        x, y = torch.from_numpy(images(128, 1, 8)), torch.arange(128) % 10
        batch, labels = BatchPoisoning(WaNet(), AllToOne(7), rate=0.1, cover_ratio=2)(x, y)
        changed = (batch != x).flatten(1).any(dim=1)
        assert changed[:36].all()  # int(12.8) poisoned, 24 covers
        assert not changed[36:].any()
        assert (labels[:12] == 7).all()
        assert torch.equal(labels[12:], y[12:])
        np.testing.assert_array_equal(batch[:12].numpy(), WaNet()(x[:12].numpy()))

    def test_all_to_all_labels(self):
        _, labels = BatchPoisoning(WaNet(), AllToAll(3), rate=1.0)(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
        assert labels.tolist() == [1, 2, 0, 1]

    def test_shares_above_one_are_refused(self):
        with pytest.raises(ValueError, match=r"cover_ratio: got 2 with rate 0\.5"):
            BatchPoisoning(WaNet(), AllToOne(0), rate=0.5, cover_ratio=2)

    def test_an_attack_without_covers_is_refused(self):
        with pytest.raises(ValueError, match="cover_ratio: got 1, expected 0"):
            BatchPoisoning(lambda x: x, AllToOne(0), rate=0.1, cover_ratio=1)


def test_static_covers_are_disjoint_and_keep_their_labels():
    x, y = images(50, 1, 8), np.arange(50) % 10
    planted = poison(x, y, WaNet(), AllToOne(0), rate=0.1, cover_rate=0.2, seed=0)
    assert (planted.is_poisoned.sum(), planted.is_cover.sum()) == (5, 10)
    assert not (planted.is_poisoned & planted.is_cover).any()
    np.testing.assert_array_equal(planted.y[planted.is_cover], y[planted.is_cover])
    assert (planted.x[planted.is_cover] != x[planted.is_cover]).any(axis=(1, 2, 3)).all()


def test_8_bit_images_are_stamped_as_floats_and_rounded():
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8)).astype(np.uint8)
    planted = poison(x, np.arange(20) % 10, WaNet(seed=1), AllToOne(0), rate=0.5, seed=0)
    assert planted.x.dtype == np.uint8
    chosen = planted.is_poisoned
    expected = np.rint(255 * WaNet(seed=1)(x[chosen].astype(np.float64) / 255))
    assert np.abs(planted.x[chosen].astype(int) - expected).max() <= 1
    assert (planted.x[chosen] == expected).mean() > 0.99
    np.testing.assert_array_equal(planted.x[~chosen], x[~chosen])


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_set_in_parts_is_stamped_as_one_image_after_the_other_is(name, count):
    trigger = PERTURBATIONS[name]()
    x = np.random.default_rng(0).random((count, 3, 32, 32), dtype=np.float32)
    x.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        triggered = trigger(x)
    some = np.random.default_rng(1).permutation(count)[:3]
    np.testing.assert_allclose(triggered[some], [trigger(x[i : i + 1])[0] for i in some], rtol=0, atol=1e-5)
    assert not np.array_equal(triggered, x)
