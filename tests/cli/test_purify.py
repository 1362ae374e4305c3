"""`art-aft purify`, as an engineer with a suspect file and some clean images uses it."""

import json
import sys
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers import same_weights, weights
from safetensors.torch import save_file

from art_aft.attacks import BadNets
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import predict_labels
from art_aft.cli import main as cli
from art_aft.defences import FineTuning

UNIVERSAL = ["--defence", "universal_aft", "--preset", "distilled", "--no-horizontal-flip"]
UNIVERSAL += [
    "--set",
    "eps=1",
    "batch_size=32",
    "learning_rate=0.05",
    "padding=0",
    "temperature=0",
    "nb_epochs=20",
    "max_iter=4",
]


def to_zip(path, x, y):
    """Write images (N, 1, H, W) in [0, 1] as CLASS/FILE.png."""
    image = pytest.importorskip("PIL.Image")
    with zipfile.ZipFile(path, "w") as archive:
        for number, (pixels, label) in enumerate(zip(np.rint(255 * x[:, 0]).astype(np.uint8), y, strict=True)):
            buffer = BytesIO()
            image.fromarray(pixels).save(buffer, "png")
            archive.writestr(f"{label}/{number:04}.png", buffer.getvalue())


@pytest.fixture
def model(infected, tmp_path):
    facts = {"victim": {"data": "digits"}}
    storage.save(tmp_path / "suspect-0.1", infected.classifier, "wrn-10-1", trigger=BadNets(), facts=facts)
    return tmp_path / "suspect-0.1"


def purify(model, data, output, *arguments):
    return cli.main(["purify", str(model), "--data", str(data), "--output", str(output), "--quiet", *arguments])


def test_a_stored_model_loses_its_backdoor(infected, model, tmp_path, capsys):
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    before = (model.with_name(model.name + ".safetensors")).read_bytes()
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out" / "clean", *UNIVERSAL) == 0
    assert "written" in capsys.readouterr().out
    assert (model.with_name(model.name + ".safetensors")).read_bytes() == before
    stored = storage.load(tmp_path / "out" / "clean")
    scores = infected.scores(stored.classifier)
    assert scores.asr < 0.25
    assert scores.acc > 0.9
    assert stored.trigger is None
    report = json.loads((tmp_path / "out" / "clean.report.json").read_text())
    assert report == stored.facts
    assert (report["n_images"], report["n_held_out"]) == (108, 12)
    assert report["preset"] == "distilled"
    assert report["settings"]["sparse_share"] == 0  # the preset's
    assert report["settings"]["learning_rate"] == 0.05
    order = np.random.default_rng(0).permutation(120)[:12]
    right = predict_labels(stored.classifier, infected.x[order]) == infected.y[order]
    assert report["after"]["held_out_accuracy"] == pytest.approx(right.mean())
    for state in (report["before"], report["after"]):
        assert len(state["adversarial_labels"]) == 10
        assert sum(state["adversarial_labels"]) == pytest.approx(1) or state["adversarial_success"] == 0
    assert (tmp_path / "out" / "clean.png").read_bytes().startswith(b"\x89PNG")


def test_a_zip_of_class_folders_is_as_good_as_arrays(infected, model, tmp_path):
    to_zip(tmp_path / "clean.zip", infected.x, infected.y)
    # In the order of the zip, and as 8 bits hold the pixels.
    order = np.argsort(infected.y, kind="stable")
    np.savez(tmp_path / "clean.npz", x=np.rint(255 * infected.x[order]).astype(np.uint8), y=infected.y[order])
    for kind in ("zip", "npz"):
        assert purify(model, tmp_path / f"clean.{kind}", tmp_path / kind, *QUICK) == 0
    packed, arrays = (storage.load(tmp_path / kind) for kind in ("zip", "npz"))
    assert same_weights(packed.classifier, arrays.classifier)
    assert not same_weights(packed.classifier, infected.classifier)
    assert packed.facts["n_images"] == 108
    assert packed.facts["before"]["held_out_accuracy"] > 0.9


QUICK_SEARCH = "candidates=[{'eps': 0.6, 'max_iter': 3, 'learning_rate': 0.05}]"


def test_settings_are_found_by_default(infected, model, tmp_path):
    np.savez(tmp_path / "digits.npz", x=infected.x, y=infected.y)
    settings = ["--max-accuracy-drop", "0.2", "--set", "padding=1", "batch_size=32", "min_steps=20", QUICK_SEARCH]
    assert purify(model, tmp_path / "digits.npz", tmp_path / "out", *settings) == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["defence"] == "auto"
    assert report["settings"]["horizontal_flip"] is False  # digits
    assert report["settings"]["max_accuracy_drop"] == report["max_accuracy_drop"] == 0.2
    assert report["trials"][-1]["accepted"]
    assert infected.scores(storage.load(tmp_path / "out").classifier).acc > 0.6


def test_the_output_tells_if_no_setting_kept_the_accuracy(infected, model, tmp_path, capsys):
    np.savez(tmp_path / "digits.npz", x=infected.x[:60], y=infected.y[:60])
    ruin = "candidates=[{'eps': 1.0, 'max_iter': 2, 'learning_rate': 5.0, 'label_epochs': 1}]"
    arguments = ["--max-accuracy-drop", "0", "--set", ruin, "min_steps=2"]
    purify(model, tmp_path / "digits.npz", tmp_path / "out", *arguments)
    (trial,) = json.loads((tmp_path / "out.report.json").read_text())["trials"]
    assert not trial["accepted"]
    assert "the result is the one that lost least" in capsys.readouterr().out


@pytest.fixture
def flips(infected, monkeypatch):
    """Run `art-aft purify` without any work; return whether the defence would flip images, and what was printed."""

    def flips(model, data, output, *arguments):
        seen = []
        monkeypatch.setattr(FineTuning, "_purify", lambda self, *_: seen.append(self.horizontal_flip))
        data.parent.mkdir(parents=True, exist_ok=True)
        to_zip(data, infected.x, infected.y)
        assert purify(model, data, output, "--defence", "fine_tuning", *arguments) == 0
        return seen

    return flips


@pytest.mark.parametrize(
    ("facts", "arguments", "flipped"),
    [
        ({"victim": {"data": "digits"}}, [], False),
        ({"victim": {"data": "/data/GTSRB"}}, [], False),
        ({"victim": {"data": "/data/gtsrb-team/cifar10"}}, [], True),
        ({}, [], True),
        ({}, ["--no-horizontal-flip"], False),
        ({"victim": {"data": "digits"}}, ["--horizontal-flip"], True),
        ({"victim": {"data": "digits"}}, ["--set", "horizontal_flip=True"], True),
    ],
)
def test_flips_are_an_option_or_a_property_of_the_models_data_set(
    infected, tmp_path, capsys, flips, facts, arguments, flipped
):
    """And never one of the path of the clean images."""
    storage.save(tmp_path / "model", infected.classifier, "wrn-10-1", facts=facts)
    data = tmp_path / "gtsrb-team" / "cifar10" / "clean.zip"
    assert flips(tmp_path / "model", data, tmp_path / "out", *arguments) == [flipped]
    assert f"horizontal flips: {'yes' if flipped else 'no'}" in capsys.readouterr().out
    # The purified model still knows its data set.
    assert storage.load(tmp_path / "out").facts.get("victim") == facts.get("victim")


def test_settings_of_stage_1_reach_its_attack(infected, model, tmp_path):
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    settings = ["--set", "attack={'eps': 0.05, 'max_iter': 1}", "nb_epochs=1", "clean_epochs=0"]
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out", "--defence", "aft", *settings) == 0
    attack = json.loads((tmp_path / "out.report.json").read_text())["settings"]["attack"]
    assert (attack["class"], attack["eps"], attack["max_iter"]) == ("TorchAttacksPGD", 0.05, 1)


def test_too_much_accuracy_lost_means_status_1_and_no_model(infected, model, tmp_path, capsys):
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    ruin = ["--defence", "aft", "--set", "learning_rate=5.0", "nb_epochs=2", "clean_epochs=0"]
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out", *ruin) == 1
    assert "no model is written" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["accepted"] is False
    assert report["before"]["held_out_accuracy"] - report["after"]["held_out_accuracy"] > 0.1


def test_a_label_that_still_stands_out_means_status_1_and_no_model(infected, model, tmp_path, capsys):
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    idle = ["--set", "candidates=[{'nb_epochs': 0, 'temperature': 0.0, 'max_iter': 8}]", "min_steps=0"]
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out", *idle) == 1
    assert "label 0 still stands out" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["accepted"], report["remaining_label"]) == (False, 0)
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out", *idle, "look_again=False") == 0
    assert (tmp_path / "out.safetensors").exists()


ARCHITECTURE = ["--input-shape", "1", "16", "16", "--nb-classes", "10"]
QUICK = ["--defence", "fine_tuning", "--no-horizontal-flip", "--set", "nb_epochs=1", "padding=0"]


def test_a_state_dict_with_the_name_of_its_model(infected, tmp_path):
    torch.save(infected.classifier.model.state_dict(), tmp_path / "suspect.pth")
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    arguments = ["--model", "wrn-10-1", *ARCHITECTURE, *QUICK]
    assert purify(tmp_path / "suspect.pth", tmp_path / "clean.npz", tmp_path / "out", *arguments) == 0
    stored = storage.load(tmp_path / "out")
    assert stored.model == "wrn-10-1"
    assert not same_weights(stored.classifier, infected.classifier)
    assert infected.scores(stored.classifier).acc > 0.9


def test_a_state_dict_with_a_factory(infected, tmp_path, monkeypatch):
    (tmp_path / "their_model.py").write_text(
        "from art_aft.models import WideResNet\n\n\ndef make():\n    return WideResNet(10, 1, in_channels=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": infected.classifier.model.state_dict()}, tmp_path / "suspect.pt")
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    arguments = ["--model", "their_model:make", *ARCHITECTURE, *QUICK]
    assert purify("suspect.pt", "clean.npz", "out", *arguments) == 0
    assert sys.path[-1] == str(tmp_path)  # behind all installed modules
    again = storage.open_classifier("out.safetensors", model="their_model:make", input_shape=(1, 16, 16), nb_classes=10)
    assert not same_weights(again, infected.classifier)
    assert infected.scores(again).acc > 0.9


def test_without_a_factory_the_working_directory_is_no_place_for_modules(infected, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    assert purify(model, "clean.npz", "out", *QUICK) == 0
    assert not {"", str(tmp_path)} & set(sys.path)


def test_mean_and_deviation_are_part_of_the_model(infected, tmp_path):
    """The same network on images that were normalised: its first weights take the change back."""
    torch.save(infected.classifier.model.state_dict(), tmp_path / "suspect.pth")
    plain, normalised = (
        storage.open_classifier(
            tmp_path / "suspect.pth", model="wrn-10-1", input_shape=(1, 16, 16), nb_classes=10, **settings
        )
        for settings in ({}, {"mean": [0.25], "std": [0.5]})
    )
    x = infected.x_test[:20]
    np.testing.assert_allclose(normalised.predict(x), plain.predict((x - 0.25) / 0.5), atol=1e-4)


class Pickled:
    def __reduce__(self):
        return (open, ("pickle_was_run", "w"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a stored classifier"),
        (["--model", "wrn-10-1"], "--input-shape: got None, expected it with a model by name"),
        (
            ["--model", "wrn-10-1", *ARCHITECTURE, "--mean", "0.5"],
            "--std: got None, expected mean and std, or none of both",
        ),
        (["--model", "no_such_module:make", *ARCHITECTURE], "expected module:factory"),
        (["--model", "json:loads", *ARCHITECTURE], "expected module:factory (TypeError: "),
        (["--model", "helpers:fails_to_build", *ARCHITECTURE], "expected module:factory (KeyError: 'width')"),
        (["--model", "wrn-16-1", *ARCHITECTURE], "tensors that do not fit the model"),
        (["--held-out", "0.95"], "--held-out: got 0.95"),
        (["--defence", "aft", "--preset", "magic"], "--preset: got 'magic' for aft, expected one of: paper"),
        (["--preset", "paper"], "--preset: got 'paper' for auto, expected none: it has no presets"),
    ],
)
def test_an_error_names_what_is_wrong_with_status_2(infected, tmp_path, capsys, arguments, message):
    torch.save(infected.classifier.model.state_dict(), tmp_path / "suspect.pth")
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    assert purify(tmp_path / "suspect.pth", tmp_path / "clean.npz", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_nothing_is_unpickled(infected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Pickled()}, tmp_path / "suspect.pth")
    np.savez(tmp_path / "clean.npz", x=np.array([Pickled()], dtype=object), y=infected.y)
    arguments = ["--model", "wrn-10-1", *ARCHITECTURE]
    assert purify(tmp_path / "suspect.pth", tmp_path / "clean.npz", tmp_path / "out", *arguments) == 2
    assert "expected a file of tensors alone" in capsys.readouterr().err
    storage.save(tmp_path / "good", infected.classifier, "wrn-10-1")
    assert purify(tmp_path / "good", tmp_path / "clean.npz", tmp_path / "out") == 2
    assert not (tmp_path / "pickle_was_run").exists()


def test_class_folders_must_be_the_models_classes(infected, model, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / "clean" / name).mkdir(parents=True)
        image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "clean" / name / "1.png")
    assert purify(model, tmp_path / "clean", tmp_path / "out") == 2
    assert "--data: got 2 class folders, expected 10" in capsys.readouterr().err


def test_the_model_on_disk_is_the_purified_one(infected, model, tmp_path):
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out", *QUICK) == 0
    purified = storage.load(tmp_path / "out.safetensors").classifier
    assert weights(purified).keys() == weights(infected.classifier).keys()
    assert not same_weights(purified, infected.classifier)


def test_an_existing_output_is_replaced_by_force_only(infected, model, tmp_path, capsys):
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    for ending in (".safetensors", ".json"):
        (tmp_path / f"out{ending}").write_text("precious")
        assert purify(model, tmp_path / "clean.npz", tmp_path / "out", *QUICK) == 2
        assert f"--output: got a file that exists, {tmp_path / 'out'}{ending}" in capsys.readouterr().err
        assert (tmp_path / f"out{ending}").read_text() == "precious"
        (tmp_path / f"out{ending}").unlink()
    (tmp_path / "out.safetensors").write_text("precious")
    (tmp_path / "out.report.json").write_text("old")
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out", *QUICK, "--force") == 0
    assert storage.load(tmp_path / "out").facts == json.loads((tmp_path / "out.report.json").read_text())


@pytest.mark.parametrize("ending", ["", ".json", ".safetensors"])
@pytest.mark.parametrize("given", ["", ".json", ".safetensors"])
def test_the_model_itself_is_no_output(infected, model, tmp_path, capsys, ending, given):
    before = [file.read_bytes() for file in storage.both_files(model)]
    output, path = (model.with_name(model.name + end) for end in (ending, given))
    assert purify(path, tmp_path / "never_read.npz", output) == 2
    assert "--output: got the model that is to be purified" in capsys.readouterr().err
    assert [file.read_bytes() for file in storage.both_files(model)] == before


def test_the_weights_of_a_factory_are_no_output_either(infected, tmp_path, capsys):
    save_file(weights(infected.classifier), tmp_path / "model.safetensors")
    arguments = ["--model", "wrn-10-1", *ARCHITECTURE]
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "model.safetensors")
    for name in ("model", "link"):
        assert purify(tmp_path / "model.safetensors", tmp_path / "clean.npz", tmp_path / name, *arguments) == 2
        assert "--output: got the model that is to be purified" in capsys.readouterr().err


def test_a_model_that_cannot_be_written_leaves_no_report_of_it(infected, model, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "replacing_all", full)
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out", *QUICK) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_an_output_with_an_ending_is_the_one_without(infected, model, tmp_path):
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    assert purify(model, tmp_path / "clean.npz", tmp_path / "out.json", *QUICK) == 0
    names = ["out.html", "out.json", "out.png", "out.report.json", "out.safetensors"]
    assert sorted(file.name for file in tmp_path.glob("out*")) == names


def test_names_that_differ_are_matched_by_shapes_on_request(infected, tmp_path, capsys):
    state = infected.classifier.model.state_dict()
    renamed = {f"layers.{number}.{key.rpartition('.')[2]}": value for number, (key, value) in enumerate(state.items())}
    torch.save({"epoch": 2, "model_state": renamed}, tmp_path / "suspect.pth")
    np.savez(tmp_path / "clean.npz", x=infected.x, y=infected.y)
    arguments = ["--model", "wrn-10-1", *ARCHITECTURE, *QUICK]
    assert purify(tmp_path / "suspect.pth", tmp_path / "clean.npz", tmp_path / "out", *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 3
    # Counts of batches are not asked for: old checkpoints have none.
    needed = [key for key in state if not key.endswith("num_batches_tracked")]
    assert f"{len(needed)} missing, first 'conv1.weight'; {len(state)} unexpected, first 'layers.0.weight'" in printed
    assert "--match shapes" in printed
    arguments += ["--match", "shapes"]
    assert purify(tmp_path / "suspect.pth", tmp_path / "clean.npz", tmp_path / "out", *arguments) == 0
    assert "of the entry 'model_state', matched by their order and shapes" in capsys.readouterr().err
    assert infected.scores(storage.load(tmp_path / "out").classifier).acc > 0.9
