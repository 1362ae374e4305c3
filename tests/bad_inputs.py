"""Whatever can be called from outside, found by itself, and values for its parameters, most of them bad."""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from helpers import NB_CLASSES, SHAPE, tiny_classifier, tiny_data

from art_aft.adversarial.inversion_recipe import InversionRecipe
from art_aft.attacks import BadNets, Trigger
from art_aft.attacks.labels import AllToOne
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier
from art_aft.defences import AdversarialFineTuning, FineTuning, PyTorchNeuralCleanse
from art_aft.metrics import Scores
from art_aft.registry import Registry

#: What their `__all__` and their registries have is called from outside; so is, of the others, all that they define.
ROOMS = ("art_aft", "art_aft.attacks", "art_aft.defences", "art_aft.detection", "art_aft.models")
MODULES = (
    *("adversarial.inversion", "adversarial.inversion_recipe", "adversarial.pgd", "adversarial.universal"),
    *("attacks.labels", "attacks.poisoning", "classifiers.storage", "data.array_files", "data.datasets"),
    *("experiments.compare", "experiments.victim_settings", "metrics", "training.recipe"),
)
#: But not what comes out of calls, or is handed on inside.
INSIDE = {
    *("CostController", "Dataset", "Evidence", "PoisonedData", "PurificationReport", "Run", "ScanReport", "Scores"),
    *(
        "Stage",
        "Stored",
        "Suspect",
        "Trial",
        "Triggers",
        "register",
        "suspected_label",
        "targeted_log_probability",
        "targeted_success",
    ),
    *("targeted_log_probability", "wanted_labels"),
}
#: What is asked of an object, besides making it. ART asks every defence for a `fit` too, which does nothing.
METHODS = ("__call__", "generate", "cover", "fit")

#: A short run of whatever has these. Other settings have their defaults.
QUICK = {
    **{"nb_epochs": 1, "clean_epochs": 0, "label_epochs": 1, "teacher_epochs": 1, "max_iter": 1, "steps": 2},
    **{"images_per_step": 8, "min_steps": 0, "fold_steps": 1, "n_folds": 2, "precision": "float32"},
    "candidates": ({"nb_epochs": 1, "label_epochs": 1, "max_iter": 1},),
    "settings": {"nb_epochs": 1, "label_epochs": 1, "max_iter": 1},
}


@dataclass(frozen=True)
class Subject:
    """
    Something that can be called.

    :param name: Its name.
    :param call: What is called, by keywords alone.
    :param good: Arguments that it needs, or that make it short.
    :param hints: The annotations of its parameters.
    :param defaults: The default values of those that have one.
    """

    name: str
    call: Callable[..., Any]
    good: Mapping[str, Any]
    hints: Mapping[str, Any]
    defaults: Mapping[str, Any]


def public() -> dict[str, Any]:
    """Return classes and functions by name."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            entry = getattr(module, name)
            found |= {each.__name__: each for each in entry.values()} if isinstance(entry, Registry) else {name: entry}
    for path in MODULES:
        module = importlib.import_module(f"art_aft.{path}")
        own = {
            name: entry for name, entry in vars(module).items() if getattr(entry, "__module__", "") == module.__name__
        }
        found |= {name: entry for name, entry in own.items() if not name.startswith("_")}
    return {name: entry for name, entry in sorted(found.items()) if name not in INSIDE and _is_called(entry)}


def _is_called(entry: Any) -> bool:
    if isinstance(entry, type):
        return not inspect.isabstract(entry) and not issubclass(entry, BaseException)
    return isinstance(entry, types.FunctionType)


class World:
    """
    Good arguments by the names of parameters.

    :param folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.x, self.y = tiny_data(24)
        self.y[:NB_CLASSES] = range(NB_CLASSES)
        self.classifier = tiny_classifier()
        wide = build_classifier("wrn-10-1", input_shape=SHAPE, nb_classes=NB_CLASSES)
        storage.save(folder / "stored", wide, "wrn-10-1")
        np.savez(folder / "data.npz", x=self.x, y=self.y)
        scores = Scores(0.9, 0.8, 0.1, 100, 90)
        self.arguments = {
            **dict.fromkeys(("classifier", "estimator"), self.classifier),
            **dict.fromkeys(("x", "x_clean", "x_test"), self.x),
            **dict.fromkeys(("y", "y_clean", "y_test", "y_true", "y_predicted"), self.y),
            **dict.fromkeys(("before", "after"), scores),
            **{"attack": BadNets(), "labels": AllToOne(0), "rate": 0.25, "share": 0.5, "seed": 0, "target": 0},
            **{"nb_classes": NB_CLASSES, "input_shape": SHAPE, "in_channels": 3, "norms": np.arange(5.0)},
            **{"path": folder / "stored", "name_or_path": "digits", "model": "wrn-10-1", "name": "wrn-10-1"},
            **{"dense": np.zeros((NB_CLASSES, *SHAPE), np.float32), "eps": 0.5, "rng": np.random.default_rng(0)},
        }
        weights = {"path": folder / "stored.safetensors"}
        #: By subject, where a name means something else, or a default takes long.
        self.others = {
            "BackdoorScan": {"settings": None, "detectors": ["last_layer"]},
            "BatchPoisoning.__call__": {"x": torch.from_numpy(self.x), "y": torch.from_numpy(self.y)},
            "VictimSettings": {"attack": "badnets"},
            "compare": {"defences": {"short": partial(FineTuning, nb_epochs=1)}, "learning_rates": ()},
            "invert_triggers": {"recipe": InversionRecipe(steps=1, batch_size=8, images_per_step=8)},
            "load_state_dict": {"classifier": wide, **weights},
            "open_classifier": {"model": "wrn-10-1", "input_shape": SHAPE, "nb_classes": NB_CLASSES, **weights},
            "read_npz": {"path": folder / "data.npz"},
            "save": {"classifier": wide, "path": folder / "saved"},
        }

    def subjects(self, name: str) -> Iterator[Subject]:
        """Yield what is called under a name of `public()`, and after it the methods of what it makes."""
        entry = public()[name]
        subject = self._subject(name, entry)
        yield subject
        if not isinstance(entry, type):
            return
        for method in METHODS:
            made = subject.call(**subject.good)
            if not inspect.isroutine(getattr(made, method, None)) or (method == "fit" and callable(made)):
                continue
            if method != "cover" or made.has_covers():
                yield self._subject(f"{name}.{method}", getattr(made, method))
        if hasattr(made, "get_params") and hasattr(made, "set_params"):
            params = [param for param in subject.hints if param not in ("classifier", "estimator")]
            yield Subject(f"{name}.set_params", made.set_params, {}, {p: subject.hints[p] for p in params}, {})

    def _subject(self, name: str, entry: Any) -> Subject:
        owners, call = [entry.__init__ if isinstance(entry, type) else entry], entry
        # Whose arguments a `**settings` stands for.
        if isinstance(entry, type) and issubclass(entry, Trigger):
            owners.append(Trigger.__init__)
        elif name == "AdversarialFineTuningTrainer":
            owners.append(AdversarialFineTuning.__init__)
        elif entry is PyTorchNeuralCleanse:
            call = entry.from_classifier
            owners.append(call)
        hints, defaults = {}, {}
        for owner in owners:
            annotations = typing.get_type_hints(owner)
            for each in inspect.signature(owner).parameters.values():
                if each.name != "self" and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
                    hints[each.name] = annotations.get(each.name, Any)
                    defaults |= {} if each.default is each.empty else {each.name: each.default}
        known = {**self.arguments, **self.others.get(name, {})}
        good = {key: known[key] for key in hints if key not in defaults}
        good |= {key: value for key, value in QUICK.items() if key in hints} | self.others.get(name, {})
        return Subject(name, call, good | ({"y": known["y"]} if "y" in hints else {}), hints, defaults)


VALUES = {
    "None": None,
    "text": "nonsense",
    "bytes": b"nonsense",
    "an object": object(),
    "no entries": [],
    "a list of None": [None],
    "a list of text": ["nonsense"],
    "a list of lists": [[1.5]],
    "a list of NaN": [float("nan")],
    "no items": {},
    "a mapping": {"nonsense": None},
    "True": True,
    "-1": -1,
    "1.5": 1.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a complex number": 1j,
    "an array": np.array([1.0, np.nan]),
    "a function": lambda *_: None,
}


def _one(array: np.ndarray, value: Any) -> np.ndarray:
    """Return a copy with one other entry, of a type that can hold it."""
    changed = array.astype(np.result_type(array, type(value)) if isinstance(value, (float, complex)) else object)
    changed.flat[0] = value
    return changed


def arrays(good: np.ndarray) -> dict[str, np.ndarray]:
    """Return bad arrays in place of a good one; none of them may be taken, whatever the argument means."""
    return {
        "a NaN in it": _one(good, float("nan")),
        "an infinity in it": _one(good, float("inf")),
        "a complex array": good.astype(complex),
        "an object in it": _one(good, None),
        "an array of text": good.astype(str),
        "too many dimensions": np.zeros((2, 2, 2, 2, 2)),
    }


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated kind; of containers only the container counts. NaN is no number."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # Python 3.10 makes Optional of a default of None
        return any(fits(value, kind) for kind in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is Any:
        return True
    if kind is int or kind is float:
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and value == value
    if isinstance(value, (str, bytes)):  # text is a sequence, but never of what is asked for
        return kind is str and isinstance(value, str)
    return isinstance(value, (kind, list) if kind is tuple else kind)


def is_finite(result: Any) -> bool:
    """Return whether there is no NaN and no infinity in a result, however deep."""
    if isinstance(result, PyTorchClassifier):
        return is_finite(list(result.model.state_dict().values()))
    if isinstance(result, (torch.Tensor, np.ndarray, float)):
        return bool(torch.isfinite(torch.as_tensor(result)).all())
    if isinstance(result, Mapping):
        return all(map(is_finite, result.values()))
    if is_dataclass(result) and not isinstance(result, type):
        return all(is_finite(getattr(result, field.name)) for field in fields(result))
    return all(map(is_finite, result)) if isinstance(result, (list, tuple)) else True
