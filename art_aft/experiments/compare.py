"""Defences side by side: the same data, the same number of tried settings, the same measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.attacks.labels import LabelMap
from art_aft.checks import check_integer, check_number
from art_aft.classifiers.classifier import check_classifier, check_data, predict_labels
from art_aft.defences import DEFENCES, Purification
from art_aft.experiments.victims import Row
from art_aft.metrics import Scores, defence_effectiveness, evaluate
from art_aft.runtime.devices import PeakMemory

Factory = Callable[..., Purification]

LEARNING_RATES = (0.01, 0.03, 0.1)

#: The defences that have a rate to be tuned; "auto" finds its settings by itself.
TUNABLE = tuple(sorted(name for name, kind in DEFENCES.items() if "learning_rate" in kind.params))


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

    Every defence gets the same budget: it is tried at each learning rate on a part of the clean data, and the largest
    rate that costs no more than `max_drop` of the accuracy on the held-out rest is taken (a larger rate forgets more);
    where none is that good, the one with the best held-out accuracy. Then it runs once on all clean data. Neither the
    trigger nor the test data have a say in it.

    :param classifier: The infected classifier, which stays as it is.
    :param defences: Names of defences, or titles and what makes each: a callable that takes the classifier and the
        keywords `seed` and `verbose`, such as `functools.partial(FinePruning, nb_epochs=0)`.
    :param x_clean: The defender's images, in `clip_values`, of shape (N, *input_shape).
    :param y_clean: Their labels, as indices or one-hot.
    :param x_test: Test images.
    :param y_test: Their true labels.
    :param attack: ART's `PoisoningAttackBackdoor`, or a bare perturbation.
    :param labels: What a triggered image should become.
    :param learning_rates: The rates that are tried; a single one is taken as it is; none leaves each defence its own.
    :param max_drop: The accuracy that may be lost on held-out images, as a share in [0, 1].
    :param held_out: The share of the clean data, in (0, 1), that is held out while rates are tried.
    :param seed: The seed of the held-out part and of the defences.
    :param verbose: Whether to show progress bars.
    :param watch: Called with each row when it is ready.
    :return: Rows, that of the infected classifier ("none") first: ACC, ASR, RA, DER as shares; the seconds and the
        peak memory, in bytes, of the last run; the seconds of the trials; what was tried, and what the
        defence itself chose; all settings.
    :raises ValueError: If a name is unknown, a number out of its range or the data do not fit.
    """
    check_classifier("classifier", classifier)
    x_clean, y_clean = check_data(classifier, x_clean, y_clean)
    check_number("max_drop", max_drop, minimum=0.0, maximum=1.0)
    check_integer("seed", seed, 0)
    if check_number("held_out", held_out, minimum=0.0, maximum=1.0, above=True) == 1:
        raise ValueError("held_out: got 1, expected a share below 1")
    for rate in learning_rates:
        check_number("learning_rates", rate, minimum=0.0, above=True)
    factories = defences if isinstance(defences, Mapping) else {name: DEFENCES[name] for name in defences}
    before = evaluate(classifier, x_test, y_test, attack, labels)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        if watch:
            watch(row)

    add({"defence": "none", **_shares(before, before), "n_clean_images": len(x_clean)})
    for title, factory in factories.items():
        defence = factory(classifier, seed=seed, verbose=verbose)
        start = time.perf_counter()
        # One without a rate, such as "auto", searches for itself when it is called.
        rates = learning_rates if "learning_rate" in defence.params else ()
        tried = _try_rates(defence, x_clean, y_clean, rates, held_out, seed)
        search_seconds = time.perf_counter() - start
        if rates:
            defence.set_params(learning_rate=_choose(tried, max_drop))
        start = time.perf_counter()
        with PeakMemory(classifier.device) as memory:
            purified = defence(x_clean, y=y_clean)
        seconds = time.perf_counter() - start
        after = evaluate(purified, x_test, y_test, attack, labels)
        add(
            {
                "defence": title,
                **_shares(before, after),
                "seconds": round(seconds, 3),
                "peak_memory": memory.bytes,
                "search_seconds": round(search_seconds, 3),
                "tried": tried,
                "max_drop": max_drop,
                "chosen": _words(defence.report.chosen or {}) if defence.report else {},
                "n_clean_images": len(x_clean),
                "settings": _words({k: v for k, v in defence.get_params().items() if k != "verbose"}),
            }
        )
    return rows


def _words(settings: Mapping[str, Any]) -> Row:
    """Return settings as JSON can say them."""
    return {key: str(value) if value is np.inf else value for key, value in settings.items()}


def _shares(before: Scores, after: Scores) -> Row:
    return {**asdict(after), "der": defence_effectiveness(before, after)}


def _try_rates(
    defence: Purification, x: np.ndarray, y: np.ndarray, rates: Sequence[float], held_out: float, seed: int
) -> list[Row]:
    """Return the held-out accuracy of the infected classifier (rate None) and after a run at each rate."""
    if len(rates) < 2:
        return [{"learning_rate": rate, "held_out_accuracy": None} for rate in rates]
    order = np.random.default_rng(seed).permutation(len(x))
    size = min(max(1, round(held_out * len(x))), len(x) - 1)
    shown, hidden = order[size:], order[:size]

    def accuracy(classifier: PyTorchClassifier) -> float:
        return float(np.mean(predict_labels(classifier, x[hidden]) == y[hidden]))

    tried: list[Row] = [{"learning_rate": None, "held_out_accuracy": accuracy(defence.classifier)}]
    for rate in rates:
        defence.set_params(learning_rate=rate)
        purified = defence(x[shown], y=y[shown])
        tried.append({"learning_rate": rate, "held_out_accuracy": accuracy(purified)})
    return tried


def _choose(tried: Sequence[Row], max_drop: float) -> float:
    """Return the largest rate that keeps held-out accuracy, or that which keeps most."""
    runs = [run for run in tried if run["learning_rate"] is not None]
    if len(runs) == 1:
        return runs[0]["learning_rate"]
    lowest = tried[0]["held_out_accuracy"] - max_drop - 1e-9
    good = [run["learning_rate"] for run in runs if run["held_out_accuracy"] >= lowest]
    return max(good) if good else max(runs, key=lambda run: run["held_out_accuracy"])["learning_rate"]
