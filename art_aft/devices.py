"""What the device at hand does well."""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware (AMX, or CUDA capability 8 and above)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and probe is not None and bool(probe())
