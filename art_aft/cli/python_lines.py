"""The lines of Python that do the same as a command: they stand in its report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pprint import pformat
from typing import Any

from art_aft.experiments.rows import Row
from art_aft.experiments.victims import VictimSettings


def scan_lines(options: argparse.Namespace, reference: Sequence[float]) -> str:
    """Return the lines for `art-aft scan` with these options, and scores of clean models."""
    settings = {"effort": options.effort, "seed": options.seed}
    settings |= {"reference": list(reference)} if reference else {}
    lines = [
        *_model_and_images(options),
        "from art_aft import BackdoorScan",
        "",
        f"report = BackdoorScan(classifier, {_keywords(settings)})(images)",
        "print(report.verdict, report.kind, report.targets)",
    ]
    return "\n".join(lines)


def purify_lines(options: argparse.Namespace, settings: Row) -> str:
    """Return the lines for `art-aft purify` with these options, and settings of the defence."""
    shown = {name: value for name, value in settings.items() if name != "verbose"}
    lines = [
        *_model_and_images(options),
        "from art_aft.experiments.measurements import build_defence",
        "",
        f"rest, held_out = images.hold_out({options.held_out!r}, {options.seed})",
        f"settings = {_mapping(shown)}",
        f"defence = build_defence({options.defence!r}, classifier, settings)",
        "purified = defence(rest)",
        "print(defence.report)",
    ]
    return "\n".join(lines)


def compare_lines(
    options: argparse.Namespace, settings: VictimSettings, defences: Mapping[str, Row], rates: Sequence[float]
) -> str:
    """Return the lines for `art-aft compare` with these options, by the settings of each defence."""
    lines = [
        "from functools import partial",
        "from pathlib import Path",
        "",
        "from art_aft.experiments.compare import compare",
        "from art_aft.experiments.measurements import build_defence",
        "from art_aft.experiments.victims import VictimSettings, clean_subset, train_victim",
        "from art_aft.training.recipe import Recipe",
        "",
        f"settings = {pformat(settings, width=100)}",
        f"victim = train_victim(settings, store=Path({str(options.store)!r}))",
        f"defences = {_mapping(defences)}",
        "made = {name: partial(build_defence, name, settings=own) for name, own in defences.items()}",
        "test = (victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels)",
        f"for subset in range({options.subsets}):",
        "    x, y = clean_subset(victim, subset)",
        f"    rates, seed = {tuple(rates)!r}, {options.seed} + subset",
        "    for row in compare(victim.classifier, made, x, y, *test, learning_rates=rates, seed=seed):",
        '        print(subset, row["defence"], row["acc"], row["asr"])',
    ]
    return "\n".join(lines)


def _model_and_images(options: argparse.Namespace) -> list[str]:
    """Return the lines that make `classifier` and `images`, as `open_model` and `read_images` do."""
    names = ("model", "input_shape", "nb_classes", "mean", "std", "match")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    lines = ["from pathlib import Path", ""]
    if options.data.suffix == ".npz":
        lines += ["from art_aft.data.array_files import read_npz"]
        read = [f"x, y = read_npz(Path({str(options.data)!r}))"]
    else:
        lines += [f"from art_aft.data.class_names import class_labels{', read_class_names' * bool(options.classes)}"]
        lines += ["from art_aft.data.datasets import labelled_images"]
        order = f", read_class_names(Path({str(options.classes)!r}))" if options.classes else ""
        size = f", size={tuple(options.resize)}" if options.resize else ""
        read = [
            f"x, y, folders = labelled_images({str(options.data)!r}{size})",
            f"y = class_labels(folders, classifier.nb_classes{order})[y]",
            "if classifier.input_shape[0] == 1 and (x == x[:, :1]).all():",
            "    x = x[:, :1].copy()  # a grey image has three equal channels in its file",
        ]
    opened = f"{options.path!r}{', ' * bool(given)}{_keywords(given)}"
    return [
        *lines,
        "from art_aft.classifiers.classifier import images_for",
        "from art_aft.classifiers.storage import open_classifier",
        "",
        f"classifier = open_classifier({opened})",
        *read,
        "images = images_for(classifier, x, y)",
        "",
    ]


def _keywords(values: Mapping[str, Any]) -> str:
    """Return keyword arguments as Python writes them."""
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _mapping(values: Mapping[str, Any]) -> str:
    """Return a mapping as Python writes it, an entry a line."""
    return "{\n" + "".join(f"    {name!r}: {value!r},\n" for name, value in values.items()) + "}"
