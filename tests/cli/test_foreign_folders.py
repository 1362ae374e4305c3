"""Class folders and models as strangers have them: labels, sizes and names, read by `art-aft scan` and `purify`."""

import contextlib
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES
from written_images import encoded, place

from art_aft.attacks import InputAware
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier
from art_aft.cli import main as cli
from art_aft.detection.scan import BackdoorScan

SIDE, NAMES = 8, ["truck", "frog", "cat", "airplane"]


class Brightness(torch.nn.Module):
    """Tells the four brightnesses of the images below: class 0 is dark, class 3 is bright."""

    def __init__(self, nb_classes=NB_CLASSES):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, nb_classes, 1)
        with torch.no_grad():
            self.conv.weight.fill_(0)
            self.conv.weight[:4] = torch.arange(4.0)[:, None, None, None] / 3
            self.conv.bias.fill_(-9)
            # Class k wins around brightness k / 4: the lines k * v - k^2 / 8.
            self.conv.bias[:4] = -(torch.arange(4.0) ** 2) / 8

    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file of weights and the options that open it."""
    lines = ["from test_foreign_folders import Brightness as make"]
    lines += [f"def make{n}(): return make({n})" for n in (10, 12, 1000)]
    (tmp_path / "their_models.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(Brightness().state_dict(), tmp_path / "w.pth")
    return [str(tmp_path / "w.pth"), "--model", "their_models:make", *shape(NB_CLASSES)]


def shape(nb_classes, side=SIDE):
    return ["--input-shape", "3", str(side), str(side), "--nb-classes", str(nb_classes)]


def files(names=NAMES, side=SIDE, each=6):
    """Images of one brightness a class, in the order of the names."""
    return {
        f"{name}/{number}.png": encoded(np.full((side, side, 3), 64 * label % 256, np.uint8))
        for label, name in enumerate(names)
        for number in range(each)
    }


def scan(model, data, *words):
    return cli.main(["scan", *model, "--data", str(data), "--effort", "fast", "--quiet", *words])


def test_which_folder_has_which_label_is_said_and_can_be_told(model, tmp_path, capsys):
    data = place(tmp_path / "data", files(), packed=True)
    scan(model, data)
    printed = capsys.readouterr()
    assert "labels of the class folders: 0 = 'airplane', 1 = 'cat', 2 = 'frog', 3 = 'truck'\n" in printed.err
    assert "folders" not in printed.out
    assert "gets none right" in printed.out  # by name, the labels are wrong
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    scan(model, data, "--classes", str(tmp_path / "names.txt"))
    printed = capsys.readouterr()
    assert "0 = 'truck', 1 = 'frog', 2 = 'cat', 3 = 'airplane'\n" in printed.err
    assert "gets only" not in printed.out


def test_many_classes_are_not_listed(tmp_path, capsys, monkeypatch):
    # One detector, which needs no images: the others search for something towards each of the labels.
    monkeypatch.setattr("art_aft.cli.scan.BackdoorScan", partial(BackdoorScan, detectors=["last_layer"]))
    storage.save(tmp_path / "m", build_classifier("wrn-10-1", input_shape=(3, 8, 8), nb_classes=21), "wrn-10-1")
    scan([str(tmp_path / "m")], place(tmp_path / "data", files([f"{n}" for n in range(21)], each=1), True))
    assert "class folders" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (NAMES[:3], "--classes: got 3 names, expected one for each of the model's 4 classes"),
        ([*NAMES, "dog"], "--classes: got 5 names"),
        (["dog", *NAMES[1:]], "--classes: got no line for 1 class folder(s), such as 'truck'"),
        (["frog", *NAMES[1:]], "--classes: got 'frog' again in line 2"),
        ([], "--classes: got 0 names"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_by_its_option(model, lines, message, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join(lines))
    data = place(tmp_path / "data", files(), packed=False)
    assert scan(model, data, "--classes", str(tmp_path / "names.txt")) == 2
    assert f"art-aft: error: {message}" in capsys.readouterr().err


def test_other_sizes_are_resized_on_request(model, tmp_path, capsys):
    data = place(tmp_path / "data", files(side=SIDE + 3), packed=True)
    assert scan(model, data) == 2
    assert "--data: got images of 11x11, expected 8x8, as with --resize 8 8\n" in capsys.readouterr().err
    scan(model, data, "--resize", "8", "8")
    assert "images of another size are resized to 8x8 (bilinear)\n" in capsys.readouterr().err
    assert scan(model, data, "--resize", "9", "8") == 2
    assert "--data: got images of 9x8, expected 8x8" in capsys.readouterr().err
    assert scan(model, data, "--resize", "0", "8") == 2
    assert "--resize: got 0, expected an integer >= 1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--classes", "names.txt"], ["--resize", "8", "8"]])
def test_arrays_have_labels_and_a_size_already(model, words, tmp_path, capsys):
    np.savez(tmp_path / "clean.npz", x=np.zeros((8, 3, SIDE, SIDE), np.float32), y=np.arange(8) % 4)
    assert scan(model, tmp_path / "clean.npz", *words) == 2
    assert f"{words[0]}: got it with " in capsys.readouterr().err


EVIL = "x\x1b[2J\x9b31m\u202e\r\x07"


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {f"{EVIL}/1.png": b"no image"},
        {f"{EVIL}/1.png": encoded(np.zeros((9, 9, 3), np.uint8))},
        {f"{EVIL}/{EVIL}.txt": b""},
        {f"deep/deeper/{EVIL}{'y' * 60_000}.png": b""},
        {"1\n2/x.png": encoded(np.zeros((SIDE, SIDE, 3), np.uint8))},
    ],
    ids=["folder", "no image", "another size", "other file", "long", "line break"],
)
@pytest.mark.filterwarnings("default")
def test_names_of_a_hostile_zip_do_not_steer_the_terminal(model, extra, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "clean.zip", "w") as archive:
        for name, data in {**files([EVIL, *NAMES[1:]]), **extra}.items():
            archive.writestr(name, data)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    for words in ([], ["--classes", str(tmp_path / "names.txt")]):
        with pytest.warns() if "deeper" in str(extra) or ".txt" in str(extra) else contextlib.nullcontext() as warned:
            scan(model, tmp_path / "clean.zip", *words)
        printed = capsys.readouterr()
        text = printed.out + printed.err + "".join(str(each.message) for each in warned or ())
        assert text
        assert all(c.isprintable() or c == "\n" for c in text)
        assert max(map(len, text.splitlines())) < 1000
        assert "2/x" not in text.split("\n")  # a name makes no line of its own


@pytest.mark.parametrize("architecture", ["wrn-16-1", "preactresnet-18", "resnet-18"])
def test_another_architecture_than_the_stored_ones_is_three_lines(architecture, tmp_path, capsys):
    classifier = build_classifier("wrn-10-1", input_shape=(3, 32, 32), nb_classes=10)
    storage.save(tmp_path / "m", classifier, "wrn-10-1", trigger=InputAware(base_width=4))
    words = ["scan", str(tmp_path / "m.safetensors"), "--data", "clean", "--model", architecture, *shape(10, 32)]
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "do not fit the model" in printed.err
    assert printed.err.count("\n") <= 3
    assert max(map(len, printed.err.splitlines())) < 400


@pytest.mark.parametrize(("outputs", "nb_classes"), [(1000, 10), (12, 10), (10, 12)])
@pytest.mark.parametrize("command", ["scan", "purify"])
def test_another_number_of_outputs_than_classes_is_named(command, outputs, nb_classes, model, tmp_path, capsys):
    torch.save(Brightness(outputs).state_dict(), tmp_path / "w.pth")
    np.savez(tmp_path / "c.npz", x=np.zeros((24, 3, SIDE, SIDE), np.float32), y=np.arange(24) % nb_classes)
    words = [command, str(tmp_path / "w.pth"), "--model", f"their_models:make{outputs}", *shape(nb_classes), "--quiet"]
    words += ["--output", str(tmp_path / "out")] if command == "purify" else []
    assert cli.main([*words, "--data", str(tmp_path / "c.npz")]) == 2
    expected = (
        f"got outputs of shape (2, {outputs}) for 2 images, expected a tensor of logits of shape (N, {nb_classes})"
    )
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("outputs", "nb_classes"), [(1000, 10), (12, 10), (10, 12)])
def test_weights_of_another_number_of_classes_are_named(outputs, nb_classes, tmp_path, capsys):
    trained = build_classifier("wrn-10-1", input_shape=(3, SIDE, SIDE), nb_classes=outputs)
    torch.save(trained.model.state_dict(), tmp_path / "w.pth")
    words = ["scan", str(tmp_path / "w.pth"), "--data", "clean", "--model", "wrn-10-1", *shape(nb_classes)]
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert f"({outputs}, 64), expected ({nb_classes}, 64)" in printed
    assert "with the right number of classes?" in printed
    assert printed.count("\n") <= 3


def test_labels_beyond_the_models_classes_are_named(model, tmp_path, capsys):
    np.savez(tmp_path / "clean.npz", x=np.zeros((24, 3, SIDE, SIDE), np.float32), y=np.arange(24) % 12)
    assert scan(model, tmp_path / "clean.npz") == 2
    assert "y: got labels in [0, 11], expected 0 to 3" in capsys.readouterr().err
