"""Input-aware against hand-made masks and patterns; the training of its networks."""

import math

import numpy as np
import pytest
import torch

from art_aft.attacks import InputAware, input_aware
from art_aft.attacks.labels import AllToOne


def images(count=3, channels=3, side=32, dtype=np.float32):
    return np.random.default_rng(0).random((count, channels, side, side)).astype(dtype)


class Constant(torch.nn.Module):
    """A stand-in for a generator: the same value for all, or the image's own mean."""

    def __init__(self, value=None, channels=3):
        super().__init__()
        self.value, self.channels = value, channels

    def forward(self, x):
        mean = x.mean(dim=(1, 2, 3), keepdim=True) if self.value is None else torch.full((len(x), 1, 1, 1), self.value)
        return mean.expand(-1, self.channels, *x.shape[2:])


def test_the_networks_have_the_parameters_of_the_release():
    trigger = InputAware()
    counts = [
        sum(p.numel() for p in getattr(trigger, f"{name}_generator").parameters()) for name in ("pattern", "mask")
    ]
    assert counts == [723_273, 722_691]
    small = InputAware(in_channels=1, base_width=16, levels=2)
    assert sum(p.numel() for p in small.pattern_generator.parameters()) == 42_339


def test_the_composition_by_hand():
    trigger = InputAware()
    trigger.pattern_generator, trigger.mask_generator = Constant(0.9), Constant(0.52, channels=1)
    x = images()
    mask = math.tanh(20 * 0.52 - 10) / (2 + 1e-7) + 0.5
    np.testing.assert_allclose(trigger(x), x + (0.9 - x) * mask, atol=1e-6)


def test_a_cover_has_the_trigger_of_another_image():
    trigger = InputAware()
    trigger.pattern_generator, trigger.mask_generator = Constant(), Constant(1.0, channels=1)
    x = np.stack([np.full((3, 8, 8), value, np.float32) for value in (0.1, 0.4, 0.7, 0.9)])
    covers = trigger.cover(x, np.random.default_rng(0))
    # The mask is 1, so a cover is its partner's pattern: its partner's mean.
    values = covers.reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(sorted(values), [0.1, 0.4, 0.7, 0.9], atol=1e-5)
    assert (np.abs(values - x[:, 0, 0, 0]) > 0.1).all()


def test_one_image_has_no_partner():
    with pytest.raises(ValueError, match="x: got 1 image, expected at least two"):
        InputAware().cover(images(1), np.random.default_rng(0))


@pytest.mark.parametrize(("channels", "side"), [(1, 32), (3, 30)])
def test_images_that_the_networks_do_not_take_are_refused(channels, side):
    with pytest.raises(ValueError, match=f"x: got images of {channels} channels and {side}x{side} pixels"):
        InputAware()(images(2, channels, side))


@pytest.mark.parametrize(("settings", "side"), [({"base_width": 16, "levels": 2}, 28), ({}, 64), ({}, 224)])
def test_other_sizes_and_one_channel(settings, side):
    x = images(2, 1, side)
    assert InputAware(in_channels=1, **settings)(x).shape == x.shape


def test_training_raises_the_generator_against_the_victim_and_freezes_it():
    x, y = images(60, 1, 8), np.arange(60) % 3
    trigger = InputAware(in_channels=1, base_width=4, levels=1)
    before = [p.clone() for p in trigger.pattern_generator.parameters()]
    masks_before = [p.clone() for p in trigger.mask_generator.parameters()]
    seen = []

    def train(transform, callback):
        weight = torch.nn.Parameter(torch.zeros(64, 3))
        for step in range(3):
            batch, labels = transform(torch.from_numpy(x), torch.from_numpy(y))
            seen.append((batch.detach().numpy(), labels.numpy()))
            torch.nn.functional.cross_entropy(batch.flatten(1) @ (weight + 1), labels).backward()
            callback.on_step(step + 1)
        generator, masks, optimizer, scheduler = callback.parts
        assert (generator, masks) == (trigger.pattern_generator, trigger.mask_generator)
        assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_lr()

    trigger.fit(None, x, y, AllToOne(2), train=train, nb_epochs=1, steps=3, rate=0.1, mask_epochs=1, batch_size=20)
    batch, labels = seen[0]
    np.testing.assert_array_equal(labels[:6], 2)
    np.testing.assert_array_equal(labels[6:], y[6:])
    assert (batch[:12] != x[:12]).any(axis=(1, 2, 3)).all()
    np.testing.assert_allclose(batch[12:], x[12:], atol=1e-6)
    for old, network in ((before, trigger.pattern_generator), (masks_before, trigger.mask_generator)):
        assert any((a != b).any() for a, b in zip(old, network.parameters(), strict=True))
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_8bit_images_train_the_same_masks_as_their_floats():
    x = 255 * np.random.default_rng(0).integers(0, 2, (20, 1, 8, 8), dtype=np.uint8)
    trained = []
    for images_ in (x, (x > 0).astype(np.float32)):
        trigger = InputAware(in_channels=1, base_width=4, levels=1)
        trigger.fit(
            None,
            images_,
            np.zeros(20),
            AllToOne(0),
            train=lambda transform, callback: None,
            nb_epochs=1,
            steps=1,
            mask_epochs=2,
            batch_size=10,
            precision="float32",
        )
        trained.append([value.numpy() for value in trigger.mask_generator.state_dict().values()])
    for one, other in zip(*trained, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bfloat16_is_for_training_only(matrix_units):
    x = images(20, 1, 8)
    trigger = InputAware(in_channels=1, base_width=4, levels=1)
    formats = {name: p.stride() for name, p in trigger.mask_generator.named_parameters()}
    seen = []
    trigger.mask_generator[0].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    trigger.fit(
        None,
        x,
        np.zeros(20),
        AllToOne(0),
        train=lambda transform, callback: None,
        nb_epochs=1,
        steps=1,
        mask_epochs=1,
        batch_size=10,
    )
    assert set(seen) == {torch.bfloat16}
    assert formats == {name: p.stride() for name, p in trigger.mask_generator.named_parameters()}
    seen.clear()
    assert trigger(x).dtype == np.float32
    assert set(seen) == {torch.float32}


def test_every_bfloat16_step_computes_with_the_weights_of_the_step_before():
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
        train=lambda transform, callback: None,
        nb_epochs=1,
        steps=1,
        mask_epochs=5,
        batch_size=10,
        learning_rate=0.1,
        precision="bfloat16",
    )
    assert len(errors) == 40
    assert max(errors) < 0.02


@pytest.mark.parametrize(
    ("nb_epochs", "resumed", "passes"),
    [(1, False, 4), (40, False, 10), (40, True, 0)],
    ids=["enough steps", "a quarter of the epochs", "masks from the checkpoint"],
)
def test_the_masks_are_trained_long_enough_but_not_again(monkeypatch, nb_epochs, resumed, passes):
    monkeypatch.setattr(input_aware, "MASK_STEPS", 8)
    trigger, calls = InputAware(in_channels=1, base_width=4, levels=1), []
    trigger.mask_generator.register_forward_hook(lambda *_: calls.append(1))
    settings = {"nb_epochs": nb_epochs, "steps": 1, "resumed": resumed, "batch_size": 10}
    trigger.fit(None, images(20, 1, 8), np.zeros(20), AllToOne(0), train=lambda *_: None, **settings)
    assert len(calls) == 2 * 2 * passes  # two batches a pass, two images a pair


class Noted(torch.optim.Adam):
    """Notes the gradients of its steps and takes none, so that all are those of the same weights."""

    seen = []

    def step(self, *_):
        self.seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])


def test_the_masks_weigh_diversity_with_the_square_as_the_release_does_and_the_patterns_once(monkeypatch):
    """The gradient is a constant (of density or cross entropy) plus weight * slope; three weights tell both."""
    monkeypatch.setattr(torch.optim, "Adam", Noted)
    x, y = images(40, 1, 8), np.arange(40) % 3

    def gradients(weight):
        found = []

        def train(transform, callback):
            with torch.random.fork_rng():
                batch, labels = transform(torch.from_numpy(x), torch.from_numpy(y))
            torch.nn.functional.cross_entropy(batch.flatten(1)[:, :3], labels).backward()
            callback.on_step(1)

        monkeypatch.setattr(Noted, "seen", found)
        trigger = InputAware(in_channels=1, base_width=4, levels=1, lambda_div=weight)
        settings = {"mask_epochs": 1, "batch_size": 40, "precision": "float32"}
        trigger.fit(None, x, y, AllToOne(2), train=train, nb_epochs=1, steps=1, rate=0.2, **settings)
        return [torch.cat([gradient.flatten() for gradient in step]).double() for step in found]

    (masks_0, patterns_0), (masks_1, patterns_1), (masks_3, patterns_3) = map(gradients, (0.0, 1.0, 3.0))
    for weight, at_0, at_1, at_3 in ((9, masks_0, masks_1, masks_3), (3, patterns_0, patterns_1, patterns_3)):
        slope = at_1 - at_0
        assert slope.norm() > 1e-3
        assert float((at_3 - at_0) @ slope / (slope @ slope)) == pytest.approx(weight, rel=1e-2)
