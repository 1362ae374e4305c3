"""`art-aft train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from art_aft.cli.options import add_infection, read_infection
from art_aft.experiments.report import add_row
from art_aft.experiments.victims import plant


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser("train", help="train an infected model and store it, or find it stored")
    add_infection(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `art-aft train`: a stored model, its scores on standard output and in a file of rows."""
    infection, flags = read_infection(options)
    plant(infection, store=options.store, verbose=not options.quiet)
    place = options.store / infection.key
    facts = json.loads(place.with_name(place.name + ".json").read_text(encoding="utf-8"))["facts"]
    scores = facts["scores"]
    shares = "  ".join(f"{name.upper()} {100 * scores[name]:.2f}" for name in ("acc", "asr", "ra"))
    print(f"{shares}  {place}.safetensors")
    if options.rows:
        shown = {**facts["infection"], "data": Path(options.data).name}
        add_row(options.rows, {"command": f"art-aft train {flags}", **facts, "infection": shown})
    return 0
