"""The paper's tables and figures, as lists of cells: what has to be measured for each, at three scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art_aft.defences import DEFENCES
from art_aft.experiments.measurements import Cell
from art_aft.experiments.paper import published as paper
from art_aft.experiments.paper.scales import Scale
from art_aft.experiments.victims import VictimSettings

STATIC = ("badnets", "blend", "sig")
ATTACKS = (*STATIC, "input_aware", "wanet")
RIVALS = ("fine_tuning", "fine_pruning", "neural_cleanse", "nad")


@dataclass(frozen=True)
class Artefact:
    """
    A table or figure of the paper.

    :param title: What it shows.
    :param kind: How its rows are shown: "scores", "matrices", "distances", "curves", "panels", "rates" or "theory".
    :param cells: What is measured, at a scale.
    :param paper: The paper's own numbers, where it prints them.
    """

    title: str
    kind: str
    cells: Callable[[Scale], list[Cell]]
    paper: Any = None


def _defended(
    at: Scale,
    victim: VictimSettings,
    defences: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    clean_data: bool = True,
    variant: str = "",
) -> list[Cell]:
    """Return the victim's own cell, for "none", and those of each defence on each clean subset."""
    cells = [Cell(victim)] if "none" in defences else []
    for name in defences:
        if name != "none":
            dataset = Path(victim.data).name
            chosen = at.settings(name, settings, dataset)
            subsets = 1 if f"{name} on {dataset}" in at.once or not clean_data else at.subsets
            cells += [
                Cell(victim, defence=name, settings=chosen, subset=n, clean_data=clean_data, variant=variant)
                for n in range(subsets)
            ]
    return cells


def _table(
    attacks: Sequence[str],
    dataset: str = "cifar10",
    rivals: Sequence[str] = RIVALS,
    *,
    distilled: bool = True,
    automatic: bool = False,
    **changes: Any,
) -> Callable[[Scale], list[Cell]]:
    def cells(at: Scale) -> list[Cell]:
        found = []
        for attack in attacks:
            victim = at.victim(attack, dataset, **changes)
            found += _defended(at, victim, ("none", *rivals, "aft"))
            if distilled:
                settings = DEFENCES["universal_aft"].presets["distilled"]
                found += _defended(at, victim, ["universal_aft"], settings=settings, variant="distilled")
            if automatic:
                found += _defended(at, victim, ["auto"], settings={})
        return found

    return cells


def _without_clean_data(
    dataset: str,
    rate: float,
    rivals: Sequence[str] = ("none", "fine_tuning", "fine_pruning", "nad"),
) -> Callable[[Scale], list[Cell]]:
    def cells(at: Scale) -> list[Cell]:
        found = []
        for attack in STATIC:
            victim = at.victim(attack, dataset, rate=rate)
            found += _defended(at, victim, rivals)
            found += _defended(at, victim, ["aft_no_clean_data"], clean_data=False)
            found += _defended(at, victim, ["progressive_erasing"], settings={}, clean_data=False)
        return found

    return cells


def _augmentation(at: Scale) -> list[Cell]:
    victim, name = at.victim("badnets", rate=0.01), "aft_no_clean_data"
    plain = {**at.settings(name), "padding": 0, "horizontal_flip": False}
    return [
        Cell(victim),
        Cell(victim, defence=name, settings=plain, clean_data=False, variant="not augmented"),
        *_defended(at, victim, [name], clean_data=False),
    ]


def _matrices(*kinds: Mapping[str, Any]) -> Callable[[Scale], list[Cell]]:
    def cells(at: Scale) -> list[Cell]:
        found = []
        for kind in kinds:
            name = f"label_matrix on {kind.get('dataset', 'cifar10')}"
            first = kind.get("labels") == "all-to-all" or name in at.once
            for target in at.targets[:1] if first else at.targets:
                victim = at.victim(one_of_many=True, **{"target": target, **kind})
                found.append(Cell(victim, task="label_matrix", settings={**at.examples, **at.quick.get(name, {})}))
        return found

    return cells


def _distances(at: Scale) -> list[Cell]:
    return [Cell(at.victim(attack), task="feature_distance", settings=at.examples) for attack in ATTACKS]


def _curves(at: Scale) -> list[Cell]:
    found = []
    for attack in STATIC:
        settings, longer = at.settings("aft"), {"nb_epochs": at.curve_epochs}
        ways = (
            ("aft", {**settings, **longer, "clean_epochs": 0}, True),
            ("aft", {**settings, "clean_epochs": at.curve_epochs}, True),
            ("aft_no_clean_data", at.settings("aft_no_clean_data"), False),
        )
        for name, chosen, has_clean in ways:
            points = {"every": at.curve_every, **chosen}
            found.append(Cell(at.victim(attack), "curve", name, points, clean_data=has_clean))
    return found


def _rates(at: Scale) -> list[Cell]:
    found = []
    for rate in at.rates:
        victim = at.victim("blend", rate=rate)
        found += [Cell(victim), *_defended(at, victim, ["aft_no_clean_data"], clean_data=False)]
    return found


def _panels(*attacks: str) -> Callable[[Scale], list[Cell]]:
    return lambda at: [Cell(at.victim(attack)) for attack in attacks]


#: By their names on the command line.
ARTEFACTS: Mapping[str, Artefact] = {
    "table1": Artefact("Feature distances of triggered and adversarial images", "distances", _distances, paper.TABLE_1),
    "table2": Artefact("CIFAR-10, all-to-one, 10 % poisoned, 5 % clean data", "scores", _table(ATTACKS), paper.TABLE_2),
    # On CIFAR-10, `examples/benchmarks/oracle.py` measures the automatic settings.
    "table3": Artefact(
        "GTSRB, all-to-one, 10 % poisoned",
        "scores",
        _table(ATTACKS, "gtsrb", automatic=True),
        paper.TABLE_3,
    ),
    "table4": Artefact(
        "CIFAR-10, all-to-all",
        "scores",
        _table(ATTACKS, rivals=("fine_tuning", "nad"), labels="all-to-all"),
        paper.TABLE_4,
    ),
    "table5": Artefact("Tiny-ImageNet", "scores", _table(STATIC, "tiny_imagenet", (), distilled=False), paper.TABLE_5),
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
    "table9": Artefact(
        "AFT after Stage 2 and after Stage 3", "scores", _table(ATTACKS, rivals=(), distilled=False), paper.TABLE_9
    ),
    "table10": Artefact(
        "AFT without clean data, with and without augmentation", "scores", _augmentation, paper.TABLE_10
    ),
    "fig1": Artefact("Labels of adversarial examples, WaNet", "matrices", _matrices({"attack": "wanet"})),
    "fig2": Artefact("Feature distances, as Table I", "distances", _distances, paper.TABLE_1),
    "fig3": Artefact("ACC and ASR over the steps of fine-tuning", "curves", _curves),
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
