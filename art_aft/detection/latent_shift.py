"""
Latent shift: a small step in the last layer's input leads all images to one label.

With w_l, b_l the last layer's weights and biases and phi_i its input for image i, the smallest shift towards a label l
is the delta of least L2 norm with (w_l - w_k)^T (phi_i + delta) + b_l - b_k >= 0 for all images i and labels k. A
trigger shifts phi, so the target label's decision region is near all images.

Only the largest lead of each other label over l counts, h_k = max over i of z_k - z_l in logits. So the search is a
least-distance problem with nb_classes - 1 constraints, which nonnegative least squares solves exactly (Lawson and
Hanson, chapter 23), and costs one forward pass of the images.

| Score of a label: minus the logarithm of the norm of its smallest shift.
| Statistic: -log10 of the p-value.
| Null distribution: the scores of a clean classifier's labels are independent draws from one normal distribution; the
  p-value is that of Grubbs' test.
| Threshold: 2.0, a p-value of 0.01; it was not fitted.
| Fails: on all-to-all backdoors, which favour no label. It cannot be applied with fewer than three labels, or where the
  layer that runs last does not give one number a label.
| Paper link: https://arxiv.org/abs/2511.08944
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import nnls

from art_aft.classifiers.classifier import predict_logits
from art_aft.classifiers.layers import output_weights
from art_aft.detection.base import Detector, Evidence, Suspect, register
from art_aft.detection.last_layer import SUPPORT
from art_aft.detection.statistics import outlier


@register("latent_shift")
class LatentShift(Detector):
    """One label's decision region is nearer to all images than chance would have it; see the module."""

    cost = 0
    threshold = 2.0
    supports = True

    def detect(self, suspect: Suspect) -> Evidence | None:
        """Return how near one label is; None without such a layer, with fewer than three labels, or if none is near."""
        weights = output_weights(suspect.classifier, suspect.images.pixels)
        if weights is None or len(weights) < 3:
            return None
        norms = smallest_shifts(weights, predict_logits(suspect.classifier, suspect.images.pixels))
        reached = np.isfinite(norms)
        if not reached.any():
            return None
        # One that no shift reaches counts as the farthest, one that all images have as a millionth of it.
        farthest = max(float(norms[reached].max()), np.finfo(float).tiny)
        scores = -np.log(np.clip(norms, 1e-6 * farthest, farthest))
        return outlier(
            self, scores, f"latent shift of L2 {norms.min():.3g}, median {np.median(norms):.3g}", least=SUPPORT
        )


def smallest_shifts(weights: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """
    Return the norm of the smallest shift of the last layer's input that gives all images each label.

    >>> import numpy as np
    >>> smallest_shifts(np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [2.0, 0.0]])).round(6)
    array([0. , 0.4])

    :param weights: The last layer's weights, of shape (nb_classes, inputs).
    :param logits: The images' logits, of shape (N, nb_classes).
    :return: L2 norms of shape (nb_classes,); infinite where no shift does it.
    """
    norms = []
    for label in range(len(weights)):
        rows = np.delete(weights[label] - weights, label, axis=0).astype(np.float64)
        lead = np.delete(logits - logits[:, [label]], label, axis=1).max(axis=0).astype(np.float64)
        norms.append(_least_distance(rows, lead))
    return np.array(norms)


def _least_distance(rows: np.ndarray, least: np.ndarray) -> float:
    """Return the least norm of a delta with rows @ delta >= least."""
    if (least <= 0).all():
        return 0.0
    # Of one scale, so that the residual's last entry is far from rounding.
    scale = least.max()
    system = np.vstack([rows.T, least / scale])
    wanted = np.zeros(len(system))
    wanted[-1] = 1.0
    solution, _ = nnls(system, wanted)
    residual = system @ solution - wanted
    if abs(residual[-1]) < 1e-12:
        return math.inf
    return float(np.linalg.norm(residual[:-1] / residual[-1]) * scale)
