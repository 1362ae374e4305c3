"""`art-aft doctor`."""

from __future__ import annotations

import argparse
from typing import Any

from art_aft.cli.parsing import add_command
from art_aft.experiments.doctor import diagnosis, lines


def add(commands: Any) -> None:
    """Add the command."""
    add_command(
        commands,
        "doctor",
        run=run,
        help="show what is installed, what the machine has, and what a run would cost here",
        description="Show what is installed, which extras are there, the device, the precision, the memory, and what a "
        "scan and a purification of a small network would cost here, by a probe that is run for some seconds.",
        examples=("art-aft doctor", "art-aft doctor --json"),
        kept=lambda options: "nothing was changed",
        json=True,
    )


def run(options: argparse.Namespace) -> int:
    """Run `art-aft doctor`."""
    options.report = diagnosis()
    print("\n".join(lines(options.report)))
    return 0
