"""Small classifiers in every encoding of pixels, small data, and a watch over what must not change."""

import copy
import os
import pickle
import random
import re
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch.optim.optimizer import register_optimizer_step_pre_hook

from art_aft.attacks import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.metrics import Scores, evaluate
from art_aft.runtime.callbacks import Callback
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

SHAPE, NB_CLASSES = (3, 12, 12), 4


class TinyNet(torch.nn.Module):
    """A convolution, batch normalisation, perhaps dropout, and a linear layer; weights from a seed."""

    def __init__(self, *, channels: int = 3, nb_classes: int = NB_CLASSES, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = torch.nn.Conv2d(channels, 8, 3, padding=1)
            self.bn = torch.nn.BatchNorm2d(8)
            self.fc = torch.nn.Linear(8, nb_classes)
            torch.nn.init.normal_(self.fc.weight)
            # As after some training: statistics that are not 0 and 1.
            self.bn.running_mean.normal_(std=0.1)
            self.bn.running_var.uniform_(0.05, 0.2)
        self.dropout = torch.nn.Dropout(dropout)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.features(x).mean(dim=(2, 3))))


class EndsInSoftmax(TinyNet):
    """The same network, with a softmax at its end: it returns probabilities."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(dim=1)


class Adapter(torch.nn.Module):
    """A model behind a change of its input, so that it computes the same function on pixels in another encoding."""

    def __init__(self, inner: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.change(x))


class ViewNet(torch.nn.Module):
    """The same model, with a `.view` on its activations, which PyTorch refuses for channels_last ones."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.inner.features(x)
        flat = features.view(len(features), -1)
        return self.inner.fc(flat.view(*features.shape[:2], -1).mean(dim=2))


def fails_to_build() -> torch.nn.Module:
    """As a factory of the user's with a fault of its own."""
    return TinyNet(channels={}["width"])


def linear_classifier(weights: np.ndarray, **settings) -> PyTorchClassifier:
    """A linear model without bias, from weights of shape (nb_classes, C, H, W)."""
    layer = torch.nn.Linear(weights[0].size, len(weights), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights.reshape(len(weights), -1)))
    model = torch.nn.Sequential(torch.nn.Flatten(), layer)
    return build_classifier(model, input_shape=weights.shape[1:], nb_classes=len(weights), **settings)


class Sums(torch.nn.Module):
    """A network whose logits are not a layer's output, but sums of that."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.layer(x).mean(dim=(2, 3)).reshape(len(x), 4, 2).sum(dim=2)


def sums() -> PyTorchClassifier:
    """A classifier whose last layer does not give the logits."""
    return PyTorchClassifier(
        Sums(), loss=torch.nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=4, clip_values=(0, 1)
    )


@dataclass(frozen=True)
class Encoded:
    """A classifier that computes the same function of an image as another one, but takes its pixels otherwise."""

    classifier: PyTorchClassifier
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    spread: float = 1.0


def same(x: np.ndarray) -> np.ndarray:
    return x


ENCODINGS = ("nhwc", "normalised", "range255", "view")


def encoded(encoding: str, model: torch.nn.Module, shape: tuple[int, ...], nb_classes: int) -> Encoded:
    """A copy of `model`, a network on NCHW images in [0, 1], behind another encoding of the pixels."""
    model = copy.deepcopy(model)
    channels, height, width = shape
    if encoding == "nhwc":
        classifier = build_classifier(
            Adapter(model, lambda x: x.permute(0, 3, 1, 2)),
            input_shape=(height, width, channels),
            nb_classes=nb_classes,
            channels_first=False,
        )
        return Encoded(
            classifier,
            lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)),
            lambda x: np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
        )
    if encoding == "normalised":
        mean = np.linspace(0.3, 0.6, channels, dtype=np.float32)
        std = np.linspace(0.5, 0.2, channels, dtype=np.float32)
        shift, factor = (torch.from_numpy(values)[:, None, None] for values in (mean, std))
        classifier = build_classifier(
            Adapter(model, lambda x: x * factor + shift),
            input_shape=shape,
            nb_classes=nb_classes,
            preprocessing=(mean, std),
        )
        return Encoded(classifier, same, same)
    if encoding == "range255":
        classifier = build_classifier(
            Adapter(model, lambda x: x / 255), input_shape=shape, nb_classes=nb_classes, clip_values=(0.0, 255.0)
        )
        return Encoded(classifier, lambda x: x * np.float32(255), lambda x: x / np.float32(255), spread=255.0)
    assert encoding == "view"
    return Encoded(build_classifier(ViewNet(model), input_shape=shape, nb_classes=nb_classes), same, same)


def tiny_classifier(*, momentum: float | None = None, **settings) -> PyTorchClassifier:
    """A classifier around TinyNet, in evaluation mode; with `momentum` it has an SGD optimizer that was used before."""
    model = TinyNet(**settings)
    channels = model.conv.in_channels
    optimizer = None
    if momentum is not None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
        with_history(model, optimizer, torch.linspace(0, 1, 2 * 144 * channels).reshape(2, channels, 12, 12))
    return build_classifier(
        model, input_shape=(channels, 12, 12), nb_classes=model.fc.out_features, optimizer=optimizer
    )


def with_history(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    """Take one step, so that the optimizer has state."""
    model.eval()
    torch.nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_backdoor_removed(printed: str) -> None:
    """Check what an example prints: the scores before in one line, those after in another."""
    before, after = (
        {key: float(value) for key, value in re.findall(r"(acc|asr)=([\d.]+)", line)} for line in printed.splitlines()
    )
    assert before["asr"] >= 0.95
    assert after["asr"] <= 0.05
    assert after["acc"] >= before["acc"] - 0.12


def tiny_data(n: int = 24, *, seed: int = 0, nb_classes: int = NB_CLASSES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((n, *SHAPE), dtype=np.float32), rng.integers(0, nb_classes, n)


def train(
    classifier: PyTorchClassifier,
    x: np.ndarray,
    y: np.ndarray,
    recipe: Recipe,
    *,
    transform=None,
    augment_last: bool = False,
    **settings,
) -> None:
    """Train on images and labels; `settings` are those of `fit`."""
    images = images_for(classifier, x, y)
    batches = Batches(images, recipe, classifier.device, transform=transform, augment_last=augment_last)
    fit(classifier, batches, recipe, **settings)


class Calls(Callback):
    """A callback made of functions."""

    def __init__(self, *, stage=None, step=None, epoch=None) -> None:
        self.stage, self.step, self.epoch = stage, step, epoch

    def on_stage(self, name: str) -> None:
        if self.stage:
            self.stage(name)

    def on_step(self, step: int) -> None:
        if self.step:
            self.step(step)

    def on_epoch(self, epoch: int) -> dict[str, str] | None:
        return self.epoch(epoch) if self.epoch else None


def weights(classifier: PyTorchClassifier) -> dict[str, torch.Tensor]:
    """Copies of all weights and running statistics."""
    return {name: value.clone() for name, value in classifier.model.state_dict().items()}


def same_weights(one: PyTorchClassifier | dict, other: PyTorchClassifier | dict) -> bool:
    """Whether two classifiers have the same weights and running statistics, bit for bit."""
    first, second = (value if isinstance(value, dict) else weights(value) for value in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_close(classifier: PyTorchClassifier, state: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    for name, value in weights(classifier).items():
        torch.testing.assert_close(
            value, state[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def modes(classifier: PyTorchClassifier) -> dict[str, bool]:
    return {name: module.training for name, module in classifier._model.named_modules()}


def gradient_flags(classifier: PyTorchClassifier) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in classifier.model.named_parameters()}


def global_rng() -> dict[str, int]:
    """What stands for the states of the three global generators."""
    return {
        "python": hash(random.getstate()),
        "numpy": hash(pickle.dumps(np.random.get_state())),
        "torch": hash(torch.get_rng_state().numpy().tobytes()),
    }


@contextmanager
def untouched(*classifiers: PyTorchClassifier):
    """Assert that a block leaves classifiers and the global generators as they were, also if it raises."""

    def state(classifier: PyTorchClassifier) -> dict:
        optimizer = classifier.optimizer
        return {
            "weights": weights(classifier),
            "modes": modes(classifier),
            "flags": gradient_flags(classifier),
            "gradients": [parameter.grad is None for parameter in classifier.model.parameters()],
            "strides": [parameter.stride() for parameter in classifier.model.parameters()],
            "optimizer": None if optimizer is None else copy.deepcopy(optimizer.state_dict()),
        }

    def no_tensors(optimizer: dict | None) -> object:
        if optimizer is None:
            return None
        slots = optimizer["state"].items()
        return optimizer["param_groups"], {
            (index, name): value.tolist() if torch.is_tensor(value) else value
            for index, slot in slots
            for name, value in slot.items()
        }

    rng, before = global_rng(), [state(classifier) for classifier in classifiers]
    try:
        yield
    finally:
        assert global_rng() == rng, "a global random generator was moved"
        for classifier, old in zip(classifiers, before, strict=True):
            new = state(classifier)
            assert same_weights(old["weights"], new["weights"]), "weights changed"
            assert no_tensors(old["optimizer"]) == no_tensors(new["optimizer"]), "the optimizer changed"
            for part in ("modes", "flags", "gradients", "strides"):
                assert old[part] == new[part], f"{part} changed"


@contextmanager
def watched(classifier: PyTorchClassifier):
    """Record each batch that enters the model (or a copy of it), and whether it is in training mode then."""
    seen = []
    handle = classifier.model.register_forward_pre_hook(
        lambda module, args: seen.append((args[0].detach().clone().numpy(), module.training))
    )
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def recorded_rates():
    """Record the learning rate of each step of any optimizer."""
    rates = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        yield rates
    finally:
        handle.remove()


def die_before_move(number: int, moves: Any = None, ending: str = "") -> None:
    """
    Have this process kill itself in place of moving a file to its place.

    :param number: Which move, counted from 1, of those to a path with the ending.
    :param moves: Something with a `value`, the count so far.
    :param ending: The ending of the path.
    """
    replace, moves = os.replace, moves or SimpleNamespace(value=0)

    def replace_or_die(source: Any, target: Any) -> None:
        moves.value += str(target).endswith(ending)
        if moves.value == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die


def shifted_versions(image: np.ndarray, padding: int, low: float, *, horizontal_flip: bool = False) -> dict[bytes, int]:
    """All crops of the padded image (CHW), as bytes, with the number of each."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), constant_values=np.float32(low))
    crops = [padded[:, i : i + height, j : j + width] for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    if horizontal_flip:
        crops += [crop[:, :, ::-1] for crop in crops]
    return {np.ascontiguousarray(crop).tobytes(): number for number, crop in enumerate(crops)}


@dataclass(frozen=True)
class Infected:
    """A classifier with a BadNets backdoor, all to class 0, and the defender's clean images."""

    classifier: PyTorchClassifier
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def scores(self, classifier: PyTorchClassifier) -> Scores:
        return evaluate(classifier, self.x_test, self.y_test, BadNets(), AllToOne(0))


def few(infected):
    """Half of the clean images: enough for ten classes."""
    return infected.x[:60], infected.y[:60]


def recognised(infected):
    """Those of them that the classifier gets right, which alone are looked at."""
    x, y = few(infected)
    right = infected.classifier.predict(x).argmax(axis=1) == y
    return x[right], y[right]
