"""Single numbers in running text, each with a question to the rows beside it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from measuring.rows import Row, fitting, percent, value

#: `<!-- row: FILE WHAT KEY=VALUE ... -->number<!-- end -->`
MARKED = re.compile(r"(<!-- row: (.*?) -->).*?(<!-- end -->)", re.DOTALL)

_SUMMARIES: dict[str, Callable[[Sequence[float]], float]] = {"mean": np.mean, "min": min, "max": max, "sum": sum}

_SIGNS: dict[str, Callable[[Any, str], bool]] = {
    "=": lambda found, wanted: str(found) == wanted,
    "!=": lambda found, wanted: str(found) != wanted,
    ">=": lambda found, wanted: found is not None and found >= float(wanted),
    "<=": lambda found, wanted: found is not None and found <= float(wanted),
}


def answer(question: str) -> str:
    """
    Return the number that a question asks for.

    `FILE WHAT CONDITION ...`: of the rows of a file that fulfil the conditions, as `KEY=VALUE`, `KEY!=VALUE` or
    `KEY>=NUMBER`. WHAT is `n`, the number of rows; or a key, followed by `%` for percent or `.2` for two digits after
    the point, and with `min:`, `max:` or `sum:` before it for another summary than the mean. Several with `/` between
    them are several numbers: `acc%/asr%`.

    >>> answer("oracle_cifar10 before_acc%/before_asr% attack=blend")
    '83.2 / 99.8'
    """
    file, what, *conditions = shlex.split(question)
    selected = [row for row in fitting(file, {}) if all(_holds(row, each) for each in conditions)]
    if what == "n":
        return str(len(selected))
    if not selected:
        raise ValueError(f"no row fits: {question}")
    return " / ".join(_number(selected, part) for part in what.split("/"))


def _holds(row: Row, condition: str) -> bool:
    """Return whether a row fulfils a condition."""
    key, sign, wanted = re.fullmatch(r"(.+?)([!<>]?=)(.*)", condition).groups()  # type: ignore[union-attr]
    return _SIGNS[sign](value(row, key), wanted)


def _number(selected: Sequence[Row], what: str) -> str:
    """Return a summary of what rows have under a key."""
    summary, key, form = re.fullmatch(r"(?:(\w+):)?(.+?)(%|\.\d)?", what).groups()  # type: ignore[union-attr]
    values = [found for row in selected if (found := value(row, key)) is not None]
    number = _SUMMARIES[summary or "mean"](values)
    if form == "%":
        return percent([number])
    return f"{number:,{form or '.0'}f}"


def filled(page: str) -> str:
    """Return a page with its single numbers made anew."""
    for line in page.splitlines():
        if line.lstrip().startswith("<!-- row: "):
            raise ValueError(f"a number at the start of a line ends the paragraph before it: {line}")
    return MARKED.sub(lambda match: match[1] + answer(match[2]) + match[3], page)
