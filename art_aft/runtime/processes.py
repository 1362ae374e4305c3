"""
Several processes, each with a GPU of its own or a share of the CPU, that do the work of one: `across_processes`.

Outside that context every process works for itself, also under torchrun: `world()` is then one process of one.
"""

from __future__ import annotations

import importlib
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from art_aft.checks import check_number

# Floats that are exchanged at a time: 64 MB.
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class World:
    """
    The processes that work together, seen from one of them.

    :param rank: The number of this process, from 0.
    :param size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def part(self, n: int) -> slice:
        """Return which of n things in a row are this process's; shares differ by one at most, and may be empty."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def seed(self, seed: int) -> int:
        """Return a seed of this process's own; the first process keeps the given one."""
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]) if self.rank else seed


_ALONE = World()
_WORLD: ContextVar[World] = ContextVar("world", default=_ALONE)


def world() -> World:
    """Return the processes that work together at this point of the program."""
    return _WORLD.get()


@contextmanager
def across_processes(*, timeout: float = 600.0) -> Iterator[World]:
    """
    Share the work of a block among all processes that torchrun has started.

    Each process runs the same program on the same data with the same seeds. In the block, `TorchAttacksPGD` attacks a
    part of the images in each of them, and all fine-tuning runs in DistributedDataParallel, a part of each batch in
    each process; batch normalisation and dropout see the whole batch. All end with the weights that one process alone
    would have come to, up to rounding. A process that fails or dies ends the others with an error.

    Build the classifier inside the block: on GPUs, ART puts it on the current one, which is another in each process.

    :param timeout: After how many seconds a process that waits for another one gives up with an error. A process group
        that is there already keeps its own.
    :return: The rank of this process, and how many there are.
    :raises RuntimeError: If there is neither a process group nor what torchrun says of one in the environment.
    :raises ValueError: If there are more processes on this machine than GPUs, or the timeout is not above 0.
    """
    check_number("timeout", timeout, minimum=0.0, above=True)
    with ExitStack() as stack:
        own = not (dist.is_available() and dist.is_initialized())
        if own:
            _start(stack, timeout)
        token = _WORLD.set(World(dist.get_rank(), dist.get_world_size()))
        stack.callback(_WORLD.reset, token)
        yield world()
        if own:
            # Nobody closes the connections while others still read from them. This tensor outlives the group: before
            # torch 2.8 the group's end waits for a thread that would otherwise wait for Python to delete the tensor.
            last = torch.zeros(1)
            dist.all_reduce(last)


def _start(stack: ExitStack, timeout: float) -> None:
    """Join the process group that torchrun describes, until the stack is unwound."""
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not dist.is_available():
        raise RuntimeError(
            f"across_processes: got no process group and no {', '.join(missing) or 'torch.distributed'}, "
            "expected a program that torchrun has started"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"nproc-per-node: got more than {torch.cuda.device_count()}, expected a GPU for each process of a "
                "machine (or CUDA_VISIBLE_DEVICES='' for work on the CPU)"
            )
        stack.enter_context(torch.cuda.device(local))
    # Loaded before there is a group: its functions take the current one for a default argument, and keep it. The group
    # would then outlive its end, and its threads would sometimes crash the interpreter as that exits.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    stack.callback(dist.destroy_process_group)


def check_same(device: torch.device, **values: np.ndarray | str) -> None:
    """
    Check that all processes have come to the same place with the same data: else they would wait for ever or, worse,
    mix up what does not belong together.

    :param device: The device that they work on.
    :param values: Arrays or texts by name.
    :raises ValueError: In all processes, if one of the values differs; or if the device is not this process's own.
    """
    if world().size == 1:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise ValueError(
            f"classifier.device: got {device} in process {world().rank}, expected cuda:{torch.cuda.current_device()}, "
            "that is a classifier built inside across_processes()"
        )
    sums = [
        zlib.crc32(value.encode() if isinstance(value, str) else np.ascontiguousarray(value).data)
        for value in values.values()
    ]
    extremes = torch.tensor([sums, [-number for number in sums]], device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MIN)
    low, high = extremes[0].tolist(), (-extremes[1]).tolist()
    for name, lowest, highest in zip(values, low, high, strict=True):
        if lowest != highest:
            raise ValueError(f"{name}: got others in one process than in another, expected the same in all")


def exchange(array: np.ndarray, device: torch.device) -> None:
    """
    Have each process's part of an array filled in everywhere.

    :param array: A contiguous array, of the same shape in all processes; `world().part(len(array))` is known here.
    :param device: The device that tensors travel from and to.
    """
    here = world()
    rows = max(1, _AT_ONCE // max(1, int(np.prod(array.shape[1:]))))
    for rank in range(here.size if here.size > 1 else 0):
        part = World(rank, here.size).part(len(array))
        for start in range(part.start, part.stop, rows):
            piece = torch.from_numpy(array[start : min(start + rows, part.stop)])
            _broadcast(piece, rank, device)


@torch.no_grad()
def from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors, in place, the values that they have in the first process."""
    for tensor in tensors if world().size > 1 else ():
        _broadcast(tensor, 0, tensor.device)


def number_of_first(number: float, device: torch.device) -> float:
    """Return a number as it is in the first process, for decisions that rounding must not split."""
    if world().size == 1:
        return number
    shared = torch.tensor([number], dtype=torch.float64, device=device)
    _broadcast(shared, 0, device)
    return shared.item()


def _broadcast(tensor: torch.Tensor, source: int, device: torch.device) -> None:
    """Broadcast a tensor of any device and memory format, in place."""
    shared = tensor.detach().to(device).contiguous()
    dist.broadcast(shared, src=source)
    if world().rank != source and shared.data_ptr() != tensor.data_ptr():
        tensor.copy_(shared)
