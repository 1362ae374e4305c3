"""Result rows and findings as pictures. All need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_aft.attacks import stamp
from art_aft.classifiers.classifier import predict_labels
from art_aft.defences.neural_cleanse import Detection
from art_aft.experiments.demo import DEMO_EPS, adversarial_examples
from art_aft.experiments.rows import Row
from art_aft.experiments.tables import defence_title
from art_aft.experiments.victims import Victim
from art_aft.metrics import label_matrix
from art_aft.runtime.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trigger_picture(detection: Detection, path: Path) -> None:
    """
    Draw what Neural Cleanse found: the mask and the stamped pattern of each label, with norm and anomaly index.

    :param detection: The `report.detection` of `NeuralCleanse`, or the `detection` of `PyTorchNeuralCleanse`.
    :param path: Where the PNG file goes.
    :raises ImportError: If matplotlib is missing.
    """
    with extra("plots"):
        from matplotlib.figure import Figure

    found = detection.triggers
    # Drawing needs the channels last. The one channel of a mask stands where those of the images stand.
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


def purification_picture(report: Row, path: Path) -> None:
    """
    Draw what `art-aft purify` measured before and after: held-out accuracy, and the labels of adversarial examples.

    :param report: The report of `art-aft purify`.
    :param path: Where the PNG file goes.
    :raises ImportError: If matplotlib is missing.
    """
    with extra("plots"):
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
    right.set_title("labels of untargeted adversarial examples, %", fontsize=10)
    right.legend()
    figure.savefig(path, dpi=110)


class DemoPicture:
    """
    The demonstration as a picture. Each attack has a line: images, label matrix, scores.

    :raises ImportError: If matplotlib is missing.
    """

    def __init__(self) -> None:
        with extra("plots"):
            from matplotlib.figure import Figure

        self._figure_class = Figure
        self._lines: list[dict[str, Any]] = []

    def add(self, victim: Victim, rows: list[Row]) -> None:
        """
        Add a line to the picture.

        :param victim: The victim of one attack.
        :param rows: Its result rows.
        """
        x, y = victim.dataset.x_test, victim.dataset.y_test
        wanted = victim.labels(y)
        one_hot = np.eye(victim.dataset.nb_classes, dtype=np.float32)
        adversarial = adversarial_examples(victim, victim.classifier, DEMO_EPS)
        predicted = predict_labels(victim.classifier, adversarial)
        # An example of the paper's observation, if there is one: an adversarial image that gets the target label.
        others = np.flatnonzero(wanted != y)
        shown = others[np.argmax(predicted[others] == wanted[others])]
        image = slice(shown, shown + 1)
        triggered = stamp(victim.attack, x[image], one_hot[wanted[image]])
        self._lines.append(
            {
                "rows": rows,
                "images": [x[shown], triggered[0], adversarial[shown]],
                "labels": [
                    y[shown],
                    predict_labels(victim.classifier, triggered)[0],
                    predicted[shown],
                ],
                "matrix": label_matrix(y, predicted, victim.dataset.nb_classes),
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
        axis.set_xticks(places, [defence_title(row["defence"]).replace("-", "-\n").replace(" ", "\n") for row in rows])
        axis.set_ylim(0, 112)
        axis.set_ylabel("%")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9, frameon=False)
