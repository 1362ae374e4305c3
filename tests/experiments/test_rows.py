"""Rows: every setting becomes valid JSON, defences are built from JSON, files hold whole rows."""

import json
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from helpers import tiny_classifier

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.defences import DEFENCES
from art_aft.experiments.measurements import build_defence
from art_aft.experiments.rows import add_row, json_values, write_record


@dataclass
class Found:
    mask: np.ndarray
    eps: float


class TestJsonValues:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (True, True),
            (np.True_, True),
            ("text", "text"),
            (3, 3),
            (np.int64(3), 3),
            (0.1, 0.1),
            (np.float32(0.5), 0.5),
            (float("inf"), "inf"),
            (-np.inf, "-inf"),
            (np.float64("nan"), "nan"),
            (((2, 0.01), (4, 0.001)), [[2, 0.01], [4, 0.001]]),
            ({1: (np.inf,)}, {"1": ["inf"]}),
            ({"b", "a"}, ["a", "b"]),
            (np.zeros((2, 3), np.float32), "float32 array of shape (2, 3)"),
            (torch.zeros(2, 3), "float32 array of shape (2, 3)"),
            (Found(np.zeros(4), np.inf), {"mask": "float64 array of shape (4,)", "eps": "inf"}),
            (Found, "Found"),
        ],
    )
    def test_by_hand(self, value, expected):
        found = json_values(value)
        assert found == expected
        assert type(found) is type(expected)
        json.dumps(found, allow_nan=False)

    def test_an_attack_is_its_class_and_its_settings(self):
        attack = TorchAttacksPGD(tiny_classifier(), eps=0.25, max_iter=3, verbose=True)
        found = json_values({"attack": attack})["attack"]
        assert (found["class"], found["norm"], found["eps"], found["max_iter"]) == ("TorchAttacksPGD", "inf", 0.25, 3)
        assert "verbose" not in found

    def test_arts_own_attack_too(self):
        found = json_values(ProjectedGradientDescent(tiny_classifier(), eps=0.25, norm="inf", verbose=False))
        assert (found["class"], found["norm"], found["eps"]) == ("ProjectedGradientDescent", "inf", 0.25)

    @pytest.mark.parametrize("name", DEFENCES)
    def test_the_settings_of_every_defence(self, name):
        settings = DEFENCES[name](tiny_classifier()).get_params()
        found = json.loads(json.dumps(json_values(settings), allow_nan=False))
        assert found.keys() == settings.keys()
        assert found["seed"] == 0


class TestBuildDefence:
    @pytest.mark.parametrize("name", ["aft", "aft_no_clean_data"])
    def test_a_mapping_is_stage_1(self, name):
        classifier = tiny_classifier()
        defence = build_defence(
            name, classifier, {"attack": {"eps": 0.25, "norm": "inf"}, "precision": "float32"}, nb_epochs=3
        )
        assert type(defence) is DEFENCES[name]
        assert isinstance(defence.attack, TorchAttacksPGD)
        assert defence.attack.estimator is classifier
        assert (defence.attack.eps, defence.attack.norm, defence.attack.precision) == (0.25, "inf", "float32")
        assert defence.nb_epochs == 3

    def test_settings_without_an_attack_are_handed_on(self):
        assert build_defence("aft", tiny_classifier()).attack is None
        assert build_defence("fine_tuning", tiny_classifier(), {"nb_epochs": 3}).nb_epochs == 3

    def test_what_is_wrong_is_named(self):
        with pytest.raises(ValueError, match="unknown defence 'magic'"):
            build_defence("magic", tiny_classifier())
        with pytest.raises(TypeError, match="epsilon"):
            build_defence("aft", tiny_classifier(), {"attack": {"epsilon": 0.1}})
        with pytest.raises(ValueError, match="nb_epochs: got -1"):
            build_defence("aft", tiny_classifier(), {"nb_epochs": -1})


def test_a_row_replaces_those_that_agree_on_the_keys(tmp_path):
    path = tmp_path / "new" / "rows.json"
    for row in ({"a": 1, "b": 1, "v": 1}, {"a": 1, "b": 2, "v": 2}, {"a": 1, "b": 1, "v": 3}):
        add_row(path, row, same=("a", "b"))
    assert [row["v"] for row in json.loads(path.read_text())] == [2, 3]
    assert [file.name for file in path.parent.iterdir()] == ["rows.json"]


def test_rows_that_agree_in_tuples_agree_in_the_file(tmp_path):
    for value in (1, 2):
        add_row(tmp_path / "rows.json", {"victim": {"milestones": ((2, 0.1),)}, "v": value})
    assert [row["v"] for row in json.loads((tmp_path / "rows.json").read_text())] == [2]


def test_a_record_has_the_environment_and_no_infinity(tmp_path):
    write_record(tmp_path / "rows.json", [{"score": np.inf}], command="it")
    text = (tmp_path / "rows.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    assert record["rows"] == [{"score": "inf"}]
    assert record["environment"]["command"] == "it"
    assert "torch" in record["environment"]["versions"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "null", '{"rows": []}', "[" * 100_000])
def test_what_is_no_file_of_rows_is_named_and_kept(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=r"rows: got .*rows\.json, expected a JSON list of rows"):
        add_row(tmp_path / "rows.json", {"victim": 1})
    assert (tmp_path / "rows.json").read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]


def test_a_full_disk_leaves_the_rows_that_were_there(tmp_path, monkeypatch):
    add_row(tmp_path / "rows.json", {"victim": 1})

    def full(self, text, **_):
        self.write_bytes(text[:5].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        add_row(tmp_path / "rows.json", {"victim": 2})
    assert json.loads((tmp_path / "rows.json").read_text()) == [{"victim": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]


def test_rows_that_several_add_at_once_are_all_there(tmp_path):
    path, start, errors = tmp_path / "rows.json", threading.Barrier(6), []

    def add(victim):
        start.wait(timeout=60)
        try:
            for turn in range(5):
                add_row(path, {"victim": [victim, turn]})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(victim,)) for victim in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rows = [tuple(row["victim"]) for row in json.loads(path.read_text())]
    assert sorted(rows) == [(victim, turn) for victim in range(6) for turn in range(5)]
