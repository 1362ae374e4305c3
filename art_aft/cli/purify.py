"""`art-aft purify`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import save_file

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.checks import check_number
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import predict_labels
from art_aft.cli.options import add_model, read_model, read_settings
from art_aft.data.datasets import NEVER_MIRRORED
from art_aft.defences import DEFENCES
from art_aft.experiments.report import purification_picture
from art_aft.experiments.victims import environment


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "purify",
        help="remove a backdoor from a model, with a few clean images",
        description="Remove a backdoor from a model. Writes the model to OUTPUT.safetensors (and OUTPUT.json), the "
        "report to OUTPUT.report.json, a picture to OUTPUT.png. Exit status: 0 done, 1 the purified model lost too "
        "much accuracy and was not written, 2 could not.",
    )
    add_model(command)
    command.add_argument("--output", type=Path, required=True, help="where the purified model goes, without an ending")
    command.add_argument("--defence", default="auto", choices=sorted(DEFENCES), help="default: %(default)s")
    command.add_argument("--preset", help="the defence's settings by name, such as paper, or distilled of aft")
    command.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the defence, such as mirror=False"
    )
    command.add_argument("--held-out", type=float, default=0.1, help="the share of the images that only measures")
    command.add_argument(
        "--max-accuracy-drop",
        type=float,
        default=0.1,
        help="the held-out accuracy that may be lost, in auto's trials, too (%(default)s)",
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `art-aft purify`."""
    check_number("--held-out", options.held_out, minimum=0.0, maximum=0.9, above=True)
    allowed = check_number("--max-accuracy-drop", options.max_accuracy_drop, minimum=0.0, maximum=1.0)
    classifier, x, y = read_model(options)
    order = np.random.default_rng(options.seed).permutation(len(x))
    size = min(max(1, round(options.held_out * len(x))), len(x) - 1)
    held, rest = order[:size], order[size:]

    bound = {"max_accuracy_drop": allowed} if options.defence == "auto" else {}
    settings: dict[str, Any] = {"seed": options.seed, **bound, **read_settings(options.set)}
    if options.preset is not None:
        settings["preset"] = options.preset
    if any(name in str(options.data).lower() for name in NEVER_MIRRORED):
        settings.setdefault("mirror", False)
    defence = DEFENCES[options.defence](classifier, verbose=not options.quiet, **settings)
    start = time.perf_counter()
    purified = defence(x[rest], y=y[rest])
    seconds = time.perf_counter() - start

    before, after = (_look(each, x[held], y[held]) for each in (classifier, purified))
    lost = before["held_out_accuracy"] - after["held_out_accuracy"]
    accepted = lost <= allowed + 1e-9
    told = asdict(defence.report) if defence.report else {}
    report = {
        "defence": options.defence,
        "settings": {k: str(v) if v == np.inf else v for k, v in defence.get_params().items() if k != "verbose"},
        "n_images": len(rest),
        "n_held_out": len(held),
        "before": before,
        "after": after,
        "max_accuracy_drop": allowed,
        "accepted": accepted,
        "seconds": round(seconds, 3),
        **{key: told.get(key) for key in ("stages", "trials", "chosen")},
        **environment(),
    }
    print(
        f"held-out accuracy {100 * before['held_out_accuracy']:.1f} -> {100 * after['held_out_accuracy']:.1f} "
        f"({len(held)} images), {seconds:.1f} seconds"
    )
    if told.get("accepted") is False:
        print("trials: every setting lost more than --max-accuracy-drop, the one that lost least is taken")
    _write(options, purified, report)
    if not accepted:
        print(f"lost more than --max-accuracy-drop {allowed:g}: no model is written", file=sys.stderr)
        return 1
    print(f"written: {options.output}.safetensors")
    return 0


def _look(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return the accuracy on some images, and the labels on which their adversarial examples fall, as shares."""
    accuracy = float(np.mean(predict_labels(classifier, x) == y))
    fallen = predict_labels(classifier, TorchAttacksPGD(classifier).generate(x, y))
    counts = np.bincount(fallen[fallen != y], minlength=classifier.nb_classes)
    return {
        "held_out_accuracy": accuracy,
        "adversarial_success": float(np.mean(fallen != y)),
        "adversarial_labels": (counts / max(1, counts.sum())).tolist(),
    }


def _write(options: argparse.Namespace, purified: PyTorchClassifier, report: dict[str, Any]) -> None:
    """Write the report and the picture, and the model if it is accepted."""
    output: Path = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2) + "\n"
    output.with_name(output.name + ".report.json").write_text(text, encoding="utf-8")
    try:
        purification_picture(report, output.with_name(output.name + ".png"))
    except ImportError:
        print("no picture: matplotlib is missing, and comes with: pip install 'art-aft[plots]'")
    if not report["accepted"]:
        return
    if options.model is not None and ":" in options.model:
        # Of a factory's model only the weights can be described.
        state = {key: value.detach().cpu().contiguous() for key, value in purified.model.state_dict().items()}
        save_file(state, output.with_name(output.name + ".safetensors"))
    else:
        storage.save(output, purified, options.model or storage.load(options.path).model, facts=report)
