"""
A classifier as a plain module from pixels to logits, in the precision and memory format that are fast on its device.

`borrow` is the one place where these are chosen. It takes the classifier back as it was: modes, flags, formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch

from art_aft.checks import check_choice, check_clip_values
from art_aft.runtime.devices import PRECISIONS, has_bfloat16_units
from art_aft.runtime.folding import fold_batch_norm
from art_aft.runtime.modes import kept_modes
from art_aft.runtime.random_state import isolated_rng
from art_aft.runtime.small_maps import SmallMaps

# Logits that are larger count as this.
_LARGEST = 1e30


def eager(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model that `torch.compile` compiled: compiled code calls no hooks that are registered later."""
    return getattr(model, "_orig_mod", model)


def logits_of(output: Any, n: int, nb_classes: int, *, training: bool = False) -> torch.Tensor:
    """
    Return the logits in a model's output.

    ART's own `predict` takes nothing but a tensor, so anything else is refused in evaluation mode. In training mode
    some models return more: Inception and GoogLeNet a tuple with the logits of further heads behind their own. There
    the logits are the entry or attribute "logits", or the first of a list or tuple.

    :param output: What the model returned.
    :param n: For how many images.
    :param nb_classes: The number of classes.
    :param training: Whether the model was in training mode.
    :raises ValueError: If there are no logits of shape (n, nb_classes).
    """
    logits = output
    if training and isinstance(output, Mapping):
        logits = output.get("logits")
    elif training and not isinstance(output, torch.Tensor):
        first = output[0] if isinstance(output, (list, tuple)) and output else None
        logits = getattr(output, "logits", first)
    expected = f"expected a tensor of logits of shape (N, {nb_classes})"
    if not isinstance(logits, torch.Tensor):
        raise ValueError(
            f"classifier.model: got outputs of type {_described(output)}, {expected} alone, as ART's own predict needs "
            "it: put a module around the model whose forward returns the logits"
        )
    if logits.shape != (n, nb_classes):
        raise ValueError(f"classifier.model: got outputs of shape {tuple(logits.shape)} for {n} images, {expected}")
    return logits


def told_labels(outputs: torch.Tensor) -> torch.Tensor:
    """
    Return the labels that outputs tell: those of the largest ones; -1, no label, where one of them is NaN.

    >>> told_labels(torch.tensor([[0.0, 2.0], [float("nan"), 1.0]])).tolist()
    [1, -1]

    :param outputs: Logits or probabilities of shape (..., nb_classes).
    :return: Label indices of shape (...).
    """
    return torch.where(outputs.isnan().any(dim=-1), -1, outputs.argmax(dim=-1))


def are_probabilities(outputs: torch.Tensor) -> bool:
    """
    Return whether a model's outputs are probabilities, as those of a model that ends in a softmax are.

    :param outputs: Of shape (N, nb_classes).
    """
    outputs = outputs.detach().float()
    return len(outputs) > 0 and bool((outputs >= 0).all() and ((outputs.sum(dim=1) - 1).abs() < 1e-3).all())


def _described(output: Any) -> str:
    """Return the type of a model's output and the shapes of what is in it."""
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    shapes = ", ".join(str(tuple(part.shape)) for part in parts if isinstance(part, torch.Tensor))
    return type(output).__name__ + (f" with shapes {shapes}" if shapes else "")


class PixelModule(torch.nn.Module):
    """
    What a classifier does from pixels to logits, as one differentiable module: rescaling, preprocessing, model.

    Where the model returns probabilities, their logarithms are the logits: they differ from those before the softmax by
    one number for each image. Whether it does is asked once, of the first images.

    :param classifier: The classifier; its model's parameters are shared, not copied. A compiled model runs as it was
        before, so that hooks work.
    :param scale: The pixel values (low, high) that inputs 0 and 1 stand for; None takes pixels as they are.
    """

    def __init__(self, classifier: PyTorchClassifier, scale: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.model = eager(classifier.model)
        self.scale = None if scale == (0.0, 1.0) else scale
        self.channels_first = classifier.channels_first
        self.channels_last_memory = False
        self.bfloat16 = False
        self.probabilities: bool | None = None
        self.nb_classes = classifier.nb_classes
        # ART's default preprocessing, (x - 0) / 1, is left out: it only costs time.
        self._operations = [op for op in classifier.preprocessing_operations if not _is_identity(op)]

    def preprocess(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the model itself sees of images of shape (N, *input_shape), in memory of its own."""
        given = x
        if self.scale is not None:
            low, high = self.scale
            x = low + (high - low) * x
        for operation in self._operations:
            if operation.apply_fit if self.training else operation.apply_predict:
                x, _ = operation.forward(x)
        # A model may work in place on its input, and the memory may be that of the user's array.
        return x.clone() if x is given or x._is_view() else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float32 logits of shape (N, nb_classes) for images of shape (N, *input_shape)."""
        if x.requires_grad:
            # torchattacks' PGDL2 calls .view on the gradient, which a channels_last one does not allow.
            x.register_hook(torch.Tensor.contiguous)
        x = self.preprocess(x)
        if self.channels_last_memory and self.channels_first:
            x = x.contiguous(memory_format=torch.channels_last)
        small_maps = SmallMaps() if self.bfloat16 and x.device.type == "cpu" else nullcontext()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bfloat16), small_maps:
            output = self.model(x)
        logits = logits_of(output, len(x), self.nb_classes, training=self.training).float()
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise ValueError(
                "classifier.model: got outputs without a gradient of the pixels, expected a forward that is "
                "differentiable all through (torch.no_grad, .detach() or argmax in it?)"
            )
        if self.probabilities is None:
            self.probabilities = are_probabilities(logits)
        if self.probabilities:
            return logits.clamp(min=torch.finfo(torch.float32).tiny).log()
        # An overflow is a very large number, of which differences are numbers, too. NaN stays what it is.
        return logits if self.training else logits.clamp(-_LARGEST, _LARGEST)


def _is_identity(operation: Any) -> bool:
    return (
        isinstance(operation, StandardisationMeanStdPyTorch)
        and not np.any(operation.mean)
        and bool(np.all(operation.std == 1))
    )


@contextmanager
def not_compiled(classifier: PyTorchClassifier) -> Iterator[None]:
    """Put the model before `torch.compile` in its compiled form's place, which calls no hooks."""
    wrapper, model = classifier._model, classifier.model
    if eager(model) is model:
        yield
        return
    wrapper._model = eager(model)
    try:
        yield
    finally:
        wrapper._model = model


@contextmanager
def borrow(
    classifier: PyTorchClassifier,
    *,
    precision: str = "auto",
    scale: tuple[float, float] | None = None,
    freeze: bool = False,
    keep_buffers: bool = False,
    fold: bool = False,
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
    :param keep_buffers: Whether buffers (running statistics) are put back too, as with `freeze`.
    :param fold: Whether, in bfloat16, batch normalisation is merged into the convolutions before it where the model can
        be traced: for work in evaluation mode that changes no weights.
    """
    check_choice("precision", precision, PRECISIONS)
    module = PixelModule(classifier, scale)
    parameters = [(p, p.requires_grad, p.stride()) for p in classifier.model.parameters()]
    # A model may count or observe in evaluation mode, too; who changes no weights changes nothing.
    owners = classifier.model.modules() if keep_buffers or freeze else ()
    buffers = [(o, name, b, b.clone()) for o in owners for name, b in o.named_buffers(recurse=False)]
    try:
        for parameter, *_ in parameters if freeze else ():
            parameter.requires_grad_(False)
        if precision == "bfloat16" or (precision == "auto" and has_bfloat16_units(classifier.device)):
            with kept_modes(classifier._model):
                _settle(module, classifier, can_fall_back=precision == "auto")
                if fold and module.bfloat16:
                    _fold(module, classifier)
        with kept_modes(classifier._model):
            yield module
    finally:
        for parameter, requires_grad, stride in parameters:
            parameter.requires_grad_(requires_grad)
            # Not .contiguous(): strides that mean the same (of 1x1 kernels) still choose other code paths.
            if parameter.stride() != stride:
                parameter.data = torch.empty_strided(
                    parameter.shape, stride, dtype=parameter.dtype, device=parameter.device
                ).copy_(parameter.data)
        with torch.no_grad():
            for owner, name, buffer, before in buffers:
                buffer.data = buffer.data.copy_(before) if buffer.shape == before.shape else before
                if not isinstance(owner, torch.jit.ScriptModule):
                    owner._buffers[name] = buffer  # where there may be another tensor by now


@contextmanager
def on_grey_images(
    classifier: PyTorchClassifier, count: int = 2, *, needs_gradient: bool = True, training: bool = False
) -> Iterator[Callable[[], Any]]:
    """
    Lend out a function that returns what the model itself returns for grey images.

    :param classifier: The classifier. Afterwards modes, buffers and the global generators are as they were.
    :param count: The number of images.
    :param needs_gradient: Whether the images need a gradient, without which reentrant checkpoints pass none on.
    :param training: Whether the model is in training mode meanwhile.
    """
    low, high = (0.0, 1.0) if classifier.clip_values is None else classifier.clip_values
    grey = torch.full((count, *classifier.input_shape), float(np.mean([low, high])), device=classifier.device)
    with isolated_rng(), torch.enable_grad(), borrow(classifier, precision="float32", keep_buffers=True) as module:
        module.train(training)
        yield lambda: module.model(module.preprocess(grey.requires_grad_(needs_gradient)))


def _settle(module: PixelModule, classifier: PyTorchClassifier, can_fall_back: bool) -> None:
    """Choose the fastest form of the module that runs forward and backward on two grey images."""
    low, high = (0.0, 1.0) if module.scale is not None else check_clip_values("clip_values", classifier.clip_values)
    with isolated_rng(), torch.enable_grad():
        module.eval()
        module.bfloat16 = True
        for memory_format in (torch.channels_last, torch.contiguous_format):
            module.channels_last_memory = memory_format is torch.channels_last
            grey = torch.full((2, *classifier.input_shape), (low + high) / 2, device=classifier.device)
            try:
                # torch has no channels_last order for weights and buffers of five dimensions, and refuses them.
                module.model.to(memory_format=memory_format)
                torch.autograd.grad(module(grey.requires_grad_(True)).sum(), grey)
            except RuntimeError:
                if not can_fall_back and memory_format is torch.contiguous_format:
                    raise
            else:
                return
    module.bfloat16 = False


def _fold(module: PixelModule, classifier: PyTorchClassifier) -> None:
    """Let the module run a copy of the model with fewer layers, if it is the same function."""
    model = module.model.eval()
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, *classifier.input_shape, generator=random).to(classifier.device)
    if module.scale is None:
        low, high = check_clip_values("clip_values", classifier.clip_values)
        images = low + (high - low) * images
    with torch.no_grad(), isolated_rng():
        try:
            folded = fold_batch_norm(model)
            expected, found = model(module.preprocess(images)), folded(module.preprocess(images))
            memory_format = torch.channels_last if module.channels_last_memory else torch.contiguous_format
            folded.to(memory_format=memory_format)
        except Exception:  # a model of any make: what its tracing may raise is not known
            return
    if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std())):
        folded.requires_grad_(False)
        module.model = folded
