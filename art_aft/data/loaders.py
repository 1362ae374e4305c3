"""Data larger than memory: read once from a loader into a file that the system maps in and out as it is used."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from art.data_generators import PyTorchDataGenerator
from numpy.typing import DTypeLike
from torch.utils.data import DataLoader

from art_aft.runtime.random_state import isolated_rng

# Pixel values that are worked on at a time.
_CHUNK = 2**22

Checked = Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]


def is_loader(data: Any) -> bool:
    """Return whether data come in batches: torch's `DataLoader`, or ART's `PyTorchDataGenerator` around one."""
    return isinstance(data, (DataLoader, PyTorchDataGenerator))


def batches_of(loader: DataLoader | PyTorchDataGenerator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """
    Yield images and labels, batch by batch, once through.

    A loader draws its order and the seeds of its workers from the global random generators: callers isolate them.

    :param loader: What yields pairs (images, labels) of tensors or arrays.
    :raises TypeError: If it yields something else.
    """
    source = loader.iterator if isinstance(loader, PyTorchDataGenerator) else loader
    for batch in source:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"x: got a loader of {type(batch).__name__}, expected one of pairs (images, labels)")
        x, y = (part.numpy(force=True) if isinstance(part, torch.Tensor) else np.asarray(part) for part in batch)
        yield x, y


def read(loader: DataLoader | PyTorchDataGenerator, check: Checked) -> tuple[np.ndarray, np.ndarray]:
    """
    Return a loader's images as a mapped array, and their labels.

    The file lies where temporary files do (`TMPDIR`; that should be a disk), without a name, and goes with the array.

    :param loader: What yields pairs (images, labels).
    :param check: What checks a batch and returns it as float32 or uint8 images and label indices.
    :raises ValueError: If there is no batch, or its pixels are of another type than those before.
    """
    labels: list[np.ndarray] = []
    shape: tuple[int, ...] = ()
    dtype: Any = None
    with tempfile.TemporaryFile(prefix="art-aft-") as file, isolated_rng():
        for x, y in batches_of(loader):
            x, y = check(x, y)
            if dtype not in (None, x.dtype):
                raise ValueError(f"x: got batches of {dtype} and of {x.dtype}, expected one type of pixels")
            shape, dtype = x.shape[1:], x.dtype
            file.write(x.data)
            labels.append(y)
        if not labels:
            raise ValueError("x: got a loader without batches, expected at least one image")
        file.flush()
        y = np.concatenate(labels)
        return np.memmap(file, dtype, "r+", shape=(len(y), *shape)), y


def sample(loader: DataLoader | PyTorchDataGenerator, size: int, seed: int, check: Checked) -> tuple[Any, Any]:
    """
    Return so many of a loader's images and labels, drawn at random, each set of them as likely as any other.

    :param loader: What yields pairs (images, labels).
    :param size: How many images, or all where there are fewer.
    :param seed: The seed of the draw.
    :param check: What checks a batch.
    :raises ValueError: If there is no batch.
    """
    rng = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    with isolated_rng():
        for x, y in batches_of(loader):
            drawn = [*check(x, y), rng.random(len(x))]
            kept = [np.concatenate(pair) for pair in zip(kept, drawn, strict=True)] if kept else drawn
            if len(kept[2]) > size:
                lowest = np.sort(np.argpartition(kept[2], size)[:size])
                kept = [part[lowest] for part in kept]
    if not kept:
        raise ValueError("x: got a loader without batches, expected at least one image")
    return kept[0], kept[1]


def empty(shape: Sequence[int], dtype: DTypeLike, like: np.ndarray) -> np.ndarray:
    """Return an array to be filled, mapped to a file where `like` is."""
    if not isinstance(like, np.memmap):
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="art-aft-") as file:
        return np.memmap(file, dtype, "w+", shape=tuple(shape))


def chunks(x: np.ndarray) -> Iterator[slice]:
    """Yield slices that go through images, a few megabytes at a time."""
    size = max(1, _CHUNK // max(1, x[:1].size))
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def take(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return x[index], mapped to a file where `x` is."""
    if not isinstance(x, np.memmap):
        return x[index]
    taken = empty((len(index), *x.shape[1:]), x.dtype, like=x)
    for part in chunks(taken):
        taken[part] = x[index[part]]
    return taken


def batch_sizes(n: int, batch_size: int, least: int = 2) -> list[int]:
    """
    Return batch sizes that add up to n.

    :param n: The number of images.
    :param batch_size: Images a batch.
    :param least: A last batch of fewer images joins the one before: on one image BatchNorm fails, and each process
        needs one.
    """
    sizes = [batch_size] * (n // batch_size) + ([n % batch_size] if n % batch_size else [])
    if len(sizes) > 1 and sizes[-1] < least <= batch_size:
        sizes[-2:] = [sizes[-2] + sizes[-1]]
    return sizes
