"""From result rows to tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_aft.attacks import stamp
from art_aft.defences.neural_cleanse import Detection
from art_aft.detection.report import ScanReport
from art_aft.experiments.demo import DEMO_EPS, Row, Scene, adversarial_examples
from art_aft.experiments.paper import published as paper
from art_aft.experiments.victims import environment
from art_aft.metrics import label_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFENCE_TITLES = {
    "none": "before",
    "fine_tuning": "fine-tuning",
    "fine_pruning": "fine-pruning",
    "neural_cleanse": "Neural Cleanse",
    "nad": "NAD",
    "aft": "AFT",
    "auto": "AFT, automatic",
    "progressive_erasing": "progressive erasing",
}


def _title(row: Row) -> str:
    name = str(row["defence"])
    return DEFENCE_TITLES.get(name, name)


def write_json(path: Path, environment: Row, rows: Sequence[Row]) -> None:
    """Write rows, and the environment that they share, as one JSON file."""
    path.write_text(json.dumps({"environment": environment, "rows": list(rows)}, indent=2) + "\n", encoding="utf-8")


def add_row(path: Path, row: Row, same: Sequence[str] = ("infection",)) -> None:
    """Put a row into a JSON file of rows, in the place of an earlier one that agrees with it on the keys `same`."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    rows = [other for other in rows if any(other.get(key) != row[key] for key in same)] + [row]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def write_record(path: Path, rows: Sequence[Row], **facts: Any) -> None:
    """Write a benchmark's rows to a JSON file, with what they were measured on and other facts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"environment": {**facts, **environment()}, "rows": rows}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def text_table(rows: Sequence[Row]) -> str:
    """
    Return rows as a plain text table, in percent.

    :param rows: Result rows, ordered by attack.
    :return: One line a row, with a blank line between attacks; and what a scan said of the row's model, if one did.
    """
    lines = [
        f"{'attack':<9} {'model':<14} {'ACC':>6} {'ASR':>6} {'RA':>6} {'adv->target':>12} {'seconds':>8}",
        "-" * 67,
    ]
    for index, row in enumerate(rows):
        if index and row["attack"] != rows[index - 1]["attack"]:
            lines.append("")
        shares = [100 * row[key] for key in ("acc", "asr", "ra", "adversarial_target_share")]
        lines.append(
            f"{row['attack']:<9} {_title(row):<14} {shares[0]:6.1f} {shares[1]:6.1f} {shares[2]:6.1f} "
            f"{shares[3]:12.1f} {row['seconds']:8.1f}"
        )
        if "scan" in row:
            scan = row["scan"]
            labels = f", label {', '.join(map(str, scan['targets']))}" if scan["targets"] else ""
            lines.append(f"{row['attack']:<9} {'scan':<14} {scan['verdict'] + labels:<34} {scan['seconds']:8.1f}")
    return "\n".join(lines)


def comparison_table(rows: Sequence[Row]) -> str:
    """
    Return rows of `compare` as a plain text table, in percent: mean and standard deviation over clean subsets.

    :param rows: Rows of one infected model, with the keys "infection" and "clean_subset".
    :return: A line a defence. The paper's figures stand at the end of a line where it has the same cell (Table II).
    """
    first = rows[0]["infection"]
    in_paper = first["data"] == "cifar10" and first["labels"] == "all-to-one" and first["rate"] == 0.1
    lines = [
        f"{'defence':<16} {'ACC':>11} {'ASR':>11} {'RA':>11} {'DER':>11} {'seconds':>8} {'MiB':>6} {'subsets':>8}"
        f"{'  paper ACC/ASR' if in_paper else ''}",
    ]
    lines.append("-" * len(lines[0]))
    for name in dict.fromkeys(row["defence"] for row in rows):
        own = [row for row in rows if row["defence"] == name]
        cells = [_mean_and_deviation([100 * row[key] for row in own]) for key in ("acc", "asr", "ra", "der")]
        seconds = [row["seconds"] for row in own if row.get("seconds") is not None]
        memory = [row["peak_memory"] / 2**20 for row in own if row.get("peak_memory") is not None]
        theirs = paper.TABLE_2.get(name, {}).get(first["attack"]) if in_paper else None
        lines.append(
            f"{_title(own[0]):<16} {' '.join(f'{cell:>11}' for cell in cells)} "
            f"{f'{np.mean(seconds):.1f}' if seconds else '':>8} {f'{np.mean(memory):.0f}' if memory else '':>6} "
            f"{len(own):>8}{f'  {theirs[0]:.2f}/{theirs[1]:.2f}' if theirs else ''}"
        )
    return "\n".join(lines)


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" +-{np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def trigger_picture(detection: Detection, path: Path) -> None:
    """
    Draw what Neural Cleanse found: each label's mask and stamped pattern, with norm and anomaly index.

    :param detection: The `detection` of `NeuralCleanse` or `PyTorchNeuralCleanse`.
    :param path: The PNG file.
    :raises ImportError: If matplotlib is missing.
    """
    from matplotlib.figure import Figure

    found = detection.triggers
    # Channels last for drawing; a mask has its one channel first or last, as the images have theirs.
    first = found.masks.shape[1] == 1
    masks, patterns = ((np.moveaxis(part, 1, -1) if first else part) for part in (found.masks, found.patterns))
    low, high = patterns.min(), patterns.max()
    columns = min(len(masks), 10)
    lines = -(-len(masks) // columns)
    figure = Figure(figsize=(1.6 * columns, 4.2 * lines), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, (label, norm, index) in enumerate(zip(found.labels, found.norms, found.anomaly_indices, strict=True)):
        upper, lower = axes[2 * (row // columns) : 2 * (row // columns) + 2, row % columns]
        upper.imshow(masks[row, ..., 0], cmap="gray", vmin=0, vmax=1)
        stamped = masks[row] * (patterns[row] - low) / max(high - low, 1e-12)
        lower.imshow(stamped if stamped.shape[-1] == 3 else stamped[..., 0], cmap="gray", vmin=0, vmax=1)
        suspected = label in detection.flagged
        upper.set_title(
            f"label {label}\nnorm {norm:.1f}\nindex {index:.1f}", fontsize=9, color="tab:red" if suspected else "black"
        )
    figure.savefig(path, dpi=110)


def scan_picture(report: ScanReport, path: Path) -> None:
    """
    Draw what a scan found: each sign's numbers, and the labels of the adversarial examples.

    :param report: The report.
    :param path: Where the PNG goes.
    :raises ImportError: If matplotlib is missing.
    """
    from matplotlib.figure import Figure

    panels = len(report.signs) + (report.label_matrix is not None)
    figure = Figure(figsize=(3.2 * max(panels, 1), 3.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0] if panels else []
    for axis, sign in zip(axes, report.signs, strict=False):
        first = int(sign.relative)
        places = range(first, first + len(sign.values))
        colours = ["tab:red" if sign.alarms >= 1 and place == sign.label else "tab:grey" for place in places]
        axis.bar(places, [value if np.isfinite(value) else 0 for value in sign.values], color=colours)
        axis.set_title(f"{sign.kind.replace('_', ' ')}: {sign.alarms:.2f} of an alarm\n{sign.where}", fontsize=10)
        axis.set_xlabel("shift of the label" if first else "label")
    if report.label_matrix is not None:
        axes[-1].imshow(report.label_matrix, cmap="viridis", vmin=0, vmax=1)
        axes[-1].set_title("labels of adversarial examples", fontsize=10)
        axes[-1].set_xlabel("predicted label")
        axes[-1].set_ylabel("true label")
    figure.suptitle(report.verdict)
    figure.savefig(path, dpi=110)


def purification_picture(report: Row, path: Path) -> None:
    """
    Draw what `art-aft purify` measured: held-out accuracy, and the labels of adversarial examples before and after.

    :param report: Its report.
    :param path: The PNG file.
    :raises ImportError: If matplotlib is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 3])
    states = [report["before"], report["after"]]
    bars = left.bar(["before", "after"], [100 * state["held_out_accuracy"] for state in states], color="tab:blue")
    left.bar_label(bars, fmt="%.1f")
    left.set_title(f"accuracy on {report['n_held_out']}\nheld-out images, %", fontsize=10)
    places = np.arange(len(states[0]["adversarial_labels"]))
    for offset, state, title in zip((-0.2, 0.2), states, ("before", "after"), strict=True):
        right.bar(places + offset, [100 * share for share in state["adversarial_labels"]], width=0.38, label=title)
    right.set_xlabel("label")
    right.set_title("where untargeted adversarial examples fall, %", fontsize=10)
    right.legend()
    figure.savefig(path, dpi=110)


class DemoPicture:
    """
    The demonstration as a picture, a line an attack: images, label matrix, scores.

    :raises ImportError: If matplotlib is missing.
    """

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self._figure_class = Figure
        self._lines: list[dict[str, Any]] = []

    def add(self, scene: Scene, rows: list[Row]) -> None:
        """
        Remember what the picture shows of a scene.

        :param scene: An infected classifier with its data and attack.
        :param rows: Its result rows.
        """
        x, y = scene.dataset.x_test, scene.dataset.y_test
        wanted = scene.labels(y)
        one_hot = np.eye(scene.dataset.nb_classes, dtype=np.float32)
        adversarial = adversarial_examples(scene, scene.classifier, DEMO_EPS)
        predicted = scene.classifier.predict(adversarial).argmax(axis=1)
        # An example of what the paper saw, if there is one: an adversarial image on the attacker's label.
        others = np.flatnonzero(wanted != y)
        shown = others[np.argmax(predicted[others] == wanted[others])]
        image = slice(shown, shown + 1)
        triggered = stamp(scene.attack, x[image], one_hot[wanted[image]])
        self._lines.append(
            {
                "rows": rows,
                "images": [x[shown], triggered[0], adversarial[shown]],
                "labels": [
                    y[shown],
                    scene.classifier.predict(triggered).argmax(axis=1)[0],
                    predicted[shown],
                ],
                "matrix": label_matrix(y, predicted, scene.dataset.nb_classes),
            }
        )

    def save(self, path: Path) -> None:
        """Draw the picture as a PNG file."""
        figure = self._figure_class(figsize=(17, 2.7 * len(self._lines)), layout="constrained")
        axes = figure.subplots(len(self._lines), 6, squeeze=False, width_ratios=[1, 1, 1, 1, 1.3, 3.2])
        for line, row_axes in zip(self._lines, axes, strict=True):
            self._draw_images(row_axes[:4], line)
            self._draw_matrix(row_axes[4], line["matrix"])
            self._draw_bars(row_axes[5], line["rows"])
            row_axes[0].set_ylabel(line["rows"][0]["attack"], fontsize=13)
        figure.savefig(path, dpi=110)

    @staticmethod
    def _draw_images(axes: Sequence[Axes], line: dict[str, Any]) -> None:
        clean, triggered, adversarial = (np.moveaxis(image, 0, -1) for image in line["images"])
        titles = [
            f"{name}\npredicted {label}"
            for name, label in zip(("clean", "triggered", "adversarial"), line["labels"], strict=True)
        ]
        titles[0] = f"clean\ntrue label {line['labels'][0]}"
        difference = adversarial - clean
        spread = max(float(np.abs(difference).max()), 1e-6)
        titles.append(f"adversarial - clean\n(+-{spread:.2f})")
        shown = [clean, triggered, adversarial, 0.5 + difference / (2 * spread)]
        for axis, image, title in zip(axes, shown, titles, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])

    @staticmethod
    def _draw_matrix(axis: Axes, matrix: np.ndarray) -> None:
        axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
        axis.set_title("labels of the infected model's\nadversarial examples", fontsize=10)
        axis.set_xlabel("predicted label")
        axis.set_ylabel("true label")
        axis.set_xticks(range(0, len(matrix), 2))
        axis.set_yticks(range(0, len(matrix), 2))

    @staticmethod
    def _draw_bars(axis: Axes, rows: Sequence[Row]) -> None:
        places = np.arange(len(rows))
        for offset, key, title, colour in ((-0.2, "acc", "ACC", "tab:blue"), (0.2, "asr", "ASR", "tab:red")):
            values = [100 * row[key] for row in rows]
            bars = axis.bar(places + offset, values, width=0.38, label=title, color=colour)
            axis.bar_label(bars, fmt="%.0f", fontsize=9)
        axis.set_xticks(places, [_title(row).replace("-", "-\n").replace(" ", "\n") for row in rows])
        axis.set_ylim(0, 112)
        axis.set_ylabel("%")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9, frameon=False)
