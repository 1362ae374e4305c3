"""Outputs that are NaN have no label: they are no success, no right answer, and no accepted purification."""

import json
import logging

import numpy as np
import pytest
import torch
from helpers import SHAPE, linear_classifier, tiny_classifier, tiny_data
from quick_defences import quick

from art_aft import BackdoorScan, evaluate
from art_aft.adversarial.inversion_recipe import InversionRecipe
from art_aft.adversarial.patches import find_patches
from art_aft.adversarial.perturbation_sets import easiest_labels
from art_aft.adversarial.universal import targeted_success
from art_aft.attacks.labels import AllToOne
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier, images_for, predict_labels
from art_aft.cli import main as cli
from art_aft.defences import FineTuning
from art_aft.detection.suspicion import reached_first

FEW_STEPS = {"reversed_trigger": InversionRecipe(steps=30, images_per_step=40)}


class OverflowsAt(torch.nn.Module):
    """A linear model that adds a number to one logit of images with a bright first pixel."""

    def __init__(self, value, label=0, nb_classes=12):
        super().__init__()
        self.layer = torch.nn.Linear(int(np.prod(SHAPE)), nb_classes, bias=False)
        weights = np.random.default_rng(3).normal(size=(nb_classes, int(np.prod(SHAPE)))) * 0.3
        self.layer.weight.data = torch.from_numpy(weights.astype(np.float32))
        self.register_buffer("value", torch.zeros(nb_classes))
        self.value[label] = value

    def forward(self, x):
        bright = x[:, 0, 0, 0] > 0.9
        return self.layer(x.flatten(1)) + torch.where(bright[:, None], self.value, torch.zeros_like(self.value))


def given(model, nb_classes=12):
    """A classifier, and images without a bright first pixel that it gets right."""
    classifier = build_classifier(model, input_shape=SHAPE, nb_classes=nb_classes)
    x = np.random.default_rng(4).uniform(0.2, 0.8, (120, *SHAPE)).astype(np.float32)
    return classifier, images_for(classifier, x, predict_labels(classifier, x))


def bright_pixel(nb_classes=12):
    """One perturbation for each label, all the same: the first pixel becomes bright."""
    added = np.zeros((nb_classes, *SHAPE), np.float32)
    added[:, 0, 0, 0] = 1
    return added


@pytest.mark.parametrize("label", [0, 5])
def test_a_perturbation_that_leads_to_nan_leads_to_no_label(label):
    classifier, images = given(OverflowsAt(np.nan, label))
    assert predict_labels(classifier, np.clip(images.pixels + bright_pixel()[0], 0, 1)).tolist() == [-1] * 120
    assert targeted_success(classifier, images, bright_pixel(), range(12)).tolist() == [0] * 12
    assert reached_first(classifier, images, [bright_pixel()]) is None


def test_a_patch_that_leads_to_nan_leads_to_no_label():
    model = OverflowsAt(np.nan)
    model.forward = lambda x: model.layer(x.flatten(1)) * torch.where(x.amax(dim=(1, 2, 3)) > 0.9, np.nan, 1.0)[:, None]
    classifier, images = given(model)
    found = find_patches(classifier, images, 3, precision="float32")
    shown = np.clip(images.pixels + found.as_perturbations(SHAPE, (0, 1))[0], 0, 1)
    assert (predict_labels(classifier, shown) == -1).any()
    assert found.success[0] < 0.5


@pytest.mark.parametrize("value", [1e4, 1e35, np.inf])
def test_a_logit_that_overflows_ranks_first_and_not_last(value):
    classifier, images = given(OverflowsAt(value, label=5))
    assert easiest_labels(classifier, images, bright_pixel())[0] == 5
    assert reached_first(classifier, images, [bright_pixel()]) == 5


@pytest.mark.parametrize("target", [0, 1])
def test_a_model_that_returns_nan_is_right_nowhere_and_obeys_no_trigger(target, caplog):
    classifier = linear_classifier(np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32))
    x, y = tiny_data(20)
    with torch.no_grad():
        classifier.model[1].weight.fill_(np.nan)
    with caplog.at_level(logging.WARNING):
        scores = evaluate(classifier, x, y, lambda x: x, AllToOne(target))
    assert (scores.acc, scores.asr, scores.ra) == (0, 0, 0)
    assert "outputs are NaN for 20 of 20 images" in caplog.text


@pytest.mark.parametrize("name", ["fine_tuning", "auto"])
def test_training_that_diverged_is_said_and_not_accepted(name):
    # Nearly all images are of class 0, the label that argmax finds in NaN.
    x, y = tiny_data(40)
    y = np.where(np.arange(40) % 10 == 0, y, 0)
    classifier = tiny_classifier()
    ruin = {"eps": 1.0, "max_iter": 1, "nb_epochs": 1, "label_epochs": 1, "temperature": 0.0, "learning_rate": 1e30}
    own = {"learning_rate": 1e30} if name == "fine_tuning" else {"candidates": (ruin,)}
    defence = quick(name, classifier, **own)
    purified = defence(x, y=y)
    assert not np.isfinite(purified.predict(x)).all()
    assert not defence.report.finite
    assert not defence.report.accepted
    assert any("diverged: weights are NaN or infinite" in note for note in defence.report.notes)
    assert not any(trial.accepted for trial in getattr(defence.report, "trials", ()))


def test_the_shell_writes_no_model_of_nan(infected, tmp_path, capsys):
    storage.save(tmp_path / "suspect", infected.classifier, "wrn-10-1")
    order = np.argsort(infected.y, kind="stable")
    kept = np.concatenate([order[infected.y[order] == label][: 12 if label == 0 else 1] for label in range(10)])
    np.savez(tmp_path / "clean.npz", x=infected.x[kept], y=infected.y[kept])
    arguments = ["purify", str(tmp_path / "suspect"), "--data", str(tmp_path / "clean.npz"), "--quiet"]
    arguments += ["--output", str(tmp_path / "out"), "--defence", "fine_tuning", "--max-accuracy-drop", "1"]
    assert cli.main([*arguments, "--set", "learning_rate=1e30", "nb_epochs=2"]) == 1
    assert "diverged" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["accepted"], report["finite"]) == (False, False)
    assert "training diverged" in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize("name", ["universal", "universal_patch", "universal_sparse", "reversed_trigger"])
def test_nan_outside_the_clean_images_is_no_evidence_of_a_backdoor(name):
    classifier, images = given(OverflowsAt(0.0, nb_classes=4), nb_classes=4)
    inner = classifier.model.forward
    classifier.model.forward = lambda x: inner(x) * torch.where(x.amax(dim=(1, 2, 3)) > 0.9, np.nan, 1.0)[:, None]
    (evidence,) = BackdoorScan(classifier, detectors=[name], settings=FEW_STEPS)(images).evidence
    assert evidence.label != 0 or evidence.score < 1


def test_finite_weights_are_said_to_be(infected):
    defence = FineTuning(infected.classifier, nb_epochs=1)
    defence(infected.x[:40], y=infected.y[:40])
    assert defence.report.finite
