"""How well the scan tells infected models from clean ones: many models of each attack, AUROC, false alarms, labels."""

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
from art_aft.detection.report import ALARMS
from art_aft.detection.scan import EFFORTS
from art_aft.experiments.victims import Infection, Row, environment, plant
from art_aft.training.loop import Recipe
from art_aft.training.recipes import RECIPES

ATTACKS = ("badnets", "blend", "sig", "input_aware", "wanet")


def infection(kind: str, options: argparse.Namespace, seed: int) -> Infection:
    """Return what is planted: "clean", an attack, or "attack, all-to-all"; each seed has another target."""
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
        return Infection("badnets", rate=0.0, **settings)
    if attack == "wanet":
        settings |= {"per_batch": True, "cover_ratio": 2.0}
    return Infection(attack, **settings)


def stored(folder: Path, data: str) -> list[Infection]:
    """Return what was planted in the models of a folder that belong to these data, with the place of the data."""
    found = []
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]["infection"]
        if Path(facts["data"]).name == Path(data).name:
            found.append(Infection(**{**facts, "data": data, "recipe": Recipe(**facts["recipe"])}))
    return found


def kind_of(planted: Infection) -> str:
    """Return how models are grouped."""
    if not planted.rate:
        return "clean"
    return planted.attack if planted.labels == "all-to-one" else f"{planted.attack}, {planted.labels}"


def row(planted: Infection, options: argparse.Namespace) -> Row:
    """Train a model, or find it stored, and scan it."""
    torch.set_num_threads(options.threads)
    kind = kind_of(planted)
    scene = plant(planted, store=options.store)
    test = scene.dataset.x_test, scene.dataset.y_test
    report = BackdoorScan(scene.classifier, effort=options.effort)(scene.x_clean, scene.y_clean)
    right = False
    if report.kind == planted.labels and kind != "clean":
        wanted = scene.labels(np.arange(scene.dataset.nb_classes))
        right = (
            report.targets[0] == planted.target if planted.labels == "all-to-one" else [*report.targets] == [*wanted]
        )
    return {
        "kind": kind,
        "seed": planted.seed,
        "model": planted.key,
        "target": planted.target,
        "scores": asdict(evaluate(scene.classifier, *test, scene.attack, scene.labels)),
        "verdict": report.verdict,
        "scan_kind": report.kind,
        "targets": list(report.targets),
        "label_right": bool(right),
        "score": report.score,
        "signs": {
            sign.kind: {"strength": sign.strength, "label": sign.label, "alarms": sign.alarms} for sign in report.signs
        },
        "seconds": report.seconds,
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """
    Return AUROC against the clean models, alarms, and right labels among them: by kind, and of all.

    A sign has an AUROC of its own where all models were looked at for it.
    """
    signs = [sign for sign in ALARMS if all(sign in row["signs"] for row in rows)]

    def score(row: Row, sign: str | None) -> float:
        return row["score"] if sign is None else row["signs"][sign]["alarms"]

    clean = [row for row in rows if row["kind"] == "clean"]
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != "clean"]
    lines = []
    for kind in ["clean", *kinds, "all infected"]:
        own = [row for row in rows if row["kind"] == kind or (kind == "all infected" and row["kind"] != "clean")]
        alarms = [row for row in own if row["verdict"] == "infected"]
        line = {
            "kind": kind,
            "models": len(own),
            "alarms": len(alarms),
            "label_right": sum(r["label_right"] for r in alarms),
        }
        if kind != "clean" and clean and own:
            truth = [0] * len(clean) + [1] * len(own)
            for sign in (None, *signs):
                line[f"auroc_{sign or 'score'}"] = roc_auc_score(truth, [score(r, sign) for r in (*clean, *own)])
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
    """Run the benchmark, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="digits, or a folder with train.zip and test.zip")
    parser.add_argument("--model", default="wrn-10-1")
    parser.add_argument("--recipe", default="digits", choices=sorted(RECIPES))
    parser.add_argument("--clean-share", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--kinds", nargs="+", default=["clean", *ATTACKS, *(f"{name}, all-to-all" for name in ATTACKS[:3])]
    )
    parser.add_argument("--effort", default="all", choices=EFFORTS, help="which signs are looked at")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of torch, a job")
    parser.add_argument("--store", type=Path, help="where models are kept")
    parser.add_argument("--stored", action="store_true", help="scan the models that lie there, train none")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file for the rows")
    options = parser.parse_args()
    command = f"python examples/benchmarks/scan.py --data {Path(options.data).name} --model {options.model} "
    effort = "" if options.effort == "all" else f" --effort {options.effort}"
    command += f"--recipe {options.recipe} --clean-share {options.clean_share}{effort} --seeds {options.seeds} "
    command += f"--jobs {options.jobs} --threads {options.threads} --kinds " + " ".join(map(repr, options.kinds))
    if options.stored:
        command = f"python examples/benchmarks/scan.py --stored --data {Path(options.data).name}{effort}"
        planted = stored(options.store, options.data)
    else:
        planted = [infection(kind, options, seed) for seed in range(options.seeds) for kind in options.kinds]
    rows = known(options.output, command)
    found = {each.get("model", (each["kind"], each["seed"])) for each in rows}
    cells = [each for each in planted if not {each.key, (kind_of(each), each.seed)} & found]
    order = [*dict.fromkeys([*options.kinds, *(each["kind"] for each in rows), *map(kind_of, planted)])]
    results = Parallel(n_jobs=options.jobs, return_as="generator_unordered")(
        delayed(row)(each, options) for each in cells
    )
    for result in tqdm(results, total=len(cells)):
        rows.append(result)
        rows.sort(key=lambda each: (order.index(each["kind"]), each["seed"], each.get("model", "")))
        record = {"command": command, "summary": summary(rows), "environment": environment(), "rows": rows}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for line in summary(rows):
        print(
            "  ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()
            )
        )


if __name__ == "__main__":
    main()
