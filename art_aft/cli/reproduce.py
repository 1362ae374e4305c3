"""`art-aft reproduce`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from art_aft.attacks import PERTURBATIONS
from art_aft.experiments.paper.artefacts import ARTEFACTS
from art_aft.experiments.paper.pages import page, reproduce, section
from art_aft.experiments.paper.scales import SCALES, scale


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "reproduce",
        help="make a table or figure of the paper again",
        description="Make tables and figures of the paper again: rows as JSON, pictures, and a page of them. Infected "
        "models and finished cells are kept; a second run measures only what is missing.",
    )
    command.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        choices=["all", "page", *ARTEFACTS],
        help=f"all, or some of: {', '.join(ARTEFACTS)}; page only writes the page anew",
    )
    command.add_argument("--scale", default="smoke", choices=SCALES, help="default: %(default)s")
    command.add_argument("--data", type=Path, help="the folder of cifar10/, gtsrb/, tiny_imagenet/, imagenet10/")
    command.add_argument("--store", type=Path, default=Path("art-aft-grid"), help="where models and cells are kept")
    command.add_argument("--output", type=Path, default=Path("art-aft-results"), help="where results go")
    command.add_argument("--attacks", nargs="+", choices=sorted(PERTURBATIONS), help="only these")
    command.add_argument("--jobs", type=int, default=1, help="cells at a time (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `art-aft reproduce`: each result on standard output, rows and pictures in the output folder."""
    names = list(ARTEFACTS) if "all" in options.names else [name for name in options.names if name != "page"]
    if names:
        at = scale(options.scale, options.data)
        for name in names:
            command = f"art-aft reproduce {name}"
            if ARTEFACTS[name].kind != "theory":
                command += f" --scale {options.scale}" + " --data DATA" * (at.data is not None)
                command += f" --attacks {' '.join(options.attacks)}" if options.attacks else ""
            place = reproduce(
                name,
                at,
                options.store,
                options.output,
                command=command,
                attacks=options.attacks,
                n_jobs=options.jobs,
                verbose=not options.quiet,
            )
            print(section(place), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "README.md").write_text(page(options.output), encoding="utf-8")
    print(f"written: {options.output / 'README.md'}")
    return 0
