"""
Wrong values for every option of every command: each call ends with the code of an error, never with a verdict, says in
one line which option or file is wrong, and writes nothing.

Commands and options are found in the parser, and what is wrong for them follows from their type. A new one is tried as
soon as it exists.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import art_aft.cli.main as cli
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier
from art_aft.cli.exits import UNFORESEEN, WRONG

COMMANDS = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices

#: Not wrong: a mean may be negative.
LEGAL = {("--mean", "-1")}
#: Files that are read. Every other path is written, so that a missing file is not wrong.
READ = {"MODEL", "--data", "--reference"}
#: Words of the user that only their own check knows to be wrong.
WORDS = {
    "--set": ["nonsense", "nonsense=1", "seed=abc", "seed=-1", "=1", "seed="],
    "--trigger": ["nonsense", "nonsense=1", "margin=abc", "margin=-1"],
    "--preset": ["nonsense"],
    "--model": ["nonsense", "nonsense:make", "wrn-x-1", "wrn-10-99999999999", "", ":"],
    "--data": ["nonsense", "file/nonsense"],
    "NAME": ["nonsense"],
}


def options():
    """All options by command; the actions of argparse without those that take no value."""
    for command, parser in COMMANDS.items():
        for action in parser._actions:
            if action.nargs != 0:
                yield command, action


def name_of(action):
    return action.option_strings[-1] if action.option_strings else action.metavar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that a call needs, and files that are no such thing."""
    folder = tmp_path_factory.mktemp("shell")
    classifier = build_classifier("wrn-10-1", input_shape=(1, 8, 8), nb_classes=2)
    storage.save(folder / "stored", classifier, "wrn-10-1")
    torch.save(classifier.model.state_dict(), folder / "weights.pth")
    x = np.random.default_rng(0).random((24, 1, 8, 8), np.float32)
    np.savez(folder / "clean.npz", x=x, y=np.arange(24) % 2)
    (folder / "file").write_text("no folder")
    (folder / "empty").mkdir()
    html = b"<!DOCTYPE html><html><body>404</body></html>"
    whole, weights = (folder / "clean.npz").read_bytes(), (folder / "weights.pth").read_bytes()
    contents = {"empty": b"", "html": html, "whole": whole[: len(whole) // 2], "weights": weights[: len(weights) // 2]}
    for ending in (".npz", ".pth", ".safetensors", ".json", ".zip"):
        for kind, content in contents.items():
            (folder / f"bad_{kind}{ending}").write_bytes(content)
    np.savez(folder / "bad_objects.npz", x=np.array([{}]), y=np.zeros(1))
    np.savez(folder / "bad_nan.npz", x=np.full_like(x, np.nan), y=np.arange(24) % 2)
    return folder


GOOD = {
    "scan": "weights.pth --data clean.npz --model wrn-10-1 --input-shape 1 8 8 --nb-classes 2 --mean 0.5 --std 0.5",
    "train": "--attack badnets --model wrn-10-1",
    "compare": "--attack badnets --model wrn-10-1 --defences fine_tuning",
    "demo": "",
    "doctor": "",
    "reproduce": "table1 --scale cpu --data empty",
}
GOOD["purify"] = f"{GOOD['scan']} --output out"


def wrong_values(action, folder):
    """Wrong words for an option, one at a time."""
    name, kind = name_of(action), action.type
    if action.choices is not None:
        yield "nonsense"
    elif kind in (int, float):
        yield from ("text", "", "-1", "nan", "1e400", *(["1.5"] if kind is int else []))
    elif kind is Path or name in READ:
        yield "file/nonsense"
        if name in READ:
            yield from (
                "missing",
                "missing.npz",
                "missing.pth",
                "empty",
                *(p.name for p in sorted(folder.glob("bad_*"))),
            )
    else:
        assert name in WORDS, f"{name}: what is wrong for it? Give it a type, or words in WORDS"
    yield from WORDS.get(name, ())


def words_of(command, action, value):
    """The whole command line, with a good one of everything else."""
    good = GOOD[command].split()
    count = action.nargs if isinstance(action.nargs, int) else 1
    if not action.option_strings:
        return [command, value, *good[1:]]
    return [command, *good, name_of(action), *[value] * count]


def listing(folder):
    return {path: path.is_file() and (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def counts():
    return Counter()


@pytest.mark.parametrize(("command", "action"), [pytest.param(c, a, id=f"{c} {name_of(a)}") for c, a in options()])
def test_wrong_values_are_refused_by_option(command, action, folder, counts, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    wrong, name = [], name_of(action)
    for value in wrong_values(action, folder):
        if (name, value) in LEGAL:
            continue
        words, before = words_of(command, action, value), listing(folder)
        try:
            code = cli.main([*words, *(["--quiet"] if "--quiet" in COMMANDS[command]._option_string_actions else [])])
        except SystemExit as left:  # argparse's own check
            code = left.code
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("art-aft")]
        setting = value.partition("=")[0] if "=" in value else None
        case = f"{' '.join(words)}: {code}, {printed.err[-300:]}"
        counts["tried"] += 1
        if code not in (WRONG, UNFORESEEN):
            wrong.append(f"a verdict: {case}")
        elif len(lines) != 1 or "Traceback" in printed.err:
            wrong.append(f"not one line: {case}")
        elif not (
            name in lines[0] or (setting and f"{setting}: got" in lines[0]) or (name in READ and value in lines[0])
        ):
            wrong.append(f"not named: {case}")
        elif code == UNFORESEEN:
            wrong.append(f"not foreseen: {case}")
        if listing(folder) != before:
            wrong.append(f"files changed: {case}")
    assert not wrong, "\n".join(wrong)
    counts["options"] += 1


def test_the_table_has_found_what_there_is(counts):
    if counts["options"] < len(list(options())):
        pytest.skip("not all of the table has run")
    print(dict(counts))
    assert counts["options"] >= 75
    assert counts["tried"] >= 465


def test_every_option_has_help():
    assert [f"{command} {name_of(action)}" for command, action in options() if not action.help] == []
    for command, parser in COMMANDS.items():
        assert [action.option_strings for action in parser._actions if not action.help] == [], command
