"""The two files of a stored classifier: where they are, and whether they belong to each other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors

from art_aft.checks import check_path

#: Format 2 has a digest of the tensors' file. Files of format 1 are read without one.
FORMAT = 2


def both_files(path: str | Path) -> tuple[Path, Path]:
    """
    Return the paths of a stored classifier's tensors and of its description.

    >>> [str(file) for file in both_files("wanet-0.1.json")]
    ['wanet-0.1.safetensors', 'wanet-0.1.json']

    :param path: The path that it is stored at, with or without an ending.
    """
    path = check_path("path", path)
    if path.suffix in (".json", ".safetensors"):
        path = path.with_suffix("")
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


def read_stored(weights: Path, described: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Return the description and the tensors of a stored classifier, which must belong to each other.

    :param weights: The file of the tensors.
    :param described: The file of the description.
    :raises ValueError: If a file is missing, broken, of another format or not of the other one.
    """
    path = described.with_suffix("")
    if weights.exists() and not described.exists():
        raise ValueError(
            f"path: got {path}, expected a stored classifier ({weights.name} lies there without {described.name}: "
            "either it was not stored whole, or it has weights alone, which need the name of a model)"
        )
    try:
        description = json.loads(described.read_text(encoding="utf-8"))
        data = weights.read_bytes()
        known = description.get("sha256") if isinstance(description, dict) else None
        if known is not None and hashlib.sha256(data).hexdigest() != known:
            raise ValueError(f"{weights.name} is not the file that {described.name} describes: damaged, or replaced")
        tensors = safetensors.load(data)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"path: got {path}, expected a stored classifier ({error})") from None
    if not isinstance(description, dict) or description.get("format") not in (1, FORMAT):
        raise ValueError(f"path: got another format in {described}, expected format {FORMAT}")
    if description["format"] == FORMAT and known is None:
        raise ValueError(f"path: got no digest in {described}, expected that of {weights.name}")
    return description, tensors
