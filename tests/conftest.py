"""Settings of every test, and the fixtures that several files share."""

import os
import sys
from textwrap import dedent

import pytest
import torch
from helpers import Infected, same_weights, train, weights, with_history

from art_aft.attacks import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison
from art_aft.classifiers.classifier import build_classifier
from art_aft.data.datasets import digits, split_clean
from art_aft.models import WideResNet
from art_aft.training.recipe import Recipe

# Many tests compare bit for bit, or call a model by hand on the processor. Set it to "0" to try the first GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Two threads that wait for each other on a busy machine can take fifty times as long as one.
torch.set_num_threads(1)


@pytest.fixture
def matrix_units(monkeypatch):
    """Have precision "auto" take this processor for one with bfloat16 units, whatever it is."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package: its code, and entry points into a registry, given as NAME = MODULE:OBJECT."""
    packages = set()

    def install(registry, package, code, *points):
        # What pip would write: the module, and the package's metadata with its entry points.
        (tmp_path / f"{package}.py").write_text(dedent(code))
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{registry.group}]", *points, ""]))
        monkeypatch.syspath_prepend(tmp_path)
        # As in a new process, in which no other package was looked for.
        monkeypatch.setattr(registry, "_own", dict(registry._own))
        monkeypatch.setattr(registry, "_loaded", False)
        packages.add(package)

    yield install
    for package in packages:
        sys.modules.pop(package, None)


@pytest.fixture(scope="session")
def infected():
    """For reading only, which is checked when the session ends: clone the classifier to change it."""
    data = digits(seed=0)
    clean, rest = split_clean(data.y_train, share=0.1, seed=0)
    poisoned = poison(data.x_train[rest], data.y_train[rest], BadNets(), AllToOne(0), rate=0.1, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WideResNet(10, 1, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with_history(model, optimizer, torch.from_numpy(data.x_train[:8]))
    classifier = build_classifier(model, input_shape=data.input_shape, nb_classes=10, optimizer=optimizer)
    recipe = Recipe(
        nb_epochs=15,
        batch_size=64,
        learning_rate=0.1,
        schedule="one_cycle",
        nesterov=True,
        weight_decay=1e-4,
        # Crops wider than those of the defences: else the victim may lose this backdoor to their crops alone.
        padding=2,
        precision="float32",
    )
    train(classifier, poisoned.x, poisoned.y, recipe)
    before = weights(classifier)
    yield Infected(classifier, data.x_train[clean], data.y_train[clean], data.x_test, data.y_test)
    assert same_weights(before, classifier), "a test changed the shared classifier"
