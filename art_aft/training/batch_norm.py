"""Running statistics of batch normalisation, made again from other images."""

from __future__ import annotations

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_clip_values
from art_aft.classifiers.classifier import check_data
from art_aft.classifiers.pixel_module import borrow
from art_aft.data.loaders import batch_sizes
from art_aft.data.pixels import to_float
from art_aft.runtime.random_state import isolated_rng


def recalibrate_batch_norm(classifier: PyTorchClassifier, x: np.ndarray, *, batch_size: int = 128) -> None:
    """
    Set batch normalisation's running statistics to those of some images; no weight changes.

    :param classifier: The classifier, changed in place.
    :param x: Images in `clip_values`, of shape (N, *input_shape); each batch counts the same.
    :param batch_size: Images a batch.
    :raises ValueError: If the images do not fit the classifier.
    """
    x, _ = check_data(classifier, x, np.zeros(np.shape(x)[:1]))
    clip_values = check_clip_values("clip_values", classifier.clip_values)
    layers = [m for m in classifier.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    with isolated_rng(0), torch.no_grad(), borrow(classifier, precision="float32") as module:
        module.eval()
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain average over batches
                layer.train()
            for batch in torch.from_numpy(x).split(batch_sizes(len(x), batch_size)):
                module(to_float(batch.to(classifier.device), clip_values))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
