"""The report of `art-aft compare` for a browser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from art_aft.experiments.reports.charts import meters
from art_aft.experiments.reports.parts import (
    Source,
    Verdict,
    document,
    ending,
    heading,
    listing,
    section,
    table,
)
from art_aft.experiments.rows import Row
from art_aft.experiments.tables import defence_title, mean_and_deviation

# Up to this attack success a page does not say that the backdoor is still there. Below the other bound the attack did
# not work from the start, as in docs/detection.md. A loss of more accuracy than the third is no success, as for
# `art-aft purify`.
_GONE, _WORKS, _COSTLY = 0.1, 0.5, 0.1


def comparison_report(rows: Sequence[Row], source: Source) -> str:
    """
    Return the report of a comparison as a page.

    :param rows: The rows of `art-aft compare`, of one victim.
    :param source: Where they come from.
    """
    victim = rows[0]["victim"]
    own: Row = {
        name: value for name, value in victim.items() if value is not None and value is not False and value != {}
    }
    settings = {defence_title(row["defence"]): row.get("settings", {}) for row in rows if row["clean_subset"] == 0}
    settings.pop(defence_title("none"), None)
    return document(
        "Comparison of defences",
        comparison_verdict(rows),
        section("Evidence", *_comparison_evidence(rows)),
        section("What was not looked at", listing(_comparison_limits(rows))),
        *ending(rows[0], source, {**{f"victim: {name}": value for name, value in own.items()}, **settings}),
    )


def comparison_verdict(rows: Sequence[Row]) -> Verdict:
    """Return what the page of a comparison says first."""
    means = _means(rows)
    before = means.pop("none")
    worked = f"On the victim {_percent(before['asr'])} of the triggered images get the attacker's label"
    if before["asr"] < _WORKS:
        first = f"{worked}, so the attack hardly worked, and what defences remove of it says little."
        return Verdict(
            "unsure", "The attack hardly worked", (first, "Train a victim longer, or poison more of its data.")
        )
    best = max(means, key=lambda name: means[name]["der"])
    after = means[best]
    if after["asr"] >= before["asr"]:
        return Verdict(
            "bad",
            "No defence helped",
            (f"{worked}. {defence_title(best)} has the highest rating (DER), and does not lower that.",),
        )
    numbers = (
        f"{worked}; after {defence_title(best)}, {_percent(after['asr'])}. Clean images that the model gets right: "
        f"{_percent(before['acc'])} before, {_percent(after['acc'])} after."
    )
    how = "It has the highest rating (DER), which counts what the attack lost and what the accuracy lost."
    left: tuple[str, ...] = ("That is less, but the backdoor is not gone.",) if after["asr"] > _GONE else ()
    if before["acc"] - after["acc"] > _COSTLY:
        left += ("It costs much accuracy, so it may be of no use with these settings.",)
    name = defence_title(best)
    return Verdict("unsure" if left else "good", f"{name[:1].upper()}{name[1:]} did best", (numbers, *left, how))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the mean scores of each defence over clean subsets."""
    names = dict.fromkeys(row["defence"] for row in rows)
    scores = ("acc", "asr", "ra", "der")
    own = {name: [row for row in rows if row["defence"] == name] for name in names}
    return {name: {key: float(np.mean([row[key] for row in own[name]])) for key in scores} for name in names}


def _comparison_evidence(rows: Sequence[Row]) -> list[str]:
    """Return the pictures of a comparison, as markup."""
    means, parts = _means(rows), []
    for key, title in (
        ("asr", "Triggered images that get the attacker's label (ASR): the lower, the better"),
        ("acc", "Clean images that get their true label (ACC): the higher, the better"),
        ("ra", "Triggered images that get their true label (RA): the higher, the better"),
    ):
        shown = [(defence_title(name), one[key], _percent(one[key]), key == "asr") for name, one in means.items()]
        parts += [heading(title), meters(shown, most=1.0)]
    lines = []
    for name in means:
        own = [row for row in rows if row["defence"] == name]
        shares = [mean_and_deviation([100 * row[key] for row in own]) for key in ("acc", "asr", "ra", "der")]
        seconds = [row["seconds"] for row in own if row.get("seconds") is not None]
        lines.append([defence_title(name), *shares, f"{np.mean(seconds):.1f}" if seconds else "", len(own)])
    head = ["defence", "ACC, %", "ASR, %", "RA, %", "DER, %", "seconds", "clean subsets"]
    return [*parts, heading("All numbers"), table(head, lines)]


def _comparison_limits(rows: Sequence[Row]) -> list[str]:
    """Return what a comparison did not look at."""
    subsets, victim = 1 + max(row["clean_subset"] for row in rows), rows[0]["victim"]
    return [
        f"One victim of one attack ({victim['attack']}). Defences may rank otherwise on another one.",
        f"{subsets} subset{'s' * (subsets > 1)} of clean images, {rows[0]['n_clean_images']} in each."
        + " Differences within the spread of subsets mean nothing." * (subsets > 1)
        + " How much the numbers vary with the images is not known." * (subsets == 1),
        "An attacker who knows the defence and trains against it.",
    ]
