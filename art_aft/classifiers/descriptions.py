"""Checks of what stands beside stored tensors, which may come from a stranger, before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from art_aft.attacks import TRIGGERS, InputAware
from art_aft.attacks.generators import build_generator
from art_aft.checks import check_integer
from art_aft.classifiers.preprocessing import check_preprocessing
from art_aft.models import build_model
from art_aft.runtime.random_state import isolated_rng

#: The greatest numbers that are built: of a model's name, of classes, of an image's side, of a trigger's settings.
MOST = {"model": 1_000, "nb_classes": 100_000, "input_shape": 65_536, "trigger": 1_024, "levels": 12}


def check_description(description: Mapping[str, Any]) -> None:
    """
    Check the description of a stored classifier, all but its trigger.

    :param description: What its JSON file contains.
    :raises ValueError: If something is missing, or of another kind, or too large to be built.
    """
    kinds = {"model": str, "input_shape": list, "nb_classes": int, "clip_values": list, "facts": dict}
    for name, kind in kinds.items():
        if not isinstance(description.get(name), kind):
            got = type(description[name]).__name__ if name in description else "nothing"
            raise ValueError(f"{name}: got {got}, expected {kind.__name__}")
    for number in filter(str.isdigit, description["model"].split("-")):
        if len(number) > 9 or int(number) > MOST["model"]:
            raise ValueError(f"model: got {description['model'][:80]!r}, expected numbers <= {MOST['model']}")
    _check_at_most("nb_classes", check_integer("nb_classes", description["nb_classes"], 2))
    if len(description["input_shape"]) != 3:
        raise ValueError(f"input_shape: got {len(description['input_shape'])} numbers, expected 3")
    for number in description["input_shape"]:
        _check_at_most("input_shape", check_integer("input_shape", number, 1))
    preprocessing = description.get("preprocessing")
    if preprocessing is not None:
        if not isinstance(preprocessing, list) or len(preprocessing) != 2:
            raise ValueError("preprocessing: got another kind, expected a mean and a deviation, or null")
        mean, std = preprocessing
        check_preprocessing(mean, std, description["input_shape"][0])


def check_tensors(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """
    Check that tensors are those of the described model, without building it.

    :param description: A checked description.
    :param tensors: The tensors by name.
    :raises ValueError: If their names, shapes or types differ from the model's.
    """
    name, in_channels = description["model"], description["input_shape"][0]
    with isolated_rng(0):
        try:
            with torch.device("meta"):
                model = build_model(name, nb_classes=description["nb_classes"], in_channels=in_channels)
        except (NotImplementedError, RuntimeError):
            # Another package's model may need values, which tensors on "meta" do not have.
            model = build_model(name, nb_classes=description["nb_classes"], in_channels=in_channels)
    _compare(model.state_dict(), tensors)


def check_trigger(description: Any, arrays: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, Any]]:
    """
    Check the description of a stored trigger.

    :param description: What the JSON file has under "trigger".
    :param arrays: Its tensors by name.
    :return: The name of the attack, and the settings of the trigger.
    :raises ValueError: If it is of another kind, or too large to be built.
    """
    if not isinstance(description, dict) or not isinstance(description.get("settings"), dict):
        raise ValueError("trigger: got another kind, expected an attack and settings")
    attack, settings = description.get("attack"), description["settings"]
    if not isinstance(attack, str):
        raise ValueError("trigger: got no attack, expected its name")
    for name, value in settings.items():
        if isinstance(value, int) and name != "seed":
            _check_at_most("levels" if name == "levels" else "trigger", value, f"trigger.{name}")
    if TRIGGERS[attack] is InputAware:
        if not {"in_channels", "base_width", "levels"} <= settings.keys():
            raise ValueError("trigger: got no sizes of its networks, expected in_channels, base_width and levels")
        sizes = [check_integer(name, settings[name], 1) for name in ("in_channels", "base_width", "levels")]
        with isolated_rng(0), torch.device("meta"):
            networks = {
                "pattern_generator": build_generator(sizes[0], sizes[0], *sizes[1:]),
                "mask_generator": build_generator(sizes[0], 1, *sizes[1:]),
            }
        _compare({f"{n}.{key}": v for n, part in networks.items() for key, v in part.state_dict().items()}, arrays)
    return attack, settings


def _check_at_most(kind: str, value: int, name: str | None = None) -> None:
    if value > MOST[kind]:
        raise ValueError(f"{name or kind}: got {value}, expected at most {MOST[kind]}")


def _compare(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors have the expected names, shapes and types."""
    if expected.keys() != tensors.keys():
        missing, more = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        first = ascii((missing + more)[0])[:80]
        raise ValueError(f"tensors: got {len(missing)} too few and {len(more)} too many, first {first}")
    for key, value in tensors.items():
        want = expected[key]
        if (want.shape, want.dtype) != (value.shape, value.dtype):
            got, wanted = (f"{tuple(each.shape)} {each.dtype}" for each in (value, want))
            raise ValueError(f"tensors: got {ascii(key)[:80]} of {got}, expected {wanted}")
