"""Results as Markdown: each table and figure beside the paper's own numbers, and the page of them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from art_aft.experiments.grid import run_grid
from art_aft.experiments.paper import figures
from art_aft.experiments.paper.artefacts import ARTEFACTS, OWN_PRESETS, Artefact
from art_aft.experiments.paper.scales import Scale
from art_aft.experiments.report import DEFENCE_TITLES
from art_aft.experiments.victims import Row, environment

SCALE_NAMES = {
    "smoke": "digits, far too short, to see that it runs",
    "cpu": "two cores, WRN-16-1 for the dynamic attacks too",
    "full": "the paper's size",
}


def reproduce(
    name: str,
    at: Scale,
    folder: Path,
    output: Path,
    *,
    command: str,
    attacks: Sequence[str] | None = None,
    n_jobs: int = 1,
    verbose: bool = False,
) -> Path:
    """
    Measure what a table or figure needs, and write its rows, its picture and its table.

    :param name: The table or figure; see `ARTEFACTS`.
    :param at: The scale.
    :param folder: Where infected models and finished cells are kept, for the next time.
    :param output: Where NAME-SCALE.json and NAME-SCALE.png go.
    :param command: What the user typed, for the record.
    :param attacks: The attacks that are looked at; None is all that the paper has there.
    :param n_jobs: How many cells at a time, as for `joblib.Parallel`.
    :param verbose: Whether to show progress.
    :return: The JSON file.
    :raises ImportError: If matplotlib is missing and there is a picture to draw.
    """
    artefact = ARTEFACTS[name]
    if artefact.kind == "theory":
        at = replace(at, name="full")  # it takes seconds
    cells = [cell for cell in artefact.cells(at) if attacks is None or cell.infection.attack in attacks]
    if not cells and artefact.kind != "theory":
        raise ValueError(f"attacks: got {', '.join(attacks or ())}, expected one that {name} has")
    rows = run_grid(cells, folder, n_jobs=n_jobs, verbose=verbose)
    output.mkdir(parents=True, exist_ok=True)
    stem = output / f"{name}-{at.name}"
    picture, caption = stem.with_name(stem.name + ".png"), f"{artefact.title} (scale: {at.name})"
    if artefact.kind == "panels":
        figures.panels(cells, folder, caption, picture)
    elif artefact.kind == "theory":
        rows = [{**point, **environment()} for point in figures.theory(caption, picture)]
    elif artefact.kind in ("matrices", "curves", "rates"):
        draw: Callable[[Sequence[Row], str, Path], None] = getattr(figures, artefact.kind)
        draw(rows, caption, picture)
    record = {
        "artefact": name,
        "scale": at.name,
        "command": command,
        "rows": [{**row, "scale": at.name} for row in rows],
    }
    place = stem.with_name(stem.name + ".json")
    place.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return place


def section(place: Path) -> str:
    """Return one table or figure as a section of Markdown, from the file that `reproduce` wrote."""
    record = json.loads(place.read_text(encoding="utf-8"))
    artefact = ARTEFACTS[record["artefact"]]
    scale = record["scale"]
    size = "" if artefact.kind == "theory" else f"Scale {scale}: {SCALE_NAMES[scale]}. {_victims(record['rows'])} "
    lines = [
        f"## {record['artefact']} ({scale})",
        "",
        f"{artefact.title}. {size}Made by `{record['command']}`.",
        "",
    ]
    if place.with_suffix(".png").exists():
        lines += [f"![{artefact.title}]({place.stem}.png)", ""]
    elif artefact.kind == "panels":
        lines += ["The picture shows images of the data set and is not kept here; the command draws it.", ""]
    tables = {
        "scores": _scores,
        "matrices": _shares,
        "distances": _distances,
        "curves": _points,
        "rates": _rates,
        "panels": _shown,
    }
    if artefact.kind == "theory":
        lines += _table(
            list(record["rows"][0])[:9], [[_number(row[k]) for k in list(row)[:9]] for row in record["rows"]]
        )
    elif artefact.kind in tables:
        lines += tables[artefact.kind](record["rows"], artefact)
    return "\n".join(lines).rstrip() + "\n"


def page(folder: Path) -> str:
    """Return the page of all results that lie in a folder, and of those that do not."""
    found = {path.stem: path for path in folder.glob("*-*.json")}
    parts, missing = [], []
    for name in ARTEFACTS:
        own = [found[key] for scale in SCALE_NAMES if (key := f"{name}-{scale}") in found]
        parts += [section(path) for path in own]
        if not own:
            missing.append(name)
    head = [
        "# The paper's tables and figures, made again",
        "",
        "This page is generated from the JSON files beside it by `art-aft reproduce page`. Percent, ACC / ASR; mean "
        "and standard deviation over clean subsets where there is more than one; in brackets the paper's figures and "
        "the difference to them.",
    ]
    if missing:
        head += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join([*head, "", *parts]).rstrip() + "\n"


def _victims(rows: Sequence[Row]) -> str:
    """Return what the infected models are, and how long they were trained."""
    infections = [row["infection"] for row in rows]
    kinds = dict.fromkeys((each["model"], each["recipe"]["nb_epochs"]) for each in infections)
    return "Victims: " + " and ".join(f"{model}, {epochs} epochs" for model, epochs in kinds) + "."


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = "|".join(["---"] * len(head))
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)]


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, int) else f"{value:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ±{np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _entries(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return (ACC, ASR) in percent by defence and attack, with AFT after Stage 2 as a defence of its own."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        attack, name = row["infection"]["attack"], row["defence"]
        if not row["clean_data"] and row["settings"].get("padding") == 0:
            name = "aft_not_augmented"
        elif row["settings"].get("preset") in OWN_PRESETS:
            name = "aft_" + row["settings"]["preset"]
        found.setdefault((name, attack), []).append((100 * row["acc"], 100 * row["asr"]))
        if name == "aft" and "stage_2" in row and row["clean_data"]:
            stage = row["stage_2"]
            found.setdefault(("aft_stage_2", attack), []).append((100 * stage["acc"], 100 * stage["asr"]))
    return found


def _scores(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    entries, theirs = _entries(rows), artefact.paper or {}
    comparable = rows[0]["scale"] != "smoke"
    attacks = list(dict.fromkeys(attack for _, attack in entries))
    known = {*theirs, "none", "auto", "progressive_erasing", *(f"aft_{preset}" for preset in OWN_PRESETS)}
    names = [name for name in dict.fromkeys(name for name, _ in entries) if name in known]
    titles = {
        **DEFENCE_TITLES,
        "aft_stage_2": "AFT, Stage 2",
        "aft_not_augmented": "AFT, not augmented",
        "aft_shared": "AFT, shared perturbations",
        "aft_distilled": "AFT, shared perturbations, distilled",
    }
    lines = []
    for name in names:
        line = [titles.get(name, name)]
        for attack in attacks:
            scores = entries.get((name, attack), [])
            if not scores:
                line.append("")
                continue
            acc, asr = zip(*scores, strict=True)
            text = f"{_spread(acc)} / {_spread(asr)}"
            paper = theirs.get(name, {}).get(attack)
            if paper and comparable:
                differences = f"{np.mean(acc) - paper[0]:+.1f} / {np.mean(asr) - paper[1]:+.1f}"
                text += f" ({paper[0]:.1f} / {paper[1]:.1f}: {differences})"
            line.append(text)
        lines.append(line)
    return _table(["defence", *attacks], lines)


def _shares(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = []
    for title, own in figures.variants(rows).items():
        shares = ", ".join(f"{100 * row['target_share_of_others']:.0f}" for row in own)
        success = ", ".join(f"{100 * row['adversarial_success']:.0f}" for row in own)
        targets = ", ".join(str(row["infection"]["target"]) for row in own)
        lines.append([title, targets if own[0]["infection"]["labels"] == "all-to-one" else "all", shares, success])
    return _table(
        ["model", "attacker's labels", "of other classes, on the attacker's label", "adversarial success"], lines
    )


def _distances(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = []
    for row in rows:
        attack = row["infection"]["attack"]
        own = [row["distance_benign"], row["distance_infected"], row["distance_infected"] / row["distance_benign"]]
        benign, infected = artefact.paper[attack]
        theirs = [benign, infected, infected / benign]
        smoke = row["scale"] == "smoke"
        lines.append([attack, *(f"{a:.2f}" + f" ({b:.2f})" * (not smoke) for a, b in zip(own, theirs, strict=True))])
    return _table(["attack", "to the benign model's", "to the infected model's", "ratio"], lines)


def _points(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = []
    for attack in dict.fromkeys(row["infection"]["attack"] for row in rows):
        for way in figures.WAYS:
            points, stopped_after = figures.curve(rows, attack, way)
            shown = points[:: max(1, len(points) // 5)]
            chosen = [point for point in points if point[0] == stopped_after]
            cells = ["; ".join(f"{step}: {acc:.1f} / {asr:.1f}" for step, acc, asr in some) for some in (shown, chosen)]
            lines.append([attack, way, *cells])
    return _table(["attack", "way", "steps: ACC / ASR", "chosen"], lines)


def _shown(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = [[row["infection"]["attack"], f"{100 * row['acc']:.1f} / {100 * row['asr']:.1f}"] for row in rows]
    return _table(["model that is shown", "ACC / ASR"], lines)


def _rates(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = []
    for rate in sorted({row["infection"]["rate"] for row in rows}):
        own = {row["defence"]: row for row in rows if row["infection"]["rate"] == rate}
        scores = [f"{100 * own[name]['acc']:.1f} / {100 * own[name]['asr']:.1f}" for name in ("none", "aft")]
        lines.append([f"{100 * rate:g} %", *scores])
    return _table(["poisoning ratio", "before", "AFT without clean data"], lines)
