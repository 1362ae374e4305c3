"""Rows of examples/results: how they are read, selected and written down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parents[2] / "examples" / "results"
ATTACKS = {"badnets": "BadNets", "blend": "Blend", "sig": "SIG", "wanet": "WaNet", "input_aware": "Input-aware"}
DATA = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB"}
Row = Mapping[str, Any]


@cache
def rows(file: str) -> list[Row]:
    """Return the rows of a file in examples/results, named without its ending."""
    content = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
    return content["rows"] if isinstance(content, Mapping) else content


def value(row: Row, key: str) -> Any:
    """Return what a row has under a key with dots, None where it has nothing there."""
    for part in key.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None  # type: ignore[assignment]
    return row


def fitting(file: str, where: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a file that have given values under given keys with dots."""
    return [row for row in rows(file) if all(value(row, key) == wanted for key, wanted in where.items())]


def attack_of(row: Row) -> str:
    """Return the name of the attack of a row."""
    return value(row, "attack") or value(row, "victim.attack")


def percent(shares: Iterable[float], *, deviation: bool = False) -> str:
    """Return the mean of some shares in percent, with the standard deviation if there is more than one."""
    numbers = [100 * share for share in shares]
    spread = f" ±{np.std(numbers, ddof=1):.1f}" if deviation and len(numbers) > 1 else ""
    return f"{np.mean(numbers):.1f}{spread}"


def both(acc: Iterable[float], asr: Iterable[float], *, deviation: bool = False) -> str:
    """Return the means of ACC and ASR in percent, rounded as on the page of the results."""
    return " / ".join(percent(shares, deviation=deviation) for shares in (acc, asr))


def as_table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    header = list(header)
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *lines))
