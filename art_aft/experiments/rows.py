"""Result rows: values that JSON knows, and the files that hold them."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack

from art_aft.runtime.files import locked, write_json

Row = dict[str, Any]


def environment() -> Row:
    """Return what a result depends on besides its settings: versions, machine, device."""
    packages = ("art-aft", "adversarial-robustness-toolbox", "numpy", "scikit-learn", "torch", "torchattacks")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def json_values(value: Any) -> Any:
    """
    Return a value, such as the settings of a defence, as values that JSON knows.

    >>> json_values({"eps": float("inf"), "milestones": ((2, 0.01),)})
    {'eps': 'inf', 'milestones': [[2, 0.01]]}

    :param value: Anything. Tuples become lists, infinities and NaN become strings. Of an attack remain its class and
        its `attack_params`, of a data class its fields, of an array its shape, of any other object the name of its
        class.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return json_values(value.item())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): json_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple | range):
        return [json_values(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((json_values(part) for part in value), key=str)
    return _described(value)


def _described(value: Any) -> Any:
    """Return a description of an object that JSON does not know."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} array of shape {tuple(value.shape)}"
    if isinstance(value, EvasionAttack):
        names = [name for name in value.attack_params if name != "verbose" and hasattr(value, name)]
        return {"class": type(value).__name__, **{name: json_values(getattr(value, name)) for name in names}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {part.name: json_values(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def add_row(path: Path, row: Row, same: Sequence[str] = ("victim",)) -> None:
    """
    Add a row to a JSON file of rows. Several processes may add rows to the same file.

    :param path: The file. It is made if it is missing.
    :param row: The row. It replaces earlier rows that have the same values for the keys `same`.
    :param same: Names of keys.
    :raises ValueError: If the file is not a JSON list of rows.
    """
    row = json_values(row)
    with locked(path):
        rows = read_rows(path)
        write_json(path, [other for other in rows if any(other.get(key) != row[key] for key in same)] + [row])


def read_rows(path: Path) -> list[Row]:
    """
    Return the rows of a JSON file.

    :param path: The file. One that is missing has no rows.
    :raises ValueError: If the file is not a JSON list of rows.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (RecursionError, ValueError) as error:
        raise ValueError(f"rows: got {path}, expected a JSON list of rows ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"rows: got {path}, expected a JSON list of rows")
    return rows


def write_record(path: Path, rows: Sequence[Row], **facts: Any) -> None:
    """
    Write rows to a JSON file, with the environment that they were measured in.

    :param path: The file.
    :param rows: The rows.
    :param facts: Other facts about all rows, such as the command.
    """
    write_json(path, json_values({"environment": {**facts, **environment()}, "rows": rows}))
