"""Neural Attention Distillation: a fine-tuned teacher shows the infected student where to look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_clip_values, check_integer, check_number
from art_aft.classifiers.classifier import clone
from art_aft.classifiers.pixel_module import borrow
from art_aft.data.pixels import to_float
from art_aft.defences.base import NAD_RELEASE, Purification, Tuning, register
from art_aft.training.loop import fit


def attention_map(maps: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """
    Return where a layer looks: the sum over channels of |F|^p, scaled to length 1.

    :param maps: Feature maps F of shape (N, C, h, w).
    :param power: The exponent p.
    :return: float32 of shape (N, h * w).
    """
    attention = maps.float().abs().pow(power).sum(dim=1).flatten(1)
    return attention / (attention.norm(dim=1, keepdim=True) + 1e-6)


class DistillationLoss(torch.nn.Module):
    """
    A classifier's own loss, and the mean squared difference of student's and teacher's attention, layer by layer.

    :param loss: The loss on logits and label indices.
    :param betas: The weight of each layer.
    :param power: The exponent of `attention_map`.
    """

    def __init__(self, loss: torch.nn.Module, betas: Sequence[float], power: float) -> None:
        super().__init__()
        self.loss, self.betas, self.power = loss, betas, power
        #: What the two networks' layers put out for the batch at hand.
        self.student: dict[str, torch.Tensor] = {}
        self.teacher: dict[str, torch.Tensor] = {}

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the loss of one batch; the maps must have been filled in before."""
        total = self.loss(logits, y)
        for beta, name in zip(self.betas, self.student, strict=True):
            ours, theirs = (attention_map(maps[name], self.power) for maps in (self.student, self.teacher))
            total = total + beta * (ours - theirs).square().mean()
        return total


@register("nad")
@dataclass(eq=False, repr=False)
class NeuralAttentionDistillation(Tuning, Purification):
    """
    Fine-tune a copy of the infected model: the teacher. Then fine-tune the infected model itself on the same images
    while its layers' attention is drawn to the teacher's.

    | Paper link: https://arxiv.org/abs/2101.05930

    Preset "paper": the release's student on WRN-16-1, rate 0.1 for two epochs and then 0.01, 20 epochs.

    :param classifier: The classifier that may be infected.
    :param layers: The names, as in `named_modules`, of the layers whose attention counts. None takes, of the last
        three sizes of feature maps, the last block of each: for WRN-16-1 its three groups, for PreActResNet-18 groups
        2 to 4.
    :param betas: The weight of each layer; of layers that None found, fewer may be there, and take the last ones.
    :param power: The exponent of the attention maps.
    :param teacher_epochs: Passes over the clean data for the teacher.
    :param nb_epochs: Passes over the clean data for the student.

    All other settings are those of `Tuning`, for both.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {**NAD_RELEASE, "nb_epochs": 20}}

    classifier: PyTorchClassifier
    _: KW_ONLY
    layers: tuple[str, ...] | None = None
    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    power: float = 2.0
    teacher_epochs: int = 10

    def _check_params(self) -> None:
        super()._check_params()
        check_integer("teacher_epochs", self.teacher_epochs, 0)
        check_number("power", self.power, minimum=0.0, above=True)
        for beta in self.betas:
            check_number("betas", beta, minimum=0.0)
        if self.layers is not None:
            known = dict(self.classifier.model.named_modules())
            for name in self.layers:
                if name not in known:
                    raise ValueError(f"layers: got {name!r}, expected names of the model's layers: {', '.join(known)}")
            if len(self.layers) != len(self.betas):
                raise ValueError(f"betas: got {len(self.betas)} for {len(self.layers)} layers, expected as many")
        if not self.betas:
            raise ValueError("betas: got none, expected one a layer")

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
        layers = attention_layers(classifier, x, self.layers, len(self.betas))
        teacher = clone(classifier)
        self._fine_tune(teacher, x, y, self.teacher_epochs, 1, "Teacher")
        teacher.model.eval().requires_grad_(False)
        loss = DistillationLoss(classifier.loss, self.betas[-len(layers) :], self.power)
        with _watching(classifier, teacher, layers, loss):
            self._fine_tune(classifier, x, y, self.nb_epochs, 2, "Student", loss)

    def _fine_tune(
        self,
        classifier: PyTorchClassifier,
        x: np.ndarray,
        y: np.ndarray,
        nb_epochs: int,
        stream: int,
        description: str,
        loss: torch.nn.Module | None = None,
    ) -> None:
        recipe = self._recipe(nb_epochs, stream)
        with self._stage(description):
            fit(classifier, x, y, recipe, loss=loss, verbose=self.verbose, description=description)


@contextmanager
def _watching(
    student: PyTorchClassifier, teacher: PyTorchClassifier, layers: Sequence[str], loss: DistillationLoss
) -> Iterator[None]:
    """Have every batch that enters the student run through the teacher too, and both fill in their maps."""
    parts = dict(student.model.named_modules()), dict(teacher.model.named_modules())
    maps = loss.student, loss.teacher

    def run_teacher(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            teacher.model(*arguments)

    hooks = [student.model.register_forward_pre_hook(run_teacher)]
    for known, found in zip(parts, maps, strict=True):
        for name in layers:
            found[name] = torch.empty(0)  # the order of the betas

            def keep(_: Any, __: Any, output: torch.Tensor, name: str = name, found: Any = found) -> None:
                found[name] = output

            hooks.append(known[name].register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        loss.student.clear()


def attention_layers(
    classifier: PyTorchClassifier, x: np.ndarray, layers: Sequence[str] | None = None, count: int = 3
) -> list[str]:
    """
    Return the names of the layers whose attention is distilled, in the order in which they run.

    :param classifier: The classifier.
    :param x: A few images of shape (N, *input_shape).
    :param layers: Names to check; None finds them: of the last `count` sizes of feature maps, the outermost block
        with a convolution inside that ends last.
    :param count: How many at most.
    :raises ValueError: If there is none, or a given one does not put out maps of more than one position.
    """
    found: dict[str, tuple[int, ...]] = {}
    parts = dict(classifier.model.named_modules())
    blocks = {
        name: part
        for name, part in parts.items()
        if name and any(isinstance(inner, torch.nn.Conv2d) for inner in part.modules())
    }
    watched = blocks if layers is None else {name: parts[name] for name in layers}

    def note(name: str, output: Any) -> None:
        found.pop(name, None)  # a part that runs twice counts as late as it ends
        found[name] = tuple(output.shape[2:]) if torch.is_tensor(output) and output.ndim == 4 else ()

    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, part in watched.items()
    ]
    clip_values = check_clip_values("clip_values", classifier.clip_values)
    try:
        with torch.no_grad(), borrow(classifier, precision="float32") as module:
            module.eval()
            module(to_float(torch.from_numpy(x[:2]).to(classifier.device), clip_values))
    finally:
        for hook in hooks:
            hook.remove()
    if layers is not None:
        for name in layers:
            if np.prod(found.get(name, ())) <= 1:
                raise ValueError(f"layers: {name!r} puts out {found.get(name)}, expected maps of several positions")
        return list(layers)
    # A later block of the same size takes the place of an earlier one; a block ends after the parts inside it.
    last = {size: name for name, size in found.items() if np.prod(size) > 1}
    ends = list(found)
    names = sorted(last.values(), key=ends.index)[-count:]
    if not names:
        raise ValueError("layers: found no feature maps of more than one position, expected their names")
    return names
