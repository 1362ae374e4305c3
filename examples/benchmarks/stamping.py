"""
Measure the images per second of each trigger, as ratios within one run: to a plain copy of the batch, to ART's image
insertion, and for WaNet to torch's sampling alone.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from art.attacks.poisoning.perturbations import add_pattern_bd, insert_image
from PIL import Image

from art_aft.attacks import TRIGGERS
from art_aft.cli.options import command_line
from art_aft.experiments.rows import write_record


def seconds(function, x):
    start = time.perf_counter()
    function(x)
    return time.perf_counter() - start


def measure(function, reference, x, repeats):
    """
    Return the median and the spread of paired ratios function / reference, and the function's images a second.

    There are `repeats` pairs, or as many as fit into twenty seconds, but at least three.
    """
    function(x), reference(x)
    pairs, end = [], time.perf_counter() + 20
    while len(pairs) < repeats and (len(pairs) < 3 or time.perf_counter() < end):
        pairs.append((seconds(function, x), seconds(reference, x)))
    ratios = sorted(own / other for own, other in pairs)
    rate = len(x) / statistics.median(own for own, _ in pairs)
    return statistics.median(ratios), ratios[0], ratios[-1], rate


def sampling(trigger, x):
    """Return torch's part of WaNet's work as a function from a batch to the warped batch."""
    grid = torch.from_numpy(trigger.grid(*x.shape[2:]).astype(x.dtype))

    def warp(x):
        images = torch.from_numpy(x)
        grids = grid.expand(len(x), -1, -1, -1)
        return torch.nn.functional.grid_sample(images, grids, padding_mode="zeros", align_corners=True).numpy()

    return warp


def insertion(folder):
    """Return ART's image insertion with the patch of BadNets, in the layout that it needs."""
    path = Path(folder) / "patch.png"
    Image.fromarray(np.array([[0, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=np.uint8)).save(path)
    return lambda x: insert_image(x, str(path), channels_first=True, random=False, x_shift=29, y_shift=29, mode="RGB")


def table(count, repeats):
    """Yield a row for each trigger and each function that it is compared with, on `count` images at a time."""
    x = np.random.default_rng(0).random((count, 3, 32, 32), dtype=np.float32)
    cases = {name: make() for name, make in TRIGGERS.items()}
    # ART's own patch is the nearest that ART has.
    others = {"art add_pattern_bd": lambda x: add_pattern_bd(x, channels_first=True), "copy": np.copy}
    with tempfile.TemporaryDirectory() as folder:
        references = {"copy": np.copy, "insert_image": insertion(folder), "grid_sample": sampling(cases["wanet"], x)}
        for name, trigger in {**cases, **others}.items():
            than = ["copy"] * (name != "copy") + ["insert_image"] + ["grid_sample"] * (name == "wanet")
            for reference in than:
                ratio, least, greatest, rate = measure(trigger, references[reference], x, repeats)
                yield {
                    "trigger": name,
                    "images": count,
                    "images_per_second": rate,
                    "than": reference,
                    "times_as_long": ratio,
                    "range": [least, greatest],
                }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[128, 2000], help="number of images at a time")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    rows = []
    print(f"{'trigger':<20} {'images':>7} {'images/s':>12} {'than':>14} {'times as long':>14} {'from':>9} {'to':>9}")
    for count in options.images:
        for row in table(count, options.repeats):
            rows.append(row)
            spread = "{:9.4f} {:9.4f}".format(*row["range"])
            print(
                f"{row['trigger']:<20} {count:7d} {row['images_per_second']:12.0f} {row['than']:>14} "
                f"{row['times_as_long']:14.4f} {spread}"
            )
    if options.output:
        write_record(
            options.output, rows, command=command_line(__file__, options), shape=[3, 32, 32], repeats=options.repeats
        )


if __name__ == "__main__":
    main()
