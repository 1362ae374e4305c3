"""Random streams have names, and the global generators stay as they were."""

import random

import numpy as np
import pytest
import torch
from helpers import global_rng

from art_aft.runtime.random_state import STREAMS, isolated_rng, rng_for, seed_for


def test_a_stream_is_that_of_numpys_seed_sequence():
    expected = np.random.SeedSequence([7, STREAMS["stage 2"], 3]).generate_state(1)[0]
    assert seed_for(7, "stage 2", 3) == expected
    assert rng_for(7, "folds").random() == np.random.default_rng([7, STREAMS["folds"]]).random()


def test_streams_of_one_defence_differ():
    for together in (
        ("attack", "augmentation", "stage 2", "stage 3", "directions", "attacked images", "checked images"),
        ("teacher", "student"),
        ("inversion", "unlearning"),
        ("sample", "folds"),
    ):
        assert len({seed_for(0, stream) for stream in together}) == len(together)
    assert seed_for(0, "attack", 1) != seed_for(0, "attack", 2) != seed_for(1, "attack", 2)


def test_any_words_are_a_stream_of_their_own():
    seeds = {seed_for(0, stream) for stream in (*STREAMS, "luck", "my package")}
    assert len(seeds) == len(set(STREAMS.values())) + 2


@pytest.mark.parametrize("seed", [None, 3, 2**40])
def test_the_global_generators_stay_also_after_an_error(seed):
    before = global_rng()

    def fail():
        with isolated_rng(seed):
            random.random(), np.random.rand(), torch.rand(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert global_rng() == before


def test_a_seed_fixes_what_is_drawn_from_all_three():
    draws = []
    for _ in range(2):
        with isolated_rng(3):
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
