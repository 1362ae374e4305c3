"""Neural Attention Distillation: the infected model learns the attention of a fine-tuned copy of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_clip_values, check_integer, check_number, check_sequence, check_text
from art_aft.classifiers.classifier import clone
from art_aft.classifiers.pixel_module import borrow, eager
from art_aft.data.images import Images
from art_aft.data.pixels import to_float
from art_aft.defences.base import NAD_RELEASE, Defence, Run, register
from art_aft.runtime.random_state import seed_for
from art_aft.training.batches import Batch, Batches
from art_aft.training.loop import fit
from art_aft.training.losses import Loss, mean_loss

#: The release's student on WRN-16-1: rate 0.1 for two epochs, then 0.01, 20 epochs.
PAPER: Mapping[str, Any] = {**NAD_RELEASE, "nb_epochs": 20}


@register("nad")
class NeuralAttentionDistillation(Defence):
    """
    Fine-tune the infected model while its attention is pulled to that of a teacher.

    The teacher is a copy of the infected model that was fine-tuned on the same images first. All settings of
    fine-tuning but the number of epochs are those of both.

    | Paper link: https://arxiv.org/abs/2101.05930

    :param classifier: The classifier that may be infected.
    :param layers: The layers whose attention is compared, by their names in `named_modules`. None takes, of the last
        three sizes of feature maps, the last block of each: the three groups of WRN-16-1, groups 2 to 4 of
        PreActResNet-18.
    :param betas: The weight of each layer. If None finds fewer layers than there are weights, they have the last ones.
    :param power: The exponent p of the attention maps, above 0.
    :param teacher_epochs: Passes over the clean data for the teacher.
    :param nb_epochs: Passes over the clean data for the student.
    :param batch_size: Images a step.
    :param learning_rate: The (peak) rate of a new SGD optimizer; None continues with the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay.
    :param nesterov: Whether the momentum is Nesterov's.
    :param schedule: The learning rate over the steps: "constant", "cosine" or "one_cycle".
    :param milestones: Pairs (epoch, learning rate), from 0: that rate from that epoch on.
    :param padding: Random crops after padding by this many pixels; 0 is none. None is 4, or less on images of fewer
        than 32 pixels: an eighth of the shorter side.
    :param horizontal_flip: Whether to flip half of the images. Wrong for digits, letters and traffic signs.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER}

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        layers: tuple[str, ...] | None = None,
        betas: tuple[float, ...] = (500.0, 1000.0, 1000.0),
        power: float = 2.0,
        teacher_epochs: int = 10,
        nb_epochs: int = 10,
        batch_size: int = 128,
        learning_rate: float | None = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
        schedule: str = "constant",
        milestones: tuple[tuple[int, float], ...] = (),
        padding: int | None = None,
        horizontal_flip: bool = True,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            layers=layers,
            betas=betas,
            power=power,
            teacher_epochs=teacher_epochs,
            nb_epochs=nb_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            schedule=schedule,
            milestones=milestones,
            padding=padding,
            horizontal_flip=horizontal_flip,
            precision=precision,
            seed=seed,
            verbose=verbose,
        )

    def _check_params(self) -> None:
        super()._check_params()
        check_integer("teacher_epochs", self.teacher_epochs, 0)
        check_number("power", self.power, minimum=0.0, above=True)
        for beta in check_sequence("betas", self.betas):
            check_number("betas", beta, minimum=0.0)
        if self.layers is not None:
            known = dict(eager(self.classifier.model).named_modules())
            for name in check_sequence("layers", self.layers):
                if check_text("layers", name) not in known:
                    raise ValueError(f"layers: got {name!r}, expected names of the model's layers: {', '.join(known)}")
            if len(self.layers) != len(self.betas):
                raise ValueError(f"betas: got {len(self.betas)} for {len(self.layers)} layers, expected as many")
        if not self.betas:
            raise ValueError("betas: got none, expected one a layer")

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> None:
        layers = attention_layers(classifier, images.pixels, self.layers, len(self.betas))
        teacher = clone(classifier)
        self._fine_tune(teacher, images, self.teacher_epochs, "teacher", run)
        teacher.model.eval().requires_grad_(False)
        loss = AttentionLoss(classifier.loss, self.betas[-len(layers) :], self.power)
        with _watching(classifier, teacher, layers, loss):
            self._fine_tune(classifier, images, self.nb_epochs, "student", run, loss)

    def _fine_tune(
        self,
        classifier: PyTorchClassifier,
        images: Images,
        nb_epochs: int,
        stream: str,
        run: Run,
        loss: Loss | None = None,
    ) -> None:
        recipe, name = self._recipe(nb_epochs=nb_epochs, seed=seed_for(self.seed, stream)), stream.capitalize()
        with run.stage(name):
            batches = Batches(images, recipe, classifier.device)
            fit(
                classifier,
                batches,
                recipe,
                loss=loss,
                callbacks=run.callbacks,
                verbose=self.verbose,
                description=name,
            )


def attention_map(maps: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """
    Return the attention of a layer: the sum over channels of |F|^p, scaled to length 1.

    >>> import torch
    >>> attention_map(torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]]), power=1.0)
    tensor([[0.8321, 0.5547]])

    :param maps: Feature maps F of shape (N, C, h, w).
    :param power: The exponent p.
    :return: float32 of shape (N, h * w).
    """
    attention = maps.float().abs().pow(power).sum(dim=1).flatten(1)
    return attention / (attention.norm(dim=1, keepdim=True) + 1e-6)


class AttentionLoss(torch.nn.Module):
    """
    The classifier's own loss, plus the weighted mean squared difference of student's and teacher's attention maps.

    :param loss: A loss on logits and label indices, of any reduction.
    :param betas: The weight of each layer.
    :param power: The exponent of `attention_map`.
    """

    def __init__(self, loss: torch.nn.Module, betas: Sequence[float], power: float) -> None:
        super().__init__()
        self.loss, self.betas, self.power = loss, betas, power
        #: Each layer's output for the batch at hand; filled in before the loss is called.
        self.student: dict[str, torch.Tensor] = {}
        self.teacher: dict[str, torch.Tensor] = {}

    def forward(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        total = mean_loss(self.loss, logits, batch.y)
        for beta, name in zip(self.betas, self.student, strict=True):
            ours, theirs = (attention_map(maps[name], self.power) for maps in (self.student, self.teacher))
            total = total + beta * (ours - theirs).square().mean()
        return total


@contextmanager
def _watching(
    student: PyTorchClassifier, teacher: PyTorchClassifier, layers: Sequence[str], loss: AttentionLoss
) -> Iterator[None]:
    """Run each batch that enters the student through the teacher, too, and hand the loss both networks' maps."""
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
    :param x: A few checked images of shape (N, *input_shape), float32 or uint8.
    :param layers: Names to check. None finds them: for each of the last `count` sizes of feature maps, the outermost
        block with a convolution inside that ends last.
    :param count: The most layers that None finds.
    :raises ValueError: If there is none, or a given one does not return maps of more than one position.
    """
    parts = dict(classifier.model.named_modules())
    if layers is not None:
        found = _map_sizes(classifier, x, {name: parts[name] for name in layers})
        for name in layers:
            if np.prod(found.get(name, ())) <= 1:
                size = found.get(name)
                raise ValueError(f"layers: got {name!r} with maps of size {size}, expected several positions")
        return list(layers)
    blocks = {
        name: part
        for name, part in parts.items()
        if name and any(isinstance(inner, torch.nn.Conv2d) for inner in part.modules())
    }
    found = _map_sizes(classifier, x, blocks)
    # A later block of the same size replaces an earlier one; a block ends after the parts inside it.
    last = {size: name for name, size in found.items() if np.prod(size) > 1}
    ends = list(found)
    names = sorted(last.values(), key=ends.index)[-count:]
    if not names:
        raise ValueError("layers: found no feature maps of more than one position, expected their names")
    return names


def _map_sizes(
    classifier: PyTorchClassifier, x: np.ndarray, parts: Mapping[str, torch.nn.Module]
) -> dict[str, tuple[int, ...]]:
    """Return height and width of each part's output, () where it is no feature map, in the order in which they end."""
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        found.pop(name, None)  # a part that runs twice ends with its second run
        found[name] = tuple(output.shape[2:]) if torch.is_tensor(output) and output.ndim == 4 else ()

    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: note(name, output)) for name, part in parts.items()
    ]
    clip_values = check_clip_values("clip_values", classifier.clip_values)
    try:
        with torch.no_grad(), borrow(classifier, precision="float32", keep_buffers=True) as module:
            module.eval()
            module(to_float(torch.from_numpy(x[:2]).to(classifier.device), clip_values))
    finally:
        for hook in hooks:
            hook.remove()
    return found
