"""The table of null distributions that the margins of clean models were compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import gamma

from art_aft.detection.statistics import grubbs_p_value
from measuring.rows import Row, as_table, rows

LEVELS = (0.1, 0.01)

# A model counts as infected where its attack works on this share of images.
WORKS = 0.5


def gamma_p_value(values: np.ndarray) -> float:
    """
    Return how likely the greatest of so many values of one gamma distribution is at least this large.

    The distribution has mean and variance of the other values, as in MM-BD, which fits it to them.
    """
    others = np.delete(values, values.argmax())
    variance = max(float(others.var(ddof=1)), 1e-12)
    shape, scale = others.mean() ** 2 / variance, variance / others.mean()
    return float(min(1.0, len(values) * gamma.sf(values.max(), shape, scale=scale)))


NULLS: dict[str, Callable[[np.ndarray], float]] = {
    "normal": grubbs_p_value,
    "log-normal": lambda values: grubbs_p_value(np.log(values)),
    "gamma": gamma_p_value,
}


def _p_value(row: Row, null: Callable[[np.ndarray], float]) -> float:
    """Return the p-value of a model's margins; one chosen of two axes counts twice."""
    looks = 2 if row["detector"] == "margin_profile" else 1
    return min(1.0, looks * null(np.array(row["margins"])))


def nulls() -> str:
    """Return how many clean models are below two p-values, and infected ones below one with the right label."""
    found = rows("margins")
    lines = []
    for detector in sorted({row["detector"] for row in found}):
        for name, null in NULLS.items():
            # Means over images may be negative. Such margins have no logarithm, and no gamma distribution.
            of = [row for row in found if row["detector"] == detector and (name == "normal" or min(row["margins"]) > 0)]
            clean = [row for row in of if not row["rate"]]
            infected = [row for row in of if row["rate"] and row["asr"] >= WORKS and row["labels"] == "all-to-one"]
            right = [row for row in infected if int(np.argmax(row["margins"])) == row["target"]]
            if not clean:
                continue
            below = [f"{sum(_p_value(row, null) <= level for row in clean)} of {len(clean)}" for level in LEVELS]
            seen = f"{sum(_p_value(row, null) <= LEVELS[-1] for row in right)} of {len(infected)}"
            lines.append([f"`{detector}`", name, *below, seen])
    header = ["detector", "null distribution", *(f"clean, p <= {level:g}" for level in LEVELS)]
    return as_table([*header, f"infected, right label, p <= {LEVELS[-1]:g}"], lines)


TABLES: dict[str, Callable[[], str]] = {"margin_nulls": nulls}
