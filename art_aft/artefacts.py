"""The paper's tables and figures, as lists of cells: what has to be measured for each, at three scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from art_aft import paper
from art_aft.infection import Infection
from art_aft.recipes import RECIPES
from art_aft.tasks import Cell
from art_aft.training import Recipe

STATIC = ("badnets", "blend", "sig")
ATTACKS = (*STATIC, "input_aware", "wanet")
RIVALS = ("fine_tuning", "fine_pruning", "neural_cleanse", "nad")

NO_CLEAN_DATA: Mapping[str, Any] = {"preset": "no_clean_data"}


@dataclass(frozen=True)
class Scale:
    """
    How large the experiments are.

    :param name: "smoke", "cpu" or "full".
    :param data: The folder of the data sets; None takes digits for all of them.
    :param recipes: By model, how it is trained.
    :param clean_share: The share of clean images that the defender has.
    :param subsets: How many clean subsets are averaged over.
    :param targets: The attacker's labels that Figs. 1, 4 and 5 have a model for.
    :param rates: The poisoning ratios of Fig. 9.
    :param n_images: Adversarial examples for a label matrix or a distance.
    :param attack: Their settings, where they are not the defaults.
    :param epochs: The points of Fig. 3.
    :param quick: Settings that make every defence short, by defence.
    """

    name: str
    data: Path | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    clean_share: float = 0.05
    subsets: int = 3
    targets: Sequence[int] = (0,)
    rates: Sequence[float] = (0.01, 0.05, 0.1)
    n_images: int = 10_000
    attack: Mapping[str, Any] = field(default_factory=dict)
    epochs: Sequence[int] = (1, 2, 3, 4, 5)
    quick: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def infection(self, attack: str, dataset: str = "cifar10", **changes: Any) -> Infection:
        """Return the infected model that the paper has in such a cell, at this scale."""
        dynamic = attack in ("input_aware", "wanet")
        model = (
            "resnet-18" if dataset in ("tiny_imagenet", "imagenet10") else "preactresnet-18" if dynamic else "wrn-16-1"
        )
        settings: dict[str, Any] = {
            "attack": attack,
            "data": "digits" if self.data is None else str(self.data / dataset),
            "model": "wrn-10-1" if self.data is None else model,
            "recipe": self.recipes[model],
            "clean_share": self.clean_share,
        }
        if attack == "wanet":
            settings |= {"per_batch": True, "cover_ratio": 2.0}
        if dynamic and self.data is not None and dataset == "cifar10":
            settings["normalise"] = True
        return Infection(**{**settings, **changes})

    @property
    def examples(self) -> dict[str, Any]:
        """The settings of a label matrix or a distance."""
        return {"n_images": self.n_images, **self.attack}

    def settings(self, defence: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a defence's settings: the paper's, unless others are given, cut short where the scale says so."""
        return {**({"preset": "paper"} if settings is None else settings), **self.quick.get(defence, {})}


_SHORT = RECIPES["short"]
_SMOKE = replace(RECIPES["digits"], nb_epochs=8)
_BRIEF: Mapping[str, Any] = {"nb_epochs": 1, "batch_size": 64, "padding": 1}
_SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "recipes": {"wrn-16-1": _SMOKE, "preactresnet-18": _SMOKE, "resnet-18": _SMOKE},
        "clean_share": 0.1,
        "subsets": 1,
        "targets": (0, 1),
        "rates": (0.01, 0.1),
        "n_images": 200,
        "attack": {"eps": 0.1},  # digits need more than photographs
        "epochs": (1, 2),
        "quick": {
            "aft": {**_BRIEF, "max_iter": 2},
            "fine_tuning": _BRIEF,
            "fine_pruning": _BRIEF,
            "nad": {**_BRIEF, "teacher_epochs": 1},
            "neural_cleanse": {**_BRIEF, "steps": 5, "images_per_step": 64},
        },
    },
    "cpu": {
        "recipes": {
            "wrn-16-1": RECIPES["paper"],
            "preactresnet-18": _SHORT,
            "resnet-18": replace(RECIPES["resnet"], nb_epochs=5, milestones=(), schedule="one_cycle"),
        },
        "targets": (0, 3, 6),
        "quick": {"neural_cleanse": {"preset": None, "steps": 200}},
    },
    "full": {
        "recipes": {
            "wrn-16-1": RECIPES["paper"],
            "preactresnet-18": RECIPES["long"],
            "resnet-18": RECIPES["resnet"],
        },
        "targets": tuple(range(10)),
        "rates": (0.01, 0.02, 0.05, 0.1),
        "epochs": tuple(range(1, 11)),
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


@dataclass(frozen=True)
class Artefact:
    """
    A table or figure of the paper.

    :param title: What it shows.
    :param kind: How its rows are shown: "scores", "matrices", "distances", "curves", "panels", "rates" or "theory".
    :param cells: What is measured, at a scale.
    :param paper: The paper's own figures, where it prints them.
    """

    title: str
    kind: str
    cells: Callable[[Scale], list[Cell]]
    paper: Any = None


def _defended(
    at: Scale, infection: Infection, defences: Sequence[str], *, settings: Mapping[str, Any] | None = None, **cell: Any
) -> list[Cell]:
    """Return the infected model's own cell, and those of each defence on each clean subset."""
    cells = [Cell(infection)] if "none" in defences else []
    for name in defences:
        if name != "none":
            chosen = at.settings(name, settings)
            subsets = range(at.subsets) if cell.get("clean_data", True) else range(1)
            cells += [Cell(infection, defence=name, settings=chosen, subset=n, **cell) for n in subsets]
    return cells


def _table(
    attacks: Sequence[str], dataset: str = "cifar10", rivals: Sequence[str] = RIVALS, **changes: Any
) -> Callable[[Scale], list[Cell]]:
    def cells(at: Scale) -> list[Cell]:
        infections = [at.infection(attack, dataset, **changes) for attack in attacks]
        return [cell for each in infections for cell in _defended(at, each, ("none", *rivals, "aft"))]

    return cells


def _without_clean_data(
    dataset: str, rate: float, rivals: Sequence[str] = ("none", "fine_tuning", "fine_pruning", "nad")
) -> Callable[[Scale], list[Cell]]:
    def cells(at: Scale) -> list[Cell]:
        found = []
        for attack in STATIC:
            infection = at.infection(attack, dataset, rate=rate)
            found += _defended(at, infection, rivals)
            found += _defended(at, infection, ["aft"], settings=NO_CLEAN_DATA, clean_data=False)
        return found

    return cells


def _augmentation(at: Scale) -> list[Cell]:
    infection = at.infection("badnets", rate=0.01)
    plain = {**NO_CLEAN_DATA, "padding": 0, "mirror": False}
    chosen = at.settings("aft", plain) | {"padding": 0}
    return [
        Cell(infection),
        Cell(infection, defence="aft", settings=chosen, clean_data=False),
        *_defended(at, infection, ["aft"], settings=NO_CLEAN_DATA, clean_data=False),
    ]


def _matrices(*variants: Mapping[str, Any]) -> Callable[[Scale], list[Cell]]:
    def cells(at: Scale) -> list[Cell]:
        found = []
        for variant in variants:
            for target in [0] if variant.get("labels") == "all-to-all" else at.targets:
                infection = at.infection(**{"target": target, **variant})
                found.append(Cell(infection, task="label_matrix", settings=at.examples))
        return found

    return cells


def _distances(at: Scale) -> list[Cell]:
    return [Cell(at.infection(attack), task="feature_distance", settings=at.examples) for attack in ATTACKS]


def _curves(at: Scale) -> list[Cell]:
    found = []
    for attack in STATIC:
        infection = at.infection(attack)
        found.append(Cell(infection))
        for epochs in at.epochs:
            length = {"nb_epochs": epochs, "clean_epochs": 0}
            found += [
                Cell(infection, defence="aft", settings={**at.settings("aft"), **length}),
                Cell(
                    infection,
                    defence="aft",
                    settings={**at.settings("aft", NO_CLEAN_DATA), **length, "max_steps": None},
                    clean_data=False,
                ),
                Cell(
                    infection,
                    defence="aft",
                    settings={**at.settings("aft"), "nb_epochs": max(at.epochs), "clean_epochs": epochs},
                ),
            ]
    return found


def _rates(at: Scale) -> list[Cell]:
    found = []
    for rate in at.rates:
        infection = at.infection("blend", rate=rate)
        found += [Cell(infection), *_defended(at, infection, ["aft"], settings=NO_CLEAN_DATA, clean_data=False)]
    return found


def _panels(*attacks: str) -> Callable[[Scale], list[Cell]]:
    return lambda at: [Cell(at.infection(attack)) for attack in attacks]


#: By the names of the command line.
ARTEFACTS: Mapping[str, Artefact] = {
    "table1": Artefact("Feature distances of triggered and adversarial images", "distances", _distances, paper.TABLE_1),
    "table2": Artefact("CIFAR-10, all-to-one, 10 % poisoned, 5 % clean data", "scores", _table(ATTACKS), paper.TABLE_2),
    "table3": Artefact("GTSRB, all-to-one, 10 % poisoned", "scores", _table(ATTACKS, "gtsrb"), paper.TABLE_3),
    "table4": Artefact(
        "CIFAR-10, all-to-all",
        "scores",
        _table(ATTACKS, rivals=("fine_tuning", "nad"), labels="all-to-all"),
        paper.TABLE_4,
    ),
    "table5": Artefact("Tiny-ImageNet", "scores", _table(STATIC, "tiny_imagenet", rivals=()), paper.TABLE_5),
    "table6": Artefact(
        "CIFAR-10, 1 % poisoned, AFT without clean data", "scores", _without_clean_data("cifar10", 0.01), paper.TABLE_6
    ),
    "table7": Artefact(
        "GTSRB, 1 % poisoned, AFT without clean data", "scores", _without_clean_data("gtsrb", 0.01), paper.TABLE_7
    ),
    "table8": Artefact(
        "CIFAR-10, 10 % poisoned, AFT without clean data",
        "scores",
        _without_clean_data("cifar10", 0.1, ["none"]),
        paper.TABLE_8,
    ),
    "table9": Artefact("AFT after Stage 2 and after Stage 3", "scores", _table(ATTACKS, rivals=()), paper.TABLE_9),
    "table10": Artefact(
        "AFT without clean data, with and without augmentation", "scores", _augmentation, paper.TABLE_10
    ),
    "fig1": Artefact("Labels of adversarial examples, WaNet", "matrices", _matrices({"attack": "wanet"})),
    "fig2": Artefact("Feature distances, as Table I", "distances", _distances, paper.TABLE_1),
    "fig3": Artefact("ACC and ASR over the epochs of fine-tuning", "curves", _curves),
    "fig4": Artefact(
        "Labels of adversarial examples, the other attacks and all-to-all",
        "matrices",
        _matrices(*({"attack": name} for name in STATIC), *({"attack": n, "labels": "all-to-all"} for n in STATIC)),
    ),
    "fig5": Artefact(
        "Labels of adversarial examples: another Blend image, GTSRB, ImageNet",
        "matrices",
        _matrices(
            {"attack": "blend", "trigger": {"seed": 1}},
            {"attack": "blend", "dataset": "gtsrb"},
            {"attack": "blend", "dataset": "imagenet10"},
        ),
    ),
    "fig6": Artefact("Clean, triggered and adversarial images: BadNets, Blend", "panels", _panels("badnets", "blend")),
    "fig7": Artefact("Clean, triggered and adversarial images: SIG, WaNet", "panels", _panels("sig", "wanet")),
    "fig8": Artefact("Clean, triggered and adversarial images: Input-aware", "panels", _panels("input_aware")),
    "fig9": Artefact("Blend over the poisoning ratio, AFT without clean data", "rates", _rates),
    "theory": Artefact("Section V on a linear model", "theory", lambda at: []),
}
