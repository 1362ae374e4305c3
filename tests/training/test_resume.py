"""A killed training run goes on from its checkpoint, and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from art_aft.attacks import InputAware, WaNet, input_aware
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import BatchPoisoning
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.cli.main import main
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.runtime.callbacks import Callback
from art_aft.training.batches import Batches
from art_aft.training.checkpoints import Checkpoint
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

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


def untrained():
    torch.manual_seed(0)
    return build_classifier(Dropping(), input_shape=(1, 8, 8), nb_classes=3, device_type="cpu")


def train(classifier, recipe, *, n=48, transform=None, **settings):
    images = images_for(classifier, X[:n], Y[:n])
    fit(classifier, Batches(images, recipe, classifier.device, transform=transform), recipe, **settings)


def weights(classifier):
    return torch.cat([value.flatten().double() for value in classifier.model.state_dict().values()])


class Killed(Exception):
    pass


class Kill(Callback):
    """Ends the run at the end of an epoch, before its checkpoint is written."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch(self, epoch):
        if epoch == self.epoch:
            raise Killed


class Note(Callback):
    """Notes the epochs."""

    def __init__(self):
        self.epochs = []

    def on_epoch(self, epoch):
        self.epochs.append(epoch)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("per_batch", [False, True])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path, schedule, per_batch):
    recipe = Recipe(nb_epochs=5, batch_size=10, learning_rate=0.05, schedule=schedule, padding=1, l2_sp=0.5)
    transform = BatchPoisoning(WaNet(), AllToOne(0), rate=0.2, cover_ratio=1) if per_batch else None
    whole = untrained()
    train(whole, recipe, transform=transform)
    with pytest.raises(Killed):
        train(untrained(), recipe, transform=transform, checkpoint=tmp_path / "run", callbacks=[Kill(3)])
    resumed, note = untrained(), Note()
    train(resumed, recipe, transform=transform, checkpoint=tmp_path / "run", callbacks=[note])
    assert note.epochs == [3, 4, 5]  # the third was not finished when the run ended
    assert torch.equal(weights(resumed), weights(whole))


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, second, note = untrained(), untrained(), Note()
    recipe = Recipe(nb_epochs=2, batch_size=16)
    train(first, recipe, checkpoint=tmp_path / "run")
    train(second, recipe, checkpoint=tmp_path / "run", callbacks=[note])
    assert note.epochs == []
    assert torch.equal(weights(second), weights(first))


@pytest.mark.parametrize(("recipe", "n"), [(Recipe(nb_epochs=3, batch_size=16), 48), (Recipe(batch_size=16), 40)])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, recipe, n):
    train(untrained(), Recipe(nb_epochs=2, batch_size=16), checkpoint=tmp_path / "run")
    classifier = untrained()
    before = weights(classifier)
    with pytest.raises(ValueError, match=r"checkpoint: got .*run of another run"):
        train(classifier, recipe, n=n, checkpoint=tmp_path / "run")
    assert torch.equal(weights(classifier), before)


def test_a_resumed_input_aware_run_takes_its_masks_from_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(input_aware, "MASK_STEPS", 4)
    recipe = Recipe(nb_epochs=3, batch_size=64, learning_rate=0.05)
    small = {"base_width": 4, "levels": 1}
    settings = VictimSettings("input_aware", clean_share=0.8, recipe=recipe, trigger=small)
    write, passes, fit_masks = Checkpoint.write, [], InputAware._fit_masks

    def note(trigger, x, epochs, *others):
        passes.append(epochs)
        fit_masks(trigger, x, epochs, *others)

    def write_and_die(checkpoint, epoch):
        write(checkpoint, epoch)
        if epoch == 2:
            raise Killed

    monkeypatch.setattr(InputAware, "_fit_masks", note)
    whole = train_victim(settings, store=tmp_path / "whole")
    with monkeypatch.context() as killing:
        killing.setattr(Checkpoint, "write", write_and_die)
        with pytest.raises(Killed):
            train_victim(settings, store=tmp_path / "killed")
    resumed = train_victim(settings, store=tmp_path / "killed")
    assert passes == [4, 4, 0]
    assert resumed.seconds is None
    assert torch.equal(weights(resumed.classifier), weights(whole.classifier))
    (_, ours), (_, theirs) = resumed.attack.perturbation.state(), whole.attack.perturbation.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


KILLED_BEFORE_THE_THIRD_CHECKPOINT = """
import sys
from helpers import die_before_move
from art_aft.cli.main import main

die_before_move(3, ending=".checkpoint")
main(sys.argv[1:])
"""


def test_kill_9_in_the_middle_of_a_command_changes_nothing_in_the_end(tmp_path, capsys):
    words = "train --attack wanet --per-batch --cover-ratio 2 --model wrn-10-1 --recipe digits --epochs 4 --quiet"
    command = [*words.split(), "--clean-share", "0.8", "--store"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    program = [sys.executable, "-c", KILLED_BEFORE_THE_THIRD_CHECKPOINT, *command, str(tmp_path / "killed")]
    # As many threads as here: sums of several threads round otherwise.
    like_here = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(program, capture_output=True, env={**os.environ, **like_here})
    assert killed.returncode == -signal.SIGKILL
    assert sorted(file.suffix for file in (tmp_path / "killed").iterdir()) == [".checkpoint", ".part"]
    assert main([*command, str(tmp_path / "killed")]) == 0
    assert sorted(file.suffix for file in (tmp_path / "killed").iterdir()) == [".json", ".safetensors"]
    files = [next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    capsys.readouterr()
    assert main([*command, str(tmp_path / "killed")]) == 0
    assert "ACC" in capsys.readouterr().out
    assert list((tmp_path / "killed").glob("*.checkpoint")) == []
