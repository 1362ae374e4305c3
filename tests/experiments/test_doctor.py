"""`art-aft doctor`: what it says of the machine is the machine's, and its estimate is of work that is really done."""

import json
import os
from importlib.metadata import version

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES, SHAPE, TinyNet, train

from art_aft import AutomaticFineTuning, BackdoorScan
from art_aft.classifiers.classifier import build_classifier
from art_aft.cli import main as cli
from art_aft.data.datasets import digits
from art_aft.experiments import doctor
from art_aft.training.recipe import Recipe


class Counted(torch.nn.Module):
    """A small network that counts the images for which it is asked for gradients, by its mode."""

    seen = {True: 0, False: 0}

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(256, 10)

    def forward(self, x):
        Counted.seen[self.training] += len(x) * torch.is_grad_enabled()
        return self.fc(x.flatten(1))


@pytest.fixture
def linear():
    """A clean linear classifier of digits, and 300 images."""
    data = digits(seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = build_classifier(Counted(), input_shape=(1, 16, 16), nb_classes=10)
    train(classifier, data.x_train, data.y_train, Recipe(nb_epochs=3, batch_size=64, learning_rate=0.05))
    Counted.seen = {True: 0, False: 0}
    return classifier, data.x_test[:300], data.y_test[:300]


def test_the_work_of_a_scan_is_about_what_the_estimate_counts_on(linear):
    classifier, x, y = linear
    assert BackdoorScan(classifier)(x, y).verdict != "infected"
    assert doctor.SCAN_IMAGES / 2 < Counted.seen[False] < 2 * doctor.SCAN_IMAGES
    assert Counted.seen[True] == 0


def test_the_work_of_a_purification_is_about_what_the_estimate_counts_on(linear):
    classifier, x, y = linear
    defence = AutomaticFineTuning(classifier, horizontal_flip=False, max_accuracy_drop=1.0)
    defence(x, y=y)
    assert len(defence.report.trials) == 1
    assert doctor.STAGE_1_IMAGES / 1.5 < Counted.seen[False] < 1.5 * doctor.STAGE_1_IMAGES
    assert doctor.STAGE_2_IMAGES / 1.5 < Counted.seen[True] < 1.5 * doctor.STAGE_2_IMAGES


def test_a_speed_is_that_of_the_last_and_longest_run(monkeypatch):
    """By a clock that the work itself moves: 50 images a second, and the first step takes ten times as long."""
    now, runs = [0.0], []
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: now[0])

    def work(steps):
        now[0] += steps * 0.1 * (1 if runs else 10)
        runs.append(steps)
        return 5 * steps

    assert doctor._speed(work, 1.0) == pytest.approx(50)
    assert runs[:2] == [1, 1]
    assert runs[-1] * 0.1 >= 1.0
    assert sum(runs) * 0.1 < 3.0


def test_a_probe_really_runs():
    classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES)
    before = classifier.model.fc.weight.detach().clone()
    speeds = doctor.probe(classifier, 0.02)
    assert min(speeds.values()) > 0
    assert not torch.equal(before, classifier.model.fc.weight)


@pytest.fixture
def quick(monkeypatch):
    """The diagnosis of a network that takes no time."""
    whole = doctor.diagnosis
    monkeypatch.setattr(doctor, "NETWORK", TinyNet(nb_classes=10))
    monkeypatch.setattr("art_aft.cli.doctor.diagnosis", lambda: {**whole(0.01), "network": NETWORK})


NETWORK = {"model": "wrn-16-1", "input_shape": [3, 32, 32], "nb_classes": 10}


def test_the_command_says_what_there_is(quick, capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for package in ("torch", "numpy", "art-aft"):
        assert f"{package} " in printed
        assert version(package) in printed
    assert f"of {os.cpu_count()} cores" in printed
    assert "wrn-16-1 on images of 3x32x32 with 10 labels" in printed
    for name in ("images", "keras", "plots"):
        assert f"\n  {name} " in printed


def test_its_json_has_the_same(quick, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    speeds, cost = found["probe"], found["estimate"]
    assert cost["scan_seconds"] == pytest.approx(doctor.SCAN_IMAGES / speeds["attacked_per_second"])
    assert found["memory"]["total"] is None or found["memory"]["total"] > 2**28
    assert found["precision"] in ("float32", "bfloat16")


def test_a_missing_extra_is_named_with_its_way(monkeypatch):
    monkeypatch.setattr(
        doctor, "requires", lambda _: ["numpy", 'numpy; extra == "plots"', 'nowhere>=2; extra == "plots"']
    )
    assert doctor.extras() == {"plots": {"numpy": np.__version__, "nowhere": None}}
    found = {
        "versions": {},
        "extras": doctor.extras(),
        "memory": {"total": None, "free": 2**30},
        "device": "cpu",
        "machine": "m",
        "threads": 1,
        "cores": 2,
        "precision": "float32",
        "network": NETWORK,
        "probe": {"attacked_per_second": 100.0, "trained_per_second": 50.0},
        "estimate": {"scan_seconds": 300.0, "purify_seconds": 30.0},
    }
    text = "\n".join(doctor.lines(found))
    assert f"numpy {np.__version__}; nowhere missing: pip install 'art-aft[plots]'" in text
    assert "unknown, 1.0 GiB of it free" in text
    assert "about 5 minutes" in text
    assert "about 30 seconds for each trial" in text
