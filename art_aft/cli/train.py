"""`art-aft train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from art_aft.cli.options import add_victim, check_places, read_victim
from art_aft.cli.parsing import add_command
from art_aft.data.datasets import load
from art_aft.experiments.rows import Row, add_row
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.experiments.zoo import read_zoo


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "train",
        run=run,
        help="train a victim and store it; one that is stored is only shown",
        examples=(
            "art-aft train --attack badnets --recipe digits",
            "art-aft train --attack wanet --per-batch --cover-ratio 2 --data path/to/cifar10 --model preactresnet-18 "
            "--recipe short",
            "art-aft train --settings examples/zoo/digits.json --rows zoo.json",
        ),
        kept=lambda options: (
            f"finished victims and the last epoch of the one in work are in {options.store}; the same "
            "command goes on from there"
        ),
    )
    add_victim(
        command,
        rows="a JSON file; result rows are added to it",
        settings="a JSON file of victims, all of which are trained; --data is then the data sets' folder",
    )


def run(options: argparse.Namespace) -> int:
    """Run `art-aft train`: store victims, and print their scores or add them to a file of rows."""
    check_places(options.store, options.rows)
    if options.settings is None:
        settings, flags = read_victim(options)
        _train(settings, options, {"command": f"art-aft train {flags}"})
        return 0
    members = read_zoo(options.settings, options.data)
    datasets: dict[tuple[str, int], Any] = {}
    for member in members:
        settings = member.settings
        # Digits are split by the victim's seed; of the others only the last is kept, for they are large.
        key = settings.data, settings.seed if settings.data == "digits" else 0
        if key not in datasets:
            datasets = {key: load(settings.data, seed=settings.seed, verbose=not options.quiet)}
        print(f"{member.name:32}", end="  ", flush=True)
        _train(settings, options, {"name": member.name, "half": member.half}, datasets[key])
    return 0


def _train(settings: VictimSettings, options: argparse.Namespace, row: Row, dataset: Any = None) -> None:
    """Train a victim or load it, print its scores, and add its row."""
    train_victim(settings, dataset=dataset, store=options.store, verbose=not options.quiet)
    place = options.store / settings.key
    described = json.loads(place.with_name(place.name + ".json").read_text(encoding="utf-8"))
    facts = described["facts"]
    scores = facts["scores"]
    shares = "  ".join(f"{name.upper()} {100 * scores[name]:.2f}" for name in ("acc", "asr", "ra"))
    print(f"{shares}  {place}.safetensors", flush=True)
    if options.rows:
        shown = {**facts["victim"], "data": Path(settings.data).name}
        add_row(options.rows, {**row, **facts, "victim": shown, "sha256": described["sha256"]})
