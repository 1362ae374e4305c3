"""Everything that determines a victim, as one value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from art_aft.attacks import TRIGGERS
from art_aft.attacks.labels import AllToAll, AllToOne
from art_aft.checks import (
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_mapping,
    check_number,
    check_path,
    check_seed,
    check_text,
)
from art_aft.data.datasets import Dataset, split_clean
from art_aft.data.image_files import contents
from art_aft.training.recipe import Recipe


@dataclass(frozen=True)
class VictimSettings:
    """
    Everything that determines a victim.

    >>> VictimSettings("badnets", data="/data/cifar10").key == VictimSettings("badnets", data="/elsewhere/cifar10").key
    True

    :param attack: The name of the attack, of those in `TRIGGERS`.
    :param data: The name or path of the data set.
    :param model: The name of the model.
    :param labels: "all-to-one" or "all-to-all".
    :param target: The target label, with "all-to-one".
    :param rate: The poisoning ratio, in [0, 1]. 0 makes a benign model.
    :param clean_share: The defender's share of the training set, in (0, 1). The victim is trained on the rest.
    :param seen: Whether the victim is trained on the defender's images as well, as where a user cleans a model with
        images of its own training set.
    :param recipe: How the victim is trained.
    :param per_batch: Whether every batch is poisoned afresh. Otherwise the set is poisoned once.
    :param cover_ratio: Number of cover images for each poisoned one, for attacks that have them.
    :param clean_label: Whether only images of the target class are poisoned, and keep their label.
    :param trigger: Settings of the trigger that are not its defaults, such as {"ratio": 0.1}; JSON values.
    :param normalise: Whether the classifier normalises pixels by mean and deviation of the training images, by channel.
    :param seed: The seed of the split, the poisoning, the weights and the training.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    attack: str
    data: str = "digits"
    model: str = "wrn-10-1"
    labels: str = "all-to-one"
    target: int = 0
    rate: float = 0.1
    clean_share: float = 0.1
    recipe: Recipe = field(default_factory=Recipe)
    per_batch: bool = False
    cover_ratio: float = 0.0
    clean_label: bool = False
    trigger: Mapping[str, Any] = field(default_factory=dict)
    normalise: bool = False
    seen: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("attack", self.attack, sorted(TRIGGERS))
        check_path("data", self.data)
        check_text("model", self.model)
        check_choice("labels", self.labels, ("all-to-one", "all-to-all"))
        check_integer("target", self.target, 0)
        check_number("rate", self.rate, minimum=0.0, maximum=1.0)
        check_number("clean_share", self.clean_share, minimum=0.0, maximum=1.0, above=True)
        check_instance("recipe", self.recipe, Recipe, "a Recipe")
        check_number("cover_ratio", self.cover_ratio, minimum=0.0)
        for name in ("per_batch", "clean_label", "normalise", "seen"):
            check_flag(name, getattr(self, name))
        check_mapping("trigger", self.trigger)
        check_seed("seed", self.seed)

    def split(self, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the defender's images in the training set, and of those that the victim learns from."""
        clean, rest = split_clean(dataset.y_train, self.clean_share, seed=self.seed)
        return clean, np.arange(len(dataset.y_train)) if self.seen else rest

    def label_map(self, nb_classes: int) -> AllToOne | AllToAll:
        """Return the attacker's label for each true one, among `nb_classes` classes."""
        return AllToAll(nb_classes) if self.labels == "all-to-all" else AllToOne(self.target)

    @property
    def benign(self) -> VictimSettings:
        """The same settings without a backdoor."""
        none: dict[str, Any] = {"rate": 0.0, "per_batch": False, "cover_ratio": 0.0, "clean_label": False}
        return replace(self, attack="badnets", trigger={}, **none)

    @property
    def key(self) -> str:
        """A readable name for files, different for different settings and data, wherever the data lie."""
        name = Path(self.data).name
        facts = {**asdict(self), "data": name if self.data == "digits" else name + contents(self.data)}
        if not self.seen:
            del facts["seen"]  # the names of victims that were stored before it could be chosen
        if not self.recipe.l2_sp:
            del facts["recipe"]["l2_sp"]  # likewise
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{name}-{self.model}-{self.attack}-{self.labels}-{self.rate:g}-{digest}"
