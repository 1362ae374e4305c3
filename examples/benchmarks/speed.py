"""
How fast the work is done, as ratios within one run: Stage 1, fine-tuning, matrix units, whole defences, precisions,
growing data.

Each ratio is taken of two runs one after the other, several times; the table shows the median and the range. Run it on
a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerMadryPGD
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import build_classifier, clone, predict_labels
from art_aft.cli.options import command_line
from art_aft.data.datasets import load
from art_aft.defences import DEFENCES, AdversarialFineTuning
from art_aft.experiments.report import write_record
from art_aft.experiments.victims import Infection, Row, Scene, plant
from art_aft.metrics import evaluate
from art_aft.runtime.devices import PeakMemory, has_bfloat16_units, images_at_a_time
from art_aft.training.loop import Recipe, fit
from art_aft.training.recipes import RECIPES

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
# Model, images for Stage 1, images for an epoch: enough for whole batches, few enough for ART's slowest.
ON_GPU = torch.cuda.is_available()
MODELS = (
    (("wrn-16-1", 2048, 5120), ("preactresnet-18", 2048, 5120))
    if ON_GPU
    else (("wrn-16-1", 256, 2560), ("preactresnet-18", 128, 512))
)
ART_TRAINER = "ART AdversarialTrainerMadryPGD"
IMAGES, SIDES = (1000, 5000, 25_000), (32, 64, 224)


def images(count: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth random images, 8 bits deep, and labels: their content does not matter for the speed."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((count, 3, 8, 8), dtype=np.float32))
    x = torch.cat(
        [torch.nn.functional.interpolate(part, size=(side, side)).mul(255).byte() for part in coarse.split(500)]
    )
    return x.numpy(), rng.integers(0, 10, count)


def new(model: str, side: int = 32) -> PyTorchClassifier:
    """Return a fresh classifier with an optimizer."""
    classifier = build_classifier(model, input_shape=(3, side, side), nb_classes=10)
    classifier.set_params(optimizer=torch.optim.SGD(classifier.model.parameters(), lr=0.01, momentum=0.9))
    return classifier


class Bare:
    """A copy of the model in the best precision and memory format that there is, without any library around it."""

    def __init__(self, classifier: PyTorchClassifier) -> None:
        self.low = has_bfloat16_units(classifier.device)
        self.model = clone(classifier).model.to(classifier.device)
        if self.low:
            self.model = self.model.to(memory_format=torch.channels_last)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.low):
            return self.model(x.contiguous(memory_format=torch.channels_last) if self.low else x).float()


def bare_attack(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
    """Projected gradient descent as a loop, on as many images at a time as the device likes."""
    call, batch_size = Bare(classifier), images_at_a_time(classifier.device, classifier.input_shape)
    call.model.eval().requires_grad_(False)
    for start in range(0, len(x), batch_size):
        clean = torch.from_numpy(x[start : start + batch_size]).to(classifier.device)
        truth = torch.from_numpy(y[start : start + batch_size]).to(classifier.device)
        adversarial = clean.clone()
        for _ in range(STEPS):
            adversarial.requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(call(adversarial), truth)
            (gradient,) = torch.autograd.grad(loss, adversarial)
            moved = adversarial.detach() + STEP * gradient.sign()
            adversarial = torch.clamp(clean + (moved - clean).clamp(-EPS, EPS), 0, 1).detach()
        adversarial.cpu().numpy()


def bare_epoch(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, batch_size: int = 128) -> None:
    """An epoch of stochastic gradient descent as a loop."""
    call = Bare(classifier)
    optimizer = torch.optim.SGD(call.model.train().parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    pixels, truth = torch.from_numpy(x).to(classifier.device), torch.from_numpy(y).to(classifier.device)
    for index in torch.randperm(len(x)).split(batch_size):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(call(pixels[index].float() / 255), truth[index]).backward()
        optimizer.step()


def seconds(work: Callable[[], Any]) -> float:
    """Return how long it takes, to the last kernel."""
    start = time.perf_counter()
    work()
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(own: Callable[[], Any], other: Callable[[], Any], repeats: int) -> Row:
    """Return how many times as fast `own` is."""
    own(), other()
    pairs = [(seconds(own), seconds(other)) for _ in range(repeats)]
    ratios = [theirs / ours for ours, theirs in pairs]
    return {
        "seconds": statistics.median(ours for ours, _ in pairs),
        "times_as_fast": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "repeats": repeats,
    }


def stage_1(options: argparse.Namespace) -> Iterator[Row]:
    """Ours against ART's, torchattacks' and a bare loop; the same steps on the same images."""
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
    """An epoch: ours against ART's fit as it comes, and a bare loop; no augmentation."""
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
                **paired(lambda own=own, x=x, y=y, r=recipe: fit(own, x, y, r), other, options.repeats),
            }


def matrix_rate(options: argparse.Namespace, side: int = 8192) -> Iterator[Row]:
    """Which share of what the device reaches in a large bfloat16 matrix product PreActResNet-18 keeps busy."""
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
        "epoch": (epoch * 3 * forward, lambda: fit(classifier, x, y, recipe)),
    }
    for name, (operations, work) in works.items():
        # As many products as one work takes, at least, so that their end is not all that is timed.
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


# Loaded once, not once for each defence.
data_set = cache(load)


def infected(options: argparse.Namespace) -> Scene:
    """Return a classifier with a BadNets backdoor, its data, and the defender's."""
    recipe = RECIPES["digits"] if options.data == "digits" else RECIPES["paper"]
    model, share = ("wrn-10-1", 0.1) if options.data == "digits" else ("wrn-16-1", 0.05)
    infection = Infection("badnets", data=options.data, model=model, clean_share=share, recipe=recipe)
    return plant(infection, dataset=data_set(options.data), store=options.store)


def madry(scene: Scene) -> None:
    """Run ART's adversarial trainer."""
    twin = clone(scene.classifier)
    twin.set_params(optimizer=torch.optim.SGD(twin.model.parameters(), lr=0.01, momentum=0.9))
    trainer = AdversarialTrainerMadryPGD(twin, nb_epochs=10, batch_size=128, eps=4 / 255, eps_step=1 / 255, max_iter=10)
    pixels = scene.x_clean.astype(np.float32) / 255 if scene.x_clean.dtype == np.uint8 else scene.x_clean
    trainer.fit(pixels, np.eye(10, dtype=np.float32)[scene.y_clean])


def one_defence(options: argparse.Namespace, name: str, preset: str | None) -> Row:
    """Run a defence, or ART's trainer, on an infected classifier, in a process of its own."""
    scene = infected(options)
    # What is loaded at the first call is nobody's cost.
    AdversarialFineTuning(scene.classifier, nb_epochs=1, clean_epochs=0)(scene.x_clean[:256], y=scene.y_clean[:256])

    def work() -> None:
        if name == ART_TRAINER:
            madry(scene)
        else:
            settings = {"preset": preset} if preset else {}
            DEFENCES[name](scene.classifier, mirror=scene.dataset.mirror, **settings)(scene.x_clean, y=scene.y_clean)

    with PeakMemory(scene.classifier.device) as memory:
        took = seconds(work)
    return {
        "what": "defence",
        "model": scene.infection.model,
        "data": Path(options.data).name,
        "than": f"{name}, preset {preset}" if preset else name,
        "images": len(scene.x_clean),
        "seconds": took,
        "peak_mebibytes": None if memory.bytes is None else round(memory.bytes / 2**20),
    }


def end_to_end(options: argparse.Namespace) -> Iterator[Row]:
    """Each defence as it comes, rivals also as their authors ran them, and ART's trainer; once, as ratios to AFT."""
    rivals = ("nad", "fine_tuning", "fine_pruning", "neural_cleanse")
    cases = [("aft", None), ("auto", None), *((name, preset) for name in rivals for preset in (None, "paper"))]
    first = None
    with tempfile.TemporaryDirectory() as folder:
        options = argparse.Namespace(**{**vars(options), "store": options.store or Path(folder)})
        infected(options)
        for name, preset in (*cases, (ART_TRAINER, None)):
            if ON_GPU:  # whose memory torch counts, whatever else the process has
                row = one_defence(options, name, preset)
            else:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    row = pool.submit(one_defence, options, name, preset).result()
            first = first or row["seconds"]
            yield {**row, "times_as_fast": row["seconds"] / first}


def precision(options: argparse.Namespace) -> Iterator[Row]:
    """What bfloat16 changes: adversarial success, ACC and ASR, beside what another seed changes."""
    scene = infected(options)
    for name, seed in (("float32", 0), ("float32", 1), ("bfloat16", 0), ("bfloat16", 1)):
        attack = TorchAttacksPGD(scene.classifier, precision=name, seed=seed)
        fallen = predict_labels(scene.classifier, attack.generate(scene.x_clean, scene.y_clean))
        defence = AdversarialFineTuning(scene.classifier, precision=name, seed=seed, mirror=scene.dataset.mirror)
        start = time.perf_counter()
        purified = defence(scene.x_clean, y=scene.y_clean)
        took = time.perf_counter() - start
        scores = evaluate(purified, scene.dataset.x_test, scene.dataset.y_test, scene.attack, scene.labels)
        yield {
            "what": "precision",
            "model": scene.infection.model,
            "data": Path(options.data).name,
            "precision": name,
            "seed": seed,
            "images": len(scene.x_clean),
            "adversarial_success": float(np.mean(fallen != scene.y_clean)),
            "acc": scores.acc,
            "asr": scores.asr,
            "seconds": took,
        }


def one_size(count: int, side: int, loader: bool) -> Row:
    """AFT with an epoch of each stage, on so many images of that side, in a process of its own."""
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
    """Time and memory over the number of images and over their side."""
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
    parser.add_argument("--store", type=Path, help="where models are kept")
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
