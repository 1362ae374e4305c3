"""What the device at hand does well, and how much of its memory is used."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from art_aft.checks import check_instance

PRECISIONS = ("auto", "float32", "bfloat16")

# oneDNN's instruction sets without units for bfloat16, and with those of AVX512-BF16 alone.
_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
_AVX512_BF16 = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512")


def check_device(name: str, device: str | torch.device) -> torch.device:
    """
    Return a device by its name.

    :param name: The argument's name.
    :param device: A device, or its name, such as "cuda".
    :raises TypeError: If it is neither.
    :raises ValueError: If PyTorch knows no such device.
    """
    if isinstance(device, torch.device):
        return device
    try:
        return torch.device(check_instance(name, device, str, "a device such as 'cpu' or 'cuda'"))
    except RuntimeError:
        raise ValueError(f"{name}: got {device!r}, expected a device such as 'cpu' or 'cuda'") from None


def has_bfloat16_units(device: torch.device) -> bool:
    """
    Return whether the device multiplies bfloat16 in hardware: AMX, AVX512-BF16, or CUDA capability 8 and above.

    A processor with AVX512-BF16 alone (AMD's Zen 5, two cores) trained WRN-16-1 1.9 times and PreActResNet-18 2.1 times
    as fast in bfloat16 as in float32, and took Stage 1's gradients 2.8 times as fast. Where `ONEDNN_MAX_CPU_ISA` keeps
    oneDNN from these units, bfloat16 is emulated, many times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names: tuple[str, ...] = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if allowed in _AVX512_BF16:
        names = names[1:]
    elif allowed in _WITHOUT_BFLOAT16:
        names = ()
    probes = (getattr(torch.cpu, name, None) for name in names)
    return device.type == "cpu" and any(probe() for probe in probes if probe is not None)


def images_at_a_time(device: torch.device, input_shape: Sequence[int]) -> int:
    """
    Return how many images are attacked at a time: few for a processor's caches, many to keep a GPU busy.

    :param device: Where the work is done.
    :param input_shape: The shape of an image.
    """
    return 128 if device.type == "cpu" else max(32, 1024 * 3072 // math.prod(input_shape))


class PeakMemory:
    """
    How much memory a block of code needed at its height, beyond what was in use when it began.

    On a GPU that is what torch allocated there. On a CPU it is the resident memory of the process, looked at every few
    milliseconds, so that a shorter peak may be missed; known on Linux only. Pages of mapped files do not count: the
    system takes them back when it needs them.

    :param device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        #: In bytes, once the block has ended; None where it is not known.
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            _return_free_memory()
            self._before = self._peak = _resident()
            self._done = threading.Event()
            self._watch = threading.Thread(target=self._look, daemon=True)
            self._watch.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, _resident())

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._done.set()
        self._watch.join()
        if self._before:
            self.bytes = max(self._peak, _resident()) - self._before


def _return_free_memory() -> None:
    """
    Give the memory that the C library keeps for later back to the system, where that is glibc.

    A block that is given such memory would seem to need none.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    """Return the process's resident memory without mapped files in bytes, or 0 where Linux's /proc is missing."""
    try:
        _, resident, mapped, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    except OSError:
        return 0
    return (resident - mapped) * os.sysconf("SC_PAGE_SIZE")
