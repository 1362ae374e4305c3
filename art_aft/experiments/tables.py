"""Result rows as plain text tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from art_aft.experiments.paper import published
from art_aft.experiments.rows import Row

DEFENCE_TITLES = {
    "none": "before",
    "fine_tuning": "fine-tuning",
    "fine_pruning": "fine-pruning",
    "neural_cleanse": "Neural Cleanse",
    "nad": "NAD",
    "aft": "AFT",
    "aft_no_clean_data": "AFT without clean data",
    "universal_aft": "universal AFT",
    "auto": "universal AFT, automatic",
    "progressive_erasing": "progressive erasing",
}


def defence_title(name: str) -> str:
    """
    Return how a table names a defence.

    >>> defence_title("nad"), defence_title("mine"), defence_title("aft, Stage 2")
    ('NAD', 'mine', 'AFT, Stage 2')

    :param name: The name of a defence, perhaps followed by a comma and a variant of it.
    """
    defence, comma, variant = name.partition(", ")
    return DEFENCE_TITLES.get(defence, defence) + comma + variant


def text_table(rows: Sequence[Row]) -> str:
    """
    Return rows as a plain text table, in percent.

    :param rows: Result rows, ordered by attack.
    :return: One line a row, with a blank line between attacks. After a row with a scan, a line with the scan's result.
    """
    lines = [
        f"{'attack':<9} {'model':<14} {'ACC':>6} {'ASR':>6} {'RA':>6} {'adv->target':>12} {'seconds':>8}",
        "-" * 67,
    ]
    for index, row in enumerate(rows):
        if index and row["attack"] != rows[index - 1]["attack"]:
            lines.append("")
        shares = [100 * row[key] for key in ("acc", "asr", "ra", "adversarial_target_share")]
        lines.append(
            f"{row['attack']:<9} {defence_title(row['defence']):<14} {shares[0]:6.1f} {shares[1]:6.1f} "
            f"{shares[2]:6.1f} {shares[3]:12.1f} {row['seconds']:8.1f}"
        )
        if "scan" in row:
            scan = row["scan"]
            labels = f", label {', '.join(map(str, scan['targets']))}" if scan["targets"] else ""
            lines.append(f"{row['attack']:<9} {'scan':<14} {scan['verdict'] + labels:<34} {scan['seconds']:8.1f}")
    return "\n".join(lines)


def comparison_table(rows: Sequence[Row]) -> str:
    """
    Return rows of `compare` as a plain text table, in percent: mean and standard deviation over clean subsets.

    :param rows: Rows of one victim, with the key "victim".
    :return: One line a defence. It ends with the paper's figures if the paper has the same cell (Table II).
    """
    victim = rows[0]["victim"]
    in_paper = victim["data"] == "cifar10" and victim["labels"] == "all-to-one" and victim["rate"] == 0.1
    titles = {row["defence"]: defence_title(row["defence"]) for row in rows}
    width = max(16, *map(len, titles.values()))
    lines = [
        f"{'defence':<{width}} {'ACC':>11} {'ASR':>11} {'RA':>11} {'DER':>11} {'seconds':>8} {'MiB':>6} {'subsets':>8}"
        f"{'  paper ACC/ASR' if in_paper else ''}",
    ]
    lines.append("-" * len(lines[0]))
    for name, title in titles.items():
        own = [row for row in rows if row["defence"] == name]
        theirs = published.TABLE_2.get(name, {}).get(victim["attack"]) if in_paper else None
        lines.append(f"{title:<{width}} {_cells(own)}{f'  {theirs[0]:.2f}/{theirs[1]:.2f}' if theirs else ''}")
    return "\n".join(lines)


def _cells(rows: Sequence[Row]) -> str:
    """Return what a line shows of one defence: scores, seconds, memory and the number of rows."""
    shares = [mean_and_deviation([100 * row[key] for row in rows], " +-") for key in ("acc", "asr", "ra", "der")]
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    memory = [row["peak_memory"] / 2**20 for row in rows if row.get("peak_memory") is not None]
    return (
        f"{' '.join(f'{share:>11}' for share in shares)} {f'{np.mean(seconds):.1f}' if seconds else '':>8} "
        f"{f'{np.mean(memory):.0f}' if memory else '':>6} {len(rows):>8}"
    )


def mean_and_deviation(values: Sequence[float], between: str = " ±") -> str:
    """
    Return the mean of some numbers, and their standard deviation where there is more than one.

    >>> mean_and_deviation([80.0, 82.0, 84.0]), mean_and_deviation([80.0])
    ('82.0 ±2.0', '80.0')

    :param values: The numbers.
    :param between: What stands between the two.
    """
    return f"{np.mean(values):.1f}" + (f"{between}{np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
