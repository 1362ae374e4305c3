"""A killed training run goes on from its checkpoint, and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from art_aft.attacks import InputAware, WaNet
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import BatchPoisoning
from art_aft.classifiers.classifier import build_classifier
from art_aft.experiments import victims as infection
from art_aft.experiments.victims import Infection, plant
from art_aft.training.checkpoints import Checkpoint
from art_aft.training.loop import Recipe, fit

RNG = np.random.default_rng(0)
X, Y = RNG.random((48, 1, 8, 8)).astype(np.float32), RNG.integers(0, 3, 48)


class Dropping(torch.nn.Module):
    """A model with batch normalisation and dropout, which have state and randomness of their own."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5), torch.nn.Flatten()
        )
        self.last = torch.nn.Linear(4 * 36, 3)

    def forward(self, x):
        return self.last(self.layers(x))


def victim():
    torch.manual_seed(0)
    return build_classifier(Dropping(), input_shape=(1, 8, 8), nb_classes=3, device_type="cpu")


def weights(classifier):
    return torch.cat([value.flatten().double() for value in classifier.model.state_dict().values()])


class Killed(Exception):
    pass


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("per_batch", [False, True])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path, schedule, per_batch):
    recipe = Recipe(nb_epochs=5, batch_size=10, learning_rate=0.05, schedule=schedule, padding=1, mirror=True)
    hook = BatchPoisoning(WaNet(), AllToOne(0), rate=0.2, cover_ratio=1) if per_batch else None
    whole = victim()
    fit(whole, X, Y, recipe, each_batch=hook)

    def kill(epoch):
        if epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        fit(victim(), X, Y, recipe, each_batch=hook, checkpoint=tmp_path / "run", after_epoch=kill)
    resumed, epochs = victim(), []
    fit(resumed, X, Y, recipe, each_batch=hook, checkpoint=tmp_path / "run", after_epoch=epochs.append)
    assert epochs == [3, 4, 5]  # the third was not finished when the run ended
    assert torch.equal(weights(resumed), weights(whole))


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, second = victim(), victim()
    recipe = Recipe(nb_epochs=2, batch_size=16)
    fit(first, X, Y, recipe, checkpoint=tmp_path / "run")
    fit(second, X, Y, recipe, checkpoint=tmp_path / "run", after_epoch=lambda epoch: pytest.fail("trained again"))
    assert torch.equal(weights(second), weights(first))


@pytest.mark.parametrize(("recipe", "n"), [(Recipe(nb_epochs=3, batch_size=16), 48), (Recipe(batch_size=16), 40)])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, recipe, n):
    fit(victim(), X, Y, Recipe(nb_epochs=2, batch_size=16), checkpoint=tmp_path / "run")
    classifier = victim()
    before = weights(classifier)
    with pytest.raises(ValueError, match=r"checkpoint: got .*run of another run"):
        fit(classifier, X[:n], Y[:n], recipe, checkpoint=tmp_path / "run")
    assert torch.equal(weights(classifier), before)


def test_a_resumed_input_aware_run_takes_its_masks_from_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(infection, "MASK_STEPS", 4)
    recipe = Recipe(nb_epochs=3, batch_size=64, learning_rate=0.05)
    settings = Infection("input_aware", clean_share=0.8, recipe=recipe)
    write, passes, fit_masks = Checkpoint.write, [], InputAware._fit_masks

    def note(trigger, x, epochs, *others):
        passes.append(epochs)
        fit_masks(trigger, x, epochs, *others)

    def write_and_die(checkpoint, epoch):
        write(checkpoint, epoch)
        if epoch == 2:
            raise Killed

    monkeypatch.setattr(InputAware, "_fit_masks", note)
    whole = plant(settings, store=tmp_path / "whole")
    with monkeypatch.context() as killing:
        killing.setattr(Checkpoint, "write", write_and_die)
        with pytest.raises(Killed):
            plant(settings, store=tmp_path / "killed")
    resumed = plant(settings, store=tmp_path / "killed")
    assert passes == [4, 4, 0]
    assert resumed.seconds is None
    assert torch.equal(weights(resumed.classifier), weights(whole.classifier))
    (_, ours), (_, theirs) = resumed.attack.perturbation.state(), whole.attack.perturbation.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_kill_9_in_the_middle_of_a_command_changes_nothing_in_the_end(tmp_path):
    def command(store):
        words = "train --attack wanet --per-batch --cover-ratio 2 --model wrn-10-1 --recipe digits --epochs 6 --quiet"
        return [sys.executable, "-m", "art_aft", *words.split(), "--store", str(store)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, timeout=120, env=environment)
    started = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 100
    while not list((tmp_path / "killed").glob("*.checkpoint")) and time.monotonic() < deadline:
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert [file.suffix for file in (tmp_path / "killed").iterdir() if file.suffix != ".part"] == [".checkpoint"]
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, timeout=120, env=environment)
    files = [next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    again = subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, timeout=60, env=environment)
    assert b"ACC" in again.stdout
    assert list((tmp_path / "killed").glob("*.checkpoint")) == []
