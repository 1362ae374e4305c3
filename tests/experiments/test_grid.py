"""Grids: cells are measured once, a killed run loses no finished cell, and rows say what was measured."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import weights

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import features
from art_aft.defences import AdversarialFineTuning
from art_aft.experiments import grid as grid_module
from art_aft.experiments import measurements
from art_aft.experiments.grid import run_cell, run_grid
from art_aft.experiments.measurements import TASKS, Cell, defender_data
from art_aft.experiments.victims import VictimSettings, clean_subset, poisoned_data, train_victim
from art_aft.metrics import evaluate
from art_aft.training.recipes import RECIPES

BLEND = VictimSettings(attack="blend", recipe=replace(RECIPES["digits"], nb_epochs=3))
TUNING = {"nb_epochs": 1, "batch_size": 32, "padding": 0, "precision": "float32"}
QUICK = {**TUNING, "clean_epochs": 1, "attack": {"max_iter": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shared by all tests, as by all runs of a person: models are trained once."""
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def victim(folder):
    return train_victim(BLEND, store=folder / "models")


@pytest.fixture
def add_task():
    """Adds a task for the length of a test."""
    added = []

    def add(name, measure):
        TASKS.register(name)(measure)
        added.append(name)

    yield add
    for name in added:
        del TASKS._own[name]


def quick_aft(victim, **settings):
    """The defence that QUICK describes, made by hand."""
    attack = TorchAttacksPGD(victim.classifier, max_iter=1, precision="float32")
    return AdversarialFineTuning(victim.classifier, attack, clean_epochs=1, horizontal_flip=False, **TUNING, **settings)


def test_a_cells_key_tells_it_from_others_but_not_where_the_data_lie():
    cells = [
        Cell(BLEND),
        Cell(BLEND, subset=1),
        Cell(BLEND, defence="aft"),
        Cell(BLEND, defence="aft", settings={"attack": {"eps": 0.1}}),
        Cell(BLEND, defence="aft", variant="mine"),
        Cell(BLEND, defence="aft", clean_data=False),
        Cell(BLEND, task="label_matrix"),
        Cell(replace(BLEND, seed=1)),
    ]
    assert len({cell.key for cell in cells}) == len(cells)
    here, there = (Cell(replace(BLEND, data=data)) for data in ("/here/cifar10", "/there/cifar10"))
    assert here.key == there.key


class TestRunning:
    def test_cells_are_measured_once_and_come_back_in_order(self, folder, victim, add_task):
        measured = []
        add_task("count", lambda victim, cell: measured.append(cell.subset) or {"n": 1})
        cells = [Cell(BLEND, task="count", subset=number) for number in (2, 0, 1, 0)]
        rows = run_grid(cells[:2], folder)
        rows = run_grid(cells, folder)
        assert sorted(measured) == [0, 1, 2]
        assert [row["subset"] for row in rows] == [2, 0, 1, 0]
        assert rows == run_grid(cells, folder)

    def test_a_run_that_dies_keeps_what_was_finished(self, folder, victim, add_task):
        measured, dies = [], [True]

        def fragile(victim, cell):
            if cell.subset == 2 and dies:
                dies.clear()
                raise RuntimeError("killed")
            measured.append(cell.subset)
            return {"n": cell.subset}

        add_task("fragile", fragile)
        cells = [Cell(BLEND, task="fragile", subset=number) for number in range(4)]
        with pytest.raises(RuntimeError, match="killed"):
            run_grid(cells, folder)
        assert measured == [0, 1]
        rows = run_grid(cells, folder)
        assert measured == [0, 1, 2, 3]
        assert [row["n"] for row in rows] == [0, 1, 2, 3]
        assert not list(folder.rglob("*.part"))

    def test_victims_are_trained_once_and_before_the_cells_that_need_them(self, tmp_path, monkeypatch, add_task):
        events = []
        real = grid_module.train_victim

        def watched(settings, **more):
            stored = (more["store"] / f"{settings.key}.json").exists()
            events.append((settings.seed, "found" if stored else "trained"))
            return real(settings, **more)

        monkeypatch.setattr(grid_module, "train_victim", watched)
        add_task("nothing", lambda victim, cell: {})
        quick = replace(BLEND, recipe=replace(BLEND.recipe, nb_epochs=1))
        victims = [quick, replace(quick, seed=1)]
        run_grid([Cell(i, task="nothing", subset=s) for s in (0, 1) for i in victims], tmp_path)
        assert events[:2] == [(0, "trained"), (1, "trained")]
        assert {event for _, event in events[2:]} == {"found"}

    def test_a_data_set_is_read_once_and_the_victim_measured_once(self, folder, victim, monkeypatch):
        grid_module._dataset.cache_clear()
        reads, measured = [], []
        real = grid_module.load
        monkeypatch.setattr(grid_module, "load", lambda *a, **k: reads.append(a) or real(*a, **k))
        monkeypatch.setattr(
            measurements, "evaluate", lambda classifier, *a: measured.append(classifier) or victim.scores
        )
        for number in (20, 21):
            row = run_cell(Cell(BLEND, defence="fine_tuning", settings={"nb_epochs": 1}, subset=number), folder)
            assert row["before"] == asdict(victim.scores)
        assert len(reads) == 1
        assert len(measured) == 2  # what each defence left
        test = (victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels)
        assert victim.scores == evaluate(victim.classifier, *test)

    def test_several_workers_give_the_same_rows(self, folder, victim):
        cells = [Cell(BLEND, subset=number) for number in (10, 11)]
        rows = run_grid(cells, folder, n_jobs=2)
        alone = [run_cell(replace(cell, subset=cell.subset + 10), folder) for cell in cells]
        for row, other in zip(rows, alone, strict=True):
            assert {row[key] for key in ("acc", "asr", "ra")} == {other[key] for key in ("acc", "asr", "ra")}

    def test_an_unknown_task_is_named_before_anything_is_trained(self, tmp_path):
        with pytest.raises(ValueError, match=r"unknown task 'magic', expected one of: .*scores"):
            run_grid([Cell(BLEND, task="magic")], tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_row_is_json_and_tells_the_cell(self, folder, victim):
        row = run_cell(Cell(BLEND, defence="fine_tuning", settings={"nb_epochs": 1, "padding": 0}), folder)
        assert row == json.loads(json.dumps(row))
        assert row["victim"]["attack"] == "blend"
        assert row["settings"] == {"nb_epochs": 1, "padding": 0}
        assert {"versions", "device", "acc", "asr", "ra", "der", "seconds"} <= set(row)


class TestScores:
    def test_the_victim(self, folder, victim):
        row = run_cell(Cell(BLEND), folder)
        scores = evaluate(victim.classifier, victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels)
        assert (row["acc"], row["asr"], row["ra"]) == (scores.acc, scores.asr, scores.ra)

    @pytest.mark.parametrize("clean_data", [True, False])
    def test_aft_and_its_stage_2_on_the_data_that_the_defender_has(self, folder, victim, clean_data):
        torch.set_num_threads(1)
        cell = Cell(BLEND, defence="aft", settings=QUICK, subset=1, clean_data=clean_data)
        row = run_cell(cell, folder)
        x, y = clean_subset(victim, 1) if clean_data else (poisoned_data(victim).x, poisoned_data(victim).y)
        assert row["n_defender"] == len(x) == (120 if clean_data else 1080)
        defence = quick_aft(victim)
        purified = defence(x, y=y)
        test = (victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels)
        assert row["acc"] == evaluate(purified, *test).acc
        assert row["stage_2"]["asr"] == evaluate(defence.report.adversarial_classifier, *test).asr

    def test_without_clean_data_the_set_is_the_one_that_the_victim_was_trained_on(self, victim):
        """Training on it again, from the same start, gives the victim's weights."""
        x, y = defender_data(victim, Cell(BLEND, clean_data=False))
        again = train_victim(BLEND)
        seen = {}

        def fit(classifier, batches, recipe, **_):
            seen.update(x=batches.x.numpy(), y=batches.y.numpy())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("art_aft.experiments.victims.fit", fit)
            train_victim(BLEND)
        np.testing.assert_array_equal(seen["x"], x)
        np.testing.assert_array_equal(seen["y"], y)
        assert weights(again.classifier).keys() == weights(victim.classifier).keys()


class TestOtherTasks:
    def test_the_matrix_counts_every_image_once(self, folder, victim):
        row = run_cell(Cell(BLEND, task="label_matrix", settings={"n_images": 200, "eps": 0.1, "max_iter": 3}), folder)
        counts = np.array(row["counts"])
        chosen = np.random.default_rng(0).permutation(1200)[:200]
        x, y = victim.dataset.x_train[chosen], victim.dataset.y_train[chosen]
        np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(y, minlength=10))
        fallen = victim.classifier.predict(
            TorchAttacksPGD(victim.classifier, eps=0.1, max_iter=3, precision="auto").generate(x, y)
        ).argmax(axis=1)
        assert abs(np.mean(fallen == 0) - row["target_share"]) <= 0.01
        assert row["target_share_of_others"] == pytest.approx(counts[1:, 0].sum() / counts[1:].sum())
        assert row["adversarial_success"] == pytest.approx(1 - np.trace(counts) / 200)

    def test_a_curve_has_a_point_every_few_steps(self, folder, victim):
        settings = {**QUICK, "n_test": 100}
        each, some = (
            run_cell(Cell(BLEND, task="curve", defence="aft", settings={**settings, "every": every}), folder)["points"]
            for every in (1, 3)
        )
        chosen = np.random.default_rng(0).permutation(len(victim.dataset.y_test))[:100]
        test = (victim.dataset.x_test[chosen], victim.dataset.y_test[chosen], victim.attack, victim.labels)
        x, y = clean_subset(victim, 0)
        defence = quick_aft(victim)
        purified = defence(x, y=y)
        steps = math.ceil(len(x) / 32)
        ends = {(1, 0): victim.classifier, (2, steps): defence.report.adversarial_classifier, (3, steps): purified}
        for (stage, step), classifier in ends.items():
            scores = evaluate(classifier, *test)
            assert [stage, step, scores.acc, scores.asr] in each
        assert len(each) == 1 + 2 * steps
        assert some == [point for point in each if point[1] % 3 == 0]

    def test_a_curve_without_clean_data_says_where_early_stopping_ended_it(self, folder, victim):
        settings = {**TUNING, "max_steps": 8, "early_stopping_checks": 4, "attack": {"max_iter": 1}}
        cell = Cell(
            BLEND,
            task="curve",
            defence="aft_no_clean_data",
            settings={**settings, "every": 2, "n_test": 50},
            clean_data=False,
        )
        row = run_cell(cell, folder)
        assert [point[:2] for point in row["points"]] == [[1, 0], [2, 2], [2, 4], [2, 6], [2, 8]]
        assert row["stopped_after"] in (4, 6, 8)  # none in the first quarter
        assert row["n_defender"] == 1080

    def test_feature_distances_against_numpy(self, folder, victim):
        settings = {"n_images": 40, "eps": 0.1, "max_iter": 2, "precision": "float32"}
        row = run_cell(Cell(BLEND, task="feature_distance", settings=settings), folder)
        benign = train_victim(BLEND.benign, store=folder / "models")
        chosen = np.random.default_rng(0).permutation(1200)[:40]
        x, y = victim.dataset.x_train[chosen], victim.dataset.y_train[chosen]
        triggered = victim.attack.perturbation(x)
        for name, attacked, extractor in (
            ("distance_infected", victim, victim),
            ("distance_benign", benign, victim),
            ("distance_benign_features", benign, benign),
        ):
            examples = TorchAttacksPGD(attacked.classifier, eps=0.1, max_iter=2, precision="float32").generate(x, y)
            maps = [features(extractor.classifier, images).reshape(40, -1) for images in (triggered, examples)]
            expected = np.sqrt(((maps[0] - maps[1]) ** 2).sum(axis=1)).mean()
            assert row[name] == pytest.approx(expected, rel=1e-4)

    def test_the_benign_model_has_no_backdoor(self, folder):
        benign = train_victim(BLEND.benign, store=folder / "models")
        assert not poisoned_data(benign).is_poisoned.any()


def test_every_task_is_described():
    assert all(task.__doc__ for task in TASKS.values())
    assert measurements.COMPARED_WITH_BENIGN == ("feature_distance",)
