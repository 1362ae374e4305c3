"""Many victims from one file of settings, for choosing thresholds on one half and judging them on the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from art_aft.checks import check_choice
from art_aft.experiments.victims import VictimSettings
from art_aft.training.recipe import Recipe
from art_aft.training.recipes import RECIPES

#: Defaults and thresholds are chosen on the models of one half, and judged on those of the other.
HALVES = ("choose", "judge")


@dataclass(frozen=True)
class Member:
    """
    One victim of a zoo.

    :param name: Its name, for people.
    :param half: "choose" or "judge".
    :param settings: How it is trained.
    """

    name: str
    half: str
    settings: VictimSettings


def read_zoo(path: str | Path, data: str | Path = ".") -> list[Member]:
    """
    Return the victims that a file describes.

    The file is a JSON list of objects with `name`, `half`, and fields of `VictimSettings` where they are not its
    defaults. `recipe` is an object with the `name` of one in `RECIPES`, and fields of `Recipe` that differ from it.
    The seed of a victim is that of its recipe, too.

    :param path: The file.
    :param data: The folder of the data sets that the file names, except digits.
    :raises ValueError: If it is not such a file, or two victims have one name.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"settings: got {path}, expected a JSON list of victims ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"settings: got {path}, expected a JSON list of victims")
    members = [_member(entry, Path(data)) for entry in entries]
    names = [member.name for member in members]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"settings: got the name {twice[0]!r} twice, expected each once")
    return members


def _member(entry: Mapping[str, Any], data: Path) -> Member:
    """Return the victim that one object describes."""
    known = {field.name for field in fields(VictimSettings)} | {"name", "half"}
    unknown = sorted(set(entry) - known)
    missing = sorted({"name", "half", "attack"} - set(entry))
    if unknown or missing:
        raise ValueError(f"settings: got a victim with {unknown or 'no ' + missing[0]}, expected only {sorted(known)}")
    values = dict(entry)
    name, half = values.pop("name"), check_choice("half", values.pop("half"), HALVES)
    recipe = dict(values.pop("recipe", {}))
    base = RECIPES[check_choice("recipe", recipe.pop("name", "paper"), tuple(RECIPES))]
    try:
        chosen = Recipe(**{**base.__dict__, "seed": values.get("seed", 0), **recipe})
        if values.get("data", "digits") != "digits":
            values["data"] = str(data / values["data"])
        return Member(name, half, VictimSettings(**values, recipe=chosen))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: got {name!r} that does not fit ({error})") from None
