"""Measure how well the scan tells infected models from clean ones: AUROC, false alarms and labels for each attack."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from art_aft import BackdoorScan, evaluate
from art_aft.detection.base import DETECTORS
from art_aft.detection.scan import EFFORTS
from art_aft.experiments.rows import Row, environment
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.experiments.zoo import HALVES, Member, read_zoo
from art_aft.runtime.files import write_json
from art_aft.training.recipe import Recipe
from art_aft.training.recipes import RECIPES

ATTACKS = ("badnets", "blend", "sig", "input_aware", "wanet")

# A model that was poisoned, but whose trigger works on fewer images than this share, has no backdoor to be found.
WORKS = 0.5
FAILED = "failed attack"


def victim_settings(kind: str, options: argparse.Namespace, seed: int) -> VictimSettings:
    """Return the settings of a model: "clean", an attack, or "attack, all-to-all"; each seed has another target."""
    attack, _, labels = kind.partition(", ")
    recipe = replace(RECIPES[options.recipe], seed=seed)
    settings = {
        "data": options.data,
        "model": options.model,
        "clean_share": options.clean_share,
        "recipe": recipe,
        "seed": seed,
        "target": seed % 10,
        "labels": labels or "all-to-one",
    }
    if attack == "clean":
        return VictimSettings("badnets", rate=0.0, **settings)
    if attack == "wanet":
        settings |= {"per_batch": True, "cover_ratio": 2.0}
    return VictimSettings(attack, **settings)


def stored(folder: Path, data: str) -> list[VictimSettings]:
    """Return the settings of the models of a folder that belong to these data, with the place of the data."""
    found = []
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]["victim"]
        if Path(facts["data"]).name == Path(data).name:
            found.append(VictimSettings(**{**facts, "data": data, "recipe": Recipe(**facts["recipe"])}))
    return found


def is_stored(member: Member, store: Path) -> bool:
    """Return whether a victim is in the store."""
    return store.joinpath(member.settings.key + ".json").exists()


def kind_of(settings: VictimSettings) -> str:
    """Return how models are grouped."""
    if not settings.rate:
        return "clean"
    return settings.attack if settings.labels == "all-to-one" else f"{settings.attack}, {settings.labels}"


def row(settings: VictimSettings, options: argparse.Namespace) -> Row:
    """Train a model, or find it stored, and scan it."""
    torch.set_num_threads(options.threads)
    victim = train_victim(settings, store=options.store)
    scores = evaluate(victim.classifier, victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels)
    kind = FAILED if settings.rate and scores.asr < WORKS else kind_of(settings)
    report = BackdoorScan(victim.classifier, effort=options.effort)(victim.x_clean, victim.y_clean)
    right = False
    if report.kind == settings.labels and kind != "clean":
        wanted = victim.labels(np.arange(victim.dataset.nb_classes))
        right = (
            report.targets[0] == settings.target if settings.labels == "all-to-one" else [*report.targets] == [*wanted]
        )
    return {
        "kind": kind,
        "seed": settings.seed,
        "model": settings.key,
        "architecture": settings.model,
        "rate": settings.rate,
        "target": settings.target,
        "scores": asdict(scores),
        "verdict": report.verdict,
        "scan_kind": report.kind,
        "targets": list(report.targets),
        "label_right": bool(right),
        "score": report.score,
        "evidence": {
            each.detector: {
                "statistic": each.statistic,
                "label": each.label,
                "score": each.score,
                "p_value": each.p_value,
            }
            for each in report.evidence
        },
        "seconds": report.seconds,
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """
    Return, for each kind and for all, AUROC against the clean models, reported models, and right labels among these.

    A detector has an AUROC of its own where it ran on all models.
    """
    ordered = sorted(DETECTORS, key=lambda name: (DETECTORS[name].cost, name))
    detectors = [name for name in ordered if all(name in row["evidence"] for row in rows)]

    def score(row: Row, detector: str | None) -> float:
        return row["score"] if detector is None else row["evidence"][detector]["score"]

    clean = [row for row in rows if row["kind"] == "clean"]
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != "clean"]
    lines = []
    for kind in ["clean", *kinds, "all infected"]:
        groups = set(kinds) - {FAILED} if kind == "all infected" else {kind}
        own = [row for row in rows if row["kind"] in groups]
        reported = [row for row in own if row["verdict"] == "infected"]
        line = {
            "kind": kind,
            "models": len(own),
            "reported": len(reported),
            "label_right": sum(r["label_right"] for r in reported),
        }
        if kind != "clean" and clean and own:
            truth = [0] * len(clean) + [1] * len(own)
            for detector in (None, *detectors):
                scores = [score(row, detector) for row in (*clean, *own)]
                line[f"auroc_{detector or 'score'}"] = roc_auc_score(truth, scores)
        lines.append(line)
    return lines


def known(output: Path, command: str) -> list[Row]:
    """Return the rows that an earlier run left there, with the same data, model and recipe."""
    if not output.exists():
        return []
    record = json.loads(output.read_text(encoding="utf-8"))
    before, now = (text.split(" --seeds ")[0] for text in (record["command"], command))
    if before != now:
        raise ValueError(f"output: got the rows of {before!r} there, expected those of {now!r}")
    return record["rows"]


def main() -> None:
    """Run the benchmark, or continue it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="digits, or a folder with train.zip and test.zip")
    parser.add_argument("--model", default="wrn-10-1")
    parser.add_argument("--recipe", default="digits", choices=sorted(RECIPES))
    parser.add_argument("--clean-share", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--kinds", nargs="+", default=["clean", *ATTACKS, *(f"{name}, all-to-all" for name in ATTACKS[:3])]
    )
    parser.add_argument("--effort", default="full", choices=EFFORTS, help="which detectors run")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads for each job")
    parser.add_argument("--store", type=Path, help="where models are kept")
    parser.add_argument("--stored", action="store_true", help="scan the models in the store, train none")
    parser.add_argument("--settings", type=Path, help="scan those models of this file of victims that are in the store")
    parser.add_argument("--half", default="choose", choices=HALVES, help="which half of them")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file for the rows")
    options = parser.parse_args()
    command = f"python examples/benchmarks/scan.py --data {Path(options.data).name} --model {options.model} "
    effort = "" if options.effort == "full" else f" --effort {options.effort}"
    command += f"--recipe {options.recipe} --clean-share {options.clean_share}{effort} --seeds {options.seeds} "
    command += f"--jobs {options.jobs} --threads {options.threads} --kinds " + " ".join(map(repr, options.kinds))
    if options.settings:
        command = f"python examples/benchmarks/scan.py --settings {options.settings.name} --half {options.half}{effort}"
        members = read_zoo(options.settings, options.data)
        models = [each.settings for each in members if each.half == options.half and is_stored(each, options.store)]
    elif options.stored:
        command = f"python examples/benchmarks/scan.py --stored --data {Path(options.data).name}{effort}"
        models = stored(options.store, options.data)
    else:
        models = [victim_settings(kind, options, seed) for seed in range(options.seeds) for kind in options.kinds]
    rows = known(options.output, command)
    found = {each.get("model", (each["kind"], each["seed"])) for each in rows}
    cells = [each for each in models if not {each.key, (kind_of(each), each.seed)} & found]
    order = [*dict.fromkeys([*options.kinds, *(each["kind"] for each in rows), *map(kind_of, models), FAILED])]
    results = Parallel(n_jobs=options.jobs, return_as="generator_unordered")(
        delayed(row)(each, options) for each in cells
    )
    for result in tqdm(results, total=len(cells)):
        rows.append(result)
        rows.sort(key=lambda each: (order.index(each["kind"]), each["seed"], each.get("model", "")))
        record = {"command": command, "summary": summary(rows), "environment": environment(), "rows": rows}
        write_json(options.output, record, indent=1)
    for line in summary(rows):
        print(
            "  ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()
            )
        )


if __name__ == "__main__":
    main()
