"""The layer that reads the last convolution: its input channels, and how to cut one off."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch.nn.utils.parametrize import is_parametrized

from art_aft.checks import check_clip_values
from art_aft.classifiers.classifier import predict_labels
from art_aft.classifiers.pixel_module import borrow, eager, told_labels
from art_aft.data.pixels import to_float
from art_aft.runtime.random_state import isolated_rng


class NothingToPrune(ValueError):
    """Raised for a network that has no layer that reads a convolution and whose weights can be set."""


class Head:
    """
    The first linear layer after a classifier's last convolution, which reads the channels of that convolution.

    In a residual network, another path is added to the output of the last convolution before the head reads it. So a
    channel is cut off here: its weights in the head become zero, and nothing after the head depends on it.

    :param classifier: The classifier; `cut` changes it.
    :param x: A few checked images of shape (N, *input_shape), which show the order in which the layers run.
    :param layer: The layer's name in `named_modules`; None finds it. In a network that ends in a convolution, that
        convolution is the head.
    :raises NothingToPrune: If the network has no such layer, or its weight is computed from others.
    :raises ValueError: If `layer` is not the name of a linear or convolution layer that runs.
    """

    def __init__(self, classifier: PyTorchClassifier, x: np.ndarray, layer: str | None = None) -> None:
        self.classifier = classifier
        layers = _layers(classifier)
        if layer is not None and layer not in layers:
            raise ValueError(f"layer: got {layer!r}, expected a linear or convolution layer: {', '.join(layers)}")
        ran, logits = _in_order(classifier, layers, x[:2])
        self.name, result, self.nb_channels = _reader(ran, layers, layer)
        self.layer: Any = layers[self.name]
        if not isinstance(self.layer.weight, torch.nn.Parameter) or is_parametrized(self.layer):
            raise NothingToPrune(
                f"classifier.model: got a layer {self.name} whose weight is computed (weight_norm, spectral_norm), "
                "expected a weight that can be set"
            )
        #: Whether the layer's output is the model's. Then only this layer needs to run again after a cut.
        self.is_last = result.shape == logits.shape and bool(torch.equal(result.float(), logits))
        self.pruned: list[int] = []
        self._columns = self.layer.weight.shape[1] // self.nb_channels

    def inputs(self, x: np.ndarray, batch_size: int = 128) -> torch.Tensor:
        """
        Return what the layer reads, in evaluation mode, on the CPU.

        :param x: Checked images of shape (N, *input_shape).
        :param batch_size: Images at a time.
        """
        seen: list[torch.Tensor] = []
        hook = self.layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().cpu()))
        try:
            for start in range(0, len(x), batch_size):
                _logits(self.classifier, x[start : start + batch_size])
        finally:
            hook.remove()
        return torch.cat(seen)

    def activations(self, x: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """Return the mean of each channel over positions, of shape (N, channels)."""
        inputs = self.inputs(x, batch_size)
        if isinstance(self.layer, torch.nn.Linear):
            # In flattened maps the channels come first. Tokens, if there are any, are positions.
            inputs = inputs.flatten(1, -2).mean(dim=1) if inputs.ndim > 2 else inputs
            return inputs.reshape(len(inputs), self.nb_channels, -1).mean(dim=2).numpy()
        return inputs.mean(dim=(2, 3)).numpy()

    def cut(self, channel: int) -> torch.Tensor:
        """Cut a channel off, and return the weights that it had, for `restore`."""
        columns = self._at(channel)
        before = self.layer.weight.detach()[:, columns].clone()
        self.pruned.append(channel)
        self.keep_cut()
        return before

    def restore(self, weights: torch.Tensor) -> None:
        """Undo the last `cut`."""
        with torch.no_grad():
            self.layer.weight[:, self._at(self.pruned.pop())] = weights

    def keep_cut(self) -> None:
        """Set the weights of all cut channels to zero again, as after a step of training."""
        with torch.no_grad():
            for channel in self.pruned:
                self.layer.weight[:, self._at(channel)] = 0

    def predict(self, x: np.ndarray, inputs: torch.Tensor) -> np.ndarray:
        """
        Return predicted labels, with all channels cut off that are at this time.

        :param x: Checked images of shape (N, *input_shape).
        :param inputs: What the layer reads of them, as `inputs` returns it.
        """
        if not self.is_last:
            return predict_labels(self.classifier, x)
        with torch.no_grad():
            return told_labels(self.layer(inputs.to(self.layer.weight.device))).cpu().numpy()

    def _at(self, channel: int) -> slice:
        return slice(channel * self._columns, (channel + 1) * self._columns)


def output_weights(classifier: PyTorchClassifier, x: np.ndarray) -> np.ndarray | None:
    """
    Return the weights of the layer that returns the logits, of shape (nb_classes, inputs).

    :param classifier: The classifier. It stays as it is.
    :param x: A few checked images of shape (N, *input_shape), which show the order in which the layers run.
    :return: The weights as float32; None if the layer that runs last does not have one row a class.
    """
    layers = _layers(classifier)
    ran, _ = _in_order(classifier, layers, x[:2])
    if not ran or len(weights := layers[ran[-1][0]].weight) != classifier.nb_classes:
        return None
    return weights.detach().float().flatten(1).cpu().numpy()


def _layers(classifier: PyTorchClassifier) -> dict[str, Any]:
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    return {name: part for name, part in eager(classifier.model).named_modules() if isinstance(part, kinds)}


def _logits(classifier: PyTorchClassifier, x: np.ndarray) -> torch.Tensor:
    clip_values = check_clip_values("clip_values", classifier.clip_values)
    with isolated_rng(), torch.no_grad(), borrow(classifier, precision="float32", keep_buffers=True) as module:
        module.eval()
        return module(to_float(torch.from_numpy(x).to(classifier.device), clip_values))


def _in_order(
    classifier: PyTorchClassifier, layers: dict[str, Any], x: np.ndarray
) -> tuple[list[tuple[str, torch.Tensor]], torch.Tensor]:
    """Return the names and outputs of the layers in the order in which they run, and the logits."""
    ran: list[tuple[str, torch.Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda _, __, result, name=name: ran.append((name, result)))
        for name, part in layers.items()
    ]
    try:
        return ran, _logits(classifier, x)
    finally:
        for hook in hooks:
            hook.remove()


def _reader(
    ran: list[tuple[str, torch.Tensor]], layers: dict[str, Any], name: str | None
) -> tuple[str, torch.Tensor, int]:
    """Return the name and output of the layer that reads the last convolution, and the number of channels."""
    order = [entry[0] for entry in ran]
    convolutions = [place for place, entry in enumerate(order) if isinstance(layers[entry], torch.nn.Conv2d)]
    if name is not None:
        if name not in order:
            raise ValueError(f"layer: got {name!r}, which the model does not run, expected one of: {', '.join(order)}")
        place = order.index(name)
    elif not convolutions:
        raise NothingToPrune("classifier.model: got a model without a 2-dimensional convolution, expected one")
    elif convolutions[-1] < len(ran) - 1:
        place = convolutions[-1] + 1
    elif len(convolutions) > 1:
        place = convolutions[-1]  # the network ends in a convolution, which is the head itself
    else:
        raise NothingToPrune("classifier.model: got a single convolution and nothing that reads it, expected more")
    width = layers[order[place]].weight.shape[1]
    reads_maps = isinstance(layers[order[place]], torch.nn.Linear) and place - 1 in convolutions
    return *ran[place], _channels(width, ran[place - 1][1]) if reads_maps else width


def _channels(width: int, maps: torch.Tensor) -> int:
    """
    Return the number of channels in what a linear layer reads of a convolution's maps.

    Flattened maps, perhaps pooled before, have a column for each position. If maps are averaged, or concatenated with
    others first (DenseNet), each column is a channel.
    """
    channels, height, length = maps.shape[1:]
    pooled = {(height // factor) * (length // factor) for factor in range(1, min(height, length) + 1)}
    return channels if width % channels == 0 and width // channels in pooled else width
