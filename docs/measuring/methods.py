"""The tables on the pages of attacks and defences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from measuring.rows import ATTACKS, Row, as_table, attack_of, both, fitting, rows, value


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
DEFENCES = {
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


def cells(line: Line, *, deviation: bool = False) -> dict[str, str]:
    """Return ACC / ASR by attack."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in fitting(line.file, line.where):
        acc, asr = (value(row, key) for key in line.scores)
        if acc is not None:
            found.setdefault(attack_of(row), []).append((acc, asr))
    return {attack: both(*zip(*pairs, strict=True), deviation=deviation) for attack, pairs in found.items()}


def scored(lines: list[Line], *, deviation: bool = False) -> str:
    """Return the table of some lines, with a column for each attack that was measured."""
    measured = [(line.title, cells(line, deviation=deviation)) for line in lines]
    attacks = [attack for attack in ATTACKS if any(attack in found for _, found in measured)]
    table = ([title, *(found.get(attack, "") for attack in attacks)] for title, found in measured)
    return as_table(["ACC / ASR", *(ATTACKS[attack] for attack in attacks)], table)


def how(victim: Row) -> str:
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


TABLES: dict[str, Callable[[], str]] = {
    **{name: partial(scored, lines) for name, lines in DEFENCES.items()},
    **{attack: partial(infected, attack) for attack in ATTACKS},
}
