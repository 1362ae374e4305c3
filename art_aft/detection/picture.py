"""What a scan found, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.classifiers.classifier import check_classifier
from art_aft.detection.report import ScanReport
from art_aft.runtime.extras import extra

# A browser draws a picture of so many fields a side without delay.
_MOST_FIELDS = 64


def perturbation_picture(perturbation: np.ndarray, classifier: PyTorchClassifier) -> list[list[list[int]]]:
    """
    Return a perturbation as a picture: what it makes of an image that is grey all over.

    :param perturbation: Of the shape of an image, in units of `clip_values`.
    :param classifier: The classifier, for the range and the layout of its pixels.
    :return: Whole numbers from 0 to 255, of shape (H, W, 3). Larger images are averaged down to 64 fields a side;
        another number of channels than three gives shades of grey.
    """
    low, high = check_classifier("classifier", classifier)
    added = torch.from_numpy(perturbation if classifier.channels_first else np.moveaxis(perturbation, -1, 0))
    shown = (0.5 + added / (high - low)).clamp(0, 1)
    shown = torch.nn.functional.adaptive_avg_pool2d(shown, [min(side, _MOST_FIELDS) for side in shown.shape[1:]])
    if len(shown) != 3:
        shown = shown.mean(dim=0, keepdim=True).expand(3, -1, -1)
    pixels: list[list[list[int]]] = (255 * shown).round().int().movedim(0, -1).tolist()
    return pixels


def scan_picture(report: ScanReport, path: Path) -> None:
    """
    Draw what a scan found: the scores of each detector, and the labels of the adversarial examples.

    :param report: The report.
    :param path: Where the PNG file goes.
    :raises ImportError: If matplotlib is missing.
    """
    with extra("plots"):
        from matplotlib.figure import Figure

    panels = len(report.evidence) + (report.label_matrix is not None)
    figure = Figure(figsize=(3.2 * max(panels, 1), 3.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0] if panels else []
    for axis, evidence in zip(axes, report.evidence, strict=False):
        first = int(evidence.shift)
        places = range(first, first + len(evidence.scores))
        colours = ["tab:red" if evidence.score >= 1 and place == evidence.label else "tab:grey" for place in places]
        axis.bar(places, [score if np.isfinite(score) else 0 for score in evidence.scores], color=colours)
        name = evidence.detector.replace("_", " ")
        axis.set_title(f"{name}: {evidence.score:.2f} of threshold\n{evidence.details}".rstrip(), fontsize=10)
        axis.set_xlabel("shift of the label" if evidence.shift else "label")
    if report.label_matrix is not None:
        axes[-1].imshow(report.label_matrix, cmap="viridis", vmin=0, vmax=1)
        axes[-1].set_title("labels of adversarial examples", fontsize=10)
        axes[-1].set_xlabel("predicted label")
        axes[-1].set_ylabel("true label")
    figure.suptitle(report.verdict)
    figure.savefig(path, dpi=110)
