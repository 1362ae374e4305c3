"""How large the paper's experiments are: a quick look on digits, two cores, or the paper's own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from art_aft.attacks import TRIGGERS
from art_aft.defences import DEFENCES
from art_aft.experiments.victims import VictimSettings
from art_aft.training.recipe import Recipe
from art_aft.training.recipes import RECIPES


@dataclass(frozen=True)
class Scale:
    """
    How large the experiments are.

    :param name: "smoke", "cpu" or "full".
    :param data: The folder of the data sets. None takes digits for all of them.
    :param recipes: By model, or "MODEL on DATASET", how it is trained.
    :param brief: How WRN-16-1 is trained on GTSRB, and for Figs. 1, 4 and 5, which need many. None is as elsewhere.
    :param release_model: On CIFAR-10 and GTSRB, the model for attacks whose release names one. None is that model.
    :param clean_share: The defender's share of the training set.
    :param subsets: The number of clean subsets that results are averaged over.
    :param once: What runs on the first subset alone, or for the first target: "DEFENCE on DATASET",
        "label_matrix on DATASET".
    :param targets: The target labels for which Figs. 1, 4 and 5 have a victim each.
    :param rates: The poisoning ratios of Fig. 9.
    :param n_images: The number of adversarial examples for a label matrix or a distance.
    :param attack: Settings of these adversarial examples.
    :param curve_epochs: The length of the curves of Fig. 3.
    :param curve_every: The number of steps between their points.
    :param presets: By defence, its preset where that is not "paper". None is the defence's defaults.
    :param quick: Settings that make something short: by defence, or "DEFENCE on DATASET"; of label matrices, by
        "label_matrix on DATASET"; of triggers, by attack.
    """

    name: str
    data: Path | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    brief: Recipe | None = None
    release_model: str | None = None
    clean_share: float = 0.05
    subsets: int = 3
    once: Sequence[str] = ()
    targets: Sequence[int] = (0,)
    rates: Sequence[float] = (0.01, 0.05, 0.1)
    n_images: int = 10_000
    attack: Mapping[str, Any] = field(default_factory=dict)
    curve_epochs: int = 10
    curve_every: int = 20
    presets: Mapping[str, str | None] = field(default_factory=dict)
    quick: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def victim(
        self, attack: str, dataset: str = "cifar10", *, one_of_many: bool = False, **changes: Any
    ) -> VictimSettings:
        """
        Return the settings of the paper's victim, at this scale.

        :param attack: The name of the attack.
        :param dataset: The name of the data set.
        :param one_of_many: Whether the victim is one of the many that Figs. 1, 4 and 5 need.
        :param changes: Other settings of the victim.
        """
        release = TRIGGERS[attack].release
        if dataset in ("tiny_imagenet", "imagenet10"):
            model = "resnet-18"
        elif "model" in release:
            model = self.release_model or release["model"]
        else:
            model = "wrn-16-1"
        brief = self.brief if model == "wrn-16-1" and (one_of_many or dataset == "gtsrb") else None
        settings: dict[str, Any] = {
            "attack": attack,
            "data": "digits" if self.data is None else str(self.data / dataset),
            "model": "wrn-10-1" if self.data is None else model,
            "recipe": brief or self.recipes.get(f"{model} on {dataset}") or self.recipes[model],
            "clean_share": self.clean_share,
            "trigger": self.quick.get(attack, {}),
            **{name: release[name] for name in ("per_batch", "cover_ratio") if name in release},
        }
        # The releases normalise pixels on CIFAR-10 only.
        if self.data is not None and dataset == "cifar10" and "normalise" in release:
            settings["normalise"] = release["normalise"]
        return VictimSettings(**{**settings, **changes})

    @property
    def examples(self) -> dict[str, Any]:
        """The settings of a label matrix or a distance."""
        return {"n_images": self.n_images, **self.attack}

    def settings(self, defence: str, settings: Mapping[str, Any] | None = None, dataset: str = "") -> dict[str, Any]:
        """
        Return a defence's settings, made short where the scale says so.

        :param defence: The name of the defence.
        :param settings: Its settings at full length. None is its preset at this scale.
        :param dataset: The name of the data set.
        """
        if settings is None:
            preset = self.presets.get(defence, "paper")
            settings = {} if preset is None else DEFENCES[defence].presets[preset]
        return {**settings, **self.quick.get(defence, {}), **self.quick.get(f"{defence} on {dataset}", {})}


_SMOKE = replace(RECIPES["digits"], nb_epochs=8)
# For runs of hundreds of steps. The recipe is for tens of thousands.
_FROM_SCRATCH: Mapping[str, Any] = {
    "batch_size": 64,
    "learning_rate": 0.05,
    "nesterov": True,
    "milestones": (),
    "schedule": "one_cycle",
}
_BRIEF: Mapping[str, Any] = {"nb_epochs": 1, "batch_size": 64, "padding": 1}
_EASY: Mapping[str, Any] = {"eps": 1.0, "max_iter": 2}
_SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "recipes": {"wrn-16-1": _SMOKE, "preactresnet-18": _SMOKE, "resnet-18": _SMOKE},
        "clean_share": 0.1,
        "subsets": 1,
        "targets": (0, 1),
        "rates": (0.01, 0.1),
        "n_images": 200,
        "attack": {"eps": 0.1},  # digits need more than photographs
        "curve_epochs": 2,
        "curve_every": 1,
        "quick": {
            "aft": {**_BRIEF, "attack": {"max_iter": 2}},
            "aft_no_clean_data": {**_BRIEF, "attack": {"max_iter": 2}},
            "universal_aft": {**_BRIEF, "max_iter": 2},
            "fine_tuning": _BRIEF,
            "fine_pruning": _BRIEF,
            "nad": {**_BRIEF, "teacher_epochs": 1},
            "auto": {"candidates": [{**_EASY, "learning_rate": 0.05}], "min_steps": 2, "batch_size": 64, "padding": 1},
            "neural_cleanse": {**_BRIEF, "steps": 5, "images_per_step": 64},
            "input_aware": {"base_width": 4, "levels": 2},
            "progressive_erasing": {
                "settings": _EASY,
                "n_folds": 2,
                "fold_steps": 2,
                "min_steps": 2,
                "max_images": 200,
                "padding": 1,
            },
        },
    },
    "cpu": {
        "recipes": {
            "wrn-16-1": RECIPES["paper"],
            "resnet-18 on tiny_imagenet": replace(RECIPES["resnet"], nb_epochs=8, padding=4, **_FROM_SCRATCH),
            "resnet-18 on imagenet10": replace(RECIPES["resnet"], nb_epochs=12, **_FROM_SCRATCH),
        },
        # PreActResNet-18 takes two hours a model on two cores, this one a quarter of an hour.
        "release_model": "wrn-16-1",
        "brief": RECIPES["brief"],
        "targets": (0, 3, 6),
        "presets": {"neural_cleanse": None},
        "quick": {
            # A wider search than the default, for triggers that are no patch: the paper's rows flag all three.
            "neural_cleanse": {"steps": 200, "largest_suspect": 0.75},
            "neural_cleanse on gtsrb": {"steps": 100, "images_per_step": 128},
            "label_matrix on imagenet10": {"n_images": 500},
        },
        # These search a perturbation for each of 43 labels, or train ResNet-18 on images of 224 pixels.
        "once": ("neural_cleanse on gtsrb", "universal_aft on gtsrb", "auto on gtsrb", "label_matrix on imagenet10"),
    },
    "full": {
        "recipes": {
            "wrn-16-1": RECIPES["paper"],
            "preactresnet-18": RECIPES["long"],
            "resnet-18": RECIPES["resnet"],
        },
        "targets": tuple(range(10)),
        "rates": (0.01, 0.02, 0.05, 0.1),
    },
}
SCALES = tuple(_SCALES)


def scale(name: str, data: str | Path | None = None) -> Scale:
    """
    Return a scale by its name.

    :param name: "smoke" (digits, seconds), "cpu" (real data, two cores) or "full" (the paper's size, for a GPU).
    :param data: The folder that cifar10/, gtsrb/, tiny_imagenet/ and imagenet10/ lie in; not for "smoke".
    :raises ValueError: If there is no such scale, or it needs data.
    """
    if name not in _SCALES:
        raise ValueError(f"scale: got {name!r}, expected one of: {', '.join(SCALES)}")
    if name != "smoke" and data is None:
        raise ValueError(f"data: got none with scale {name!r}, expected the folder of the data sets")
    return Scale(name, None if name == "smoke" or data is None else Path(data), **_SCALES[name])
