"""
Score progressive erasing with its default settings, without clean data, on victims of several poisoning ratios.

A killed run resumes where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from art_aft.cli.options import command_line
from art_aft.experiments.grid import run_grid
from art_aft.experiments.measurements import Cell
from art_aft.experiments.paper.artefacts import STATIC
from art_aft.experiments.paper.scales import SCALES, Scale, scale
from art_aft.experiments.rows import Row, write_record


def cells(at: Scale, attacks: Sequence[str], rates: Sequence[float]) -> list[Cell]:
    """Return two cells for each victim: its own, and that of progressive erasing on its poisoned training set."""
    settings = at.settings("progressive_erasing", {})
    found = []
    for victim in (at.victim(attack, rate=rate) for rate in rates for attack in attacks):
        found += [Cell(victim), Cell(victim, defence="progressive_erasing", settings=settings, clean_data=False)]
    return found


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over attacks, by poisoning ratio: ASR, the highest ASR, ACC and how much of it was lost."""
    found = []
    for rate in sorted({row["victim"]["rate"] for row in rows}):
        own = [row for row in rows if row["victim"]["rate"] == rate]
        before, after = ([row for row in own if row["defence"] == name] for name in ("none", "progressive_erasing"))
        acc = sum(row["acc"] for row in after) / len(after)
        found.append(
            {
                "rate": rate,
                "mean_asr": sum(row["asr"] for row in after) / len(after),
                "worst_asr": max(row["asr"] for row in after),
                "mean_acc": acc,
                "mean_acc_lost": sum(row["acc"] for row in before) / len(before) - acc,
            }
        )
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--data", type=Path, help="the folder that contains the data sets (not for smoke)")
    parser.add_argument("--attacks", nargs="+", default=STATIC)
    parser.add_argument("--rates", nargs="+", type=float, default=(0.01, 0.1), help="poisoning ratios")
    parser.add_argument("--store", type=Path, default=Path("art-aft-grid"), help="the folder for models and cells")
    parser.add_argument("--jobs", type=int, default=1, help="number of cells at a time")
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    at = scale(options.scale, options.data)
    rows = run_grid(cells(at, options.attacks, options.rates), options.store, n_jobs=options.jobs, verbose=True)
    for row in rows:
        victim = row["victim"]
        words = f"{victim['attack']:<12} {100 * victim['rate']:>4g} %  {row['defence']:<20}"
        print(f"{words} {100 * row['acc']:5.1f} / {100 * row['asr']:5.1f}")
    means = summary(rows)
    for each in means:
        share = {key: f"{100 * value:.1f}" for key, value in each.items() if key != "rate"}
        print(f"{100 * each['rate']:g} %: {share}")
    if options.output:
        write_record(options.output, [*means, *rows], command=command_line(__file__, options), scale=options.scale)


if __name__ == "__main__":
    main()
