"""Help, wrong names, Ctrl-C and completion of the shell."""

import argparse
import shlex
import sys
import types

import pytest

import art_aft.cli.main as cli
from art_aft.cli import scan
from art_aft.cli.exits import INTERRUPTED, WRONG, ended_by

COMMANDS = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


def test_the_commands_are_all_there():
    assert set(COMMANDS) == {"demo", "scan", "purify", "compare", "reproduce", "train", "doctor"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_it_understands(command):
    parser = COMMANDS[command]
    examples = parser.get_default("examples")
    assert len(examples) >= 2
    for example in examples:
        assert f"\n  {example}\n" in parser.format_help()
        program, *words = shlex.split(example.partition(" > ")[0])
        assert (program, words[0]) == ("art-aft", command)
        assert callable(cli._parser().parse_args(words).run)


def test_long_texts_of_the_help_are_wrapped_and_examples_are_not(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text, _, examples = COMMANDS["scan"].format_help().partition("examples:\n")
    assert max(map(len, text.splitlines())) <= 80
    assert max(map(len, examples.splitlines())) > 80


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["scna"], "scan"),
        (["purify", "m", "--data", "d", "--output", "o", "--defence", "neural-cleanse"], "neural_cleanse"),
        (["train", "--attack", "badnet"], "badnets"),
        (["reproduce", "tabel2"], "table2"),
        (["scan", "m", "--data", "d", "--effort", "FULL"], "full"),
    ],
)
def test_a_wrong_word_names_the_nearest(words, nearest, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert f"(did you mean '{nearest}'?)" in capsys.readouterr().err


def test_a_word_that_is_near_to_none_names_none(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["qqqqqq"])
    assert "did you mean" not in capsys.readouterr().err


def test_a_wrong_model_names_the_nearest(tmp_path, capsys):
    words = ["scan", str(tmp_path / "w.pth"), "--data", "d.npz", "--model", "preact-resnet-18"]
    assert cli.main([*words, "--input-shape", "3", "8", "8", "--nb-classes", "2"]) == WRONG
    assert "(did you mean 'preactresnet-18'?)" in capsys.readouterr().err


WORDS = {
    "scan": "suspect --data clean.npz",
    "purify": "suspect --data clean.npz --output out",
    "compare": "--attack badnets --store kept --rows r.json",
    "train": "--attack badnets --store kept",
    "reproduce": "table1 --store kept",
    "demo": "",
    "doctor": "",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_says_what_is_kept(command, capsys):
    options = cli._parser().parse_args([command, *WORDS[command].split()])
    assert ended_by(KeyboardInterrupt(), show=False, options=options) == INTERRUPTED
    printed = capsys.readouterr().err
    assert printed.startswith("art-aft: interrupted; ")
    assert printed.count("\n") == 1
    for named in ("suspect", "kept", "r.json"):
        assert (named in printed) or named not in WORDS[command]


def test_a_shell_is_answered_where_it_can_be(monkeypatch):
    asked = []
    argcomplete = types.SimpleNamespace(autocomplete=asked.append)
    monkeypatch.setattr(scan, "run", lambda options: 0)
    monkeypatch.setitem(sys.modules, "argcomplete", argcomplete)
    assert cli.main(["scan", "m", "--data", "d"]) == 0
    assert [parser.prog for parser in asked] == ["art-aft"]
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert cli.main(["scan", "m", "--data", "d"]) == 0
