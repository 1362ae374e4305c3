"""The main job, end to end: `art-aft demo` as a person runs it, and the example scripts."""

import contextlib
import io
import json
import os
import re
import runpy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import assert_backdoor_removed

from art_aft import cli as commands
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.cli import main as cli
from art_aft.cli.demo import DEMO_LEGEND
from art_aft.detection.base import DETECTORS
from art_aft.experiments import demo as experiment
from art_aft.experiments.tables import text_table

ATTACKS = ("blend",)
DEFENCES = ("fine_tuning", "fine_pruning", "neural_cleanse", "nad", "aft")
EXAMPLES = Path(__file__).parents[2] / "examples"


#: A pass or two of what does not decide whether AFT removes the backdoor and the scan finds it.
BRIEF = {
    "fine_tuning": {"nb_epochs": 1},
    "fine_pruning": {"nb_epochs": 1},
    "neural_cleanse": {"nb_epochs": 1, "steps": 2},
    "nad": {"nb_epochs": 1, "teacher_epochs": 1},
    "aft": {},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demonstration with one victim, in which all but AFT is brief: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    brief = {name: {**settings, **BRIEF[name]} for name, settings in experiment.DEMO_DEFENCES.items()}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(experiment, "DEMO_VICTIM", replace(experiment.DEMO_VICTIM, nb_epochs=8))
        patch.setattr(experiment, "DEMO_DEFENCES", brief)
        patch.setattr(experiment, "DEMO_SCAN", {"detectors": ("margin_blended",), "max_images": 60})
        patch.setattr(experiment, "TorchAttacksPGD", partial(TorchAttacksPGD, max_iter=4))
        assert cli.main(["demo", "--attacks", *ATTACKS, "--output-dir", str(folder)]) == 0
    return folder, printed.getvalue()


def test_all_defences_make_as_many_passes_at_the_same_rate_as_the_legend_says():
    assert "All five defences" in DEMO_LEGEND
    assert "made 20 passes over them at the same learning rate" in DEMO_LEGEND
    assert "by four of its detectors" in DEMO_LEGEND
    defences = experiment.DEMO_DEFENCES.values()
    epochs = ("nb_epochs", "teacher_epochs", "clean_epochs")
    assert [sum(settings.get(part, 0) for part in epochs) for settings in defences] == [20] * 5
    assert len({settings["learning_rate"] for settings in defences}) == 1
    assert len(set(experiment.DEMO_SCAN["detectors"]) & set(DETECTORS)) == 4


@pytest.fixture(scope="module")
def rows(demo):
    return json.loads((demo[0] / "demo.json").read_text())["rows"]


def test_every_victim_is_purified_with_every_defence(rows):
    cells = [(row["attack"], row["defence"]) for row in rows]
    assert cells == [(a, d) for a in ATTACKS for d in ("none", *DEFENCES)]
    assert {(row["n_clean"], row["n_defender"]) for row in rows} == {(597, 120)}


def test_the_backdoors_work_before_and_are_gone_after_aft(rows):
    for row in rows:
        if row["defence"] == "none":
            assert row["asr"] >= 0.95
            assert row["acc"] >= 0.97
        if row["defence"] == "aft":
            assert row["asr"] <= 0.05
            assert row["acc"] >= 0.90


def test_the_scan_names_the_target_label(rows, demo):
    for row in rows:
        if row["defence"] == "none":
            assert (row["scan"]["verdict"], row["scan"]["targets"]) == ("infected", [0])
            assert row["scan"]["score"] >= 1
        else:
            assert "scan" not in row
    assert len(re.findall(r"^blend +scan +infected, label 0 +[\d.]+$", demo[1], re.M)) == 1


def test_adversarial_examples_of_the_infected_blend_model_fall_on_the_target(rows):
    share = {(row["attack"], row["defence"]): row["adversarial_target_share"] for row in rows}
    assert share["blend", "none"] > 0.25  # chance is 1/9 of those that change their label
    assert share["blend", "aft"] < 0.15


def test_the_file_has_what_is_needed_to_measure_again(demo):
    content = json.loads((demo[0] / "demo.json").read_text())
    assert content["environment"]["command"] == "art-aft demo --seed 0 --attacks blend"
    assert {"torch", "adversarial-robustness-toolbox", "torchattacks", "numpy"} <= set(
        content["environment"]["versions"]
    )
    for row in content["rows"]:
        assert row["seed"] == 0
        assert row["seconds"] > 0
        assert row["settings"].get("learning_rate") == (None if row["defence"] == "none" else 0.02)


def test_the_table_has_the_numbers_of_the_rows(demo, rows):
    _, printed = demo
    titles = "before|fine-tuning|fine-pruning|Neural Cleanse|NAD|AFT"
    numbers = re.findall(rf"^(blend) +({titles}) +([\d.]+) +([\d.]+) +([\d.]+)", printed, re.M)
    assert len(numbers) == 6
    for line, row in zip(numbers, rows, strict=True):
        assert line[0] == row["attack"]
        assert [float(cell) for cell in line[2:]] == pytest.approx(
            [100 * row["acc"], 100 * row["asr"], 100 * row["ra"]], abs=0.051
        )


def test_the_picture_is_a_png_of_some_size(demo):
    data = (demo[0] / "demo.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(data[16:20], "big") > 1000  # the width in the header
    assert len(data) > 20_000


def stored_rows(rows):
    """A stand-in for the run, so that what surrounds it is tested in no time."""
    return lambda seed, **_: iter(rows)


def test_without_matplotlib_the_table_and_the_rows_still_come(monkeypatch, tmp_path, capsys, rows):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(commands.demo, "demo", stored_rows(rows))
    assert cli.main(["demo", "--output-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "matplotlib is missing" in printed
    assert "pip install 'art-aft[plots]'" in printed
    assert text_table(rows) in printed
    assert json.loads((tmp_path / "demo.json").read_text())["rows"] == rows
    assert not (tmp_path / "demo.png").exists()


def test_quiet_leaves_the_explanations_out(monkeypatch, tmp_path, capsys, rows):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(commands.demo, "demo", stored_rows(rows))
    cli.main(["demo", "--quiet", "--output-dir", str(tmp_path)])
    captured = capsys.readouterr()
    assert "share" not in captured.out
    assert text_table(rows) in captured.out
    assert captured.err == ""


def test_a_bad_seed_is_refused_before_anything_is_written(tmp_path, capsys):
    assert cli.main(["demo", "--seed", "-1", "--output-dir", str(tmp_path / "new")]) == 2
    assert "error: --seed: got -1, expected an integer >= 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_an_error_and_not_a_traceback(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output-dir", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["demo", "--seed", "x"]])
def test_words_that_are_no_command_end_with_usage(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: art-aft" in capsys.readouterr().err


def test_the_package_is_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["art_aft", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("art_aft", run_name="__main__")
    assert re.fullmatch(r"art-aft [\d.]+\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["quickstart", "drop_in"])
def test_an_example_is_short_and_removes_its_backdoor(name, tmp_path, monkeypatch, capsys):
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        runpy.run_path(str(script), run_name="__main__")
    assert_backdoor_removed(capsys.readouterr().out)
    assert os.listdir(tmp_path) == []
