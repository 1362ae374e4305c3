"""The paper's figures, drawn from rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.attacks import stamp
from art_aft.attacks.labels import wanted_labels
from art_aft.data.pixels import to_float
from art_aft.experiments.measurements import Cell
from art_aft.experiments.paper.theory import linear_backdoor
from art_aft.experiments.rows import Row
from art_aft.experiments.tables import defence_title
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.runtime.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(width: float, height: float) -> Figure:
    with extra("plots"):
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, caption: str, path: Path) -> None:
    figure.suptitle(caption, fontsize=10)
    figure.savefig(path, dpi=100)


def target_rows(rows: Sequence[Row]) -> np.ndarray:
    """
    Return the shares of the labels that adversarial examples get, one row for each victim (Fig. 1).

    For all-to-all victims there is a row for each true label instead.
    """
    if rows[0]["victim"]["labels"] == "all-to-all":
        counts = np.array(rows[0]["counts"], dtype=float)
    else:
        counts = np.array([np.sum(row["counts"], axis=0) for row in rows], dtype=float)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def variants(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows by what they have in common besides the target: data set, attack, labels, trigger."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        victim = row["victim"]
        words = [victim["data"], victim["attack"], victim["labels"]]
        words += [f"{name} {value}" for name, value in victim["trigger"].items()]
        found.setdefault(", ".join(words), []).append(row)
    return found


def matrices(rows: Sequence[Row], caption: str, path: Path) -> None:
    """Draw the labels of adversarial examples, a panel for each kind of victim."""
    panels = variants(rows)
    figure = _figure(3.4 * len(panels), 3.4)
    for axis, (title, own) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        shares = target_rows(own)
        axis.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        every = own[0]["victim"]["labels"] == "all-to-all"
        names = range(len(shares)) if every else [row["victim"]["target"] for row in own]
        axis.set_yticks(range(len(shares)), [str(name) for name in names] if len(shares) <= 12 else [])
        axis.set_ylabel("true label" if every else "target label")
        axis.set_xlabel("predicted label")
        axis.set_title(title, fontsize=8)
    _save(figure, caption, path)


WAYS = ("Stage 2", "Stage 3 after Stage 2", "without clean data")


def curves(rows: Sequence[Row], caption: str, path: Path) -> None:
    """Draw ACC and ASR over the steps, a panel for each attack and stage; a dashed line is early stopping (Fig. 3)."""
    attacks = list(dict.fromkeys(row["victim"]["attack"] for row in rows))
    figure = _figure(9, 2.6 * len(attacks))
    for axes, attack in zip(figure.subplots(len(attacks), 3, squeeze=False, sharey=True), attacks, strict=True):
        for axis, way in zip(axes, WAYS, strict=True):
            points, stopped_after = curve(rows, attack, way)
            steps = [step for step, _, _ in points]
            axis.plot(steps, [acc for _, acc, _ in points], ".-", color="tab:blue", label="ACC")
            axis.plot(steps, [asr for _, _, asr in points], ".-", color="tab:red", label="ASR")
            if stopped_after is not None:
                axis.axvline(stopped_after, color="tab:grey", linestyle="--", label="chosen")
            axis.set_ylim(0, 102)
            axis.set_title(f"{attack}: {way}", fontsize=9)
            axis.set_xlabel("steps")
        axes[0].set_ylabel("%")
        axes[-1].legend(fontsize=8)
    _save(figure, caption, path)


def curve(rows: Sequence[Row], attack: str, way: str) -> tuple[list[tuple[int, float, float]], int | None]:
    """Return (steps, ACC, ASR) in percent, from before the first step on, and the steps that early stopping kept."""
    for row in rows:
        last = row["points"][-1][0]
        if row["victim"]["attack"] == attack and way == (WAYS[last - 2] if row["clean_data"] else WAYS[2]):
            before = [point for point in row["points"] if point[0] < last][-1]
            shown = [[last, 0, *before[2:]], *(point for point in row["points"] if point[0] == last)]
            return [(step, 100 * acc, 100 * asr) for _, step, acc, asr in shown], row["stopped_after"]
    return [], None


def rates(rows: Sequence[Row], caption: str, path: Path) -> None:
    """Draw ASR before and after over the poisoning ratio (Fig. 9)."""
    figure = _figure(4.5, 3.2)
    axis = figure.subplots()
    for defence, colour in (("none", "tab:grey"), ("aft_no_clean_data", "tab:red")):
        title = defence_title(defence)
        own = sorted((row["victim"]["rate"], row["asr"]) for row in rows if row["defence"] == defence)
        axis.plot([100 * rate for rate, _ in own], [100 * asr for _, asr in own], "o-", label=title, color=colour)
    axis.set_xlabel("poisoning ratio, %")
    axis.set_ylabel("ASR, %")
    axis.set_ylim(0, 102)
    axis.legend()
    _save(figure, caption, path)


def panels(cells: Sequence[Cell], folder: Path, caption: str, path: Path, count: int = 4) -> None:
    """
    Draw clean, triggered and adversarial images, and what was added to them (Figs. 6 to 8).

    :param cells: The victims, side by side.
    :param folder: Where they are stored.
    :param caption: The picture's title.
    :param path: The PNG file.
    :param count: Images of each victim.
    """
    titles = ("clean", "triggered", "adversarial", "trigger x 5", "perturbation x 5")
    figure = _figure(1.3 * len(titles) * len(cells), 1.4 * count)
    grid = figure.subplots(count, len(titles) * len(cells), squeeze=False)
    for number, cell in enumerate(cells):
        shown = _images(cell.victim, folder, count)
        for line in range(count):
            for column, (title, images) in enumerate(zip(titles, shown, strict=True)):
                axis = grid[line, number * len(titles) + column]
                axis.imshow(np.moveaxis(images[line], 0, -1), cmap="gray", vmin=0, vmax=1)
                axis.set_xticks([])
                axis.set_yticks([])
                if line == 0:
                    axis.set_title(f"{cell.victim.attack}\n{title}" if column == 0 else title, fontsize=8)
    _save(figure, caption, path)


def _images(settings: VictimSettings, folder: Path, count: int) -> list[np.ndarray]:
    victim = train_victim(settings, store=folder / "models")
    others = np.flatnonzero(wanted_labels(victim.labels, victim.dataset.y_test) != victim.dataset.y_test)[:count]
    clean = to_float(victim.dataset.x_test[others], victim.dataset.clip_values)
    truth = victim.dataset.y_test[others]
    one_hot = np.eye(victim.dataset.nb_classes, dtype=np.float32)[wanted_labels(victim.labels, truth)]
    triggered = stamp(victim.attack, clean, one_hot)
    adversarial = TorchAttacksPGD(victim.classifier).generate(clean, truth)
    added = [np.clip(0.5 + 5 * (other - clean), 0, 1) for other in (triggered, adversarial)]
    return [clean, triggered, adversarial, *added]


def theory(caption: str, path: Path) -> list[dict[str, Any]]:
    """Draw the share of a universal perturbation along the trigger, over the number of triggered samples."""
    points: list[dict[str, Any]] = []
    for ell in (1, 2, 4, 8, 16, 32):
        example = linear_backdoor(ell=ell)
        points.append(
            {
                "ell": ell,
                "share along the trigger": example.ratio,
                "exact bound (E5)": example.ratio_bound,
                "Theorem 1, consistent": example.theorem_bound(),
                "Theorem 1, as printed": example.theorem_bound(printed=True),
                "shift of the classifier": example.shift,
                "exact bound (E3)": example.shift_bound,
                "Lemma 1, consistent": example.lemma_upper(),
                "Lemma 1, as printed": example.lemma_upper(printed=True),
            }
        )
    figure = _figure(9, 3.4)
    for axis, names in zip(figure.subplots(1, 2), (list(points[0])[1:5], list(points[0])[5:]), strict=True):
        for name, style in zip(names, ("ko-", "b--", "g--", "r:"), strict=True):
            axis.plot([point["ell"] for point in points], [point[name] for point in points], style, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("triggered samples of 40")
        axis.legend(fontsize=7)
    figure.axes[1].set_yscale("log")
    _save(figure, caption, path)
    return points
