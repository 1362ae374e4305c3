"""The tables on the pages of detectors, and those of the scan as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from measuring.rows import ATTACKS, DATA, Row, as_table, percent, rows

# A poisoned model whose trigger works on less than half of the images; counted with neither the infected nor the clean.
FAILED = "failed attack"
ALL_TO_ALL = ", all-to-all"
SHIFTS = ("universal_shift", "universal_sparse_shift", "adversarial_shift")
ARCHITECTURES = {"wrn": "WRN", "vgg": "VGG", "cnn": "CNN", "vit": "vision transformer"}


@dataclass(frozen=True)
class Models:
    """
    Scanned models that are shown together.

    :param title: What they are called.
    :param files: Files in examples/results, without their endings.
    :param data: The data set; all where it is empty.
    """

    title: str
    files: tuple[str, ...]
    data: str = ""

    def __call__(self) -> list[Row]:
        """Return the rows of these models, without those of failed attacks."""
        found = [row for file in self.files for row in rows(file)]
        return [row for row in found if row["kind"] != FAILED and row["model"].startswith(self.data)]


NOW = Models("digits, third held-out list", ("scan_third_held_out_digits",))
PHOTOGRAPHS = Models("CIFAR-10 and GTSRB", ("scan_photographs",))
MODELS = [
    NOW,
    PHOTOGRAPHS,
    Models("digits, second held-out list", ("scan_second_held_out_digits",)),
    Models("digits, first held-out list", ("scan_held_out_digits",)),
    Models("digits, earlier scan", ("scan_digits_judge", "scan_zoo_judge"), "digits"),
    Models("CIFAR-10, earlier scan", ("scan_zoo_judge",), "cifar10"),
    Models("digits, 0.1.0", ("scan_digits",)),
    Models("CIFAR-10, 0.1.0", ("scan_cifar10",)),
    Models("CIFAR-10 at 1 %, 0.1.0", ("scan_cifar10_1_percent",)),
]


def all_to_all(row: Row) -> bool:
    """Return whether a model has an all-to-all backdoor."""
    return row["kind"].endswith(ALL_TO_ALL)


def first_is_right(row: Row, detector: str) -> bool:
    """Return whether the first label of a detector is the attacker's; for all-to-all, the first shift."""
    return row["evidence"][detector]["label"] == (1 if all_to_all(row) else row["target"])


def median_and_highest(scores: Sequence[float]) -> str:
    """Return how high the scores of clean models are."""
    return f"{np.median(scores):.2f}, {max(scores):.2f}" if scores else ""


def found_by(detector: str, models: Models) -> dict[str, str]:
    """Return a column of the table of a detector, by the title of the line."""
    every = models()
    ran = [row for row in every if detector in row["evidence"]]
    if not ran:
        return {}
    column = {}
    for attack, title in ATTACKS.items():
        for suffix in ("", ALL_TO_ALL):
            own = [row for row in ran if row["kind"] == attack + suffix]
            if own and (detector in SHIFTS) == bool(suffix):
                right = sum(first_is_right(row, detector) for row in own)
                score = np.median([row["evidence"][detector]["score"] for row in own])
                column[title + suffix] = f"{right} of {len(own)}, {score:.2f}"
    clean = [row["evidence"][detector]["score"] for row in ran if row["kind"] == "clean"]
    column["clean: median, highest score"] = median_and_highest(clean)
    column["models where it ran"] = f"{len(ran)} of {len(every)}"
    return column


def detected(detector: str) -> str:
    """Return the table of a detector."""
    columns = {models.title: column for models in MODELS if (column := found_by(detector, models))}
    order = [attack + suffix for suffix in ("", ALL_TO_ALL) for attack in ATTACKS.values()]
    order += ["clean: median, highest score", "models where it ran"]
    titles = [title for title in order if any(title in column for column in columns.values())]
    lines = ([title, *(column.get(title, "") for column in columns.values())] for title in titles)
    return as_table(["right label first, median score", *columns], lines)


def last_layer_others() -> str:
    """Return what the last layer's weights show on networks and data that had less or no influence on the detector."""
    digits = rows("last_layer_digits")
    sets = {
        "digits, VGG with a hidden layer": [row for row in digits if row["model"] == "vgg"],
        "digits, vision transformer": [row for row in digits if row["model"] == "vision transformer"],
        "GTSRB, WRN-16-1, 10 %": [row for row in rows("scan_gtsrb") if "-0.1-" in row["model"]],
        "GTSRB, WRN-16-1, 1 %": [row for row in rows("scan_gtsrb") if "-0.01-" in row["model"]],
        "Tiny-ImageNet, ResNet-18, 10 %": rows("scan_tiny_imagenet"),
    }
    lines = []
    for title, own in sets.items():
        found: dict[str, list[tuple[Row, int]]] = {"clean": [], "infected": []}
        for row in own:
            evidence = row.get("evidence", {}).get("last_layer", row)
            found["clean" if row["kind"] == "clean" else "infected"].append((evidence, row["target"]))
        right = sum(evidence["label"] == target for evidence, target in found["infected"])
        scores = [evidence["score"] for evidence, _ in found["infected"]]
        reported = sum(score >= 1 for score in scores)
        clean = median_and_highest([evidence["score"] for evidence, _ in found["clean"]])
        counts = [f"{count} of {len(scores)}" for count in (right, reported)]
        lines.append([title, *counts, f"{np.median(scores):.2f}", clean])
    header = ["", "right label first", "score 1 or more", "median score", "clean: median, highest"]
    return as_table(header, lines)


def share(part: int, whole: int) -> str:
    """Return a count with its 95 % interval of Clopper and Pearson in percent."""
    interval = binomtest(part, whole).proportion_ci(method="exact")
    low, high = (f"{100 * each:.0f}" for each in (interval.low, interval.high))
    return f"{part} of {whole} ({low} to {high} %)"


def auroc(clean: Sequence[float], infected: Sequence[float]) -> float:
    """Return how often an infected model has the higher score of two."""
    return float(np.mean([(high > low) + (high == low) / 2 for low in clean for high in infected]))


def verdicts(title: str, every: Sequence[Row]) -> list[str]:
    """Return a line of the table of verdicts."""
    clean = [row for row in every if row["kind"] == "clean"]
    infected = [row for row in every if row["kind"] != "clean"]
    cells = []
    for own in (infected, clean):
        counts = [sum(row["verdict"] == verdict for row in own) for verdict in ("infected", "cannot tell")]
        cells.append([share(counts[0], len(own)), str(counts[1])] if own else ["", ""])
    right = str(sum(row["label_right"] for row in infected))
    both = [[row["score"] for row in own] for own in (clean, infected)]
    return [title, cells[0][0], right, cells[0][1], *cells[1], f"{auroc(*both):.3f}" if all(both) else ""]


HEADER = [
    "",
    "infected, reported",
    "right label",
    'infected, "cannot tell"',
    "clean, reported",
    'clean, "cannot tell"',
    "AUROC",
]


def scans() -> str:
    """Return how often the scan was right, on each set of models."""
    sets = [
        Models("the same but for one threshold: digits, four architectures", NOW.files),
        Models("the scan with today's thresholds: CIFAR-10 and GTSRB", PHOTOGRAPHS.files),
        Models("before the last two thresholds: digits, four architectures", ("scan_second_held_out_digits",)),
        Models("before `universal_patch`: digits, four architectures", ("scan_held_out_digits",)),
        Models("an earlier scan: digits, four architectures", ("scan_digits_judge",)),
        Models("the earlier scan: digits and CIFAR-10", ("scan_zoo_judge",)),
        Models("the earlier scan, on models that thresholds were chosen on", ("scan_zoo_choose",)),
        Models("version 0.1.0: digits, WRN, 10 %", ("scan_digits",)),
        Models("version 0.1.0: CIFAR-10, WRN, 10 %", ("scan_cifar10",)),
        Models("version 0.1.0: CIFAR-10, WRN, 1 %", ("scan_cifar10_1_percent",)),
    ]
    return as_table(HEADER, [verdicts(models.title, models()) for models in sets])


def groups() -> str:
    """Return how often the scan as it is was right, by architecture and by poisoning ratio."""
    every = NOW()
    lines = [
        verdicts(title, [row for row in every if row["architecture"].startswith(name)])
        for name, title in ARCHITECTURES.items()
    ]
    for rate in sorted({row["rate"] for row in every if row["rate"]}):
        lines.append(verdicts(f"{100 * rate:g} % poisoned", [row for row in every if row["rate"] == rate]))
    return as_table(HEADER, lines)


def photographs() -> str:
    """Return what the scan said of each model of photographs."""
    lines = []
    for row in PHOTOGRAPHS():
        attack, comma, labels = row["kind"].partition(",")
        clean = row["kind"] == "clean"
        kind = "clean" if clean else f"{ATTACKS[attack]}{comma}{labels}, {100 * row['rate']:g} %"
        data, model = row["model"].split("-")[:2]
        architecture = next(title for name, title in ARCHITECTURES.items() if model.startswith(name))
        accused = ", ".join(map(str, row["targets"]))
        right = accused and (f"{accused}, the attacker's" if row["label_right"] else f"{accused}, another one")
        scores = percent([row["scores"]["acc"]]) + ("" if clean else f" / {percent([row['scores']['asr']])}")
        name = f"{DATA[data]}, {architecture}, {kind}"
        lines.append([name, scores, row["verdict"], right, f"{row['score']:.2f}", f"{row['seconds']:.0f}"])
    return as_table(["model", "ACC / ASR", "verdict", "label", "score", "seconds"], lines)


def mistakes() -> str:
    """Return the models on which the scan as it is does not give the right verdict, but for doubts about clean ones."""
    lines = []
    for row in NOW():
        clean = row["kind"] == "clean"
        if (row["verdict"] == "infected") != clean:
            continue
        architecture = next(title for name, title in ARCHITECTURES.items() if row["architecture"].startswith(name))
        attack, comma, labels = row["kind"].partition(",")
        kind = "clean" if clean else f"{ATTACKS[attack]}{comma}{labels}, {100 * row['rate']:g} %"
        asr = "" if clean else f"{100 * row['scores']['asr']:.0f}"
        detector, highest = max(row["evidence"].items(), key=lambda entry: decisive(*entry))
        right = "" if clean else (", the attacker's" if first_is_right(row, detector) else ", another one")
        label = f"{highest['label']}{right}"
        lines.append([f"{architecture}, {kind}", asr, row["verdict"], f"{row['score']:.2f}", f"`{detector}`", label])
    return as_table(["model", "ASR", "verdict", "score", "of", "its label or shift"], lines)


def decisive(detector: str, evidence: Row) -> float:
    """Return the score of evidence that decides; others take part in the agreement."""
    together = detector.startswith(("margin_", "last_layer", "latent_shift"))
    return -1.0 if together else evidence["score"]


PAGES = Path(__file__).resolve().parents[1] / "detectors"
TABLES: dict[str, Callable[[], str]] = {
    **{page.stem: partial(detected, page.stem) for page in sorted(PAGES.glob("*.md"))},
    "last_layer_others": last_layer_others,
    "scans": scans,
    "scan_groups": groups,
    "scan_mistakes": mistakes,
    "scan_photographs": photographs,
}
