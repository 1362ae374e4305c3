"""
Measure speed as ratios within one run: Stage 1, fine-tuning, matrix units, whole defences, precisions, growing data.

Each ratio is that of two runs, one after the other, and is measured several times; the table shows the median and the
range. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescent
from timing import (
    EPS,
    MODELS,
    ON_GPU,
    STEP,
    STEPS,
    badnets_victim,
    bare_attack,
    bare_epoch,
    images,
    madry,
    new,
    own_epoch,
    paired,
    seconds,
)
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import clone, predict_labels
from art_aft.cli.options import command_line, preset_settings
from art_aft.defences import DEFENCES, AdversarialFineTuning
from art_aft.experiments.rows import Row, write_record
from art_aft.metrics import evaluate
from art_aft.runtime.devices import PeakMemory
from art_aft.training.recipe import Recipe

ART_TRAINER = "ART AdversarialTrainerMadryPGD"
IMAGES, SIDES = (1000, 5000, 25_000), (32, 64, 224)


def stage_1(options: argparse.Namespace) -> Iterator[Row]:
    """Compare ours with ART's, torchattacks' and a bare loop: the same steps on the same images."""
    for model, count, _ in MODELS:
        classifier, (x, y) = new(model), images(count)
        pixels, one_hot = x.astype(np.float32) / 255, np.eye(10, dtype=np.float32)[y]
        own = TorchAttacksPGD(classifier, eps=EPS, eps_step=STEP, max_iter=STEPS)
        theirs = ProjectedGradientDescent(
            classifier, eps=EPS, eps_step=STEP, max_iter=STEPS, batch_size=128, verbose=False
        )
        direct = torchattacks.PGD(classifier.model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)

        def torchattack(direct: Any = direct, pixels: np.ndarray = pixels, y: np.ndarray = y) -> None:
            for start in range(0, len(pixels), 128):
                part = slice(start, start + 128)
                direct(torch.from_numpy(pixels[part]), torch.from_numpy(y[part])).cpu().numpy()

        others = {
            "ART ProjectedGradientDescent": lambda theirs=theirs, p=pixels, h=one_hot: theirs.generate(p, h),
            "torchattacks": torchattack,
            "bare loop": lambda c=classifier, p=pixels, y=y: bare_attack(c, p, y),
        }
        for name, other in others.items():
            yield {
                "what": "stage 1",
                "model": model,
                "than": name,
                "images": count,
                **paired(lambda own=own, x=x, y=y: own.generate(x, y), other, options.repeats),
            }


def fine_tuning(options: argparse.Namespace) -> Iterator[Row]:
    """Compare our epoch with ART's fit with its defaults, and a bare loop; no augmentation."""
    for model, _, count in MODELS:
        classifier, (x, y) = new(model), images(count)
        pixels, one_hot = x.astype(np.float32) / 255, np.eye(10, dtype=np.float32)[y]
        recipe = Recipe(nb_epochs=1, batch_size=128, learning_rate=0.01)
        twin = clone(classifier)
        others = {
            "ART fit": lambda c=twin, p=pixels, h=one_hot: c.fit(p, h, batch_size=128, nb_epochs=1),
            "bare loop": lambda c=classifier, x=x, y=y: bare_epoch(c, x, y),
        }
        for name, other in others.items():
            own = clone(classifier)
            yield {
                "what": "epoch",
                "model": model,
                "than": name,
                "images": count,
                **paired(lambda own=own, x=x, y=y, r=recipe: own_epoch(own, x, y, r), other, options.repeats),
            }


def matrix_rate(options: argparse.Namespace, side: int = 8192) -> Iterator[Row]:
    """Measure PreActResNet-18's operations per second as a share of those of a large bfloat16 matrix product."""
    side, (model, count, epoch) = side if ON_GPU else side // 8, MODELS[1]
    classifier, (x, y) = new(model), images(epoch)
    device, recipe = classifier.device, Recipe(nb_epochs=1, batch_size=128, learning_rate=0.01)
    factor = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as one_pass, torch.no_grad():
        classifier.model(torch.zeros(1, *classifier.input_shape, device=device))
    forward = one_pass.get_total_flops()
    own = TorchAttacksPGD(classifier, eps=EPS, eps_step=STEP, max_iter=STEPS)
    # A backward pass costs as much as a forward one towards the activations, and again towards the weights.
    works = {
        "stage 1": (count * STEPS * 2 * forward, lambda: own.generate(x[:count], y[:count])),
        "epoch": (epoch * 3 * forward, lambda: own_epoch(classifier, x, y, recipe)),
    }
    for name, (operations, work) in works.items():
        # As many products as make one work's operations, so that more than the end of one is timed.
        products = max(1, operations // (2 * side**3))
        matrices = partial(lambda n: [factor @ factor for _ in range(n)], products)
        row = paired(work, matrices, options.repeats)
        rate = products * 2 * side**3 / (row["times_as_fast"] * row["seconds"])
        yield {
            "what": "matrices",
            "model": model,
            "than": f"bfloat16 matrix product of {side}, in {name}",
            "images": count if name == "stage 1" else epoch,
            "teraflops_of_matrices": rate / 1e12,
            **row,
            "times_as_fast": operations / row["seconds"] / rate,
            "range": [value * operations / (products * 2 * side**3) for value in row["range"]],
        }


def one_defence(options: argparse.Namespace, name: str, preset: str | None) -> Row:
    """Run a defence, or ART's trainer, on a victim, in a process of its own."""
    victim = badnets_victim(options)
    # The first call loads libraries; that is not part of any defence's time.
    AdversarialFineTuning(victim.classifier, nb_epochs=1, clean_epochs=0)(victim.x_clean[:256], y=victim.y_clean[:256])

    def work() -> None:
        if name == ART_TRAINER:
            madry(victim)
        else:
            flip = victim.dataset.horizontal_flip
            settings = {"horizontal_flip": flip, **preset_settings(name, preset)}
            DEFENCES[name](victim.classifier, **settings)(victim.x_clean, y=victim.y_clean)

    with PeakMemory(victim.classifier.device) as memory:
        took = seconds(work)
    return {
        "what": "defence",
        "model": victim.settings.model,
        "data": Path(options.data).name,
        "than": f"{name}, preset {preset}" if preset else name,
        "images": len(victim.x_clean),
        "seconds": took,
        "peak_mebibytes": None if memory.bytes is None else round(memory.bytes / 2**20),
    }


def end_to_end(options: argparse.Namespace) -> Iterator[Row]:
    """Run each defence with its defaults, rivals also with their paper's settings, and ART's trainer; ratios to AFT."""
    rivals = ("nad", "fine_tuning", "fine_pruning", "neural_cleanse")
    cases = [("aft", None), ("auto", None), *((name, preset) for name in rivals for preset in (None, "paper"))]
    first = None
    with tempfile.TemporaryDirectory() as folder:
        options = argparse.Namespace(**{**vars(options), "store": options.store or Path(folder)})
        badnets_victim(options)
        for name, preset in (*cases, (ART_TRAINER, None)):
            if ON_GPU:  # torch counts the memory of the GPU, whatever else the process has
                row = one_defence(options, name, preset)
            else:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    row = pool.submit(one_defence, options, name, preset).result()
            first = first or row["seconds"]
            yield {**row, "times_as_fast": row["seconds"] / first}


def precision(options: argparse.Namespace) -> Iterator[Row]:
    """Measure what bfloat16 changes in adversarial success, ACC and ASR, and what another seed changes."""
    victim = badnets_victim(options)
    for name, seed in (("float32", 0), ("float32", 1), ("bfloat16", 0), ("bfloat16", 1)):
        attack = TorchAttacksPGD(victim.classifier, precision=name, seed=seed)
        predicted = predict_labels(victim.classifier, attack.generate(victim.x_clean, victim.y_clean))
        flip = victim.dataset.horizontal_flip
        defence = AdversarialFineTuning(victim.classifier, precision=name, seed=seed, horizontal_flip=flip)
        start = time.perf_counter()
        purified = defence(victim.x_clean, y=victim.y_clean)
        took = time.perf_counter() - start
        scores = evaluate(purified, victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels)
        yield {
            "what": "precision",
            "model": victim.settings.model,
            "data": Path(options.data).name,
            "precision": name,
            "seed": seed,
            "images": len(victim.x_clean),
            "adversarial_success": float(np.mean(predicted != victim.y_clean)),
            "acc": scores.acc,
            "asr": scores.asr,
            "seconds": took,
        }


def one_size(count: int, side: int, loader: bool) -> Row:
    """Run AFT with an epoch of each stage, on `count` images of that side, in a process of its own."""
    (x, y), model = images(count, side), "wrn-16-1" if side < 224 else "resnet-18"
    classifier = new(model, side)
    AdversarialFineTuning(classifier, nb_epochs=1, clean_epochs=1)(x[:128], y=y[:128])
    with PeakMemory(classifier.device) as memory:
        defence = AdversarialFineTuning(classifier, nb_epochs=1, clean_epochs=1)
        if loader:
            data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
            took = seconds(lambda: defence(DataLoader(data, batch_size=128)))
        else:
            took = seconds(lambda: defence(x, y=y))
    return {
        "what": "size",
        "model": model,
        "from": "loader" if loader else "array",
        "images": count,
        "side": side,
        "seconds": took,
        "milliseconds_per_image": 1000 * took / count,
        "peak_mebibytes": None if memory.bytes is None else round(memory.bytes / 2**20),
        "times_float32_data": None if memory.bytes is None else memory.bytes / (4 * x.size),
    }


def sizes(options: argparse.Namespace) -> Iterator[Row]:
    """Measure time and memory over the number of images and over their side."""
    cases = [(count, 32, loader) for loader in (False, True) for count in IMAGES]
    cases += [(256, side, False) for side in SIDES[1:]]
    for case in cases if options.repeats > 1 else cases[:1]:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool.submit(one_size, *case).result()


PARTS = {
    "stage_1": stage_1,
    "fine_tuning": fine_tuning,
    "matrix_rate": matrix_rate,
    "end_to_end": end_to_end,
    "precision": precision,
    "sizes": sizes,
}


def show(row: Row) -> str:
    """Return a row as a line."""
    words = [f"{row['what']:<8} {row['model']:<16}"]
    if "than" in row:
        words.append(f"{row['times_as_fast']:8.2f} times as fast as {row['than']:<31}")
        words.append("from {:.2f} to {:.2f}".format(*row["range"]) if "range" in row else f"{row['seconds']:.1f} s")
    elif "precision" in row:
        shares = "  ".join(f"{key} {100 * row[key]:.2f}" for key in ("adversarial_success", "acc", "asr"))
        words.append(f"{row['precision']:<8} seed {row['seed']}  {shares}  {row['seconds']:.1f} s")
    else:
        words.append(
            f"{row['images']:>6} images of {row['side']:>3} pixels from {row['from']:<6} {row['seconds']:8.1f} s"
        )
        words.append(f"{row['milliseconds_per_image']:.2f} ms each")
    if row.get("peak_mebibytes") is not None:
        words.append(f"{row['peak_mebibytes']} MiB")
    return "  ".join(words)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help=f"some of: {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--data", default="digits", help="for end_to_end and precision: digits, or a folder with train.zip, test.zip"
    )
    parser.add_argument("--store", type=Path, help="the folder for models")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    rows = []
    for name in options.parts or PARTS:
        for row in PARTS[name](options):
            rows.append(row)
            print(show(row), flush=True)
            if options.output:
                write_record(options.output, rows, command=command_line(__file__, options, ["parts"]))


if __name__ == "__main__":
    main()
