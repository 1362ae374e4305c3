"""The tables of defences on measurements.md and differences.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from art_aft.experiments.paper import published
from measuring.methods import Line, scored
from measuring.rows import ATTACKS, Row, as_table, attack_of, both, fitting, percent, rows

CPU = "table2-cpu"
TABLE_2 = [
    Line("before", CPU, {"defence": "none"}),
    *(Line(f"`{name}`", CPU, {"defence": name}) for name in ("fine_tuning", "fine_pruning", "neural_cleanse", "nad")),
    Line("`aft`, `PAPER`", CPU, {"defence": "aft"}),
    Line('`universal_aft`, "distilled"', CPU, {"defence": "universal_aft", "variant": "distilled"}),
]


def scores(row: Row, prefix: str = "") -> str:
    """Return ACC / ASR of one row."""
    return both([row[f"{prefix}acc"]], [row[f"{prefix}asr"]])


def oracle() -> str:
    """Return `auto` beside the oracle."""
    compared = [row for row in rows("oracle_cifar10") if "oracle_acc" in row]
    lines = []
    for row in compared:
        cells = [scores(row, prefix) for prefix in ("before_", "automatic_", "oracle_")]
        settings = row["oracle_settings"]
        lines.append([ATTACKS[row["attack"]], *cells, f"{settings['eps']:g}, {settings['learning_rate']:g}"])
    means = [
        both([r[f"{who}_acc"] for r in compared], [r[f"{who}_asr"] for r in compared])
        for who in ("before", "automatic", "oracle")
    ]
    return as_table(["ACC / ASR", "before", "`auto`", "oracle", "its radius, rate"], [*lines, ["mean", *means, ""]])


def tuned() -> str:
    """Return fine-tuning at the best of three rates, beside an earlier `auto`."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows("compare_auto_cifar10"):
        augmented = ", augmented" if row["victim"]["recipe"]["horizontal_flip"] else ""
        lines.setdefault(ATTACKS[attack_of(row)] + augmented, {})[row["defence"]] = scores(row)
    order = ("none", "fine_tuning", "auto")
    header = ["ACC / ASR", "before", "fine-tuning at the best of three constant rates", "earlier `auto`, not pruned"]
    return as_table(header, ([title, *(found[name] for name in order)] for title, found in lines.items()))


def without_clean_data() -> str:
    """Return the defences that have only the poisoned training set, beside the paper's."""
    attacks = ("badnets", "blend", "sig")
    lines = []
    tables = (("10 %", "table8-cpu", published.TABLE_8), ("1 %", "table6-cpu", published.TABLE_6))
    for share, file, table in tables:
        for name in ("none", "aft_no_clean_data", "progressive_erasing"):
            found = {attack_of(row): row for row in fitting(file, {"defence": name})}
            own = [found[attack] for attack in attacks]
            title = f"{share} poisoned, before" if name == "none" else f"`{name}`"
            mean = both([row["acc"] for row in own], [row["asr"] for row in own])
            spent = "" if name == "none" else between([row["seconds"] for row in own])
            lines.append([title, *(scores(row) for row in own), mean, spent])
        theirs = [table["aft_no_clean_data"][attack] for attack in attacks]
        mean = " / ".join(f"{np.mean([pair[place] for pair in theirs]):.1f}" for place in (0, 1))
        lines.append(["the paper's Algorithm 1", *(f"{acc:.1f} / {asr:.1f}" for acc, asr in theirs), mean, ""])
    return as_table(["ACC / ASR", *(ATTACKS[attack] for attack in attacks), "mean", "seconds"], lines)


def between(numbers: Iterable[float]) -> str:
    """Return the smallest and the largest of some numbers, without digits after the point."""
    low, high = min(numbers := list(numbers)), max(numbers)
    return f"{low:,.0f} to {high:,.0f}"


def architectures() -> str:
    """Return `auto` and fine-tuning on architectures that the package does not know."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows("architectures_digits"):
        title = f"{row['model'].replace('vgg', 'VGG with dropout')}, {ATTACKS[row['attack']]}"
        lines.setdefault(title, {})[row["defence"]] = scores(row)
    order = ("before", "automatic", "fine-tuning")
    header = ["ACC / ASR", "before", "`auto`", "fine-tuning for as many steps at its largest rate"]
    return as_table(header, ([title, *(found[name] for name in order)] for title, found in lines.items()))


def art_cleanse() -> str:
    """Return ART's Neural Cleanse beside this package's."""
    titles = {"art_aft": "`art_aft`", "ART": "ART", "ART, rate kept": "ART, its learning rate kept"}
    lines = []
    for who, title in titles.items():
        own = {row["mitigation"]: row for row in fitting("compare_with_art", {"who": who})}
        flagged = ", ".join(str(label) for label in own["none"]["flagged"]) or "none"
        cells = (scores(own[name]) for name in ("none", "unlearning"))
        lines.append([title, f"{own['none']['seconds']:.0f}", flagged, *cells])
    return as_table(["", "seconds", "flagged labels", "before", "after unlearning"], lines)


#: What was changed in the code for a run of `auto_settings_h100`, by the word that stands for it there.
CHANGED = {
    "focus:.5": "half of the perturbations towards the suspected label",
    "layers:.1,.3,1": "a tenth of the rate for the first layers, three tenths for the next",
    "randpatch:4,.5": "random patches of 4x4 pixels for half of the perturbations",
    "scale:.5,1.5": "perturbations of half to one and a half times their length",
    "teacher:": "the pruned model as the only teacher, without the suspected label",
}


def setting_of(row: Row) -> str:
    """Return the settings of a run of `auto_settings_h100`, in words."""
    given = row["settings"]
    words = [f"rate {given['learning_rate']:g}"]
    if "sparse_share" in given:
        words.append(f"`sparse_share={given['sparse_share']:g}`")
    if "focus" in given:
        words.append(f"`focus={given['focus']:g}`")
    if given["pruning_drop"] != 0.02:
        words.append(f"`pruning_drop={given['pruning_drop']:g}`")
    words += [CHANGED[each if each in CHANGED else f"{each}:"] for each in (row["changed"] or "").split("+") if each]
    return ", ".join(words)


def auto_settings() -> str:
    """Return what settings of `auto` cost and leave on five victims."""
    before = {row["attack"]: row["before_acc"] for row in rows("oracle_cifar10") if "before_acc" in row}
    runs: dict[str, list[Row]] = {}
    for row in sorted(fitting("auto_settings_h100", {"subset": 0, "seed": 0}), key=lambda row: row["changed"] or ""):
        runs.setdefault(setting_of(row), []).append(row)
    lines = []
    for setting, own in runs.items():
        lost = percent(before[row["attack"]] - row["acc"] for row in own)
        asr = [row["asr"] for row in own]
        lines.append([setting, str(len(own)), lost, percent(asr), percent([max(asr)])])
    return as_table(["settings", "victims", "ACC lost", "mean ASR", "worst ASR"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "table2": partial(scored, TABLE_2, deviation=True),
    "oracle": oracle,
    "tuned": tuned,
    "no_clean_data": without_clean_data,
    "architectures": architectures,
    "art_cleanse": art_cleanse,
    "auto_settings": auto_settings,
}
