"""Tables of purified models of the zoo, and of what `auto` costs."""

from __future__ import annotations

from collections.abc import Callable

from measuring.detectors import ARCHITECTURES
from measuring.rows import ATTACKS, DATA, Row, as_table, both, percent, rows

# A model counts as infected where its attack works on this share of images, before anything is done to it.
WORKS = 0.5

HALVES = {"choosing": "purify_zoo_choose", "judging": "purify_zoo_judge"}


def is_infected(row: Row) -> bool:
    """Return whether an attack was made, and works."""
    return row["rate"] > 0 and row["before"]["asr"] >= WORKS


def is_clean(row: Row) -> bool:
    """Return whether no attack was made."""
    return row["rate"] == 0


def purified() -> str:
    """Return what `auto` left of attack and accuracy, for both halves, infected and clean models."""
    header = ["models", "number", "ACC / ASR before", "after", "highest ASR", "most points lost", "accepted"]
    lines = []
    for half, file in HALVES.items():
        for title, belongs in (("infected", is_infected), ("clean", is_clean)):
            found = [row for row in rows(file) if belongs(row)]
            before, after = (
                both([row[when]["acc"] for row in found], [row[when]["asr"] for row in found])
                for when in ("before", "after")
            )
            highest = percent([max(row["after"]["asr"] for row in found)])
            lost = percent([max(row["before"]["acc"] - row["after"]["acc"] for row in found)])
            accepted = str(sum(row["accepted"] for row in found))
            lines.append([f"{half} half, {title}", str(len(found)), before, after, highest, lost, accepted])
    return as_table(header, lines)


def photographs() -> str:
    """Return what `auto` did to each model of photographs."""
    lines = []
    for row in rows("purify_photographs"):
        data, model = row["model"].split("-")[:2]
        seen = ", clean images seen" if row["seen"] else ""
        kind = f"{ATTACKS[row['attack']]}, {100 * row['rate']:g} %" if row["rate"] else "clean"
        before, after = (
            both([row[when]["acc"]], [row[when]["asr"]]) if row["rate"] else percent([row[when]["acc"]])
            for when in ("before", "after")
        )
        accepted = "yes" if row["accepted"] else "no"
        name = f"{DATA[data]}, {ARCHITECTURES[model]}, {kind}{seen}"
        lines.append([name, before, after, accepted, str(len(row["trials"])), f"{row['seconds']:.0f}"])
    return as_table(["model", "ACC / ASR before", "after", "accepted", "trials", "seconds"], lines)


def against_labels() -> str:
    """Return how many images one trial of `auto` passes through a network, against the number of labels."""
    found = [row for row in rows("labels") if row["what"] == "auto"]
    kinds = ("attacked", "trained", "seen")
    least = sum(found[0][kind] for kind in kinds)
    lines = []
    for row in found:
        counts = [row[kind] for kind in kinds]
        lines.append([str(row["labels"]), *(f"{count:,}" for count in counts), f"{sum(counts) / least:.2f}"])
    return as_table(["labels", "perturbed, with gradients", "trained on", "without gradients", "all, to ten"], lines)


def woken() -> str:
    """Return what is left of backdoors that were hidden, after each defence."""
    found = rows("dormant")
    lines = []
    for defence in dict.fromkeys(row["defence"] for row in found):
        of = [row for row in found if row["defence"] == defence]
        scores = [
            both([row[when]["acc"] for row in of], [row[when]["asr"] for row in of]) for when in ("before", "after")
        ]
        lines.append([defence, str(len(of)), *scores, percent([max(row["after"]["asr"] for row in of)])])
    return as_table(["defence", "models", "ACC / ASR hidden", "after", "highest ASR"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "purify_zoo": purified,
    "purify_photographs": photographs,
    "labels": against_labels,
    "dormant": woken,
}
