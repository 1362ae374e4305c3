"""Checks of what a user's model and loss return. Both may be of any make, so each is tried on a few images."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.classifiers.copying import origins
from art_aft.classifiers.pixel_module import are_probabilities, borrow, logits_of, not_compiled, on_grey_images
from art_aft.data.images import Images
from art_aft.runtime.random_state import isolated_rng

# Images on which ART's own predict is compared with the model.
_COMPARED = 8

_PROBABILITIES = "the model returns probabilities: their logarithms are taken for logits, also by the loss"

# Two labels whose logits differ by less, as a share of the range of all logits, may change places by rounding.
_NEGLIGIBLE = 0.01


def check_loss(name: str, loss: Any, nb_classes: int, device: torch.device) -> None:
    """
    Check that a loss takes logits and label indices, and what it makes of more than one image.

    torch's own are known. Another one is called on a few logits, and on each of these twice: a mean stays the same.

    :param name: The argument's name.
    :param loss: The loss. With an attribute `reduction` of "sum" it may be a sum.
    :param nb_classes: The number of classes.
    :param device: Where the logits are.
    :raises ValueError: If it fails, or its value is no mean over images, no sum and not one number an image.
    """
    if type(loss) in (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss):
        return
    kind = loss.__name__ if isinstance(loss, type) else type(loss).__name__
    expected = "expected CrossEntropyLoss, NLLLoss, or a loss of logits (N, nb_classes) and label indices (N,)"
    # Not as many images as classes, so that a loss that wants a target of the shape of the logits does not pass.
    n = 3 if nb_classes != 3 else 2
    logits = torch.arange(n * nb_classes, device=device).float().sin().reshape(n, nb_classes)
    labels = torch.arange(n, device=device) % nb_classes
    with suppress(Exception):  # one that cannot be copied is called itself
        loss = copy.deepcopy(loss)  # it may count its calls, or keep what it saw
    try:
        with isolated_rng(), torch.no_grad():
            once, twice = loss(logits, labels), loss(logits.repeat(2, 1), labels.repeat(2))
        shapes = tuple(once.shape), tuple(twice.shape)
    except Exception as error:  # a loss of any make: what it may raise is not known
        raise ValueError(f"{name}: got {kind}, {expected} ({error})") from error
    if shapes == ((n,), (2 * n,)):
        return
    factor = 2 if getattr(loss, "reduction", None) == "sum" else 1
    if shapes != ((), ()) or not torch.allclose(twice, factor * once, rtol=1e-3, atol=1e-6):
        raise ValueError(f"{name}: got {kind}, {expected} that is their mean; a sum only with reduction='sum'")


def check_outputs(
    classifier: PyTorchClassifier, images: Images | None = None, *, trained: bool = False, batch_size: int | None = None
) -> tuple[str, ...]:
    """
    Check once, on two grey images, that a classifier's model returns logits, or probabilities.

    :param classifier: A checked classifier; it stays as it is.
    :param images: Checked images, on a few of which ART's `predict` must give the model's labels; None leaves this out.
    :param trained: Whether the model will be trained, so that there must be parameters to train, and no others.
    :param batch_size: How many images a step will see; None is more than one.
    :return: What a report should say of the outputs.
    :raises ValueError: If the model fails, or returns something else than finite numbers of shape (N, nb_classes); if
        `predict` does more than the model; if the model cannot be trained, or not on so few images at a time.
    """
    parameters = list(classifier.model.parameters())
    if trained and not any(parameter.requires_grad for parameter in parameters):
        raise ValueError("classifier.model: got only frozen parameters, expected some with requires_grad to train")
    with on_grey_images(classifier, needs_gradient=False) as run:
        try:
            output = run()
        except Exception as error:  # a model of any make: what it may raise is not known
            raise ValueError(f"classifier.model: {_failure(classifier, error)}") from error
    logits = logits_of(output, 2, classifier.nb_classes)
    expected = f"expected a tensor of logits of shape (N, {classifier.nb_classes})"
    if not torch.isfinite(logits).all():
        raise ValueError(f"classifier.model: got NaN or infinite outputs for two grey images, {expected}")
    if images is not None:
        _check_predict(classifier, images[:_COMPARED])
    if trained:
        _check_trainable(classifier, logits, parameters)
        if batch_size == 1:
            check_single_images(classifier)
    return (_PROBABILITIES,) if are_probabilities(logits) else ()


def _check_trainable(classifier: PyTorchClassifier, logits: torch.Tensor, parameters: list[torch.nn.Parameter]) -> None:
    """Check that the logits of two grey images come from the model's own parameters."""
    known = {id(parameter) for parameter in parameters}
    if not logits.requires_grad:
        raise ValueError("classifier.model: got outputs without a gradient, expected a model that can be trained")
    # A model may ask for the gradient of its input, for the sake of checkpointed activations.
    shape = (2, *classifier.input_shape)
    if any(id(origin) not in known and origin.shape != shape for origin in origins([logits])):
        raise ValueError(
            "classifier.model: got weights that model.parameters() does not list (layers in a plain list?), expected "
            "none, as with torch.nn.ModuleList"
        )


def check_single_images(classifier: PyTorchClassifier) -> None:
    """
    Check that a model can be trained on one image at a time: batch normalisation of single numbers cannot.

    :param classifier: A checked classifier; it stays as it is.
    :raises ValueError: If it fails on one image in training mode.
    """
    with on_grey_images(classifier, 1, needs_gradient=False, training=True) as run:
        try:
            run()
        except Exception as error:  # a model of any make
            raise ValueError(
                f"batch_size: got a batch of one image, expected two or more for this model: {error}"
            ) from error


def _check_predict(classifier: PyTorchClassifier, images: Images) -> None:
    """Check that ART's `predict` gives a few images the labels that the model gives them."""
    x, shape = images.floats(), (len(images), classifier.nb_classes)
    # Within `borrow`, which puts back the modes that predict sets; torch.compile is not worth it for a few images.
    with isolated_rng(), torch.no_grad(), borrow(classifier, precision="float32", keep_buffers=True) as module:
        logits = module.eval()(torch.from_numpy(x).to(classifier.device)).cpu().numpy()
        with not_compiled(classifier):
            try:
                theirs = np.asarray(classifier.predict(x))
            except Exception as error:  # a method of any make
                raise ValueError(f"classifier.predict: got an error for {len(x)} images: {error}") from error
    if not np.isfinite(logits).all():
        raise ValueError(f"classifier.model: got NaN or infinite outputs for {len(x)} images, expected logits")
    found = f"shape {theirs.shape}"
    if theirs.shape == shape:
        lead = logits.max(axis=1) - logits[np.arange(len(x)), theirs.argmax(axis=1)]
        if (lead <= _NEGLIGIBLE * np.ptp(logits)).all():
            return
        found = f"other labels than the model's for {len(x)} images"
    raise ValueError(
        f"classifier.predict: got {found}, expected what the model returns; {_more_than_model(classifier)}"
    )


def _more_than_model(classifier: PyTorchClassifier) -> str:
    """Return what `predict` may do beside the model, as far as that is known."""
    if classifier.postprocessing_defences:
        names = ", ".join(type(each).__name__ for each in classifier.postprocessing_defences)
        return f"postprocessing_defences ({names}) change it: build the classifier without them"
    kind = type(classifier)
    if kind.predict is not PyTorchClassifier.predict or "predict" in vars(classifier):
        return f"{kind.__name__} has a predict of its own: pass a plain PyTorchClassifier"
    model = type(classifier.model)
    if issubclass(model, torch.nn.Sequential) and model.forward is not torch.nn.Sequential.forward:
        return f"ART runs the parts of a Sequential and not {model.__name__}.forward: derive from torch.nn.Module"
    return "what else it does is not known"


def _failure(classifier: PyTorchClassifier, error: Exception) -> str:
    """Return why a model may have failed on float32 images."""
    types = {str(parameter.dtype).removeprefix("torch.") for parameter in classifier.model.parameters()} - {"float32"}
    if types:
        return f"got parameters of type {', '.join(sorted(types))}, expected float32, as of model.float() ({error})"
    return f"got an error for two grey images of shape {tuple(classifier.input_shape)}: {error}"
