"""Results as Markdown: each table and figure beside the paper's own numbers, and one page with all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from art_aft.experiments.grid import run_grid
from art_aft.experiments.measurements import Cell
from art_aft.experiments.paper import figures
from art_aft.experiments.paper.artefacts import ARTEFACTS, Artefact
from art_aft.experiments.paper.scales import Scale
from art_aft.experiments.rows import Row, environment, json_values
from art_aft.experiments.tables import defence_title, mean_and_deviation
from art_aft.runtime.files import write_json

SCALE_NAMES = {
    "smoke": "digits, far too short, to see that it runs",
    "cpu": "two cores, WRN-16-1 for the dynamic attacks too",
    "full": "the paper's size",
}

#: Variants that the package no longer has. Their rows stay.
REMOVED = ("universal_aft, shared",)


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

    :param name: The table or figure, of those in `ARTEFACTS`.
    :param at: The scale.
    :param folder: Where victims and finished cells are kept for later runs.
    :param output: Where NAME-SCALE.json and NAME-SCALE.png go.
    :param command: The command to name in the JSON file.
    :param attacks: The attacks to look at. None is all that the paper has there.
    :param n_jobs: Number of cells at a time, as for `joblib.Parallel`.
    :param verbose: Whether to show progress.
    :return: The JSON file.
    :raises ImportError: If matplotlib is missing and there is a picture to draw.
    """
    artefact = ARTEFACTS[name]
    if artefact.kind == "theory":
        at = replace(at, name="full")  # it takes seconds
    cells = [cell for cell in artefact.cells(at) if attacks is None or cell.victim.attack in attacks]
    if not cells and artefact.kind != "theory":
        raise ValueError(f"attacks: got {', '.join(attacks or ())}, expected one that {name} has")
    rows = run_grid(cells, folder, n_jobs=n_jobs, verbose=verbose)
    place = output / f"{name}-{at.name}.json"
    output.mkdir(parents=True, exist_ok=True)
    rows = _draw(artefact, rows, cells, folder, f"{artefact.title} (scale: {at.name})", place.with_suffix(".png"))
    rows = [{**row, "scale": at.name} for row in rows]
    record = {"artefact": name, "scale": at.name, "command": command, "rows": rows}
    write_json(place, json_values(record), indent=1)
    return place


def _draw(
    artefact: Artefact, rows: list[Row], cells: Sequence[Cell], folder: Path, caption: str, picture: Path
) -> list[Row]:
    """Draw the picture of a figure, if it has one; return its rows."""
    if artefact.kind == "panels":
        figures.panels(cells, folder, caption, picture)
    elif artefact.kind == "theory":
        return [{**point, **environment()} for point in figures.theory(caption, picture)]
    elif artefact.kind in ("matrices", "curves", "rates"):
        draw: Callable[[Sequence[Row], str, Path], None] = getattr(figures, artefact.kind)
        draw(rows, caption, picture)
    return rows


def section(place: Path) -> str:
    """
    Return one table or figure as a section of Markdown.

    :param place: The JSON file that `reproduce` wrote.
    """
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
    lines += TABLES[artefact.kind](record["rows"], artefact)
    return "\n".join(lines).rstrip() + "\n"


def page(folder: Path) -> str:
    """
    Return one page of Markdown with all results of a folder; it names those that are missing.

    :param folder: Where the JSON files are that `reproduce` wrote.
    """
    found = {path.stem: path for path in folder.glob("*-*.json")}
    parts, missing = [], []
    for name in ARTEFACTS:
        own = [found[key] for scale in SCALE_NAMES if (key := f"{name}-{scale}") in found]
        parts += [section(path) for path in own]
        if not own:
            missing.append(name)
    head = [
        "# The paper's tables and figures, reproduced",
        "",
        "`art-aft reproduce page` generates this page from the JSON files beside it. Numbers are percent, ACC / ASR; "
        "mean and standard deviation over clean subsets where there is more than one. In brackets: the paper's numbers "
        "and the difference to them.",
    ]
    if missing:
        head += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join([*head, "", *parts]).rstrip() + "\n"


def _victims(rows: Sequence[Row]) -> str:
    """Return what models the victims are, and how long they were trained."""
    victims = [row["victim"] for row in rows]
    kinds = dict.fromkeys((each["model"], each["recipe"]["nb_epochs"]) for each in victims)
    return "Victims: " + " and ".join(f"{model}, {epochs} epochs" for model, epochs in kinds) + "."


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = "|".join(["---"] * len(head))
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)]


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, int) else f"{value:.3g}"


def _scores(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    entries, theirs = _entries(rows), artefact.paper or {}
    if rows[0]["scale"] == "smoke":
        theirs = {}
    attacks = list(dict.fromkeys(attack for _, attack in entries))
    lines = []
    for name in dict.fromkeys(name for name, _ in entries):
        # The paper has AFT after Stage 2 in one table only.
        if name == STAGE_2 and name not in (artefact.paper or {}):
            continue
        title = defence_title(name) + (" (removed)" if name in REMOVED else "")
        cells = [_cell(entries.get((name, attack), []), theirs.get(name, {}).get(attack)) for attack in attacks]
        lines.append([title, *cells])
    return _table(["defence", *attacks], lines)


STAGE_2 = "aft, Stage 2"


def _entries(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return (ACC, ASR) in percent by defence and attack. Variants and AFT after Stage 2 have names of their own."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        attack, name = row["victim"]["attack"], row["defence"]
        if row.get("variant"):
            name += f", {row['variant']}"
        found.setdefault((name, attack), []).append((100 * row["acc"], 100 * row["asr"]))
        if name == "aft" and "stage_2" in row:
            stage = row["stage_2"]
            found.setdefault((STAGE_2, attack), []).append((100 * stage["acc"], 100 * stage["asr"]))
    return found


def _cell(scores: Sequence[tuple[float, float]], paper: tuple[float, float] | None) -> str:
    """Return (ACC, ASR) over clean subsets as text, with the paper's numbers where there are some."""
    if not scores:
        return ""
    acc, asr = zip(*scores, strict=True)
    text = f"{mean_and_deviation(acc)} / {mean_and_deviation(asr)}"
    if paper is None:
        return text
    differences = f"{np.mean(acc) - paper[0]:+.1f} / {np.mean(asr) - paper[1]:+.1f}"
    return f"{text} ({paper[0]:.1f} / {paper[1]:.1f}: {differences})"


def _shares(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = []
    for title, own in figures.variants(rows).items():
        shares = ", ".join(f"{100 * row['target_share_of_others']:.0f}" for row in own)
        success = ", ".join(f"{100 * row['adversarial_success']:.0f}" for row in own)
        targets = ", ".join(str(row["victim"]["target"]) for row in own)
        lines.append([title, targets if own[0]["victim"]["labels"] == "all-to-one" else "all", shares, success])
    return _table(["victim", "target labels", "other classes that get the target label", "adversarial success"], lines)


def _distances(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = []
    for row in rows:
        attack = row["victim"]["attack"]
        own = [row["distance_benign"], row["distance_infected"], row["distance_infected"] / row["distance_benign"]]
        benign, infected = artefact.paper[attack]
        theirs = [benign, infected, infected / benign]
        smoke = row["scale"] == "smoke"
        lines.append([attack, *(f"{a:.2f}" + f" ({b:.2f})" * (not smoke) for a, b in zip(own, theirs, strict=True))])
    return _table(["attack", "to the benign model's", "to the victim's", "ratio"], lines)


def _points(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = []
    for attack in dict.fromkeys(row["victim"]["attack"] for row in rows):
        for way in figures.WAYS:
            points, stopped_after = figures.curve(rows, attack, way)
            shown = points[:: max(1, len(points) // 5)]
            chosen = [point for point in points if point[0] == stopped_after]
            cells = ["; ".join(f"{step}: {acc:.1f} / {asr:.1f}" for step, acc, asr in some) for some in (shown, chosen)]
            lines.append([attack, way, *cells])
    return _table(["attack", "fine-tuning", "steps: ACC / ASR", "early stopping"], lines)


def _shown(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = [[row["victim"]["attack"], f"{100 * row['acc']:.1f} / {100 * row['asr']:.1f}"] for row in rows]
    return _table(["victim", "ACC / ASR"], lines)


def _rates(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    lines = []
    for rate in sorted({row["victim"]["rate"] for row in rows}):
        own = {row["defence"]: row for row in rows if row["victim"]["rate"] == rate}
        scores = [
            f"{100 * own[name]['acc']:.1f} / {100 * own[name]['asr']:.1f}" for name in ("none", "aft_no_clean_data")
        ]
        lines.append([f"{100 * rate:g} %", *scores])
    return _table(["poisoning ratio", "before", "AFT without clean data"], lines)


def _theory(rows: Sequence[Row], artefact: Artefact) -> list[str]:
    names = list(rows[0])[:9]
    return _table(names, [[_number(row[name]) for name in names] for row in rows])


#: By kind of table or figure, the lines of its Markdown table.
TABLES: dict[str, Callable[[Sequence[Row], Artefact], list[str]]] = {
    "scores": _scores,
    "matrices": _shares,
    "distances": _distances,
    "curves": _points,
    "rates": _rates,
    "panels": _shown,
    "theory": _theory,
}
