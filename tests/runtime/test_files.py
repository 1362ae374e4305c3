"""Files appear whole or not at all, one process changes them at a time, and a broken one is named."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch

from art_aft.runtime import files
from art_aft.runtime.files import locked, replacing, replacing_all, write_json, write_text
from art_aft.training.checkpoints import Checkpoint


def test_a_file_and_its_folder_appear(tmp_path):
    write_text(tmp_path / "new" / "file.txt", "gr\u00fcn\n")
    assert (tmp_path / "new" / "file.txt").read_bytes() == "gr\u00fcn\n".encode()
    assert os.listdir(tmp_path / "new") == ["file.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    place = tmp_path / "rows.json"
    write_json(place, [1])

    def fail(file):
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replacing(place, fail)
    assert json.loads(place.read_text()) == [1]
    assert os.listdir(tmp_path) == ["rows.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_know_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "rows.json", {"eps": value})
    assert os.listdir(tmp_path) == []


def test_several_files_appear_together(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    replacing_all({path: lambda file, path=path: file.write_text(path.name) for path in paths})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}

    def fail(file):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replacing_all({paths[0]: lambda file: file.write_text("new"), paths[1]: fail})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    """All of them are in the middle of writing at the same time."""
    place, barrier, errors = tmp_path / "file", threading.Barrier(8), []

    def write(number):
        def half_and_half(file):
            with file.open("a") as handle:
                handle.write(f"{number}")
                handle.flush()
                barrier.wait(timeout=60)
                handle.write(f"{number}")

        try:
            replacing(place, half_and_half)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert place.read_text() in {f"{number}{number}" for number in range(8)}
    assert os.listdir(tmp_path) == ["file"]


# The module alone: importing the package takes seconds.
MODULE = """
import importlib.util, pathlib, sys, time

spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)

def wait(*_):
    print("ready", flush=True)
    time.sleep(600)

"""


@contextmanager
def waiting(statement, place):
    """A process that runs a statement, in which it waits."""
    program = [sys.executable, "-c", MODULE + statement, files.__file__, str(place)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(files.fcntl is None, reason="this system has no flock")
def test_what_a_killed_process_was_writing_is_removed_by_the_next_that_writes_the_file(tmp_path):
    place, other = tmp_path / "rows[1].json", tmp_path / "rows[1].json.notes.part.txt"
    other.touch()
    with waiting("files.replacing(pathlib.Path(sys.argv[2]), wait)", place) as process:
        assert len(parts := list(tmp_path.glob("*.part"))) == 1
        write_text(place, "first")
        assert list(tmp_path.glob("*.part")) == parts  # it is being written
        process.kill()
        process.wait()
    assert list(tmp_path.glob("*.part")) == parts
    write_text(place, "second")
    assert sorted(os.listdir(tmp_path)) == [place.name, other.name]
    assert place.read_text() == "second"


def test_files_are_written_where_there_are_no_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks")

    monkeypatch.setattr(files, "_take", refuse)
    (tmp_path / "file.1-0.part").touch()
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


@pytest.fixture(params=["flock", "files alone"])
def kind(request, monkeypatch):
    """Both kinds of lock."""
    if request.param == "files alone":
        monkeypatch.setattr(files, "fcntl", None)
    elif files.fcntl is None:
        pytest.skip("this system has no flock")
    return request.param


def test_a_lock_is_held_by_one_at_a_time(tmp_path, kind):
    """Each reads, lets the others run, and writes what it read and one: without a lock most of that is lost."""
    place, turn = tmp_path / "new" / "count", threading.Event()

    def count():
        for _ in range(10):
            with locked(place, wait=0.001):
                before = int(place.read_text()) if place.exists() else 0
                turn.wait(timeout=0.001)
                place.write_text(str(before + 1))

    threads = [threading.Thread(target=count) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.read_text() == "60"
    assert os.listdir(tmp_path / "new") == ["count"]


def test_a_lock_is_given_back_after_an_error(tmp_path, kind):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="boom"), locked(tmp_path / "file", timeout=0):
            raise RuntimeError("boom")
    assert os.listdir(tmp_path) == []


def test_who_waits_too_long_is_told_of_the_file(tmp_path, kind):
    with locked(tmp_path / "file"):
        with pytest.raises(TimeoutError, match=r"file\.lock: got no lock"), locked(tmp_path / "file", timeout=0):
            pass
        assert os.listdir(tmp_path) == ["file.lock"]


@pytest.mark.skipif(files.fcntl is None, reason="this system has no flock")
def test_a_killed_process_leaves_no_lock(tmp_path):
    with waiting("with files.locked(pathlib.Path(sys.argv[2])): wait()", tmp_path / "file") as process:
        with pytest.raises(TimeoutError), locked(tmp_path / "file", timeout=0):
            pass
        process.kill()
    with locked(tmp_path / "file", timeout=0):
        pass
    assert os.listdir(tmp_path) == []


class Part:
    """Anything with a state."""

    def __init__(self):
        self.value = torch.arange(2000.0)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Pickled:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_broken_checkpoint_is_named_in_our_own_words(tmp_path):
    place = tmp_path / "run.checkpoint"
    checkpoint = Checkpoint(place, "recipe", [Part()])
    checkpoint.write(3)
    data = place.read_bytes()
    assert checkpoint.read() == 3
    broken = [b"", data[: len(data) // 2], data[:-1], b"<html>", b"\x80"]
    torch.save({"recipe": "recipe", "epoch": Pickled()}, place)
    for content in (*broken, place.read_bytes()):
        place.write_bytes(content)
        before = torch.get_rng_state()
        with pytest.raises(ValueError, match=r"checkpoint: got .*run\.checkpoint, which is broken") as caught:
            checkpoint.read()
        assert "weights_only" not in str(caught.value)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("content", [[], {"recipe": "recipe"}, torch.zeros(1)])
def test_another_file_of_tensors_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "run")
    with pytest.raises(ValueError, match=r"checkpoint: got .*run, which is no checkpoint"):
        Checkpoint(tmp_path / "run", "recipe", [Part()]).read()


@pytest.mark.parametrize("state", [{}, {"weight": torch.zeros(3)}])
def test_a_state_that_does_not_fit_names_the_checkpoint(tmp_path, state):
    part = Part()
    part.state_dict = lambda: state
    Checkpoint(tmp_path / "run", "recipe", [part]).write(1)
    for other in (Part(), torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"checkpoint: got .*run of another run"):
            Checkpoint(tmp_path / "run", "recipe", [other]).read()
