"""What is installed, what the machine has, and what a scan and a purification would cost here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from packaging.requirements import Requirement

from art_aft.adversarial.universal import universal_perturbations
from art_aft.checks import check_number
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.experiments.rows import Row, environment
from art_aft.runtime.devices import has_bfloat16_units
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

#: What the probe, and the estimates made of it, are about.
NETWORK, SHAPE, NB_CLASSES = "wrn-16-1", (3, 32, 32), 10

#: Images that pass forward and backward, counted with ten labels and 300 clean images of digits: in a scan of effort
#: "normal" that finds nothing, and in a purification by "auto" whose first trial is accepted, there in both
#: searches for perturbations and in Stage 2. They are work, and not time; tests/experiments/test_doctor.py counts them
#: again.
SCAN_IMAGES, STAGE_1_IMAGES, STAGE_2_IMAGES = 285_000, 100_000, 48_000


def diagnosis(seconds: float = 1.0) -> Row:
    """
    Return what `art-aft doctor` shows, as values that JSON knows.

    :param seconds: How long each of the two probes runs at least, above 0.
    """
    check_number("seconds", seconds, minimum=0.0, above=True)
    classifier = build_classifier(NETWORK, input_shape=SHAPE, nb_classes=NB_CLASSES)
    speeds = probe(classifier, seconds)
    stage_1, stage_2 = (speeds[name] for name in ("attacked_per_second", "trained_per_second"))
    return {
        **environment(),
        "extras": extras(),
        "cores": os.cpu_count(),
        "memory": memory(classifier.device),
        "precision": "bfloat16" if has_bfloat16_units(classifier.device) else "float32",
        "network": {"model": NETWORK, "input_shape": list(SHAPE), "nb_classes": NB_CLASSES},
        "probe": speeds,
        "estimate": {
            "scan_seconds": SCAN_IMAGES / stage_1,
            "purify_seconds": STAGE_1_IMAGES / stage_1 + STAGE_2_IMAGES / stage_2,
        },
    }


def extras() -> dict[str, dict[str, str | None]]:
    """Return the packages of each extra, by its name, with their versions; None is one that is missing."""
    found: dict[str, dict[str, str | None]] = {}
    for line in requires("art-aft") or []:
        needed = Requirement(line)
        for name in ("completion", "images", "keras", "plots"):
            # A marker such as `extra == "plots"` holds with that extra and not without one.
            marker = needed.marker
            if marker and marker.evaluate({"extra": name}) and not marker.evaluate({"extra": ""}):
                found.setdefault(name, {})[needed.name] = _version(needed.name)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def memory(device: torch.device) -> dict[str, int | None]:
    """
    Return the bytes of memory of the machine, or of the GPU, in all and free; None where the system does not tell.

    :param device: Where the work is done.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return {"total": total, "free": free}
    return {"total": _pages("SC_PHYS_PAGES"), "free": _pages("SC_AVPHYS_PAGES")}


def _pages(name: str) -> int | None:
    """Return the bytes of some pages of memory, by their name; None where the system does not know it."""
    if name not in getattr(os, "sysconf_names", {}):  # not on Windows, some not on macOS
        return None
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def probe(classifier: PyTorchClassifier, seconds: float) -> Row:
    """
    Measure how many images a second pass forward and backward here, in Stage 1 and in training.

    :param classifier: The classifier, which is trained.
    :param seconds: How long each of the two runs at least.
    """
    rng = np.random.default_rng(0)
    y = np.arange(64) % classifier.nb_classes
    images = images_for(classifier, rng.random((64, *classifier.input_shape), dtype=np.float32), y)

    def attack(steps: int) -> int:
        universal_perturbations(classifier, images, max_iter=steps, batch_size=len(images))
        return steps * len(images) * classifier.nb_classes

    def train(steps: int) -> int:
        recipe = Recipe(nb_epochs=steps, batch_size=len(images))
        fit(classifier, Batches(images, recipe, classifier.device), recipe)
        return steps * len(images)

    return {"attacked_per_second": _speed(attack, seconds), "trained_per_second": _speed(train, seconds)}


def _speed(work: Callable[[int], int], seconds: float) -> float:
    """Return how many images a second a function does, which is told the steps and returns the images."""
    work(1)  # the first step takes longer
    steps = 1
    while True:
        start = time.perf_counter()
        done = work(steps)
        took = time.perf_counter() - start
        if took >= seconds:
            return done / took
        # As many as should suffice by this measurement, but at least twice as many.
        steps = max(2 * steps, int(1.2 * steps * seconds / max(took, 1e-6)))


def lines(found: Row) -> list[str]:
    """
    Return a diagnosis as lines of text.

    :param found: What `diagnosis` returned.
    """
    gigabytes = {
        name: "unknown" if size is None else f"{size / 2**30:.1f} GiB" for name, size in found["memory"].items()
    }
    text = ["installed"]
    text += [f"  {name:<32} {number}" for name, number in found["versions"].items()]
    text.append("extras")
    for name, packages in found["extras"].items():
        missing = [package for package, number in packages.items() if number is None]
        has = ", ".join(f"{package} {number}" for package, number in packages.items() if number is not None)
        lacks = f"{', '.join(missing)} missing: pip install 'art-aft[{name}]'" if missing else ""
        text.append(f"  {name:<32} {'; '.join(part for part in (has, lacks) if part)}")
    text += [
        "machine",
        f"  {'device':<32} {found['device']} ({found['machine']})",
        f"  {'threads':<32} {found['threads']} of {found['cores']} cores",
        f"  {'precision auto':<32} {found['precision']}",
        f"  {'memory':<32} {gigabytes['total']}, {gigabytes['free']} of it free",
    ]
    return text + _cost(found)


def _cost(found: Row) -> list[str]:
    """Return the lines on what a run would cost."""
    network, speeds, cost = found["network"], found["probe"], found["estimate"]
    shape = "x".join(map(str, network["input_shape"]))
    return [
        f"what a run would cost here, by a probe of {network['model']} on images of {shape} with "
        f"{network['nb_classes']} labels, run just now",
        f"  {'images a second, Stage 1':<32} {speeds['attacked_per_second']:.0f}",
        f"  {'images a second, training':<32} {speeds['trained_per_second']:.0f}",
        f"  {'scan that finds nothing':<32} about {_time(cost['scan_seconds'])}",
        f"  {'purification':<32} about {_time(cost['purify_seconds'])} for each trial",
        "  Both grow with the number of labels, the size of the images and that of the network. A scan that finds a "
        "backdoor ends earlier.",
    ]


def _time(seconds: float) -> str:
    """
    Return a duration in words.

    >>> _time(42.4), _time(600)
    ('42 seconds', '10 minutes')
    """
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
