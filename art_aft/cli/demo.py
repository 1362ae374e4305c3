"""`art-aft demo`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from art_aft.checks import check_seed
from art_aft.cli.options import check_writable
from art_aft.cli.parsing import add_command
from art_aft.experiments.demo import DEMO_ATTACKS, demo
from art_aft.experiments.pictures import DemoPicture
from art_aft.experiments.rows import Row, write_record
from art_aft.experiments.tables import text_table

DEMO_LEGEND = """
ACC  clean test images that get their true label
ASR  triggered test images of other classes that get the target label
RA   triggered test images of other classes that get their true label
adv->target  adversarial examples of other classes that get the target label (the paper's observation)
scan  the result of `art-aft scan` on the model "before", by four of its detectors, with half of the same clean images
All in percent. All five defences got the same 120 clean images, made 20 passes over them at the same learning rate, and
did not know the trigger."""


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "demo",
        run=run,
        help="train three backdoored digit classifiers, scan and purify them, and show a table and a picture",
        examples=("art-aft demo", "art-aft demo --attacks blend --seed 1 --output-dir other-seed"),
        kept=lambda options: f"results are written to {options.output_dir} at the end",
    )
    command.add_argument("--seed", type=int, default=0, help="the seed of everything random (default: %(default)s)")
    command.add_argument(
        "--attacks", nargs="+", default=DEMO_ATTACKS, choices=DEMO_ATTACKS, help="only these (default: all three)"
    )
    command.add_argument(
        "--output-dir", type=Path, default=Path("art-aft-demo"), help="the folder for results (default: %(default)s)"
    )
    command.add_argument("--quiet", action="store_true", help="show no progress bars and no explanations")


def run(options: argparse.Namespace) -> int:
    """Run `art-aft demo`: print a table, and write demo.json and demo.png to the output folder."""
    start = time.perf_counter()
    check_seed("--seed", options.seed)
    check_writable("--output-dir", options.output_dir / "demo.json")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    picture, missing = None, ""
    try:
        picture = DemoPicture()
    except ImportError as error:
        missing = str(error)
    rows: list[Row] = []
    watch = picture.add if picture else None
    for row in demo(options.seed, attacks=options.attacks, verbose=not options.quiet, watch=watch):
        rows.append(row)
    print(text_table(rows))
    if not options.quiet:
        print(DEMO_LEGEND)
    write_record(
        options.output_dir / "demo.json",
        rows,
        command=f"art-aft demo --seed {options.seed} --attacks {' '.join(options.attacks)}",
    )
    print(f"\nwritten: {options.output_dir / 'demo.json'}")
    if picture:
        picture.save(options.output_dir / "demo.png")
        print(f"written: {options.output_dir / 'demo.png'}")
    else:
        print(f"no picture: {missing}")
    if not options.quiet:
        print(f"{time.perf_counter() - start:.0f} seconds in all")
    return 0
