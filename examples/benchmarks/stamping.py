"""Images a second of each trigger, as a ratio to a plain copy of the batch and to ART's own image insertion."""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from art.attacks.poisoning.perturbations import add_pattern_bd

from art_aft.infection import environment
from art_aft.perturbations import PERTURBATIONS


def seconds(function, x):
    start = time.perf_counter()
    function(x)
    return time.perf_counter() - start


def measure(function, reference, x, repeats):
    """Return the median and the spread of paired ratios function / reference, and the function's images a second."""
    function(x), reference(x)
    pairs = [(seconds(function, x), seconds(reference, x)) for _ in range(repeats)]
    ratios = sorted(own / other for own, other in pairs)
    rate = len(x) / statistics.median(own for own, _ in pairs)
    return statistics.median(ratios), ratios[0], ratios[-1], rate


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    x = np.random.default_rng(0).random((options.images, 3, 32, 32), dtype=np.float32)
    cases = {name: make() for name, make in PERTURBATIONS.items()}
    # ART's patch, on the layout that it works on, as the nearest thing that ART has.
    cases["art add_pattern_bd"] = lambda x: add_pattern_bd(x, channels_first=True)
    rows = []
    print(f"{'trigger':<20} {'images/s':>12} {'times a copy':>14} {'from':>8} {'to':>8}")
    for name, trigger in cases.items():
        ratio, least, greatest, rate = measure(trigger, np.copy, x, options.repeats)
        rows.append({"trigger": name, "images_per_second": rate, "times_copy": ratio, "range": [least, greatest]})
        print(f"{name:<20} {rate:12.0f} {ratio:14.1f} {least:8.1f} {greatest:8.1f}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        facts = {"images": options.images, "shape": [3, 32, 32], "repeats": options.repeats, **environment()}
        options.output.write_text(json.dumps({"environment": facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
