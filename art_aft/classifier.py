"""
ART's `PyTorchClassifier`: build it, copy it, and borrow it for fast work.

`borrow` is the one place where precision and memory format are chosen. It lends out the classifier as a plain
module from pixels to logits, and takes it back as it was: modes, gradient flags, memory formats.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch

from art_aft.checks import check_choice, check_clip_values, check_images, check_integer, check_labels
from art_aft.models import build_model
from art_aft.rng import isolated_rng

PRECISIONS = ("auto", "float32", "bfloat16")


def build_classifier(
    model: str | torch.nn.Module,
    *,
    input_shape: tuple[int, ...],
    nb_classes: int,
    clip_values: tuple[float, float] = (0.0, 1.0),
    device_type: str = "gpu",
    seed: int = 0,
    **settings: Any,
) -> PyTorchClassifier:
    """
    Return a `PyTorchClassifier` with cross entropy as its loss.

    :param model: A model's name, such as "wrn-16-1", or a module that returns logits.
    :param input_shape: The shape of one image: (C, H, W), or (H, W, C) with `channels_first=False`.
    :param nb_classes: The number of classes.
    :param clip_values: The pixel range (low, high).
    :param device_type: "gpu" (the CPU where there is no GPU) or "cpu".
    :param seed: The seed of the weights of a model given by name.
    :param settings: More arguments of `PyTorchClassifier`: `optimizer`, `preprocessing`, `channels_first`.
    :raises ValueError: If the model is not known.
    """
    if isinstance(model, str):
        if not settings.get("channels_first", True):
            raise ValueError("channels_first: got False with a model by name, expected True: those take (N, C, H, W)")
        with isolated_rng(check_integer("seed", seed, 0)):
            model = build_model(model, nb_classes=nb_classes, in_channels=input_shape[0])
    classifier = PyTorchClassifier(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(input_shape),
        nb_classes=nb_classes,
        clip_values=clip_values,
        device_type=device_type,
        **settings,
    )
    classifier.model.eval()
    return classifier


def clone(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """
    Return an independent copy: weights, modes, settings and optimizer state, on the same device.

    `copy.deepcopy` would pickle, for which ART writes a file into its data folder and reads it back;
    `clone_for_refitting` would forget the weights.
    """
    shared = ("_model", "_model_wrapper", "_device")
    state = {key: value for key, value in vars(classifier).items() if key not in shared}
    # One call, so that the optimizer's copy points to the parameters of the model's copy.
    model, state = copy.deepcopy((classifier.model, state))
    twin = object.__new__(type(classifier))
    vars(twin).update(state, _model_wrapper=classifier._model_wrapper, _device=classifier.device)
    twin._model = twin._make_model_wrapper(model)
    twin._model.training = classifier._model.training
    return twin


def check_classifier(name: str, classifier: Any) -> tuple[float, float]:
    """
    Check that a classifier is one that this package can work on.

    :param name: The argument's name.
    :param classifier: What should be ART's `PyTorchClassifier` of images, with a pixel range and a loss on logits.
    :return: Its pixel range (low, high).
    :raises TypeError: If it is not a `PyTorchClassifier`.
    :raises ValueError: If it has no pixel range, another kind of input or loss, or preprocessing outside PyTorch.
    """
    if not isinstance(classifier, PyTorchClassifier):
        raise TypeError(f"{name}: got {type(classifier).__name__}, expected ART's PyTorchClassifier")
    if len(classifier.input_shape) != 3:
        raise ValueError(f"{name}.input_shape: got {classifier.input_shape}, expected that of an image, (C, H, W)")
    if not isinstance(classifier.loss, (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss)):
        raise ValueError(f"{name}.loss: got {type(classifier.loss).__name__}, expected CrossEntropyLoss or NLLLoss")
    if not classifier.all_framework_preprocessing:
        raise ValueError(f"{name}.preprocessing_defences: got some outside PyTorch, expected PreprocessorPyTorch only")
    if next(classifier.model.parameters(), None) is None:
        raise ValueError(f"{name}.model: got a model without parameters, expected a trained one")
    return check_clip_values(f"{name}.clip_values", classifier.clip_values)


def check_data(
    classifier: PyTorchClassifier, x: Any, y: Any, *, in_range: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """
    Check images and labels against a classifier.

    :param classifier: The classifier that they are for.
    :param x: Images.
    :param y: Labels, as indices or one-hot.
    :param in_range: Whether images outside `clip_values` are refused; NaN and infinite pixels always are.
    :return: Images as float32 of shape (N, *input_shape) and labels as indices of shape (N,).
    :raises ValueError: If they do not fit.
    :raises TypeError: If they are of another type.
    """
    clip_values = check_classifier("classifier", classifier)
    check_images("x", x, clip_values=clip_values if in_range else None, input_shape=classifier.input_shape)
    labels = check_labels("y", y, nb_classes=classifier.nb_classes, nb_samples=len(x))
    # torch takes no read-only arrays.
    return np.require(x, dtype=np.float32, requirements=["C_CONTIGUOUS", "WRITEABLE"]), labels


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware (AMX, or CUDA capability 8 and above)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and probe is not None and bool(probe())


class PixelModule(torch.nn.Module):
    """
    What a classifier does from pixels to logits, as one differentiable module: rescaling, preprocessing, model.

    :param classifier: The classifier; its model's parameters are shared, not copied.
    :param scale: The pixel values (low, high) that inputs 0 and 1 stand for; None takes pixels as they are.
    """

    def __init__(self, classifier: PyTorchClassifier, scale: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.model = classifier.model
        self.scale = None if scale == (0.0, 1.0) else scale
        self.channels_first = classifier.channels_first
        self.channels_last_memory = False
        self.bfloat16 = False
        self.freeze_bn = False
        # ART's default preprocessing, (x - 0) / 1, is left out: it only costs time.
        self._operations = [op for op in classifier.preprocessing_operations if not _is_identity(op)]

    def train(self, mode: bool = True) -> PixelModule:
        """Set the mode as usual, but leave batch normalisation in evaluation mode where `freeze_bn` is set."""
        super().train(mode)
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float32 logits of shape (N, nb_classes) for images of shape (N, *input_shape)."""
        if x.requires_grad:
            # torchattacks' PGDL2 calls .view on the gradient, which a channels_last one does not allow.
            x.register_hook(torch.Tensor.contiguous)
        if self.scale is not None:
            low, high = self.scale
            x = low + (high - low) * x
        for operation in self._operations:
            if operation.apply_fit if self.training else operation.apply_predict:
                x, _ = operation.forward(x)
        if self.channels_last_memory and self.channels_first:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(x)
        return logits.float()


def _is_identity(operation: Any) -> bool:
    return (
        isinstance(operation, StandardisationMeanStdPyTorch)
        and not np.any(operation.mean)
        and bool(np.all(operation.std == 1))
    )


def predict_labels(classifier: PyTorchClassifier, x: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """
    Return predicted labels as ART's `predict` would, but leave modes and random generators as they are.

    :param classifier: The classifier, also in the middle of its training.
    :param x: float32 images of shape (N, *input_shape).
    :param batch_size: Images at a time.
    :return: Label indices of shape (N,).
    """
    with torch.no_grad(), borrow(classifier, precision="float32") as module:
        module.eval()
        parts = torch.from_numpy(x).split(batch_size)
        return torch.cat([module(part.to(classifier.device)).argmax(dim=1).cpu() for part in parts]).numpy()


@contextmanager
def borrow(
    classifier: PyTorchClassifier,
    *,
    precision: str = "auto",
    scale: tuple[float, float] | None = None,
    freeze: bool = False,
    keep_buffers: bool = False,
) -> Iterator[PixelModule]:
    """
    Lend out a classifier as a module in the fastest form that gives right results on its device.

    With bfloat16, weights lie in channels_last order and activations are computed under autocast. A model that
    fails so (a `.view` on activations, an operation without bfloat16) gets the plain layout, then plain precision.

    :param classifier: The classifier. Afterwards, also after an exception, each module's mode, each parameter's
        `requires_grad` flag and memory format are as they were; weights keep what was done to them.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param scale: The pixel values that inputs 0 and 1 stand for; None takes pixels as they are.
    :param freeze: Whether the parameters need no gradients.
    :param keep_buffers: Whether buffers (running statistics) are put back too.
    """
    check_choice("precision", precision, PRECISIONS)
    module = PixelModule(classifier, scale)
    flags = {part: part.training for part in classifier._model.modules()}
    parameters = [(p, p.requires_grad, p.stride()) for p in classifier.model.parameters()]
    buffers = [(b, b.clone()) for b in classifier.model.buffers()] if keep_buffers else []
    try:
        for parameter, *_ in parameters if freeze else ():
            parameter.requires_grad_(False)
        if precision == "bfloat16" or (precision == "auto" and has_bfloat16_units(classifier.device)):
            _settle(module, classifier, can_fall_back=precision == "auto")
        yield module
    finally:
        for part, training in flags.items():
            part.training = training
        for parameter, requires_grad, stride in parameters:
            parameter.requires_grad_(requires_grad)
            # Not .contiguous(): strides that mean the same (of 1x1 kernels) still choose other code paths.
            if parameter.stride() != stride:
                parameter.data = torch.empty_strided(
                    parameter.shape, stride, dtype=parameter.dtype, device=parameter.device
                ).copy_(parameter.data)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _settle(module: PixelModule, classifier: PyTorchClassifier, can_fall_back: bool) -> None:
    """Choose the fastest form of the module that runs forward and backward on two grey images."""
    ladder = [(True, torch.channels_last), (True, torch.contiguous_format)]
    low, high = (0.0, 1.0) if module.scale is not None else check_clip_values("clip_values", classifier.clip_values)
    with isolated_rng(), torch.enable_grad():
        module.eval()
        for bfloat16, memory_format in ladder:
            module.bfloat16 = bfloat16
            module.channels_last_memory = memory_format is torch.channels_last
            module.model.to(memory_format=memory_format)
            grey = torch.full((2, *classifier.input_shape), (low + high) / 2, device=classifier.device)
            try:
                torch.autograd.grad(module(grey.requires_grad_(True)).sum(), grey)
            except RuntimeError:
                if not can_fall_back and memory_format is torch.contiguous_format:
                    raise
            else:
                return
    module.bfloat16 = False
