"""What `speed.py` times: images, models, victims, bare loops and ART's trainer; and the ratio of two runs."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from art.defences.trainer import AdversarialTrainerMadryPGD
from art.estimators.classification import PyTorchClassifier

from art_aft.classifiers.classifier import build_classifier, clone, images_for
from art_aft.data.datasets import load
from art_aft.experiments.rows import Row
from art_aft.experiments.victims import Victim, VictimSettings, train_victim
from art_aft.runtime.devices import has_bfloat16_units, images_at_a_time
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe
from art_aft.training.recipes import RECIPES

ON_GPU = torch.cuda.is_available()
EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
# Model, number of images for Stage 1, number of images for an epoch: whole batches, but few enough for ART's slowest.
MODELS = (
    (("wrn-16-1", 2048, 5120), ("preactresnet-18", 2048, 5120))
    if ON_GPU
    else (("wrn-16-1", 256, 2560), ("preactresnet-18", 128, 512))
)


def images(count: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth random uint8 images, and labels. Their content does not matter for the speed."""
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
    """A copy of the model in the fastest precision and memory format of the device, without any library around it."""

    def __init__(self, classifier: PyTorchClassifier) -> None:
        self.low = has_bfloat16_units(classifier.device)
        self.model = clone(classifier).model.to(classifier.device)
        if self.low:
            self.model = self.model.to(memory_format=torch.channels_last)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.low):
            return self.model(x.contiguous(memory_format=torch.channels_last) if self.low else x).float()


def bare_attack(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
    """Run projected gradient descent as a loop, on as many images at a time as suits the device."""
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
    """Run an epoch of stochastic gradient descent as a loop."""
    call = Bare(classifier)
    optimizer = torch.optim.SGD(call.model.train().parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    pixels, truth = torch.from_numpy(x).to(classifier.device), torch.from_numpy(y).to(classifier.device)
    for index in torch.randperm(len(x)).split(batch_size):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(call(pixels[index].float() / 255), truth[index]).backward()
        optimizer.step()


def own_epoch(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, recipe: Recipe) -> None:
    """Run an epoch as this package does."""
    fit(classifier, Batches(images_for(classifier, x, y), recipe, classifier.device), recipe)


def seconds(work: Callable[[], Any]) -> float:
    """Return how long it takes, including the last kernel."""
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


# Loaded once, not once for each defence.
data_set = cache(load)


def badnets_victim(options: argparse.Namespace) -> Victim:
    """Return a victim of BadNets."""
    recipe = RECIPES["digits"] if options.data == "digits" else RECIPES["paper"]
    model, share = ("wrn-10-1", 0.1) if options.data == "digits" else ("wrn-16-1", 0.05)
    settings = VictimSettings("badnets", data=options.data, model=model, clean_share=share, recipe=recipe)
    return train_victim(settings, dataset=data_set(options.data), store=options.store)


def madry(victim: Victim) -> None:
    """Run ART's adversarial trainer."""
    twin = clone(victim.classifier)
    twin.set_params(optimizer=torch.optim.SGD(twin.model.parameters(), lr=0.01, momentum=0.9))
    trainer = AdversarialTrainerMadryPGD(twin, nb_epochs=10, batch_size=128, eps=4 / 255, eps_step=1 / 255, max_iter=10)
    pixels = victim.x_clean.astype(np.float32) / 255 if victim.x_clean.dtype == np.uint8 else victim.x_clean
    trainer.fit(pixels, np.eye(10, dtype=np.float32)[victim.y_clean])
