"""What `art-aft` ends with: a crash is never a verdict, and an error is a line."""

import os
import re
import signal
import subprocess
import sys
import zipfile
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TinyNet

from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier
from art_aft.cli import main as cli
from art_aft.cli import purify, scan
from art_aft.cli.options import check_writable
from art_aft.data.datasets import labelled_images
from art_aft.runtime.text import printable

ROOT = Path(__file__).parents[2]


def failing(error):
    def run(options):
        raise error

    return run


UNFORESEEN = [
    MemoryError(),
    RuntimeError("boom"),
    RecursionError("deep"),
    KeyError("model"),
    IndexError("9"),
    AttributeError("no"),
    AssertionError(),
    EOFError("short"),
    ZeroDivisionError("zero"),
    zipfile.BadZipFile("no zip"),
    zlib.error("bad data"),
    SystemExit(0),
    SystemExit(1),
]
FORESEEN = [
    ValueError("x: got 1"),
    TypeError("x: got a"),
    ImportError("no module"),
    OSError("disk full"),
    UnicodeDecodeError("utf-8", b"", 0, 1, "bad"),
]


@pytest.mark.parametrize("error", [*UNFORESEEN, *FORESEEN], ids=repr)
@pytest.mark.parametrize("command", [scan, purify], ids=["scan", "purify"])
def test_an_error_has_its_own_code_and_one_line(command, error, monkeypatch, capsys):
    monkeypatch.setattr(command, "run", failing(error))
    arguments = [command.__name__.rpartition(".")[2], "model", "--data", "clean"]
    arguments += ["--output", "out"] if command is purify else []
    assert cli.main(arguments) == (3 if error in UNFORESEEN else 2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("art-aft: ")
    if error in UNFORESEEN:
        assert type(error).__name__ in printed.err
        assert "--traceback" in printed.err
    assert " ".join(str(error).split()) in printed.err


@pytest.mark.parametrize("error", [RuntimeError("boom"), ValueError("x: got 1")])
@pytest.mark.parametrize("before", [True, False])
def test_the_traceback_is_asked_for_before_or_behind_the_command(error, before, monkeypatch, capsys):
    monkeypatch.setattr(scan, "run", failing(error))
    words = ["scan", "model", "--data", "clean"]
    code = cli.main(["--traceback", *words] if before else [*words, "--traceback"])
    assert code == (3 if isinstance(error, RuntimeError) else 2)
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert "in run" in printed
    assert printed.splitlines()[-1].startswith("art-aft: ")


def test_a_message_of_several_lines_is_still_one_line_where_it_is_unforeseen(monkeypatch, capsys):
    monkeypatch.setattr(scan, "run", failing(RuntimeError("one\n  two\x1b[2J")))
    assert cli.main(["scan", "model", "--data", "clean"]) == 3
    assert "RuntimeError: one two\\x1b[2J (" in capsys.readouterr().err


def test_ctrl_c_is_a_line_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(scan, "run", failing(KeyboardInterrupt()))
    assert cli.main(["scan", "model", "--data", "clean", "--traceback"]) == 130
    assert capsys.readouterr().err == "art-aft: interrupted; model is as it was; reports are written at the end\n"


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, capsys):
    for label in ("0", "1"):
        tmp_path.joinpath(label).mkdir()
        tmp_path.joinpath(label, "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr(scan, "run", lambda options: labelled_images(options.data))
    assert cli.main(["scan", "model", "--data", str(tmp_path)]) == 2
    assert "PIL is missing, and comes with: pip install 'art-aft[images]'" in capsys.readouterr().err


def test_the_codes_stand_in_the_help_and_on_the_page(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M))
    assert {int(code) for code in rows} == set(cli.EXIT_CODES)
    for code, meaning in cli.EXIT_CODES.items():
        assert re.search(rf"^ +{code} +{re.escape(meaning)}$", printed, re.M)
        assert rows[str(code)].replace("`", "") == meaning


@pytest.fixture
def model(tmp_path):
    storage.save(tmp_path / "m", build_classifier("wrn-10-1", input_shape=(1, 8, 8), nb_classes=2), "wrn-10-1")
    return tmp_path / "m"


def broken_data(folder):
    """Data files that cannot be read, by name."""
    whole = folder / "whole.npz"
    np.savez_compressed(whole, x=np.random.default_rng(0).random((8, 1, 8, 8), np.float32), y=np.arange(8) % 2)
    data = whole.read_bytes()
    yield "empty", b""
    yield "text", b"x,y\n1,2\n"
    for eighth in range(1, 8):
        yield f"cut at {eighth}/8", data[: len(data) * eighth // 8]
    for place in (200, 400, 800):
        yield f"bit {place} flipped", data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]
    array = folder / "one.npy"
    np.save(array, np.zeros(3))
    yield "an array", array.read_bytes()
    np.savez(whole, x=np.zeros((2, 1, 8, 8)))
    yield "no labels", whole.read_bytes()
    np.savez(whole, x=np.array([{}]), y=np.zeros(1))
    yield "objects", whole.read_bytes()


@pytest.mark.parametrize("command", ["scan", "purify"])
def test_broken_data_are_named(command, model, tmp_path, capsys):
    for name, content in broken_data(tmp_path):
        (tmp_path / "clean.npz").write_bytes(content)
        output = ["--output", str(tmp_path / "out")]
        assert cli.main([command, str(model), "--data", str(tmp_path / "clean.npz"), "--quiet", *output]) == 2, name
        printed = capsys.readouterr()
        assert "--data: got " in printed.err, name
        assert "clean.npz" in printed.err, name
        assert not list(tmp_path.glob("out*")), name


FACTORIES = {
    "raises": "raise RuntimeError('no weights here')",
    "leaves": "raise SystemExit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "returns text": "return 'model'",
}


@pytest.mark.parametrize(("name", "code"), [("raises", 2), ("leaves", 3), ("interrupts", 130), ("returns text", 2)])
def test_a_factory_does_not_choose_the_verdict(name, code, tmp_path, monkeypatch):
    (tmp_path / "their_factory.py").write_text(f"def make():\n    {FACTORIES[name]}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "their_factory", raising=False)
    words = "scan weights.pth --data clean.npz --model their_factory:make --input-shape 1 8 8 --nb-classes 2"
    assert cli.main(words.split()) == code


def test_the_process_ends_with_the_code(tmp_path):
    """Once for all: `python -m art_aft` hands the code on, and an interrupted one ends without a traceback."""
    (tmp_path / "their_factory.py").write_text(
        "import os, signal, time\n\n\ndef make():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
    )
    words = "scan weights.pth --data clean.npz --model their_factory:make --input-shape 1 8 8 --nb-classes 2"
    done = subprocess.run(
        [sys.executable, "-m", "art_aft", *words.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    kept = "weights.pth is as it was; reports are written at the end"
    assert (done.returncode, done.stderr, done.stdout) == (130, f"art-aft: interrupted; {kept}\n", "")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--input-shape", "1", "8", "8"], "--input-shape"),
        (["--nb-classes", "2"], "--nb-classes"),
        (["--mean", "0.5", "--std", "0.5"], "--mean"),
        (["--match", "shapes"], "--match"),
    ],
)
def test_an_option_of_a_state_dict_without_the_name_of_its_model_is_refused(arguments, option, model, capsys):
    assert cli.main(["scan", str(model), "--data", "clean.npz", *arguments]) == 2
    assert f"{option}: got it without --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (["0.5", "0.5"], ["1"], "mean: got 2 numbers, expected one for each of 1 channels"),
        (["0.5"], ["1", "1", "1"], "std: got 3 numbers"),
        (["0.5"], ["0"], "--std: got [0.0], expected numbers > 0"),
        (["0.5"], ["nan"], "--std: got NaN or infinite values"),
        (["inf"], ["1"], "--mean: got NaN or infinite values"),
    ],
)
def test_a_mean_and_a_deviation_must_fit(mean, std, message, tmp_path, capsys):
    torch.save(TinyNet(channels=1).state_dict(), tmp_path / "w.pth")
    words = ["scan", str(tmp_path / "w.pth"), "--data", "clean.npz", "--model", "wrn-10-1", "--input-shape", "1", "8"]
    assert cli.main([*words, "8", "--nb-classes", "2", "--mean", *mean, "--std", *std]) == 2
    assert message in capsys.readouterr().err


def test_which_tensors_were_taken_is_said_outside_the_result(tmp_path, capsys):
    classifier = build_classifier("wrn-10-1", input_shape=(1, 8, 8), nb_classes=2)
    torch.save({"epoch": 3, "netC": classifier.model.state_dict()}, tmp_path / "w.pth")
    np.savez(tmp_path / "clean.npz", x=np.zeros((8, 1, 8, 8), np.float32), y=np.arange(8) % 2)
    words = ["scan", str(tmp_path / "w.pth"), "--data", str(tmp_path / "clean.npz"), "--model", "wrn-10-1"]
    words += ["--input-shape", "1", "8", "8", "--nb-classes", "2", "--effort", "fast", "--quiet"]
    cli.main(words)
    printed = capsys.readouterr()
    assert f"weights: {len(classifier.model.state_dict())} tensors of the entry 'netC'" in printed.err
    assert "weights:" not in printed.out


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_broken_file_of_rows_is_found_before_the_training(command, tmp_path, capsys):
    (tmp_path / "rows.json").write_text("{")
    words = [command, "--attack", "badnets", "--rows", str(tmp_path / "rows.json"), "--store", str(tmp_path / "store")]
    assert cli.main(words) == 2
    assert "rows.json" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_place_that_cannot_be_written_is_found_at_once(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out", "/"):
        with pytest.raises(ValueError, match="--output: got "):
            check_writable("--output", Path(output))
        for command in ("scan", "purify"):
            assert cli.main([command, str(tmp_path / "none"), "--data", "none", "--output", str(output)]) == 2
            assert "--output: got " in capsys.readouterr().err
    check_writable("--output", tmp_path / "new" / "deep" / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "m.json", "m.safetensors"]


def test_what_controls_the_terminal_is_escaped():
    assert printable("grün\n\x1b[31m\u202e\r\x07") == "grün\n\\x1b[31m\\u202e\\r\\x07"


LIBRARIES = [
    ("raise ModuleNotFoundError('No module named art')", "ModuleNotFoundError: No module named art"),
    ("raise RuntimeError('one\\n  two\x1b[2J')", "RuntimeError: one two\\x1b[2J"),
    ("raise SystemExit(1)", "SystemExit: 1"),
]


class Broken:
    """An importer under which loading the commands runs a line of code."""

    def __init__(self, failure):
        self.failure = failure

    def find_spec(self, name, path=None, target=None):
        if name == "art_aft.cli.main":
            exec(self.failure)


@pytest.fixture
def load(monkeypatch):
    """Run `art-aft scan` as a new process does, where loading the commands runs a line of code."""

    def load(failure, *words):
        program = import_module("art_aft.__main__")
        del sys.modules["art_aft.__main__"]  # so that other tests can run it as a program
        monkeypatch.delitem(sys.modules, "art_aft.cli.main")
        monkeypatch.setattr(sys, "meta_path", [Broken(failure), *sys.meta_path])
        monkeypatch.setattr(sys, "argv", ["art-aft", "scan", "m", "--data", "d", *words])
        return program.main()

    return load


@pytest.mark.parametrize(("failure", "told"), LIBRARIES)
@pytest.mark.parametrize("shown", [False, True])
def test_a_library_that_cannot_be_loaded_is_no_verdict(failure, told, shown, load, capsys):
    """The status 1 of an uncaught error would mean "infected"."""
    assert load(failure, *["--traceback"] * shown) == 3
    printed = capsys.readouterr()
    hint = "" if shown else " (--traceback shows where)"
    assert printed.out == ""
    assert printed.err.endswith(f"art-aft: unforeseen error: art-aft cannot be loaded: {told}{hint}\n")
    assert ("Traceback" in printed.err) is shown
    assert shown or printed.err.count("\n") == 1


def test_ctrl_c_while_loading_is_a_line_too(load, capsys):
    assert load("raise KeyboardInterrupt") == 130
    assert capsys.readouterr() == ("", "art-aft: interrupted\n")


def test_the_process_ends_with_the_code_where_art_is_broken(tmp_path):
    """Once for all: nothing loads ART before `art-aft` can tell of it."""
    failure, told = LIBRARIES[1]
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "__init__.py").write_text(failure + "\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "art_aft", "scan", "m", "--data", "d"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    message = f"art-aft: unforeseen error: art-aft cannot be loaded: {told} (--traceback shows where)\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", message)
