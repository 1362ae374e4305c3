"""Defences side by side: the same data, the same number of settings tried, the same measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_aft.attacks.labels import LabelMap
from art_aft.checks import (
    at_most,
    check_callable,
    check_choice,
    check_flag,
    check_number,
    check_seed,
    check_sequence,
    naming,
)
from art_aft.classifiers.classifier import check_outputs, images_for, predict_labels
from art_aft.data.images import Images
from art_aft.defences import DEFENCES
from art_aft.defences.base import Defence
from art_aft.experiments.measurements import build_defence, run_defence, score, scores_row
from art_aft.experiments.rows import Row
from art_aft.experiments.warming import warm_up
from art_aft.metrics import evaluate
from art_aft.runtime.devices import PeakMemory

#: Takes a classifier and the keywords `seed` and `verbose`.
Factory = Callable[..., Defence]

LEARNING_RATES = (0.01, 0.03, 0.1)

#: The defences of the paper's comparison. Each has a learning rate to tune, and starts from clean data.
TUNABLE = ("aft", "fine_pruning", "fine_tuning", "nad", "neural_cleanse")


def compare(
    classifier: PyTorchClassifier,
    defences: Sequence[str] | Mapping[str, Factory],
    x_clean: np.ndarray,
    y_clean: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    attack: Any,
    labels: LabelMap,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    max_drop: float = 0.05,
    held_out: float = 0.1,
    seed: int = 0,
    verbose: bool = False,
    watch: Callable[[Row], None] | None = None,
) -> list[Row]:
    """
    Purify one infected classifier with several defences, and measure each.

    Every defence gets the same budget. It runs at each learning rate on a part of the clean data. Of the rates that
    cost at most `max_drop` of the accuracy on the held-out rest, the largest is chosen, because it forgets most; if
    there is none, the rate with the best held-out accuracy. Then the defence runs once on all clean data. The choice
    uses neither the trigger nor the test data.

    :param classifier: The infected classifier, which stays as it is.
    :param defences: Names of defences; or titles, and for each a callable that makes the defence from the classifier
        and the keywords `seed` and `verbose`, such as `functools.partial(FinePruning, nb_epochs=0)`.
    :param x_clean: The defender's images, in `clip_values`, of shape (N, *input_shape).
    :param y_clean: Their labels, as indices or one-hot.
    :param x_test: Test images.
    :param y_test: Their true labels.
    :param attack: ART's `PoisoningAttackBackdoor`, or a trigger.
    :param labels: The attacker's label for each true one.
    :param learning_rates: The rates to try. A single one is used without a trial. None at all leaves each defence its
        own.
    :param max_drop: The accuracy on held-out images that may be lost, as a share in [0, 1].
    :param held_out: The share of the clean data, in (0, 1), that is held out while rates are tried.
    :param seed: The seed of the held-out part and of the defences.
    :param verbose: Whether to show progress bars.
    :param watch: Called with each row when it is ready.
    :return: Rows, first that of the infected classifier ("none"). They have ACC, ASR, RA and DER as shares; the seconds
        and the peak memory, in bytes, of the last run; the seconds of the trials; the trials; what the defence itself
        chose; all settings.
    :raises ValueError: If a name is unknown, a number is out of its range or the data do not fit.
    """
    with naming(x="x_clean", y="y_clean"):
        images = images_for(classifier, x_clean, y_clean)
        check_outputs(classifier, images)
    check_seed("seed", seed)
    check_flag("verbose", verbose)
    if watch is not None:
        check_callable("watch", watch)
    _check_search(learning_rates, max_drop, held_out)
    factories = _factories(defences)
    test = (x_test, y_test, attack, labels)
    with naming(x="x_test", y="y_test"):
        before = evaluate(classifier, *test)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        if watch:
            watch(row)

    add({"defence": "none", **scores_row(before, before), "n_clean_images": len(images)})
    warm_up(classifier, images)
    for title, factory in tqdm(
        factories.items(), desc="Compare", unit="defence", disable=None if verbose else True, leave=False
    ):
        defence = factory(classifier, seed=seed, verbose=verbose)
        trials = _tune(defence, images, learning_rates, max_drop, held_out, seed)
        with PeakMemory(classifier.device) as memory:
            purified, facts = run_defence(defence, images)
        scores = score(purified, test, before)
        add({"defence": title, **scores, **facts, **trials, "peak_memory": memory.bytes, "n_clean_images": len(images)})
    return rows


def _check_search(learning_rates: Sequence[float], max_drop: float, held_out: float) -> None:
    """Check how learning rates are searched."""
    check_number("max_drop", max_drop, minimum=0.0, maximum=1.0)
    if check_number("held_out", held_out, minimum=0.0, maximum=1.0, above=True) == 1:
        raise ValueError("held_out: got 1, expected a share below 1")
    for rate in check_sequence("learning_rates", learning_rates):
        check_number("learning_rates", rate, minimum=0.0, above=True)


def _factories(defences: Sequence[str] | Mapping[str, Factory]) -> Mapping[str, Factory]:
    """Return what makes each defence, after a check of all names."""
    if isinstance(defences, Mapping):
        for title, factory in defences.items():
            check_callable(f"defences: {title}", factory)
        return defences
    for name in check_sequence("defences", defences):
        check_choice("defences", name, sorted(DEFENCES))
    return {name: partial(build_defence, name) for name in defences}


def _tune(defence: Defence, images: Images, rates: Sequence[float], max_drop: float, held_out: float, seed: int) -> Row:
    """Choose a defence's learning rate, if it has one; return the trials as a part of a row."""
    start = time.perf_counter()
    # A defence without a learning rate, such as "auto", searches for its settings by itself.
    rates = rates if "learning_rate" in defence.params else ()
    tried = _try_rates(defence, images, rates, held_out, seed)
    if rates:
        defence.set_params(learning_rate=_choose(tried, max_drop))
    return {"search_seconds": round(time.perf_counter() - start, 3), "tried": tried, "max_drop": max_drop}


def _try_rates(defence: Defence, images: Images, rates: Sequence[float], held_out: float, seed: int) -> list[Row]:
    """Return the held-out accuracy of the infected classifier (rate None) and after a run at each rate."""
    if len(rates) < 2:
        return [{"learning_rate": rate, "held_out_accuracy": None} for rate in rates]
    rest, held = images.hold_out(held_out, seed)

    def accuracy(classifier: PyTorchClassifier) -> float:
        return float(np.mean(predict_labels(classifier, held.pixels) == held.labels))

    tried: list[Row] = [{"learning_rate": None, "held_out_accuracy": accuracy(defence.classifier)}]
    for rate in rates:
        defence.set_params(learning_rate=rate)
        tried.append({"learning_rate": rate, "held_out_accuracy": accuracy(run_defence(defence, rest)[0])})
    return tried


def _choose(tried: Sequence[Row], max_drop: float) -> float:
    """Return the largest rate that keeps enough held-out accuracy, or the rate that keeps most."""
    runs = [run for run in tried if run["learning_rate"] is not None]
    if len(runs) == 1:
        return runs[0]["learning_rate"]
    whole = tried[0]["held_out_accuracy"]
    good = [run["learning_rate"] for run in runs if at_most(whole - run["held_out_accuracy"], max_drop)]
    return max(good) if good else max(runs, key=lambda run: run["held_out_accuracy"])["learning_rate"]
