"""`art-aft purify`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from safetensors import torch as safetensors

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.checks import at_most, check_number, check_seed
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import predict_labels
from art_aft.classifiers.storage import Stored
from art_aft.cli.inputs import add_model, inputs, open_model, read_images
from art_aft.cli.options import check_writable, preset_settings, read_settings
from art_aft.cli.parsing import add_command
from art_aft.cli.python_lines import purify_lines
from art_aft.data.datasets import may_be_flipped
from art_aft.data.images import Images
from art_aft.defences import DEFENCES
from art_aft.experiments.measurements import build_defence, run_defence
from art_aft.experiments.pictures import purification_picture
from art_aft.experiments.reports.parts import Source
from art_aft.experiments.reports.purification import purification_report
from art_aft.experiments.rows import Row, environment, json_values
from art_aft.runtime.files import replacing, write_json, write_text


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "purify",
        run=run,
        help="remove a backdoor from a model, with a few clean images",
        description="Remove a backdoor from a model. Writes the purified model to OUTPUT.safetensors and OUTPUT.json, "
        "a report to OUTPUT.html and OUTPUT.report.json, and a picture to OUTPUT.png. Exit status: 0 done, 1 the "
        "purified model lost too much accuracy, a label still stands out in it, or the images cannot tell, and it was "
        "not written; `art-aft --help` has those of errors.",
        examples=(
            "art-aft purify suspect.pth --model wrn-16-1 --input-shape 3 32 32 --nb-classes 10 --data clean.zip "
            "--output purified",
            "art-aft purify art-aft-models/victim --data clean.npz --no-horizontal-flip --output purified",
            "art-aft purify art-aft-models/victim --data clean/ --defence universal_aft --preset distilled "
            "--output purified --force",
        ),
        kept=lambda options: (
            f"{options.path} is as it was; results are written at the end, each file whole or not at all"
        ),
        json=True,
    )
    add_model(command)
    command.add_argument("--output", type=Path, required=True, help="the path of the results, without an ending")
    command.add_argument("--force", action="store_true", help="replace a model that is at OUTPUT already")
    command.add_argument("--defence", default="auto", choices=sorted(DEFENCES), help="default: %(default)s")
    command.add_argument("--preset", help="a named set of settings of the defence, such as paper")
    command.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings of the defence, such as batch_size=64, or attack=\"{'eps': 0.05}\" for Stage 1 of aft",
    )
    command.add_argument(
        "--horizontal-flip",
        action=argparse.BooleanOptionalAction,
        help="whether the defence may flip images left to right, which is wrong for digits, letters and traffic signs "
        "(default: no for a model that art-aft trained on such a data set, otherwise yes)",
    )
    command.add_argument(
        "--held-out", type=float, default=0.1, help="share of the images that is only measured on (default: 0.1)"
    )
    command.add_argument(
        "--max-accuracy-drop",
        type=float,
        default=0.1,
        help="the accuracy on held-out images that may be lost, also in the trials of auto (default: %(default)s)",
    )
    command.add_argument("--seed", type=int, default=0, help="the seed of everything random (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="show no progress bars")


def run(options: argparse.Namespace) -> int:
    """Run `art-aft purify`."""
    check_seed("--seed", options.seed)
    check_number("--held-out", options.held_out, minimum=0.0, maximum=0.9, above=True)
    allowed = check_number("--max-accuracy-drop", options.max_accuracy_drop, minimum=0.0, maximum=1.0)
    preset = preset_settings(options.defence, options.preset)
    options.output = _output(options)
    stored = open_model(options)
    images, classes = read_images(options, stored.classifier)
    rest, held = images.hold_out(options.held_out, options.seed)
    settings = _settings(options, stored, preset)
    defence = build_defence(options.defence, stored.classifier, settings)
    purified, facts = run_defence(defence, rest)
    findings: Row = {**json_values(defence.report), **facts}

    before, after = (_measure(each, held) for each in (stored.classifier, purified))
    kept = at_most(before["held_out_accuracy"] - after["held_out_accuracy"], allowed)
    remains = findings.get("remaining_label") is not None
    accepted = kept and findings["images_trusted"] and not remains and findings["finite"]
    print(
        f"held-out accuracy {100 * before['held_out_accuracy']:.1f} -> {100 * after['held_out_accuracy']:.1f} "
        f"({len(held)} images), {findings['seconds']:.1f} seconds"
    )
    for remark in findings["remarks"]:
        print(f"note: {remark}")
    if findings.get("trials") and not any(trial["accepted"] for trial in findings["trials"]):
        print("trials: every setting lost more than --max-accuracy-drop; the result is the one that lost least")
    report: Row = {
        **findings,
        "defence": options.defence,
        "preset": options.preset,
        "n_held_out": len(held),
        "before": before,
        "after": after,
        "max_accuracy_drop": allowed,
        "accepted": accepted,
        **environment(),
    }
    if isinstance(stored.facts.get("victim"), dict):
        report["victim"] = stored.facts["victim"]  # so that the purified model can tell its data set, too
    options.report = report
    _write(options, stored, purified, report)
    _write_page(options, report, purify_lines(options, settings), classes)
    if not accepted:
        lost = not kept and findings["finite"]
        why = f"lost more than --max-accuracy-drop {allowed:g}" if lost else "; ".join(findings["notes"])
        how = " (--set look_again=False writes it)" if remains and kept and findings["images_trusted"] else ""
        print(f"{why}: no model is written{how}", file=sys.stderr)
        return 1
    print(f"written: {options.output}.safetensors")
    return 0


def _write_page(options: argparse.Namespace, report: Row, python: str, classes: dict[int, str]) -> None:
    """Write the report for people."""
    known = {"defence": options.defence, "preset": options.preset, "share held out": options.held_out}
    known |= {"accuracy that may be lost": options.max_accuracy_drop, "seed": options.seed}
    source = Source(shlex.join(options.words), python, inputs={**inputs(options), **known}, classes=classes)
    place = options.output.with_name(options.output.name + ".html")
    write_text(place, purification_report(report, source))
    print(f"written: {place}, to be opened in a browser")


def _output(options: argparse.Namespace) -> Path:
    """Return the path of the results without an ending, after a check that they can be written and replace nothing."""
    check_writable("--output", options.output)
    weights, described = storage.both_files(options.output)
    output = described.with_suffix("")
    for file in (
        weights,
        described,
        *(output.with_name(output.name + end) for end in (".report.json", ".png", ".html")),
    ):
        if file.is_dir():
            raise ValueError(f"--output: got {output}, expected another: {file} is a folder")
    # With a factory's model there is no description to write, but one that lies there would go on without its tensors.
    there = [file for file in (weights, described) if file.exists()]
    if there and not options.force:
        inputs = [Path(options.path), *storage.both_files(options.path)]
        own = any(each.exists() and each.samefile(file) for each in inputs for file in there)
        which = "the model that is to be purified" if own else f"a file that exists, {there[0]}"
        raise ValueError(f"--output: got {which}, expected another path (--force replaces it)")
    return output


def _settings(options: argparse.Namespace, stored: Stored, preset: Row) -> Row:
    """Return the settings of the defence, and print whether it flips images."""
    known = DEFENCES[options.defence].params
    settings: Row = {"seed": options.seed, "verbose": not options.quiet, **preset}
    if "max_accuracy_drop" in known:
        settings["max_accuracy_drop"] = options.max_accuracy_drop
    if "horizontal_flip" in known:
        victim = stored.facts.get("victim")
        data = str(victim.get("data", "")) if isinstance(victim, dict) else ""
        settings["horizontal_flip"] = (
            may_be_flipped(data) if options.horizontal_flip is None else options.horizontal_flip
        )
    settings |= read_settings(options.set)
    if "horizontal_flip" in known:
        flips = "yes (--no-horizontal-flip" if settings["horizontal_flip"] else "no (--horizontal-flip"
        print(f"horizontal flips: {flips} changes that)")
    return settings


def _measure(classifier: PyTorchClassifier, images: Images) -> Row:
    """Return the accuracy on images, and the shares of the labels that their adversarial examples get."""
    accuracy = float(np.mean(predict_labels(classifier, images.pixels) == images.labels))
    predicted = predict_labels(classifier, TorchAttacksPGD(classifier).generate(images))
    wrong = predicted != images.labels
    counts = np.bincount(predicted[wrong & (predicted >= 0)], minlength=classifier.nb_classes)
    return {
        "held_out_accuracy": accuracy,
        "adversarial_success": float(np.mean(wrong)),
        "adversarial_labels": (counts / max(1, counts.sum())).tolist(),
    }


def _write(options: argparse.Namespace, stored: Stored, purified: PyTorchClassifier, report: Row) -> None:
    """Write the model if it is accepted, then the report and the picture."""
    output: Path = options.output
    place = output.with_name(output.name + ".report.json")
    weights, described = storage.both_files(output)
    if report["accepted"]:
        # Before the reports, which must not tell of a model that could not be written.
        place.unlink(missing_ok=True)
        output.with_name(output.name + ".html").unlink(missing_ok=True)
        if ":" in stored.model:
            # Of a factory's model only the weights can be described.
            state = {key: value.detach().cpu().contiguous() for key, value in purified.model.state_dict().items()}
            described.unlink(missing_ok=True)
            replacing(weights, lambda file: file.write_bytes(safetensors.save(state)))
        else:
            storage.save(output, purified, stored.model, facts=report)
    elif weights.exists():
        print(f"{weights} is the earlier file, and not purified now", file=sys.stderr)
    write_json(place, report)
    try:
        purification_picture(report, output.with_name(output.name + ".png"))
    except ImportError as error:
        print(f"no picture: {error}")
