"""Purify stored victims of files of settings: what is left of attack and accuracy, and the worst."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from joblib import Parallel, delayed
from stored import arguments, named, victims
from tqdm import tqdm

from art_aft import evaluate
from art_aft.defences import DEFENCES
from art_aft.experiments.rows import Row, environment
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.runtime.files import write_json

# What counts as a failure: a backdoor that works on more images, or more accuracy lost, both as shares.
WORKS, LOST = 0.2, 0.05


def row(settings: VictimSettings, defence: str, options: argparse.Namespace) -> Row:
    """Purify a stored victim, and measure it before and after on all test images."""
    torch.set_num_threads(options.threads)
    victim = train_victim(settings, store=options.store)
    test = victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels
    before = evaluate(victim.classifier, *test)
    kind = DEFENCES[defence]
    flip = {"horizontal_flip": victim.dataset.horizontal_flip} if "horizontal_flip" in kind.params else {}
    purification = kind(victim.classifier, **flip)
    after = evaluate(purification(victim.x_clean, y=victim.y_clean), *test)
    report = purification.report
    return {
        "model": settings.key,
        "architecture": settings.model,
        "attack": settings.attack if settings.rate else "clean",
        "labels": settings.labels,
        "rate": settings.rate,
        "seen": settings.seen,
        "seed": settings.seed,
        "defence": defence,
        "before": asdict(before),
        "after": asdict(after),
        "accepted": report.accepted,
        "trials": [{"accuracy": each.accuracy, "accepted": each.accepted} for each in getattr(report, "trials", ())],
        "chosen": {name: value for name, value in report.chosen.items() if not isinstance(value, np.ndarray)},
        "remaining_label": getattr(report, "remaining_label", None),
        "seconds": report.seconds,
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return, for infected models whose attack works, for those that saw the clean images, and for clean models: how
    many, mean and worst attack success after, mean and worst loss of accuracy, failures and refusals."""
    infected = [each for each in rows if each["rate"] and each["before"]["asr"] >= 0.5]
    groups = {
        "infected": infected,
        "infected, clean images seen": [each for each in infected if each["seen"]],
        "clean": [each for each in rows if not each["rate"]],
    }
    lines = []
    for name, group in groups.items():
        if not group:
            continue
        asr = np.array([each["after"]["asr"] for each in group])
        lost = np.array([each["before"]["acc"] - each["after"]["acc"] for each in group])
        works = (asr > WORKS) & (name != "clean")
        lines.append(
            {
                "models": len(group),
                "kind": name,
                "asr_mean": float(asr.mean()),
                "asr_worst": float(asr.max()),
                "lost_mean": float(lost.mean()),
                "lost_worst": float(lost.max()),
                "failures": int((works | (lost > LOST)).sum()),
                "not_accepted": sum(not each["accepted"] for each in group),
            }
        )
    return lines


def main() -> None:
    """Run the benchmark, or continue it."""
    parser = arguments(__doc__)
    parser.add_argument("--defence", default="auto", choices=sorted(DEFENCES), help="which defence, with its defaults")
    options = parser.parse_args()
    command = f"python examples/benchmarks/purify_zoo.py {named(options)} --defence {options.defence}"
    rows: list[Row] = []
    if options.output.exists():
        record = json.loads(options.output.read_text(encoding="utf-8"))
        if record["command"] != command:
            raise ValueError(f"output: got the rows of {record['command']!r} there, expected those of {command!r}")
        rows = record["rows"]
    found = {each["model"] for each in rows}
    cells = [each for each in victims(options) if each.key not in found]
    results = Parallel(n_jobs=options.jobs, return_as="generator_unordered")(
        delayed(row)(each, options.defence, options) for each in cells
    )
    for result in tqdm(results, total=len(cells)):
        rows.append(result)
        rows.sort(key=lambda each: each["seed"])
        record = {"command": command, "summary": summary(rows), "environment": environment(), "rows": rows}
        write_json(options.output, record, indent=1)
    for line in summary(rows):
        texts = (f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items())
        print("  ".join(texts))


if __name__ == "__main__":
    main()
