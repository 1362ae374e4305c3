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
from art_aft.checks import check_clip_values
from art_aft.classifiers.classifier import build_classifier, check_classifier
from art_aft.classifiers.descriptions import check_description, check_preprocessing, check_tensors, check_trigger
from art_aft.classifiers.weights import fitting_state
from art_aft.runtime.files import replacing_all

#: Format 2 has a digest of the tensors' file. Files of format 1 are read without one.
FORMAT = 2


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
    description, tensors = _describe(classifier, model, facts or {})
    if trigger is not None:
        description["trigger"], arrays = _describe_trigger(trigger)
        tensors |= {f"trigger.{key}": torch.as_tensor(value) for key, value in arrays.items()}
    data = safetensors.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    text = json.dumps({**description, "sha256": hashlib.sha256(data).hexdigest()}, indent=2) + "\n"
    weights, described = both_files(path)
    replacing_all(
        {
            weights: lambda file: file.write_bytes(data),
            # The last to appear: it tells whether the tensors are its own.
            described: lambda file: file.write_text(text, encoding="utf-8"),
        }
    )


def both_files(path: str | Path) -> tuple[Path, Path]:
    """
    Return the paths of a stored classifier's tensors and of its description.

    >>> [str(file) for file in both_files("wanet-0.1.json")]
    ['wanet-0.1.safetensors', 'wanet-0.1.json']

    :param path: The path that it is stored at, with or without an ending.
    """
    path = Path(path)
    if path.suffix in (".json", ".safetensors"):
        path = path.with_suffix("")
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


def load(path: str | Path, *, device_type: str = "gpu") -> Stored:
    """
    Return a stored classifier.

    :param path: The path that it was stored at, with or without an ending.
    :param device_type: "gpu" (the CPU where there is no GPU) or "cpu".
    :raises ValueError: If the files are missing, broken, of another format or not of each other.
    """
    description, tensors = _read(*both_files(path))
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


def _read(weights: Path, described: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the description and the tensors of a stored classifier, which must belong to each other."""
    path = described.with_suffix("")
    if weights.exists() and not described.exists():
        raise ValueError(
            f"path: got {path}, expected a stored classifier ({weights.name} lies there without {described.name}: "
            "either it was not stored whole, or it has weights alone, which need the name of a model)"
        )
    try:
        description = json.loads(described.read_text(encoding="utf-8"))
        data = weights.read_bytes()
        known = description.get("sha256") if isinstance(description, dict) else None
        if known is not None and hashlib.sha256(data).hexdigest() != known:
            raise ValueError(f"{weights.name} is not the file that {described.name} describes: damaged, or replaced")
        tensors = safetensors.load(data)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"path: got {path}, expected a stored classifier ({error})") from None
    if not isinstance(description, dict) or description.get("format") not in (1, FORMAT):
        raise ValueError(f"path: got another format in {described}, expected format {FORMAT}")
    if description["format"] == FORMAT and known is None:
        raise ValueError(f"path: got no digest in {described}, expected that of {weights.name}")
    return description, tensors


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
    if model is None:
        return load(path, device_type=device_type).classifier
    if input_shape is None or nb_classes is None:
        raise ValueError("input_shape, nb_classes: got none for one of them, expected both with a model by name")
    if (mean is None) != (std is None):
        raise ValueError("mean, std: got one of them, expected both or none")
    settings: dict[str, Any] = {}
    if mean is not None and std is not None:
        check_preprocessing(mean, std, input_shape[0])
        settings = {"preprocessing": (np.array(mean), np.array(std))}
    classifier = build_classifier(
        _make(model) if ":" in model else model,
        input_shape=tuple(input_shape),
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
    except (AttributeError, ImportError, TypeError) as error:
        raise ValueError(f"model: got {factory!r}, expected module:factory ({error})") from None
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
    linear = [name for name, part in classifier.model.named_modules() if isinstance(part, torch.nn.Linear)][-1:]
    own_head = linear[0] if linear and not head else None
    state, taken = fitting_state(classifier.model, Path(path), match=match, head=own_head)
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
    settings, arrays = trigger.state()
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
