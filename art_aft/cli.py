"""The command line: `art-aft demo | train | compare`."""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from art_aft import __version__
from art_aft.checks import check_integer
from art_aft.comparison import LEARNING_RATES, compare
from art_aft.defences import DEFENCES
from art_aft.experiment import Infection, Row, demo, environment, plant
from art_aft.infection import clean_subset
from art_aft.perturbations import PERTURBATIONS
from art_aft.recipes import RECIPES
from art_aft.report import DemoPicture, add_row, comparison_table, text_table, write_json

DEMO_LEGEND = """
ACC  clean test images that get their true label
ASR  triggered test images of other classes that get the attacker's label
RA   triggered test images of other classes that get their true label
adv->target  adversarial examples of other classes that fall on the attacker's label (the paper's observation)
All in percent. AFT and fine-tuning had the same 120 clean images and knew nothing of the trigger."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: The words after the program's name; None takes those of the process.
    :return: The exit status: 0, or 2 where an argument was wrong.
    """
    parser = argparse.ArgumentParser(prog="art-aft", description="Remove backdoors from image classifiers.")
    parser.add_argument("--version", action="version", version=f"art-aft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "demo", help="plant three backdoors in a digit classifier, fight them, show a table and a picture"
    )
    command.add_argument("--seed", type=int, default=0, help="the seed of everything (default: %(default)s)")
    command.add_argument(
        "--output-dir", type=Path, default=Path("art-aft-demo"), help="where results go (default: %(default)s)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bars and no explanations")
    command.set_defaults(run=run_demo)
    _add_train(commands)
    _add_compare(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, TypeError, ValueError) as error:
        print(f"art-aft: error: {error}", file=sys.stderr)
        return 2


def _add_train(commands: Any) -> None:
    """Add `art-aft train` to the commands."""
    command = commands.add_parser("train", help="train an infected model and store it, or find it stored")
    _add_infection(command)
    command.set_defaults(run=run_train)


def _add_compare(commands: Any) -> None:
    """Add `art-aft compare` to the commands."""
    command = commands.add_parser(
        "compare", help="purify an infected model with several defences, tuned alike, and measure each"
    )
    _add_infection(command)
    command.add_argument(
        "--defences", nargs="+", default=sorted(DEFENCES), choices=sorted(DEFENCES), help="which (default: all)"
    )
    command.add_argument("--preset", help="the defences' settings by name, such as paper, where they have them")
    command.add_argument("--subsets", type=int, default=1, help="clean subsets to repeat on (default: %(default)s)")
    command.add_argument(
        "--learning-rates",
        type=float,
        nargs="*",
        help=f"the rates that every defence is tried at (default: {' '.join(map(str, LEARNING_RATES))}; with a preset: "
        "its own)",
    )
    command.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings for all the defences, such as batch_size=64",
    )
    command.set_defaults(run=run_compare)


INFECTION = ("attack", "data", "model", "labels", "target", "rate", "clean_share", "per_batch", "cover_ratio", "seed")


def _add_infection(command: argparse.ArgumentParser) -> None:
    """Add the options that say what the infected model is."""
    command.add_argument("--attack", required=True, choices=sorted(PERTURBATIONS), help="the trigger")
    command.add_argument("--data", default="digits", help="digits, cifar10, or a folder with train.zip and test.zip")
    command.add_argument("--model", default="wrn-16-1", help="such as wrn-16-1, preactresnet-18 (default: %(default)s)")
    command.add_argument("--recipe", default="paper", choices=sorted(RECIPES), help="how (default: %(default)s)")
    command.add_argument("--epochs", type=int, help="other than the recipe's")
    command.add_argument("--labels", default="all-to-one", choices=["all-to-one", "all-to-all"])
    command.add_argument("--target", type=int, default=0, help="the attacker's label (default: %(default)s)")
    command.add_argument("--rate", type=float, default=0.1, help="the poisoning ratio (default: %(default)s)")
    command.add_argument("--clean-share", type=float, default=0.05, help="what the defender has (default: %(default)s)")
    command.add_argument("--per-batch", action="store_true", help="poison every batch afresh, as WaNet's release")
    command.add_argument("--cover-ratio", type=float, default=0.0, help="covers for each poisoned image")
    command.add_argument("--seed", type=int, default=0, help="the seed of everything (default: %(default)s)")
    command.add_argument("--store", type=Path, default=Path("art-aft-models"), help="where models go")
    command.add_argument("--rows", type=Path, help="a JSON file of result rows to add to")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _infection(options: argparse.Namespace) -> tuple[Infection, str]:
    """Return the infection that the options describe, and the same options as words for another command line."""
    recipe = replace(RECIPES[options.recipe], seed=options.seed)
    if options.epochs is not None:
        recipe = replace(recipe, nb_epochs=options.epochs)
    infection = Infection(recipe=recipe, **{name: getattr(options, name) for name in INFECTION})
    shown = {**vars(options), "data": Path(options.data).name}
    flags = [f"--{name.replace('_', '-')} {shown[name]}" for name in INFECTION if name != "per_batch"]
    flags += [f"--recipe {options.recipe}"] + ["--per-batch"] * options.per_batch
    flags += [] if options.epochs is None else [f"--epochs {options.epochs}"]
    return infection, " ".join(flags)


def run_train(options: argparse.Namespace) -> int:
    """Run `art-aft train`: a stored model, its scores on standard output and in a file of rows."""
    infection, flags = _infection(options)
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


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """Return settings from words of the form NAME=VALUE, with values as Python writes them."""
    settings = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            settings[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ValueError(f"--set: got {word!r}, expected NAME=VALUE, such as batch_size=64") from None
    return settings


def run_compare(options: argparse.Namespace) -> int:
    """Run `art-aft compare`: a table on standard output, rows in a file as they are ready."""
    infection, flags = _infection(options)
    check_integer("--subsets", options.subsets, 1)
    scene = plant(infection, store=options.store, verbose=not options.quiet)
    rates = options.learning_rates
    if rates is None:
        rates = LEARNING_RATES if options.preset is None else ()
    settings = {"mirror": scene.dataset.mirror, **_settings(options.set)}
    if options.preset is not None:
        settings["preset"] = options.preset
    flags += f" --defences {' '.join(options.defences)} --subsets {options.subsets}"
    flags += f" --learning-rates {' '.join(f'{rate:g}' for rate in rates)}".rstrip()
    flags += f" --preset {options.preset}" * (options.preset is not None)
    flags += f" --set {' '.join(options.set)}" * bool(options.set)
    shared = {
        "command": f"art-aft compare {flags}",
        "infection": {**asdict(infection), "data": Path(options.data).name},
        "preset": options.preset,
        **environment(),
    }
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append({**shared, "clean_subset": subset, **row})
        if options.rows:
            add_row(options.rows, rows[-1], same=("infection", "preset", "defence", "clean_subset"))

    for subset in range(options.subsets):
        x_clean, y_clean = clean_subset(scene, subset)
        compare(
            scene.classifier,
            {name: partial(DEFENCES[name], **settings) for name in options.defences},
            x_clean,
            y_clean,
            scene.dataset.x_test,
            scene.dataset.y_test,
            scene.attack,
            scene.labels,
            learning_rates=rates,
            seed=options.seed + subset,
            verbose=not options.quiet,
            watch=keep,
        )
    print(comparison_table(rows))
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """Run `art-aft demo`: a table on standard output, demo.json and demo.png in the output folder."""
    start = time.perf_counter()
    check_integer("--seed", options.seed, 0)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        picture = DemoPicture()
    except ImportError:
        picture = None
    rows: list[Row] = []
    for row in demo(options.seed, verbose=not options.quiet, watch=picture.add if picture else None):
        rows.append(row)
    print(text_table(rows))
    if not options.quiet:
        print(DEMO_LEGEND)
    write_json(options.output_dir / "demo.json", {**environment(), "command": "art-aft demo"}, rows)
    print(f"\nwritten: {options.output_dir / 'demo.json'}")
    if picture:
        picture.save(options.output_dir / "demo.png")
        print(f"written: {options.output_dir / 'demo.png'}")
    else:
        print("no picture: matplotlib is missing, and comes with: pip install 'art-aft[plots]'")
    if not options.quiet:
        print(f"{time.perf_counter() - start:.0f} seconds in all")
    return 0
