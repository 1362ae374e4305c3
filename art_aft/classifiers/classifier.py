"""ART's `PyTorchClassifier`: build it, copy it, check it, read its labels and features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_clip_values, check_images, check_labels
from art_aft.classifiers.copying import clone as clone
from art_aft.classifiers.model_checks import check_loss
from art_aft.classifiers.model_checks import check_outputs as check_outputs
from art_aft.classifiers.pixel_module import borrow, eager, told_labels
from art_aft.classifiers.preprocessing import check_construction, check_standardisation
from art_aft.data import loaders
from art_aft.data.images import Images
from art_aft.data.pixels import to_float
from art_aft.models import build_model
from art_aft.runtime.random_state import isolated_rng


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
    check_construction(input_shape, nb_classes, clip_values, device_type, seed, settings.get("channels_first", True))
    if not isinstance(model, torch.nn.Module):
        if not settings.get("channels_first", True):
            raise ValueError("channels_first: got False with a model by name, expected True: those take (N, C, H, W)")
        with isolated_rng(seed):
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
    check_standardisation("preprocessing", classifier)
    classifier.model.eval()
    return classifier


def check_classifier(name: str, classifier: Any) -> tuple[float, float]:
    """
    Check that a classifier is one that this package can work on.

    :param name: The argument's name.
    :param classifier: What should be ART's `PyTorchClassifier` of images, with a pixel range and a loss on logits and
        label indices: their mean, their sum or one number an image.
    :return: Its pixel range (low, high).
    :raises TypeError: If it is not a `PyTorchClassifier`.
    :raises ValueError: If it has no pixel range, another kind of input or loss, or preprocessing outside PyTorch.
    """
    if not isinstance(classifier, PyTorchClassifier):
        raise TypeError(f"{name}: got {type(classifier).__name__}, expected ART's PyTorchClassifier")
    if len(classifier.input_shape) != 3:
        raise ValueError(f"{name}.input_shape: got {classifier.input_shape}, expected that of an image, (C, H, W)")
    check_loss(f"{name}.loss", classifier.loss, classifier.nb_classes, classifier.device)
    if not classifier.all_framework_preprocessing:
        raise ValueError(f"{name}.preprocessing_defences: got some outside PyTorch, expected PreprocessorPyTorch only")
    check_standardisation(f"{name}.preprocessing", classifier)
    if getattr(classifier, "processor", None) is not None:  # of ART's HuggingFaceClassifierPyTorch
        raise ValueError(f"{name}.processor: got one, expected None: put what it does into the model or preprocessing")
    if next(classifier.model.parameters(), None) is None:
        raise ValueError(f"{name}.model: got a model without parameters, expected a trained one")
    return check_clip_values(f"{name}.clip_values", classifier.clip_values)


def check_fits(name: str, classifier: Any, other: PyTorchClassifier) -> None:
    """
    Check a classifier that is to take the place of another one, for which settings were checked.

    :param name: The argument's name.
    :param classifier: What should be one.
    :param other: The other.
    :raises TypeError: If it is no `PyTorchClassifier`.
    :raises ValueError: If it has other images or another number of labels.
    """
    check_classifier(name, classifier)
    theirs, own = ((tuple(each.input_shape), each.nb_classes) for each in (classifier, other))
    if theirs != own:
        raise ValueError(f"{name}: got one of (input_shape, nb_classes) {theirs}, expected {own}")


def images_for(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any = None,
    *,
    labelled: bool = True,
    in_range: bool = True,
    max_images: int | None = None,
    seed: int = 0,
    all_labels: list[np.ndarray] | None = None,
) -> Images:
    """
    Check images and labels against a classifier; read them where they come from a loader.

    This is the door of every public call. What has come through it once comes back as it is.

    :param classifier: The classifier that they are for.
    :param x: Images of shape (N, *input_shape): floats in `clip_values`, or uint8 that stands for that range. Or a
        loader of images and labels, torch's `DataLoader` or ART's `PyTorchDataGenerator`, whose images become a mapped
        array. Or checked `Images`. A read-only array is copied: open a `memmap` that does not fit in memory with mode
        "c".
    :param y: Labels, as indices of shape (N,) or one-hot rows; None with a loader or checked images.
    :param labelled: Whether there must be labels.
    :param in_range: Whether pixels outside `clip_values` are refused; NaN and infinite pixels always are.
    :param max_images: The most images that are wanted, drawn at random where there are more; None is all.
    :param seed: The seed of the draw.
    :param all_labels: A list to which the labels of all images are added, also of those that were not drawn; not those
        of checked images.
    :raises ValueError: If they do not fit the classifier.
    :raises TypeError: If they are of another type.
    """
    clip_values = check_classifier("classifier", classifier)
    if y is not None and (loaders.is_loader(x) or isinstance(x, Images)):
        raise ValueError(f"y: got labels beside {type(x).__name__}, expected None: it has them")
    if isinstance(x, Images):
        return _drawn(_fitting(classifier, x, clip_values, labelled), max_images, seed)
    shape, channels_first = classifier.input_shape, classifier.channels_first

    def check(pixels: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
        check_images("x", pixels, clip_values=clip_values if in_range else None, input_shape=shape, allow_8bit=True)
        if labels is None and not labelled:
            indices = np.full(len(pixels), -1)
        else:
            indices = check_labels("y", labels, nb_classes=classifier.nb_classes, nb_samples=len(pixels))
        if all_labels is not None:
            all_labels.append(indices)
        # torch takes no read-only arrays.
        dtype = np.uint8 if pixels.dtype == np.uint8 else np.float32
        return np.require(pixels, dtype=dtype, requirements=["C_CONTIGUOUS", "WRITEABLE"]), indices

    if loaders.is_loader(x):
        pixels, labels = loaders.read(x, check) if max_images is None else loaders.sample(x, max_images, seed, check)
        return Images(pixels, labels, clip_values, channels_first)
    pixels, labels = check(x, y)
    return _drawn(Images(pixels, labels, clip_values, channels_first), max_images, seed)


def _drawn(images: Images, max_images: int | None, seed: int) -> Images:
    """Return so many of the images, drawn at random where there are more."""
    if max_images is None or len(images) <= max_images:
        return images
    return images[np.random.default_rng(seed).permutation(len(images))[:max_images]]


def _fitting(classifier: PyTorchClassifier, images: Images, clip_values: tuple[float, float], labelled: bool) -> Images:
    """Return checked images if they were checked against a classifier of the same kind of images."""
    if labelled and (images.labels < 0).any():
        raise ValueError("y: got checked images without labels, expected some with labels")
    own = (tuple(classifier.input_shape), clip_values, classifier.channels_first)
    theirs = (images.pixels.shape[1:], images.clip_values, images.channels_first)
    if own != theirs:
        raise ValueError(f"x: got images checked for (shape, range, channels first) {theirs}, expected {own}")
    return images


def predict_labels(classifier: PyTorchClassifier, x: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """
    Return predicted labels as ART's `predict` would, but leave modes and random generators as they are.

    :param classifier: The classifier, also in the middle of its training.
    :param x: float32 or uint8 images of shape (N, *input_shape).
    :param batch_size: Images at a time.
    :return: Label indices of shape (N,); -1 where an output is NaN.
    """
    return told_labels(torch.from_numpy(predict_logits(classifier, x, batch_size))).numpy()


def predict_logits(classifier: PyTorchClassifier, x: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """
    Return the model's output as ART's `predict` would, but leave modes and random generators as they are.

    :param classifier: The classifier, also in the middle of its training.
    :param x: float32 or uint8 images of shape (N, *input_shape).
    :param batch_size: Images at a time.
    :return: float32 of shape (N, nb_classes).
    """
    # Isolated: a model may draw in evaluation mode, too.
    with isolated_rng(), torch.no_grad(), borrow(classifier, precision="float32", keep_buffers=True) as module:
        module.eval()
        clip_values = check_clip_values("clip_values", classifier.clip_values)
        parts = torch.from_numpy(x).split(batch_size)
        return torch.cat([module(to_float(part.to(classifier.device), clip_values)).cpu() for part in parts]).numpy()


def margins(classifier: PyTorchClassifier, images: Images) -> np.ndarray:
    """
    Return how far the logit of each image's label is above the largest other one.

    :param classifier: The classifier.
    :param images: Images with labels.
    :return: float32 of shape (N,); below 0 where the prediction is another label.
    """
    logits = predict_logits(classifier, images.pixels)
    rows = np.arange(len(images))
    given = logits[rows, images.labels].copy()
    logits[rows, images.labels] = -np.inf
    return given - logits.max(axis=1)


def features(
    classifier: PyTorchClassifier, x: np.ndarray, *, pooled: bool = False, batch_size: int = 128
) -> np.ndarray:
    """
    Return the last convolutional feature maps, just before the head (the paper's Table I and Fig. 2).

    :param classifier: The classifier. A model with a method `features` is asked for them (those of this package take
        the map after normalisation and ReLU, where there are such); of another, the output of the convolution that
        ran last is taken. Modes, hooks and random generators are left as they were.
    :param x: Images in `clip_values`, or uint8 images that stand for that range, of shape (N, *input_shape).
    :param pooled: Whether to average over positions.
    :param batch_size: Images at a time.
    :return: float32 of shape (N, C, H, W), or (N, C).
    :raises ValueError: If the images do not fit, or the model has no convolution.
    """
    images = images_for(classifier, x, labelled=False)
    latest: list[torch.Tensor] = []
    model = eager(classifier.model)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    if not convolutions and not hasattr(model, "features"):
        raise ValueError("classifier.model: got a model without a 2-dimensional convolution, expected one")
    with isolated_rng(), torch.no_grad(), borrow(classifier, precision="float32", keep_buffers=True) as module:
        module.eval()
        own = getattr(model, "features", None)
        # A module called `features` (VGG) is a part of the model, not an answer to this question.
        ask = own if callable(own) and not isinstance(own, torch.nn.Module) else None
        hooks = [m.register_forward_hook(lambda *event: latest.append(event[2])) for m in convolutions if not ask]
        try:
            maps = []
            for part in torch.from_numpy(images.pixels).split(batch_size):
                pixels = to_float(part.to(classifier.device), images.clip_values)
                if ask:
                    latest.append(ask(module.preprocess(pixels)))
                else:
                    module(pixels)
                maps.append((latest[-1].mean(dim=(2, 3)) if pooled else latest[-1]).cpu())
                latest.clear()
        finally:
            for hook in hooks:
                hook.remove()
    return torch.cat(maps).numpy()
