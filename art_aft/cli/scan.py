"""`art-aft scan`."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Any

from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_number, check_seed
from art_aft.cli.inputs import add_model, inputs, open_model, read_images
from art_aft.cli.options import check_writable
from art_aft.cli.parsing import add_command
from art_aft.cli.python_lines import scan_lines
from art_aft.detection.base import Evidence
from art_aft.detection.picture import perturbation_picture, scan_picture
from art_aft.detection.report import ScanReport
from art_aft.detection.scan import EFFORTS, BackdoorScan
from art_aft.experiments.reports.parts import Source
from art_aft.experiments.reports.scan import NOT_CLEARED, UNSURE, scan_report
from art_aft.experiments.rows import environment
from art_aft.runtime.files import write_json, write_text

STATUS = {"no evidence": 0, "infected": 1, "cannot tell": 2}


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "scan",
        run=run,
        help="test a model for a backdoor from a few clean images, and name its target label",
        description="Test a model for a backdoor. Exit status: 0 nothing found, 1 backdoor reported, 2 cannot "
        "tell; `art-aft --help` has those of errors.",
        examples=(
            "art-aft scan suspect.pth --model wrn-16-1 --input-shape 3 32 32 --nb-classes 10 --data clean.zip",
            "art-aft scan suspect.pth --model my_net:make --input-shape 3 64 64 --nb-classes 43 --data clean/ "
            "--output report",
            "art-aft scan art-aft-models/victim --data clean.npz --effort full --json > report.json",
        ),
        kept=lambda options: f"{options.path} is as it was; reports are written at the end",
        json=True,
    )
    add_model(command)
    command.add_argument(
        "--output",
        type=Path,
        help="where the report goes: OUTPUT.html for people, OUTPUT.json and a picture, OUTPUT.png",
    )
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
    images, classes = read_images(options, classifier)
    settings = {"effort": options.effort, "seed": options.seed, "verbose": not options.quiet}
    report = BackdoorScan(classifier, reference=reference, **settings)(images)
    print(_text(report))
    facts = {**_facts(report, classifier), "effort": options.effort, "n_images": len(images)} | environment()
    options.report = facts
    if options.output:
        _write(
            options,
            report,
            facts,
            Source(
                shlex.join(options.words),
                scan_lines(options, reference),
                inputs={**inputs(options), "effort": options.effort, "seed": options.seed},
                classes=classes,
            ),
        )
    return STATUS[report.verdict]


def _write(options: argparse.Namespace, report: ScanReport, facts: dict[str, Any], source: Source) -> None:
    """Write the report for programs, for people, and as a picture."""
    base: Path = options.output
    write_json(base.with_name(base.name + ".json"), facts)
    write_text(base.with_name(base.name + ".html"), scan_report(facts, source))
    try:
        scan_picture(report, base.with_name(base.name + ".png"))
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"written: {base}.html, to be opened in a browser")


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


def _facts(report: ScanReport, classifier: PyTorchClassifier) -> dict[str, Any]:
    """Return the report as values that JSON knows."""
    matrix = None if report.label_matrix is None else report.label_matrix.tolist()
    found = [_row(evidence, classifier) for evidence in report.evidence]
    return {**asdict(report), "evidence": found, "label_matrix": matrix}


def _row(evidence: Evidence, classifier: PyTorchClassifier) -> dict[str, Any]:
    """Return the evidence as values that JSON knows; None stands for an infinite score, such as that of no trigger."""
    row = asdict(evidence)
    added = row.pop("perturbation")
    if added is not None and evidence.score >= 1:
        row["picture"] = perturbation_picture(added, classifier)
    scores = [score if math.isfinite(score) else None for score in evidence.scores]
    return {**row, "score": evidence.score, "scores": scores}


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
    lines += [f"  note: {note}" for note in (*report.notes, *report.remarks)]
    if report.omitted:
        lines.append(f"  not run: {', '.join(report.omitted)}")
    advice = {"no evidence": NOT_CLEARED, "cannot tell": UNSURE}.get(report.verdict, "")
    lines += [f"  {line}" for line in wrap(advice, 118)]
    return "\n".join(lines)
