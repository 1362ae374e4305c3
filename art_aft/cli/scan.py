"""`art-aft scan`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from art_aft.cli.options import add_model, read_model
from art_aft.detection.report import ScanReport
from art_aft.detection.scan import EFFORTS, BackdoorScan
from art_aft.experiments.report import scan_picture
from art_aft.experiments.victims import environment

STATUS = {"clean": 0, "infected": 1, "cannot tell": 2}


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "scan",
        help="say whether a model has a backdoor, and with which label, from a few clean images",
        description="Look for a backdoor in a model. Exit status: 0 nothing found, 1 suspected, 2 could not tell.",
    )
    add_model(command)
    command.add_argument("--output", type=Path, help="where the report goes: OUTPUT.json and a picture, OUTPUT.png")
    command.add_argument(
        "--effort",
        default="if_needed",
        choices=EFFORTS,
        help="which signs are looked at: the last layer's weights alone, no more after the first alarm, the cheap, "
        "the dear too where those raise no alarm, or all (default: %(default)s)",
    )
    command.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        default=[],
        metavar="REPORT",
        help="reports (OUTPUT.json) of models that are known to be clean, for the rate of false alarms",
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `art-aft scan`."""
    reference = [_score(path, options.effort) for path in options.reference]
    classifier, x, y = read_model(options)
    settings = {"effort": options.effort, "seed": options.seed, "verbose": not options.quiet}
    report = BackdoorScan(classifier, reference=reference, **settings)(x, y)
    print(_text(report))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        matrix = None if report.label_matrix is None else report.label_matrix.tolist()
        facts = {**asdict(report), "label_matrix": matrix, "effort": options.effort, "n_images": len(x)}
        text = json.dumps(facts | environment(), indent=2) + "\n"
        options.output.with_name(options.output.name + ".json").write_text(text, encoding="utf-8")
        try:
            scan_picture(report, options.output.with_name(options.output.name + ".png"))
        except ImportError:
            print("no picture: matplotlib is missing, and comes with: pip install 'art-aft[plots]'")
    return STATUS[report.verdict]


def _score(path: Path, effort: str) -> float:
    """Return the score of a report, which must have looked at the same signs."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or "score" not in facts:
        raise ValueError(f"--reference: got {path}, expected a report of a scan")
    if facts.get("effort") != effort:
        raise ValueError(f"--reference: got {path} of effort {facts.get('effort')!r}, expected {effort!r}")
    return float(facts["score"])


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
    for sign in sorted(report.signs, key=lambda sign: -sign.alarms):
        what = f"shift by {sign.label}" if sign.relative else f"label {sign.label}"
        lines.append(
            f"  {sign.kind:<12} {sign.alarms:5.2f} of an alarm  {what}, ahead by {sign.strength:.2f}, {sign.where}"
        )
    return "\n".join(lines + [f"  note: {note}" for note in report.notes])
