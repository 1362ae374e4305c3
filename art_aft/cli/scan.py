"""`art-aft scan`."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from art_aft.checks import check_number, check_seed
from art_aft.cli.options import add_model, check_writable, open_model, read_images
from art_aft.detection.base import Evidence
from art_aft.detection.picture import scan_picture
from art_aft.detection.report import ScanReport
from art_aft.detection.scan import EFFORTS, BackdoorScan
from art_aft.experiments.rows import environment
from art_aft.runtime.files import write_json

# What the scan was measured on, and that it misses models there: docs/detection.md.
_NOT_CLEARED = (
    "  This does not clear the model. The scan was measured on digits and CIFAR-10, on small residual, VGG, plain",
    "  convolutional and transformer networks, with 1 to 10 % of the training images poisoned. It misses some of them;",
    "  docs/detection.md tells which backdoors are not seen.",
)

STATUS = {"no evidence": 0, "infected": 1, "cannot tell": 2}


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "scan",
        help="test a model for a backdoor from a few clean images, and name its target label",
        description="Test a model for a backdoor. Exit status: 0 nothing found, 1 backdoor reported, 2 cannot "
        "tell; `art-aft --help` has those of errors.",
    )
    add_model(command)
    command.add_argument("--output", type=Path, help="where the report goes: OUTPUT.json and a picture, OUTPUT.png")
    command.add_argument(
        "--effort",
        default="normal",
        choices=EFFORTS,
        help="which detectors run: the fast ones, cheapest first until a backdoor is reported, or all (default: "
        "%(default)s)",
    )
    command.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        default=[],
        metavar="REPORT",
        help="reports (OUTPUT.json) of models that are known to be clean, for the false-alarm rate",
    )
    command.add_argument("--seed", type=int, default=0, help="the seed of everything random (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `art-aft scan`."""
    check_seed("--seed", options.seed)
    if options.output:
        check_writable("--output", options.output)
        if options.output.with_name(options.output.name + ".safetensors").exists():
            # Its description would be replaced by the report.
            raise ValueError(f"--output: got {options.output}, expected another path: a model is stored there")
    reference = [_score(path, options.effort) for path in options.reference]
    classifier = open_model(options).classifier
    images = read_images(options, classifier)
    settings = {"effort": options.effort, "seed": options.seed, "verbose": not options.quiet}
    report = BackdoorScan(classifier, reference=reference, **settings)(images)
    print(_text(report))
    if options.output:
        facts = {**_facts(report), "effort": options.effort, "n_images": len(images)}
        write_json(options.output.with_name(options.output.name + ".json"), facts | environment())
        try:
            scan_picture(report, options.output.with_name(options.output.name + ".png"))
        except ImportError as error:
            print(f"no picture: {error}")
    return STATUS[report.verdict]


def _score(path: Path, effort: str) -> float:
    """Return the score of a report, which must be of the same effort."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or "score" not in facts:
        raise ValueError(f"--reference: got {path}, expected a report of a scan")
    if facts.get("effort") != effort:
        raise ValueError(f"--reference: got {path} of effort {facts.get('effort')!r}, expected {effort!r}")
    return check_number("--reference: score", facts["score"], minimum=0.0)


def _facts(report: ScanReport) -> dict[str, Any]:
    """Return the report as values that JSON knows."""
    matrix = None if report.label_matrix is None else report.label_matrix.tolist()
    return {**asdict(report), "evidence": [*map(_row, report.evidence)], "label_matrix": matrix}


def _row(evidence: Evidence) -> dict[str, Any]:
    """Return the evidence as values that JSON knows; None stands for an infinite score, such as that of no trigger."""
    scores = [score if math.isfinite(score) else None for score in evidence.scores]
    return {**asdict(evidence), "score": evidence.score, "scores": scores}


def _text(report: ScanReport) -> str:
    """Return the report as lines of text."""
    lines = [report.verdict]
    if report.kind == "all-to-one":
        lines[0] += f", all-to-one: label {', '.join(map(str, report.targets))}"
    elif report.kind == "all-to-all":
        lines[0] += ", all-to-all: " + ", ".join(f"{label} to {to}" for label, to in enumerate(report.targets))
    lines[0] += f" ({report.seconds:.1f} seconds)"
    if report.false_alarm_rate is not None:
        lines.append(f"  score {report.score:.2f}, false-alarm rate {100 * report.false_alarm_rate:.0f} %")
    for evidence in sorted(report.evidence, key=lambda each: -each.score):
        what = f"shift by {evidence.label}" if evidence.shift else f"label {evidence.label}"
        lines.append(
            f"  {evidence.detector:<18} {evidence.score:5.2f} of its threshold  {what}, "
            f"statistic {evidence.statistic:.2f}{', ' * bool(evidence.details)}{evidence.details}"
        )
    lines += [f"  note: {note}" for note in report.notes]
    if report.omitted:
        lines.append(f"  not run: {', '.join(report.omitted)}")
    if report.verdict == "no evidence":
        lines += _NOT_CLEARED
    return "\n".join(lines)
