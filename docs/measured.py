"""
Write the tables of measured rows on the pages of the methods from the JSON files in examples/results.

`python docs/measured.py` writes them between `<!-- rows: NAME -->` and `<!-- end of rows -->`; `--check` only says
whether they are up to date, as a test does.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "examples" / "results"
ATTACKS = {"badnets": "BadNets", "blend": "Blend", "sig": "SIG", "wanet": "WaNet", "input_aware": "Input-aware"}
MARKED = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end of rows -->)", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """
    One line of a table: the mean ACC and ASR over the rows of one file that fit.

    :param title: The first cell.
    :param file: The file's name in examples/results, without its ending.
    :param where: What fitting rows have, by keys with dots.
    :param scores: Where a row has its scores, by the two keys of ACC and ASR.
    """

    title: str
    file: str
    where: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[str, str] = ("acc", "asr")


def value(row: Mapping[str, Any], key: str) -> Any:
    """Return what a row has under a key with dots, None where it has nothing there."""
    for part in key.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None  # type: ignore[assignment]
    return row


def before_and_after(file: str, name: str, title: str, **where: Any) -> list[Line]:
    """Return the line of the infected models of a file, and that of a defence on them."""
    return [
        Line("before", file, {"defence": "none"}),
        Line(title, file, {"defence": name, **where}),
    ]


def without_clean_data(name: str) -> list[Line]:
    """Return the lines of a defence that has only the poisoned training set."""
    shares = (("10 % poisoned", "table8-cpu"), ("1 % poisoned", "table6-cpu"))
    return [
        Line(f"{share}, {line.title}", file, line.where)
        for share, file in shares
        for line in before_and_after(file, name, f"`{name}`")
    ]


def rivals(name: str, title: str) -> list[Line]:
    """Return the lines of a defence on CIFAR-10 and on GTSRB."""
    data = (("CIFAR-10", "table2-cpu"), ("GTSRB", "table3-cpu"))
    return [
        Line(f"{data_set}, {line.title}", file, line.where)
        for data_set, file in data
        for line in before_and_after(file, name, title)
    ]


AFT = {"defence": "aft"}
ORACLE = "oracle_cifar10"
TABLES = {
    "aft": [
        *rivals("aft", "`aft`, `PAPER`"),
        Line("CIFAR-10, after Stage 2", "table2-cpu", AFT, ("stage_2.acc", "stage_2.asr")),
        Line("GTSRB, after Stage 2", "table3-cpu", AFT, ("stage_2.acc", "stage_2.asr")),
    ],
    "aft_no_clean_data": without_clean_data("aft_no_clean_data"),
    "universal_aft": [
        *before_and_after("table2-cpu", "universal_aft", '`universal_aft`, "distilled"', variant="distilled"),
    ],
    "auto": [
        Line("CIFAR-10, before", ORACLE, {}, ("before_acc", "before_asr")),
        Line("CIFAR-10, `auto`", ORACLE, {}, ("automatic_acc", "automatic_asr")),
        Line("GTSRB, before", "table3-cpu", {"defence": "none"}),
        Line("GTSRB, `auto`", "table3-cpu", {"defence": "auto"}),
    ],
    "progressive_erasing": without_clean_data("progressive_erasing"),
    "fine_tuning": rivals("fine_tuning", "`fine_tuning`"),
    "fine_pruning": rivals("fine_pruning", "`fine_pruning`"),
    "nad": rivals("nad", "`nad`"),
    "neural_cleanse": rivals("neural_cleanse", "`neural_cleanse`"),
}


def rows(file: str) -> list[Mapping[str, Any]]:
    """Return the rows of a file in examples/results."""
    content = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
    return content["rows"] if isinstance(content, Mapping) else content


def both(acc: Iterable[float], asr: Iterable[float]) -> str:
    """Return the means of ACC and ASR in percent, rounded as on the page of the results."""
    return " / ".join(f"{np.mean([100 * each for each in shares]):.1f}" for shares in (acc, asr))


def cells(line: Line) -> dict[str, str]:
    """Return ACC / ASR by attack."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows(line.file):
        acc, asr = (value(row, key) for key in line.scores)
        if acc is not None and all(value(row, key) == wanted for key, wanted in line.where.items()):
            found.setdefault(value(row, "attack") or value(row, "victim.attack"), []).append((acc, asr))
    return {attack: both(*zip(*pairs, strict=True)) for attack, pairs in found.items()}


def as_table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    header = list(header)
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *lines))


def defended(name: str) -> str:
    """Return the table of a defence, with a column for each attack that was measured."""
    measured = {line.title: cells(line) for line in TABLES[name]}
    attacks = [attack for attack in ATTACKS if any(attack in found for found in measured.values())]
    lines = ([title, *(found.get(attack, "") for attack in attacks)] for title, found in measured.items())
    return as_table(["ACC / ASR", *(ATTACKS[attack] for attack in attacks)], lines)


def how(victim: Mapping[str, Any]) -> str:
    """Return what is special about the training of a victim."""
    said = {
        "poisoned afresh in every batch": victim["per_batch"],
        "covers": victim["cover_ratio"],
        "mean and deviation": victim["normalise"],
        "augmented": victim["recipe"]["horizontal_flip"],
        ", ".join(f"`{name}={setting}`" for name, setting in victim["trigger"].items()): victim["trigger"],
    }
    return ", ".join(words for words, holds in said.items() if holds)


def infected(attack: str) -> str:
    """Return the table of an attack's victims."""
    lines = []
    for row in rows("infected_models"):
        victim = row["victim"]
        if victim["attack"] == attack:
            scores = both([row["scores"]["acc"]], [row["scores"]["asr"]])
            lines.append([victim["model"], victim["labels"], f"{100 * victim['rate']:g} %", how(victim), scores])
    return as_table(["model", "labels", "poisoned", "training", "ACC / ASR"], lines)


def written(page: str) -> str:
    """Return a page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[2]
        return match[1] + (infected(name) if name in ATTACKS else defended(name)) + match[3]

    return MARKED.sub(table, page)


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is out of date")
    options = parser.parse_args()
    stale = []
    for path in sorted([*DOCS.glob("defences/*.md"), *DOCS.glob("attacks/*.md")]):
        page = path.read_text(encoding="utf-8")
        if written(page) != page:
            stale.append(path.name)
            if not options.check:
                path.write_text(written(page), encoding="utf-8")
    print(", ".join(stale) or "nothing", "out of date" if options.check else "written")
    sys.exit(1 if stale and options.check else 0)


if __name__ == "__main__":
    main()
