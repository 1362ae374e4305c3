"""
Classifiers on disk, victims and purified ones: tensors as safetensors, everything else as JSON. Nothing is unpickled.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from safetensors.torch import load_file, save_file

from art_aft.attacks import TRIGGERS, Trigger
from art_aft.checks import check_clip_values
from art_aft.classifiers.classifier import build_classifier, check_classifier
from art_aft.runtime.files import replacing, write_text

FORMAT = 1


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
    Store a classifier as `path`.safetensors and `path`.json. Each file appears whole or not at all.

    :param path: The path without an ending. Missing folders are made.
    :param classifier: A classifier whose model `build_model` can build.
    :param model: The model's name, such as "wrn-16-1".
    :param trigger: The attacker's trigger, if it is to be stored as well.
    :param facts: Anything else to store, such as settings and scores; JSON values.
    :raises ValueError: If the classifier has preprocessing other than a mean and a deviation, or another model, or the
        trigger's class is not registered.
    """
    clip_values = check_classifier("classifier", classifier)
    description = {
        "format": FORMAT,
        "model": model,
        "input_shape": list(classifier.input_shape),
        "nb_classes": int(classifier.nb_classes),
        "clip_values": list(clip_values),
        "preprocessing": _describe_preprocessing(classifier),
        "facts": facts or {},
    }
    twin = _build(description)
    expected, tensors = twin.model.state_dict(), classifier.model.state_dict()
    if {key: value.shape for key, value in expected.items()} != {key: value.shape for key, value in tensors.items()}:
        raise ValueError(f"model: got {model!r}, expected the name of the classifier's own architecture")
    tensors = {f"model.{key}": value.detach().cpu().contiguous() for key, value in tensors.items()}
    if trigger is not None:
        settings, arrays = trigger.state()
        attack = next((name for name, kind in TRIGGERS.items() if kind is type(trigger)), None)
        if attack is None:
            raise ValueError(f"trigger: got {type(trigger).__name__}, expected one of a registered class")
        description["trigger"] = {"attack": attack, "settings": settings}
        tensors |= {
            f"trigger.{key}": torch.as_tensor(value).detach().cpu().contiguous() for key, value in arrays.items()
        }
    path, text = Path(path), json.dumps(description, indent=2) + "\n"
    replacing(path.with_name(path.name + ".safetensors"), lambda file: save_file(tensors, file))
    write_text(path.with_name(path.name + ".json"), text)


def load(path: str | Path, *, device_type: str = "gpu") -> Stored:
    """
    Return a stored classifier.

    :param path: The path that it was stored at, with or without an ending.
    :param device_type: "gpu" (the CPU where there is no GPU) or "cpu".
    :raises ValueError: If the files are missing, broken or of another format.
    """
    path = Path(path)
    if path.suffix in (".json", ".safetensors"):
        path = path.with_suffix("")
    try:
        description = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        tensors = load_file(path.with_name(path.name + ".safetensors"))
    except Exception as error:
        raise ValueError(f"path: got {path}, expected a stored classifier ({error})") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"path: got another format in {path}.json, expected format {FORMAT}")
    classifier = _build(description, device_type)
    _load_state(classifier, {key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    trigger = None
    if "trigger" in description:
        arrays = {key[8:]: value for key, value in tensors.items() if key.startswith("trigger.")}
        trigger = TRIGGERS[description["trigger"]["attack"]].from_state(description["trigger"]["settings"], arrays)
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
    :raises ValueError: If a file is missing or does not fit, or an argument is missing.
    """
    if model is None:
        return load(path, device_type=device_type).classifier
    if input_shape is None or nb_classes is None:
        raise ValueError("input_shape, nb_classes: got none for one of them, expected both with a model by name")
    if (mean is None) != (std is None):
        raise ValueError("mean, std: got one of them, expected both or none")
    settings: dict[str, Any] = {} if mean is None else {"preprocessing": (np.array(mean), np.array(std))}
    classifier = build_classifier(
        _make(model) if ":" in model else model,
        input_shape=tuple(input_shape),
        nb_classes=nb_classes,
        device_type=device_type,
        **settings,
    )
    load_state_dict(classifier, path)
    return classifier


def _make(factory: str) -> torch.nn.Module:
    """Return the module that "module:factory" builds."""
    module_name, _, name = factory.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), name)()
    except (AttributeError, ImportError, TypeError) as error:
        raise ValueError(f"model: got {factory!r}, expected module:factory ({error})") from None
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"model: got {type(made).__name__} from {factory!r}, expected a torch.nn.Module")
    return made


def load_state_dict(classifier: PyTorchClassifier, path: str | Path, *, head: bool = True) -> None:
    """
    Load the weights of another program's file: `.safetensors`, or a state dict in `.pt` or `.pth`.

    :param classifier: A classifier of the right architecture, changed in place.
    :param path: The file. If it contains a dict with an entry "state_dict" or "model", that entry is used.
    :param head: Whether to load the last linear layer too. False leaves it as it is, so that weights for other classes
        (such as ImageNet's 1,000) can be loaded.
    :raises ValueError: If the file contains anything but tensors (nothing is unpickled), or tensors that do not fit.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"path: got {path}, expected a file of tensors alone ({error})") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"path: got {path} with other things than tensors, expected a state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if not head:
        linear = [name for name, part in classifier.model.named_modules() if isinstance(part, torch.nn.Linear)][-1:]
        own = classifier.model.state_dict()
        state |= {key: value for key, value in own.items() for name in linear if key.startswith(f"{name}.")}
    _load_state(classifier, state)


def _load_state(classifier: PyTorchClassifier, state: dict[str, torch.Tensor]) -> None:
    try:
        classifier.model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"path: got tensors that do not fit the model ({error})") from None
    classifier.model.eval()


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


def _describe_preprocessing(classifier: PyTorchClassifier) -> list[list[float]] | None:
    """Return [mean, deviation] by channel, or None for none."""
    operations = classifier.preprocessing_operations
    if not operations:
        return None
    if len(operations) > 1 or not isinstance(operations[0], StandardisationMeanStdPyTorch):
        raise ValueError("classifier.preprocessing_defences: got some, expected at most a mean and a deviation")
    mean, std = operations[0].mean, operations[0].std
    return [np.asarray(mean, dtype=float).tolist(), np.asarray(std, dtype=float).tolist()]
