"""Poisoning batch by batch, with covers."""

import numpy as np
import pytest
import torch
from art.attacks.poisoning import PoisoningAttackBackdoor

from art_aft.attacks import BadNets, WaNet
from art_aft.attacks.labels import AllToAll, AllToOne
from art_aft.attacks.poisoning import BatchPoisoning


def images(count=3, channels=3, side=32, dtype=np.float32):
    return np.random.default_rng(0).random((count, channels, side, side)).astype(dtype)


def test_the_first_are_poisoned_the_next_are_covers_the_rest_is_clean():
    x, y = torch.from_numpy(images(128, 1, 8)), torch.arange(128) % 10
    batch, labels = BatchPoisoning(WaNet(), AllToOne(7), rate=0.1, cover_ratio=2)(x, y)
    changed = (batch != x).flatten(1).any(dim=1)
    assert changed[:36].all()  # int(12.8) poisoned, 24 covers
    assert not changed[36:].any()
    assert (labels[:12] == 7).all()
    assert torch.equal(labels[12:], y[12:])
    np.testing.assert_array_equal(batch[:12].numpy(), WaNet()(x[:12].numpy()))


def test_all_to_all_labels():
    _, labels = BatchPoisoning(WaNet(), AllToAll(3), rate=1.0)(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    assert labels.tolist() == [1, 2, 0, 1]


def test_shares_above_one_are_refused():
    with pytest.raises(ValueError, match=r"cover_ratio: got 2 with rate 0\.5"):
        BatchPoisoning(WaNet(), AllToOne(0), rate=0.5, cover_ratio=2)


def test_an_attack_without_covers_is_refused():
    with pytest.raises(ValueError, match="cover_ratio: got 1, expected 0"):
        BatchPoisoning(lambda x: x, AllToOne(0), rate=0.1, cover_ratio=1)


def test_a_trigger_that_states_no_covers_is_refused_also_inside_arts_attack():
    for attack in (BadNets(), PoisoningAttackBackdoor(BadNets())):
        with pytest.raises(ValueError, match="cover_ratio: got 1, expected 0"):
            BatchPoisoning(attack, AllToOne(0), rate=0.1, cover_ratio=1)


def test_any_callable_with_a_cover_has_covers():
    class Bare:
        def __call__(self, x):
            return 1 - x

        def cover(self, x, rng):
            return 0 * x

    x, y = torch.from_numpy(images(10, 1, 8)), torch.arange(10)
    for attack in (Bare(), PoisoningAttackBackdoor(Bare())):
        batch, _ = BatchPoisoning(attack, AllToOne(0), rate=0.2, cover_ratio=1)(x, y)
        assert torch.equal(batch[:2], 1 - x[:2])
        assert not batch[2:4].any()
        assert torch.equal(batch[4:], x[4:])
