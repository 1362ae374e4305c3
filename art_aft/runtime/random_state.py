"""Random streams by name, and the global random generators left alone."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

#: What each random choice of this package is for, and the number of its stream. Streams of one defence have different
#: numbers, so that they share no draw; names that never meet in one defence may share a number.
STREAMS = {
    "attack": 0,
    "held out": 0,
    "inversion": 0,
    "sample": 0,
    "augmentation": 1,
    "folds": 1,
    "teacher": 1,
    "unlearning": 1,
    "student": 2,
    "stage 2": 2,
    "stage 3": 3,
    "directions": 4,
    "attacked images": 5,
    "checked images": 6,
}


def _number(stream: str) -> int:
    """Return the number of a stream; a name that is not in the table has one of its own."""
    return STREAMS[stream] if stream in STREAMS else zlib.crc32(stream.encode())


def seed_for(seed: int, stream: str, *turn: int) -> int:
    """
    Return the seed of one random choice, so that a second choice does not repeat the first one's draws.

    >>> seed_for(0, "stage 2") == seed_for(0, "stage 3")
    False

    :param seed: The user's seed, at least 0.
    :param stream: What the choice is for, in a word or two. Other words give another seed.
    :param turn: How often that choice was made before, where it is made again and again.
    :return: A seed in [0, 2**32).
    """
    return int(np.random.SeedSequence([seed, _number(stream), *turn]).generate_state(1)[0])


def rng_for(seed: int, stream: str) -> np.random.Generator:
    """
    Return numpy's generator for one random choice.

    :param seed: The user's seed, at least 0.
    :param stream: What the choice is for, in a word or two.
    """
    return np.random.default_rng([seed, _number(stream)])


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """
    Run a block with the global generators seeded, and leave them as they were found.

    :param seed: The seed for torch, numpy and Python inside the block; None keeps their streams as they are.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
