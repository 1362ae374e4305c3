"""The table of purified models of the zoo."""

from __future__ import annotations

from collections.abc import Callable

from measuring.rows import Row, as_table, both, percent, rows

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


TABLES: dict[str, Callable[[], str]] = {"purify_zoo": purified}
