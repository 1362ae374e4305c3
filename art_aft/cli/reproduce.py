"""`art-aft reproduce`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from art_aft.attacks import TRIGGERS
from art_aft.checks import check_integer
from art_aft.cli.options import check_writable
from art_aft.cli.parsing import add_command
from art_aft.experiments.paper.artefacts import ARTEFACTS
from art_aft.experiments.paper.pages import page, reproduce, section
from art_aft.experiments.paper.scales import SCALES, Scale, scale
from art_aft.runtime.files import write_text


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "reproduce",
        run=run,
        help="reproduce tables and figures of the paper",
        description="Reproduce tables and figures of the paper: rows as JSON, pictures, and a page with all of them. "
        "Victims and finished cells are stored, so that a second run measures only what is missing.",
        examples=(
            "art-aft reproduce table1",
            "art-aft reproduce table2 fig8 --scale cpu --data path/to/data --jobs 2",
            "art-aft reproduce page --output art-aft-results",
        ),
        kept=lambda options: (
            f"finished victims and cells are in {options.store}, and the same command goes on from there"
        ),
    )
    command.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        choices=["all", "page", *ARTEFACTS],
        help=f"all, or some of: {', '.join(ARTEFACTS)}; page only writes the page again",
    )
    command.add_argument("--scale", default="smoke", choices=SCALES, help="default: %(default)s")
    command.add_argument("--data", type=Path, help="the folder with cifar10/, gtsrb/, tiny_imagenet/, imagenet10/")
    command.add_argument(
        "--store",
        type=Path,
        default=Path("art-aft-grid"),
        help="the folder for models and cells (default: %(default)s)",
    )
    command.add_argument(
        "--output", type=Path, default=Path("art-aft-results"), help="the folder for results (default: %(default)s)"
    )
    command.add_argument("--attacks", nargs="+", choices=sorted(TRIGGERS), help="only these attacks")
    command.add_argument("--jobs", type=int, default=1, help="number of cells at a time (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="show no progress bars")


def run(options: argparse.Namespace) -> int:
    """Run `art-aft reproduce`: print each result, and write rows and pictures to the output folder."""
    check_integer("--jobs", options.jobs, 1)
    check_writable("--store", options.store / "cell")
    check_writable("--output", options.output / "README.md")
    names = list(ARTEFACTS) if "all" in options.names else [name for name in options.names if name != "page"]
    if names:
        at = scale(options.scale, options.data)
        for name in names:
            place = reproduce(
                name,
                at,
                options.store,
                options.output,
                command=_command(name, at, options.attacks),
                attacks=options.attacks,
                n_jobs=options.jobs,
                verbose=not options.quiet,
            )
            print(section(place), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / "README.md", page(options.output))
    print(f"written: {options.output / 'README.md'}")
    return 0


def _command(name: str, at: Scale, attacks: list[str] | None) -> str:
    """Return the command that makes one table or figure again."""
    command = f"art-aft reproduce {name}"
    if ARTEFACTS[name].kind != "theory":
        command += f" --scale {at.name}" + " --data DATA" * (at.data is not None)
        command += f" --attacks {' '.join(attacks)}" if attacks else ""
    return command
