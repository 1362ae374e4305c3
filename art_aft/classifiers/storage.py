"""
Classifiers on disk, victims and purified ones: tensors as safetensors, everything else as JSON. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from safetensors import torch as safetensors

from art_aft.attacks import TRIGGERS, Trigger
from art_aft.checks import (
    check_callable,
    check_choice,
    check_clip_values,
    check_flag,
    check_instance,
    check_mapping,
    check_path,
    check_shape,
    check_text,
)
from art_aft.classifiers.classifier import build_classifier, check_classifier
from art_aft.classifiers.descriptions import check_description, check_tensors, check_trigger
from art_aft.classifiers.preprocessing import check_preprocessing
from art_aft.classifiers.stored_files import FORMAT, read_stored
from art_aft.classifiers.stored_files import both_files as both_files
from art_aft.classifiers.weights import fitting_state
from art_aft.runtime.files import replacing_all


@dataclass(frozen=True)
class Stored:
    """
    A classifier, and what is stored with it.

    :param classifier: The classifier. One that was loaded is in evaluation mode.
    :param model: The model's name.
    :param trigger: The attacker's trigger, if there is one.
    :param facts: Anything else, such as settings and scores; JSON values.
    """

    classifier: PyTorchClassifier
    model: str
    trigger: Trigger | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def save(
    path: str | Path,
    classifier: PyTorchClassifier,
    model: str,
    *,
    trigger: Trigger | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """
    Store a classifier as `path`.safetensors and `path`.json. Both files appear or none does.

    :param path: The path, with or without an ending. Missing folders are made.
    :param classifier: A classifier whose model `build_model` can build.
    :param model: The model's name, such as "wrn-16-1".
    :param trigger: The attacker's trigger, if it is to be stored as well.
    :param facts: Anything else to store, such as settings and scores; JSON values.
    :raises ValueError: If the classifier has preprocessing other than a mean and a deviation, or another model, or the
        trigger's class is not registered.
    """
    description, tensors = _describe(classifier, model, {} if facts is None else dict(check_mapping("facts", facts)))
    if trigger is not None:
        description["trigger"], arrays = _describe_trigger(trigger)
        tensors |= {f"trigger.{key}": torch.as_tensor(value) for key, value in arrays.items()}
    data = safetensors.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    try:
        text = json.dumps({**description, "sha256": hashlib.sha256(data).hexdigest()}, indent=2) + "\n"
    except TypeError as error:
        raise TypeError(
            f"facts: got values that JSON does not know, expected numbers, text and such ({error})"
        ) from None
    weights, described = both_files(path)
    replacing_all(
        {
            weights: lambda file: file.write_bytes(data),
            # The last to appear: it tells whether the tensors are its own.
            described: lambda file: file.write_text(text, encoding="utf-8"),
        }
    )


def load(path: str | Path, *, device_type: str = "gpu") -> Stored:
    """
    Return a stored classifier.

    :param path: The path that it was stored at, with or without an ending.
    :param device_type: "gpu" (the CPU where there is no GPU) or "cpu".
    :raises ValueError: If the files are missing, broken, of another format or not of each other.
    """
    check_choice("device_type", device_type, ("gpu", "cpu"))
    description, tensors = read_stored(*both_files(path))
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("model.")}
    arrays = {key[8:]: value for key, value in tensors.items() if key.startswith("trigger.")}
    trigger = None
    try:
        check_description(description)
        check_tensors(description, state)
        if "trigger" in description:
            attack, settings = check_trigger(description["trigger"], arrays)
            trigger = TRIGGERS[attack].from_state(settings, arrays)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"path: got {path} with a description that does not fit ({reason})") from None
    classifier = _build(description, device_type)
    classifier.model.load_state_dict(state)
    classifier.model.eval()
    return Stored(classifier, description["model"], trigger, description["facts"])


def open_classifier(
    path: str | Path,
    *,
    model: str | None = None,
    input_shape: Sequence[int] | None = None,
    nb_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device_type: str = "gpu",
    match: str = "names",
    tell: Callable[[str], Any] | None = None,
) -> PyTorchClassifier:
    """
    Return a classifier that this package stored, or one with weights from another file. Nothing is unpickled.

    :param path: Without `model`, the path that `save` was given, with or without an ending. With it, a file of weights
        as for `load_state_dict`.
    :param model: The name of an architecture, such as "wrn-16-1". Or "module:factory": the module is imported, which
        runs its code, and the factory is called without arguments. It returns a `torch.nn.Module` that outputs logits.
    :param input_shape: The shape (C, H, W) of an image. Only with `model`.
    :param nb_classes: The number of classes. Only with `model`.
    :param mean: The mean by channel that is subtracted from pixels in [0, 1]. Only with `model`.
    :param std: The deviation by channel that the result is divided by. Only with `model`.
    :param device_type: "gpu" (the CPU where there is no GPU) or "cpu".
    :param match: "names", or "shapes" to match tensors in their order. Only with `model`.
    :param tell: Called with a line that says which tensors of the file were taken. Only with `model`.
    :raises ValueError: If a file is missing or does not fit, or an argument is missing.
    """
    check_path("path", path)
    if model is None:
        needless = {"input_shape": input_shape, "nb_classes": nb_classes, "mean": mean, "std": std, "tell": tell}
        for name, value in needless.items():
            if value is not None:
                raise ValueError(f"{name}: got {value!r:.80} without model, expected it for a state dict only")
        return load(path, device_type=device_type).classifier
    if input_shape is None or nb_classes is None:
        missing = "input_shape" if input_shape is None else "nb_classes"
        raise ValueError(f"{missing}: got None, expected it with a model by name")
    if (mean is None) != (std is None):
        raise ValueError(f"{'std' if std is None else 'mean'}: got None, expected mean and std, or none of both")
    settings: dict[str, Any] = {}
    if mean is not None and std is not None:
        check_preprocessing(mean, std, check_shape("input_shape", input_shape)[0])
        settings = {"preprocessing": (np.array(mean), np.array(std))}
    if tell is not None:
        check_callable("tell", tell)
    classifier = build_classifier(
        _make(model) if ":" in check_text("model", model) else model,
        input_shape=check_shape("input_shape", input_shape),
        nb_classes=nb_classes,
        device_type=device_type,
        **settings,
    )
    taken = load_state_dict(classifier, path, match=match)
    if tell:
        tell(taken)
    return classifier


def _make(factory: str) -> torch.nn.Module:
    """Return the module that "module:factory" builds."""
    module_name, _, name = factory.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), name)()
    except Exception as error:  # a factory of any make: what it may raise is not known
        kind = type(error).__name__
        raise ValueError(f"model: got {factory!r}, expected module:factory ({kind}: {error})") from error
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"model: got {type(made).__name__} from {factory!r}, expected a torch.nn.Module")
    return made


def load_state_dict(classifier: PyTorchClassifier, path: str | Path, *, head: bool = True, match: str = "names") -> str:
    """
    Load the weights of another program's file: `.safetensors`, or a checkpoint in `.pt` or `.pth`.

    A checkpoint may hold the tensors under any key, beside an epoch or an optimizer, and their names may have the
    prefixes of wrappers. The mapping of tensors that fits is taken.

    :param classifier: A classifier of the right architecture, changed in place.
    :param path: The file.
    :param head: Whether to load the last linear layer too. False leaves it as it is, so that weights for other classes
        (such as ImageNet's 1,000) can be loaded.
    :param match: "names", or "shapes" to match tensors in their order where all shapes agree.
    :return: Which tensors of the file were taken, as text.
    :raises ValueError: If the file contains anything that would have to be unpickled, or no tensors that fit.
    """
    check_flag("head", head)
    check_instance("classifier", classifier, PyTorchClassifier, "ART's PyTorchClassifier")
    linear = [name for name, part in classifier.model.named_modules() if isinstance(part, torch.nn.Linear)][-1:]
    own_head = linear[0] if linear and not head else None
    state, taken = fitting_state(classifier.model, check_path("path", path), match=match, head=own_head)
    try:
        classifier.model.load_state_dict(state)
    except RuntimeError as error:
        reason = ascii(" ".join(str(error).split())[:300])
        raise ValueError(f"path: got tensors that do not fit the model ({reason})") from None
    classifier.model.eval()
    return taken


def _build(description: dict[str, Any], device_type: str = "cpu") -> PyTorchClassifier:
    preprocessing = description["preprocessing"]
    settings: dict[str, Any] = (
        {} if preprocessing is None else {"preprocessing": tuple(np.array(part) for part in preprocessing)}
    )
    return build_classifier(
        description["model"],
        input_shape=tuple(description["input_shape"]),
        nb_classes=description["nb_classes"],
        clip_values=check_clip_values("clip_values", description["clip_values"]),
        device_type=device_type,
        **settings,
    )


def _describe(
    classifier: PyTorchClassifier, model: str, facts: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the description of a classifier, and its tensors by name."""
    clip_values = check_classifier("classifier", classifier)
    description: dict[str, Any] = {
        "format": FORMAT,
        "model": model,
        "input_shape": list(classifier.input_shape),
        "nb_classes": int(classifier.nb_classes),
        "clip_values": list(clip_values),
        "preprocessing": _describe_preprocessing(classifier),
        "facts": facts,
    }
    tensors = classifier.model.state_dict()
    check_description(description)
    try:
        check_tensors(description, tensors)
    except ValueError as error:
        message = f"model: got {model!r}, expected the name of the classifier's own architecture ({error})"
        raise ValueError(message) from None
    return description, {f"model.{key}": value for key, value in tensors.items()}


def _describe_trigger(trigger: Trigger) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the description of a trigger, and its arrays by name."""
    settings, arrays = check_instance("trigger", trigger, Trigger, "a Trigger").state()  # type: ignore[type-abstract]
    attack = next((name for name, kind in TRIGGERS.items() if kind is type(trigger)), None)
    if attack is None:
        raise ValueError(f"trigger: got {type(trigger).__name__}, expected one of a registered class")
    return {"attack": attack, "settings": settings}, arrays


def _describe_preprocessing(classifier: PyTorchClassifier) -> list[list[float]] | None:
    """Return [mean, deviation] by channel, or None for none."""
    operations = classifier.preprocessing_operations
    if not operations:
        return None
    if len(operations) > 1 or not isinstance(operations[0], StandardisationMeanStdPyTorch):
        raise ValueError("classifier.preprocessing_defences: got some, expected at most a mean and a deviation")
    mean, std = operations[0].mean, operations[0].std
    return [np.asarray(mean, dtype=float).tolist(), np.asarray(std, dtype=float).tolist()]
