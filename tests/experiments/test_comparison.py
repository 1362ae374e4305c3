"""Defences side by side: equal budgets, choices that use neither the trigger nor test data, complete rows."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES, SHAPE, linear_classifier, recorded_rates, tiny_classifier, tiny_data, untouched

from art_aft.adversarial.inversion import Triggers
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.attacks import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.cli import main as cli
from art_aft.defences import AdversarialFineTuning
from art_aft.defences.base import Defence
from art_aft.defences.neural_cleanse import Detection
from art_aft.experiments import compare as comparison
from art_aft.experiments import measurements
from art_aft.experiments.compare import compare
from art_aft.experiments.pictures import trigger_picture
from art_aft.experiments.tables import comparison_table
from art_aft.experiments.victims import VictimSettings, clean_subset, train_victim
from art_aft.experiments.warming import warm_up
from art_aft.metrics import Scores, defence_effectiveness
from art_aft.runtime.devices import PeakMemory
from art_aft.training.recipe import Recipe
from art_aft.training.recipes import RECIPES

EXAMPLES = Path(__file__).parents[2] / "examples"
# Two threads on busy cores wait for each other at every step, and take minutes instead of seconds.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


class Breaking(Defence):
    """Changes nothing up to a learning rate, and breaks the classifier above it: every image becomes class 3."""

    def __init__(self, classifier, *, limit=0.05, learning_rate=0.01, seed=0, verbose=False):
        super().__init__(classifier, limit=limit, learning_rate=learning_rate, seed=seed, verbose=verbose)
        self.calls = ()

    def _purify(self, classifier, images, run):
        self.calls += ((self.learning_rate, len(images), images.pixels.tobytes()),)
        if self.learning_rate > self.limit:
            with torch.no_grad():
                classifier.model[-1].weight.copy_(torch.eye(NB_CLASSES)[:, 3:])


@pytest.fixture
def victim():
    """A linear model that is right on every image; a part of the images is of class 3."""
    weights = np.random.default_rng(0).normal(size=(NB_CLASSES, *SHAPE)).astype(np.float32)
    classifier = linear_classifier(weights - weights.mean(axis=(1, 2, 3), keepdims=True))
    x, _ = tiny_data(200)
    y = classifier.predict(x).argmax(axis=1)
    assert 0 < np.mean(y == 3) < 0.8
    return classifier, x, y


def run(victim, defences, **settings):
    classifier, x, y = victim
    with untouched(classifier):
        return compare(classifier, defences, x[:100], y[:100], x[100:], y[100:], BadNets(), AllToOne(0), **settings)


class TestEffectiveness:
    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            ((0.9, 1.0), (0.9, 0.0), 1.0),
            ((0.9, 1.0), (0.9, 1.0), 0.5),
            ((0.9, 1.0), (0.7, 0.5), 0.65),
            ((0.8, 0.5), (0.9, 0.7), 0.5),  # gains do not count
            ((1.0, 0.0), (0.0, 0.0), 0.0),
        ],
    )
    def test_by_hand(self, before, after, expected):
        scores = [Scores(acc, asr, ra=0.0, n_clean=1, n_triggered=1) for acc, asr in (before, after)]
        assert defence_effectiveness(*scores) == pytest.approx(expected)


class TestWarmUp:
    def test_a_step_was_made_before_the_first_defence_is_timed(self, victim):
        with recorded_rates() as steps:
            found = []

            def factory(*arguments, **keywords):
                found.append(len(steps))
                return Breaking(*arguments, **keywords)

            run(victim, {"one": factory, "other": factory}, learning_rates=())
        assert found == [1, 1]  # Breaking makes no steps

    def test_so_it_was_in_a_cell_of_a_grid(self, monkeypatch):
        class Timed(Exception):
            pass

        def start(*_):
            assert len(steps) == 1
            raise Timed

        settings = VictimSettings(attack="badnets", recipe=replace(RECIPES["digits"], nb_epochs=1))
        trained = train_victim(settings)
        monkeypatch.setattr(measurements, "run_defence", start)
        with recorded_rates() as steps, pytest.raises(Timed):
            measurements.scores(trained, measurements.Cell(settings, defence="fine_tuning"))

    def test_the_classifier_stays_and_a_frozen_one_is_only_attacked(self):
        x, y = tiny_data(8)
        classifier = tiny_classifier()
        with untouched(classifier), recorded_rates() as steps:
            warm_up(classifier, x, y)
            assert len(steps) == 1
            classifier.model.requires_grad_(False)
            warm_up(classifier, x, y)
            assert len(steps) == 1
            classifier.model.requires_grad_(True)


class TestBudget:
    def test_the_largest_rate_within_the_drop_is_chosen_on_held_out_images(self, victim):
        made = []

        def factory(*arguments, **keywords):
            made.append(Breaking(*arguments, **keywords))
            return made[-1]

        _, row = run(victim, {"mine": factory}, learning_rates=(0.01, 0.1, 0.05), held_out=0.2)
        rates = [(rate, size) for rate, size, _ in made[0].calls]
        assert rates == [(0.01, 80), (0.1, 80), (0.05, 80), (0.05, 100)]
        assert made[0].calls[-1][2] == victim[1][:100].tobytes()
        assert row["settings"]["learning_rate"] == 0.05
        assert [run["learning_rate"] for run in row["tried"]] == [None, 0.01, 0.1, 0.05]
        accuracies = [run["held_out_accuracy"] for run in row["tried"]]
        assert accuracies[:2] == [1.0, 1.0]
        assert accuracies[2] < 0.9
        assert accuracies[3] == 1.0

    def test_if_every_rate_costs_too_much_the_cheapest_is_taken(self, victim):
        _, row = run(victim, {"mine": partial(Breaking, limit=0.0)}, learning_rates=(0.1, 0.01), max_drop=0.0)
        assert row["settings"]["learning_rate"] == 0.1  # both break it alike, and the first is as good as any
        assert row["acc"] == np.mean(victim[2][100:] == 3)

    def test_every_defence_is_tried_as_often(self, victim):
        rows = run(
            victim,
            {"a": Breaking, "b": partial(Breaking, limit=1.0)},
            learning_rates=(0.01, 0.1),
        )
        assert [len(row["tried"]) for row in rows[1:]] == [3, 3]
        assert [row["settings"]["learning_rate"] for row in rows[1:]] == [0.01, 0.1]

    @pytest.mark.parametrize(("rates", "used"), [((0.3,), 0.3), ((), 0.01)])
    def test_one_rate_is_taken_untried_and_none_leaves_the_defences_own(self, victim, rates, used):
        _, row = run(victim, {"mine": Breaking}, learning_rates=rates)
        assert row["settings"]["learning_rate"] == used
        assert all(run["held_out_accuracy"] is None for run in row["tried"])

    def test_neither_trigger_nor_test_images_have_a_say(self, victim):
        """What is purified is the same whatever they are."""
        chosen = []
        for attack, flip in ((BadNets(), False), (lambda x: 1 - x, True)):
            classifier, x, y = victim
            seen = []
            factory = partial(Breaking, limit=0.05)
            test = (1 - x[100:], (y[100:] + 1) % NB_CLASSES) if flip else (x[100:], y[100:])
            rows = compare(
                classifier, {"mine": factory}, x[:100], y[:100], *test, attack, AllToOne(0), watch=seen.append
            )
            assert seen == rows
            chosen.append((rows[1]["tried"], rows[1]["settings"]))
        assert chosen[0] == chosen[1]


class TestRows:
    def test_the_first_is_the_classifier_itself(self, victim):
        first, second = run(victim, ["fine_tuning"], learning_rates=(0.01,))
        assert first["defence"] == "none"
        assert first["acc"] == 1.0
        assert first["der"] == 0.5
        assert second["defence"] == "fine_tuning"
        assert second["der"] == pytest.approx(
            (max(0, first["asr"] - second["asr"]) - max(0, first["acc"] - second["acc"]) + 1) / 2
        )
        assert second["seconds"] > 0
        assert {"acc", "asr", "ra", "n_clean", "n_triggered", "peak_memory", "settings", "tried"} <= set(second)
        json.dumps(second)

    @pytest.mark.parametrize("infinity", [np.inf, float("inf"), np.float64("inf")])
    def test_settings_that_json_does_not_know_can_be_written(self, victim, infinity):
        rows = run(victim, {"aft": partial(_quick_aft, norm=infinity)}, learning_rates=(0.01,))
        text = json.dumps(rows, allow_nan=False)
        assert json.loads(text)[1]["settings"]["attack"]["norm"] == "inf"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"defences": ["magic"]}, r"^defences: got 'magic', expected one of 'aft', "),
            ({"learning_rates": (0.1, -1)}, "learning_rates: got -1"),
            ({"held_out": 1.0}, "held_out: got 1"),
            ({"max_drop": 2}, "max_drop: got 2"),
            ({"seed": -1}, "seed: got -1"),
        ],
    )
    def test_bad_arguments_are_named(self, victim, settings, message):
        with pytest.raises(ValueError, match=message):
            run(victim, **{"defences": ["fine_tuning"], **settings})


def _quick_aft(classifier, norm, **settings):
    attack = TorchAttacksPGD(classifier, max_iter=1, norm=norm)
    return AdversarialFineTuning(classifier, attack, nb_epochs=1, clean_epochs=0, **settings)


class TestPeakMemory:
    def test_a_large_array_is_seen_and_what_was_there_before_is_not(self):
        before = np.ones(30_000_000)  # 240 MB
        with PeakMemory(torch.device("cpu")) as memory:
            during = np.ones(12_500_000)  # 100 MB
            wait()
            del during
        assert before.size
        if sys.platform == "linux":
            assert 90e6 < memory.bytes < 160e6

    def test_memory_that_the_c_library_has_kept_is_no_present(self):
        large = np.ones(3_900_000)  # glibc maps memory for such arrays; once one is freed, it takes them from its heap
        del large
        many = [np.ones(2_500_000) for _ in range(12)]  # 240 MB in all
        last = np.ones(100_000)  # keeps the heap from being cut
        del many
        with PeakMemory(torch.device("cpu")) as memory:
            during = np.ones(12_500_000)
            wait()
            del during
        assert last.size
        if sys.platform == "linux":
            assert 90e6 < memory.bytes < 160e6


def wait():
    """Give the watching thread its turn, however busy the machine is."""
    for _ in range(50):
        time.sleep(0.01)


class TestTable:
    ROW = {
        "victim": {"data": "cifar10", "labels": "all-to-one", "rate": 0.1, "attack": "blend"},
        "defence": "aft",
        "ra": 0.5,
        "der": 0.9,
        "seconds": 2.0,
        "peak_memory": 3 * 2**20,
    }

    def test_mean_deviation_and_the_papers_figures(self):
        rows = [{**self.ROW, "acc": acc, "asr": asr} for acc, asr in ((0.8, 0.01), (0.82, 0.03), (0.84, 0.05))]
        line = comparison_table(rows).splitlines()[-1]
        assert re.sub(" +", " ", line) == "AFT 82.0 +-2.0 3.0 +-2.0 50.0 +-0.0 90.0 +-0.0 2.0 3 3 81.68/3.88"

    @pytest.mark.parametrize("other", [{"data": "gtsrb"}, {"labels": "all-to-all"}, {"rate": 0.01}])
    def test_another_cell_has_no_figure_of_the_paper(self, other):
        row = {**self.ROW, "acc": 0.8, "asr": 0.1, "victim": {**self.ROW["victim"], **other}}
        assert "paper" not in comparison_table([row])
        assert "81.68" not in comparison_table([row])


class TestTriggerPicture:
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_it_shows_the_mask_of_every_label(self, tmp_path, channels_last):
        image = pytest.importorskip("PIL.Image")
        masks, patterns = np.zeros((12, 1, 8, 8)), np.ones((12, 3, 8, 8))
        masks[3] = 1.0  # all others are black
        if channels_last:
            masks, patterns = np.moveaxis(masks, 1, -1), np.moveaxis(patterns, 1, -1)
        norms = masks.reshape(12, -1).sum(axis=1) + np.arange(12)
        triggers = Triggers(np.arange(12), masks, patterns, norms, np.ones(12), np.ones(12, dtype=int))
        trigger_picture(Detection(triggers, [3]), tmp_path / "triggers.png")
        pixels = np.asarray(image.open(tmp_path / "triggers.png").convert("L"))
        black, height = (pixels < 10).mean(axis=0), len(pixels)
        assert pixels.shape[1] > 1000
        # 24 squares, all black but one label's two: about 11 of 12 dark squares in each line of labels.
        assert (
            black[: pixels.shape[1] // 10].mean() > black[3 * pixels.shape[1] // 10 : 4 * pixels.shape[1] // 10].mean()
        )
        assert height > 500


RECIPE = Recipe(nb_epochs=1, batch_size=64, learning_rate=0.1)


def test_clean_subsets_are_the_defenders_own_and_others_of_its_size():
    victim = train_victim(VictimSettings(attack="badnets", recipe=RECIPE))
    sets = [clean_subset(victim, number) for number in (0, 1, 2, 1)]
    np.testing.assert_array_equal(sets[0][0], victim.x_clean)
    np.testing.assert_array_equal(sets[1][0], sets[3][0])
    assert len({x.tobytes() for x, _ in sets}) == 3
    assert {len(x) for x, _ in sets} == {120}
    pairs = {
        image.tobytes(): label for image, label in zip(victim.dataset.x_train, victim.dataset.y_train, strict=True)
    }
    assert all(pairs[image.tobytes()] == label for image, label in zip(*sets[2], strict=True))


class TestCommand:
    ARGUMENTS = [
        *["compare", "--attack", "badnets", "--model", "wrn-10-1", "--recipe", "digits", "--epochs", "1"],
        *["--clean-share", "0.1", "--quiet", "--defences", "fine_tuning", "fine_pruning", "--learning-rates", "0.01"],
        *["--subsets", "2", "--set", "nb_epochs=1", "batch_size=32"],
    ]

    def test_rows_and_table(self, tmp_path, capsys):
        rows_file = tmp_path / "rows.json"
        arguments = [*self.ARGUMENTS, "--store", str(tmp_path / "models"), "--rows", str(rows_file)]
        assert cli.main(arguments) == 0
        *table, written = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0] for line in table[2:]] == ["before", "fine-tuning", "fine-pruning"]
        assert str(tmp_path / "rows.html") in written
        rows = json.loads(rows_file.read_text())
        assert [(row["clean_subset"], row["defence"]) for row in rows] == [
            (subset, name) for subset in (0, 1) for name in ("none", "fine_tuning", "fine_pruning")
        ]
        settings = rows[1]["settings"]
        assert (settings["nb_epochs"], settings["batch_size"], settings["horizontal_flip"]) == (1, 32, False)
        assert rows[1]["command"].startswith("art-aft compare --attack badnets --data digits --model wrn-10-1")
        # The command that a row names gives the same row.
        again = [*rows[1]["command"].split()[1:], "--quiet", "--store", str(tmp_path / "models")]
        other_file = tmp_path / "again.json"
        assert cli.main([*again, "--rows", str(other_file)]) == 0
        for one, other in zip(rows, json.loads(other_file.read_text()), strict=True):
            assert {**one, **TIMES} == {**other, **TIMES}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--set", "nb_epochs"], "--set: got 'nb_epochs', expected NAME=VALUE"),
            (["--set", "batch_size=0"], "batch_size: got 0"),
            (["--preset", "magic"], "preset: got 'magic'"),
            (["--subsets", "0"], "--subsets: got 0"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, capsys, arguments, message):
        assert cli.main([*self.ARGUMENTS, "--store", str(tmp_path), *arguments]) == 2
        assert message in capsys.readouterr().err


TIMES = {"seconds": 0, "search_seconds": 0, "peak_memory": 0}


def test_the_example_compares_all_five(tmp_path, monkeypatch, capsys):
    output = tmp_path / "rows.json"
    monkeypatch.setitem(RECIPES, "digits", replace(RECIPES["digits"], nb_epochs=1))
    # One learning rate of the three, which is then not searched for.
    monkeypatch.setattr(comparison, "compare", lambda *given, learning_rates: compare(*given, learning_rates=(0.02,)))
    monkeypatch.setattr(sys, "argv", ["compare_defences.py", "--smoke", "--output", str(output)])
    runpy.run_path(str(EXAMPLES / "compare_defences.py"))
    names = ["none", "aft", "fine_pruning", "fine_tuning", "nad", "neural_cleanse"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
    assert [row["defence"] for row in json.loads(output.read_text())] == names


def test_the_example_with_arts_own_runs_with_and_without_tensorflow(tmp_path):
    output = tmp_path / "rows.json"
    command = [sys.executable, str(EXAMPLES / "benchmarks" / "compare_with_art.py"), "--smoke", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ONE_THREAD, cwd=tmp_path)
    rows = json.loads(output.read_text())["rows"]
    steps = [(row["who"], row["mitigation"]) for row in rows]
    kinds = ("none", "unlearning", "pruning", "filtering")
    if importlib.util.find_spec("tensorflow"):
        assert steps == [(who, kind) for who in ("art_aft", "ART", "ART, rate kept") for kind in kinds]
    else:
        assert steps == [("art_aft", kind) for kind in kinds]
        assert "pip install 'art-aft[keras]'" in done.stdout
    assert all("error" not in row for row in rows)
    assert rows[0]["asr"] > 0.9
