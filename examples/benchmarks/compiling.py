"""
Measure whether torch.compile pays within one purification: how long it takes, how much faster steps are afterwards, and
after how many images it has saved as much time as it took. These are bare loops in the fastest precision; the one that
is not compiled uses what this package does instead (`folding`, `small_maps`). Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from art_aft.cli.options import command_line
from art_aft.experiments.rows import Row, write_record
from art_aft.models import build_model
from art_aft.runtime.devices import has_bfloat16_units
from art_aft.runtime.folding import fold_batch_norm
from art_aft.runtime.small_maps import SmallMaps

MODELS = ("wrn-16-1", "preactresnet-18")


def steps(model: torch.nn.Module, compiled: bool, batch_size: int, train: bool) -> Callable[[], None]:
    """Return a step of training, or of the gradient with respect to the pixels."""
    fast = has_bfloat16_units(torch.device("cpu"))
    model.train(train).requires_grad_(train)
    call: Callable[..., Any] = model if train or compiled else fold_batch_norm(model)
    call = torch.compile(call) if compiled else call
    x, y = torch.rand(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,))
    x = x.contiguous(memory_format=torch.channels_last) if fast else x
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4) if train else None

    def step() -> None:
        pixels = x.clone().requires_grad_(not train)
        ours = SmallMaps() if fast and not compiled else nullcontext()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast), ours:
            loss = torch.nn.functional.cross_entropy(call(pixels), y)
        if optimizer is None:
            torch.autograd.grad(loss, pixels)
        else:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def table(batch_size: int, repeats: int) -> Iterator[Row]:
    """Yield a row for each model and kind of step."""
    for name in MODELS:
        for train in (True, False):
            plain, other = (build_model(name, nb_classes=10).to(memory_format=torch.channels_last) for _ in range(2))
            eager = steps(plain, False, batch_size, train)
            compiled = steps(other, True, batch_size, train)
            eager()
            first = seconds(compiled) + seconds(compiled)
            pairs = [(seconds(eager), seconds(compiled)) for _ in range(repeats)]
            before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratios = [one / two for one, two in pairs]
            won = before - after
            yield {
                "model": name,
                "step": "training" if train else "gradient of the pixels",
                "batch_size": batch_size,
                "compile_seconds": first - 2 * after,
                "times_as_fast": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "pays_after_images": round(batch_size * (first - 2 * after) / won) if won > 0 else None,
            }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # compile again what an earlier run compiled
    rows = []
    for row in table(options.batch_size, options.repeats):
        rows.append(row)
        print(
            f"{row['model']:<16} {row['step']:<23} compiling {row['compile_seconds']:6.1f} s, then "
            f"{row['times_as_fast']:.2f} times as fast; pays after images: {row['pays_after_images']}",
            flush=True,
        )
        if options.output:
            write_record(options.output, rows, command=command_line(__file__, options), repeats=options.repeats)


if __name__ == "__main__":
    main()
