"""
Compare automatic settings with an oracle: the same defence over a grid of radii and learning rates, the best of which
(ACC - ASR) is chosen with the test data and the trigger. A killed run resumes where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from art_aft.cli.options import command_line, preset_settings
from art_aft.experiments.grid import run_grid
from art_aft.experiments.measurements import Cell
from art_aft.experiments.paper.artefacts import STATIC
from art_aft.experiments.paper.scales import SCALES, Scale, scale
from art_aft.experiments.rows import Row, write_record
from art_aft.experiments.victims import VictimSettings

DEFENCE = "universal_aft"
RADII = (0.5, 1.0, 2.0)
RATES = (0.1, 0.05, 0.02)
NAMES = ("before", "automatic", "oracle")

# Input-aware's trigger for machines where its own generators, which train for half an hour on one core, take too long.
SMALL_GENERATORS = {"base_width": 8, "levels": 2}


def cells(at: Scale, victim: VictimSettings, radii: Sequence[float], rates: Sequence[float]) -> list[Cell]:
    """Return the cell of the victim, that of the automatic settings, and those of the grid."""
    distilled, quick = preset_settings(DEFENCE, "distilled"), at.quick.get(DEFENCE, {})
    grid = [{**quick, **distilled, "eps": eps, "learning_rate": rate} for eps in radii for rate in rates]
    return [
        Cell(victim),
        Cell(victim, defence="auto", settings=at.settings("auto", {})),
        *(Cell(victim, defence=DEFENCE, settings=settings) for settings in grid),
    ]


def compared(rows: Sequence[Row]) -> Row:
    """Return the scores of one attack: before, automatic, the oracle's, and the differences between the last two."""
    before, automatic, *grid = rows
    oracle = max(grid, key=lambda row: row["acc"] - row["asr"])
    return {
        "attack": before["victim"]["attack"],
        **{
            f"{name}_{score}": row[score]
            for name, row in zip(NAMES, (before, automatic, oracle), strict=True)
            for score in ("acc", "asr")
        },
        "lacks_acc": oracle["acc"] - automatic["acc"],
        "lacks_asr": automatic["asr"] - oracle["asr"],
        "oracle_settings": oracle["settings"],
    }


def victims(at: Scale, options: argparse.Namespace) -> list[VictimSettings]:
    """Return the settings of the victims that the options describe."""
    changes = {"model": options.model, "recipe": at.recipes[options.model]} if options.model else {}
    small = {"trigger": SMALL_GENERATORS} if options.small_generators else {}
    return [
        at.victim(attack, one_of_many=options.brief, **changes, **(small if attack == "input_aware" else {}))
        for attack in options.attacks
    ]


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--data", type=Path, help="the folder that contains the data sets (not for smoke)")
    parser.add_argument("--attacks", nargs="+", default=STATIC)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--model", choices=["wrn-16-1", "preactresnet-18"], help="of all victims (default: the paper's)")
    group.add_argument("--brief", action="store_true", help="train victims in a quarter of the steps, as in Fig. 1")
    parser.add_argument("--small-generators", action="store_true", help="small generators for Input-aware")
    parser.add_argument("--radii", nargs="+", type=float, default=RADII, help="L2, in units of the pixel range")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="learning rates")
    parser.add_argument("--store", type=Path, default=Path("art-aft-grid"), help="the folder for models and cells")
    parser.add_argument("--jobs", type=int, default=1, help="number of cells at a time")
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    options = read_options()
    at = scale(options.scale, options.data)
    groups = [cells(at, victim, options.radii, options.rates) for victim in victims(at, options)]
    rows = run_grid([cell for group in groups for cell in group], options.store, n_jobs=options.jobs, verbose=True)
    width = len(groups[0])
    summary = [compared(rows[start : start + width]) for start in range(0, len(rows), width)]
    print(f"{'attack':<12} {'before':>13} {'automatic':>13} {'oracle':>13}  lacks ACC, ASR")
    for row in summary:
        pairs = [f"{100 * row[f'{name}_acc']:5.1f} / {100 * row[f'{name}_asr']:5.1f}" for name in NAMES]
        print(f"{row['attack']:<12} {' '.join(pairs)}  {100 * row['lacks_acc']:.1f}, {100 * row['lacks_asr']:.1f}")
    if options.output:
        write_record(options.output, [*summary, *rows], command=command_line(__file__, options), scale=options.scale)


if __name__ == "__main__":
    main()
