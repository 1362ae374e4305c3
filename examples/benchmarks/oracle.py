"""
Automatic settings beside an oracle: the same Adversarial Fine-Tuning over a grid of radii and learning rates, of which
somebody who sees the test data and the trigger takes the best (ACC - ASR). A killed run goes on where it was.
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
from art_aft.experiments.report import write_record
from art_aft.experiments.victims import Infection, Row

RADII = (0.5, 1.0, 2.0)
RATES = (0.1, 0.05, 0.02)
NAMES = ("before", "automatic", "oracle")

# Input-aware's trigger where its own generators, which train for half an hour on one core, are too dear.
SMALL_GENERATORS = {"base_width": 8, "levels": 2}


def cells(at: Scale, infection: Infection, radii: Sequence[float], rates: Sequence[float]) -> list[Cell]:
    """Return the infected model's cell, that of the automatic settings, and the grid's."""
    grid = [{"preset": "distilled", "eps": eps, "learning_rate": rate} for eps in radii for rate in rates]
    quick = at.quick.get("aft", {})
    return [
        Cell(infection),
        Cell(infection, defence="auto", settings=at.settings("auto", {})),
        *(Cell(infection, defence="aft", settings={**quick, **settings}) for settings in grid),
    ]


def judged(rows: Sequence[Row]) -> Row:
    """Return one attack's scores: before, automatic, the oracle's, and what the automatic settings lack."""
    before, automatic, *grid = rows
    oracle = max(grid, key=lambda row: row["acc"] - row["asr"])
    return {
        "attack": before["infection"]["attack"],
        **{
            f"{name}_{score}": row[score]
            for name, row in zip(NAMES, (before, automatic, oracle), strict=True)
            for score in ("acc", "asr")
        },
        "lacks_acc": oracle["acc"] - automatic["acc"],
        "lacks_asr": automatic["asr"] - oracle["asr"],
        "oracle_settings": oracle["settings"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--data", type=Path, help="the folder that the data sets lie in; not for smoke")
    parser.add_argument("--attacks", nargs="+", default=STATIC)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--model", choices=["wrn-16-1", "preactresnet-18"], help="of all victims, not the paper's")
    group.add_argument("--brief", action="store_true", help="victims of a quarter of the steps, as in Figs. 1 and 4")
    parser.add_argument("--small-generators", action="store_true", help="Input-aware's, for two cores")
    parser.add_argument("--radii", nargs="+", type=float, default=RADII, help="L2, in units of the pixel range")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--store", type=Path, default=Path("art-aft-grid"), help="for models and finished cells")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    at = scale(options.scale, options.data)
    victims = {"model": options.model, "recipe": at.recipes[options.model]} if options.model else {}
    victims["one_of_many"] = options.brief
    small = {"trigger": SMALL_GENERATORS} if options.small_generators else {}
    groups = []
    for attack in options.attacks:
        planted = at.infection(attack, **victims, **(small if attack == "input_aware" else {}))
        groups.append(cells(at, planted, options.radii, options.rates))
    rows = run_grid([cell for group in groups for cell in group], options.store, n_jobs=options.jobs, verbose=True)
    width = len(groups[0])
    told = [judged(rows[start : start + width]) for start in range(0, len(rows), width)]
    print(f"{'attack':<12} {'before':>13} {'automatic':>13} {'oracle':>13}  lacks ACC, ASR")
    for row in told:
        pairs = [f"{100 * row[f'{name}_acc']:5.1f} / {100 * row[f'{name}_asr']:5.1f}" for name in NAMES]
        print(f"{row['attack']:<12} {' '.join(pairs)}  {100 * row['lacks_acc']:.1f}, {100 * row['lacks_asr']:.1f}")
    if options.output:
        write_record(options.output, [*told, *rows], command=command_line(__file__, options), scale=options.scale)


if __name__ == "__main__":
    main()
