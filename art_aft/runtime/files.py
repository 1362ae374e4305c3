"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replacing(path: Path, write: Callable[[Path], Any]) -> None:
    """
    Write a file beside its place and move it there, so that a killed process leaves no half file.

    :param path: Where the file goes; its folder is made.
    :param write: Called with the temporary path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; the file appears whole or not at all."""
    replacing(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, *, indent: int = 2) -> None:
    """
    Write a value as JSON; the file appears whole or not at all.

    :param path: Where the file goes.
    :param value: Values that JSON knows.
    :param indent: Spaces an inner level.
    :raises ValueError: If a number is NaN or infinite, which JSON does not know.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")
