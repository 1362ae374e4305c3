"""`art-aft train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from art_aft.cli.options import add_victim, check_rows, read_victim
from art_aft.experiments.rows import add_row
from art_aft.experiments.victims import train_victim


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser("train", help="train a victim and store it; one that is stored is only shown")
    add_victim(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `art-aft train`: store a victim, and print its scores or add them to a file of rows."""
    settings, flags = read_victim(options)
    check_rows(options.rows)
    train_victim(settings, store=options.store, verbose=not options.quiet)
    place = options.store / settings.key
    facts = json.loads(place.with_name(place.name + ".json").read_text(encoding="utf-8"))["facts"]
    scores = facts["scores"]
    shares = "  ".join(f"{name.upper()} {100 * scores[name]:.2f}" for name in ("acc", "asr", "ra"))
    print(f"{shares}  {place}.safetensors")
    if options.rows:
        shown = {**facts["victim"], "data": Path(options.data).name}
        add_row(options.rows, {"command": f"art-aft train {flags}", **facts, "victim": shown})
    return 0
