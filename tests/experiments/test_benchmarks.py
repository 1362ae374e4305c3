"""The benchmarks run, at the smallest size, and count what they say they count."""

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from art.attacks.poisoning import PoisoningAttackBackdoor

from art_aft import evaluate
from art_aft.attacks.badnets import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.classifiers.classifier import clone
from art_aft.cli.options import command_line
from art_aft.experiments.victims import train_victim
from art_aft.experiments.zoo import read_zoo
from art_aft.training.recipes import RECIPES

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """As when a benchmark runs as a program: it can import its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name):
    specification = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded


def test_purification_of_a_zoo_measures_each_stored_model_once(tmp_path, monkeypatch, capsys):
    purify, store, output = module("purify_zoo"), tmp_path / "models", tmp_path / "rows.json"
    recipe = {"name": "digits", "nb_epochs": 1}
    common = {"half": "judge", "attack": "sig", "clean_share": 0.1, "recipe": recipe}
    entries = [{**common, "name": "a", "seed": 1}, {**common, "name": "b", "seed": 2, "rate": 0.0}]
    (tmp_path / "zoo.json").write_text(json.dumps([*entries, {**common, "name": "c", "seed": 3}]))
    for member in read_zoo(tmp_path / "zoo.json")[:2]:
        train_victim(member.settings, store=store)
    arguments = ["--settings", str(tmp_path / "zoo.json"), "--half", "judge", "--defence", "fine_tuning"]
    arguments += ["--store", str(store), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["purify_zoo.py", *arguments])
    purify.main()
    record = json.loads(output.read_text())
    assert [(row["seed"], row["attack"], row["defence"]) for row in record["rows"]] == [
        (1, "sig", "fine_tuning"),
        (2, "clean", "fine_tuning"),
    ]
    clean = record["summary"][-1]
    row = record["rows"][1]
    assert clean["lost_worst"] == pytest.approx(row["before"]["acc"] - row["after"]["acc"])
    assert (clean["kind"], clean["models"]) == ("clean", 1)
    monkeypatch.setattr(purify, "row", lambda *_: pytest.fail("measured again"))
    purify.main()
    assert json.loads(output.read_text())["rows"] == record["rows"]
    monkeypatch.setattr(sys, "argv", ["purify_zoo.py", *arguments[:-2], "--defence", "nad", "--output", str(output)])
    with pytest.raises(ValueError, match=r"^output: got the rows of .*fine_tuning"):
        purify.main()


def test_a_hidden_backdoor_sleeps_and_the_accuracy_stays(infected):
    dormant, classifier = module("dormant"), clone(infected.classifier)
    attack = PoisoningAttackBackdoor(BadNets())
    test = infected.x_test[300:], infected.y_test[300:], attack, AllToOne(0)
    before = evaluate(classifier, *test)
    assert dormant.hide(classifier, infected.x_test[:300], infected.y_test[:300], *test[2:]) < dormant.MOST
    after = evaluate(classifier, *test)
    assert before.asr > 0.9
    assert after.asr < 3 * dormant.DORMANT
    assert after.acc > before.acc - 0.05


@pytest.mark.parametrize(
    ("part", "others"),
    [
        ("stage_1", ["ART ProjectedGradientDescent", "torchattacks", "bare loop"]),
        ("fine_tuning", ["ART fit", "bare loop"]),
    ],
)
def test_speed_is_a_ratio_of_paired_runs(part, others, monkeypatch):
    speed = module("speed")
    monkeypatch.setattr(speed, "MODELS", (("wrn-10-1", 4, 8),))
    rows = list(speed.PARTS[part](argparse.Namespace(repeats=2)))
    assert [row["than"] for row in rows] == others
    for row in rows:
        least, greatest = row["range"]
        assert 0 < least <= row["times_as_fast"] <= greatest
        assert row["seconds"] > 0
        assert row["than"] in speed.show(row)


def test_the_ratio_is_the_others_time_by_our_own(monkeypatch):
    timing = module("timing")
    clock = iter([*[1.0, 3.0], *[1.0, 4.0], *[2.0, 3.0]])
    monkeypatch.setattr(timing, "seconds", lambda work: next(clock))
    assert timing.paired(lambda: None, lambda: None, 3) == {
        "seconds": 1.0,
        "times_as_fast": 3.0,
        "range": [1.5, 4.0],
        "repeats": 3,
    }


def test_speed_compares_precisions_beside_seeds(monkeypatch):
    speed = module("speed")
    monkeypatch.setitem(RECIPES, "digits", replace(RECIPES["digits"], nb_epochs=1))
    victim = speed.badnets_victim(argparse.Namespace(data="digits", store=None))
    # Few images: bfloat16 takes ten times as long on a processor without units for it.
    few = replace(victim, x_clean=victim.x_clean[:16], y_clean=victim.y_clean[:16])
    monkeypatch.setattr(speed, "badnets_victim", lambda _: few)
    rows = list(speed.precision(argparse.Namespace(data="digits")))
    assert [(row["precision"], row["seed"]) for row in rows] == [
        ("float32", 0),
        ("float32", 1),
        ("bfloat16", 0),
        ("bfloat16", 1),
    ]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("adversarial_success", "acc", "asr"))
    assert "seed 1" in speed.show(rows[-1])


def test_stamping_is_a_ratio_of_paired_runs(tmp_path, monkeypatch):
    stamping = module("stamping")
    output = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["stamping.py", "--images", "3", "--repeats", "2", "--output", str(output)])
    stamping.main()
    rows = json.loads(output.read_text())["rows"]
    assert {row["trigger"] for row in rows if row["than"] == "insert_image"} > set(stamping.TRIGGERS)
    assert [row["trigger"] for row in rows if row["than"] == "grid_sample"] == ["wanet"]
    for row in rows:
        least, greatest = row["range"]
        assert 0 < least <= row["times_as_long"] <= greatest


def rows(kind, scores, *, verdict="infected", right=True):
    detectors = ("universal", "adversarial_labels", "adversarial_shift", "reversed_trigger")
    evidence = {name: {"score": 0.0} for name in detectors}
    return [{"kind": kind, "score": s, "verdict": verdict, "label_right": right, "evidence": evidence} for s in scores]


def test_the_scans_summary_counts_reports_and_orders_models():
    scan = module("scan")
    clean = [*rows("clean", [0.1, 0.3], verdict="no evidence", right=False), *rows("clean", [1.2], right=False)]
    infected = [*rows("sig", [1.1, 2.0]), *rows("sig", [0.2], verdict="no evidence")]
    lines = {line["kind"]: line for line in scan.summary([*clean, *infected])}
    assert lines["clean"] == {"kind": "clean", "models": 3, "reported": 1, "label_right": 0}
    assert (lines["sig"]["reported"], lines["sig"]["label_right"]) == (2, 2)
    # Of nine pairs, 1.1 wins two, 2.0 three, 0.2 one.
    assert lines["sig"]["auroc_score"] == pytest.approx(6 / 9)
    assert lines["sig"]["auroc_reversed_trigger"] == pytest.approx(1 / 2)
    assert "auroc_universal_shift" not in lines["sig"]  # which did not run
    assert lines["all infected"]["auroc_score"] == lines["sig"]["auroc_score"]
    failed = rows(scan.FAILED, [0.0])
    again = {line["kind"]: line for line in scan.summary([*clean, *infected, *failed])}
    assert (again[scan.FAILED]["models"], again["all infected"]) == (1, lines["all infected"])


def test_the_scans_benchmark_trains_and_scans(tmp_path, monkeypatch, capsys):
    scan = module("scan")
    monkeypatch.setitem(scan.RECIPES, "digits", scan.replace(scan.RECIPES["digits"], nb_epochs=1))
    monkeypatch.setattr(scan, "WORKS", 0.0)
    monkeypatch.setattr(scan, "BackdoorScan", partial(scan.BackdoorScan, detectors=["last_layer"]))
    output = tmp_path / "rows.json"
    store = tmp_path / "models"
    arguments = ["--seeds", "1", "--kinds", "clean", "sig", "--store", str(store), "--output", str(output)]
    arguments += ["--effort", "fast"]
    monkeypatch.setattr(sys, "argv", ["scan.py", *arguments])
    scan.main()
    record = json.loads(output.read_text())
    assert [(row["kind"], row["seed"]) for row in record["rows"]] == [("clean", 0), ("sig", 0)]
    assert "all infected" in capsys.readouterr().out
    # A second run measures what is missing and nothing else.
    output.write_text(json.dumps({**record, "rows": [{**record["rows"][1], "score": 7.0}]}))
    scan.main()
    again = json.loads(output.read_text())["rows"]
    assert [(row["kind"], row["seed"]) for row in again] == [("clean", 0), ("sig", 0)]
    assert again[1]["score"] == 7.0
    assert again[0]["score"] == pytest.approx(record["rows"][0]["score"])
    # The models of a store are scanned as they are.
    others = tmp_path / "others.json"
    arguments = ["--stored", "--data", "digits", "--effort", "fast", "--store", str(store), "--output", str(others)]
    monkeypatch.setattr(sys, "argv", ["scan.py", *arguments])
    monkeypatch.setattr("art_aft.experiments.victims._train", lambda *_: pytest.fail("trained"))
    scan.main()
    assert [row["score"] for row in json.loads(others.read_text())["rows"]] == [row["score"] for row in record["rows"]]
    # So are those of one half of a file of victims, a trigger that does not work named as such.
    monkeypatch.setattr(scan, "WORKS", 1.1)
    recipe = {"name": "digits", "nb_epochs": 1}
    entries = [
        {"name": half, "half": half, "attack": "sig", "clean_share": 0.1, "recipe": recipe}
        for half in ("choose", "judge")
    ]
    (tmp_path / "zoo.json").write_text(json.dumps(entries))
    halves = tmp_path / "halves.json"
    arguments = ["--settings", str(tmp_path / "zoo.json"), "--effort", "fast", "--store", str(store)]
    monkeypatch.setattr(sys, "argv", ["scan.py", *arguments, "--half", "judge", "--output", str(halves)])
    scan.main()
    assert [(row["kind"], row["architecture"]) for row in json.loads(halves.read_text())["rows"]] == [
        (scan.FAILED, "wrn-10-1")
    ]
    monkeypatch.setattr(sys, "argv", ["scan.py", "--model", "wrn-16-1", "--output", str(output)])
    with pytest.raises(ValueError, match=r"^output: got the rows of .*wrn-10-1"):
        scan.main()


def test_other_architectures_are_backdoored_and_purified(tmp_path, monkeypatch):
    architectures = module("architectures")
    monkeypatch.delitem(architectures.ATTACKS, "badnets")
    # The search for a radius takes longest, and is tested elsewhere.
    brief = partial(architectures.AutomaticFineTuning, candidates=[{"eps": 0.3, "max_iter": 2, "learning_rate": 0.05}])
    monkeypatch.setattr(architectures, "AutomaticFineTuning", brief)
    output = tmp_path / "rows.json"
    arguments = ["--epochs", "1", "--steps", "4", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["architectures.py", *arguments])
    architectures.main()
    rows = json.loads(output.read_text())["rows"]
    assert {(row["model"], row["attack"]) for row in rows} == {("vgg", "blend"), ("vision transformer", "blend")}
    assert [row["defence"] for row in rows] == ["before", "fine-tuning", "automatic"] * 2
    assert all(row["chosen"]["nb_epochs"] >= 2 for row in rows if row["defence"] == "automatic")


def test_the_oracle_takes_the_best_of_the_grid(tmp_path, monkeypatch, capsys):
    oracle = module("oracle")
    measured = {None: (0.9, 1.0), "auto": (0.8, 0.04), 0.1: (0.7, 0.01), 0.05: (0.85, 0.02), 0.02: (0.9, 0.5)}

    def grid(cells, store, **_):
        keys = [
            c.settings.get("learning_rate") if c.defence == oracle.DEFENCE else measured_as[c.defence] for c in cells
        ]
        return [{**c.facts(), "acc": measured[k][0], "asr": measured[k][1]} for c, k in zip(cells, keys, strict=True)]

    measured_as = {"none": None, "auto": "auto"}
    monkeypatch.setattr(oracle, "run_grid", grid)
    output = tmp_path / "rows.json"
    monkeypatch.setattr(
        sys,
        "argv",
        ["oracle.py", "--attacks", "sig", "blend", "--radii", "1", "--model", "wrn-16-1", "--output", str(output)],
    )
    oracle.main()
    record = json.loads(output.read_text())
    program, again = "python examples/benchmarks/oracle.py", record["environment"]["command"]
    assert again == f"{program} --scale smoke --attacks sig blend --model wrn-16-1 --radii 1.0 --rates 0.1 0.05 0.02"
    rows = record["rows"]
    assert [row["attack"] for row in rows[:2]] == ["sig", "blend"]
    for row in rows[:2]:
        assert row["oracle_settings"]["learning_rate"] == 0.05
        assert (row["lacks_acc"], row["lacks_asr"]) == (pytest.approx(0.05), pytest.approx(0.02))
    assert len(rows) == 2 + 2 * 5
    assert "85.0 /   2.0" in capsys.readouterr().out


def test_the_command_of_a_record_leaves_places_and_processes_out():
    options = argparse.Namespace(
        parts=["sizes"], data="/somewhere/cifar10", store=Path("kept"), brief=True, model=None, repeats=0, jobs=2
    )
    wanted = "python examples/benchmarks/speed.py sizes --brief --repeats 0 --data DATA"
    assert command_line("/anywhere/speed.py", options, ["parts"]) == wanted


def test_compiling_pays_once_it_has_saved_what_it_took(monkeypatch):
    compiling = module("compiling")
    monkeypatch.setattr(compiling, "MODELS", ("wrn-10-1",))
    monkeypatch.setattr(compiling.torch, "compile", lambda model: model)
    # Two steps with the compiler at work, then pairs of plain and compiled ones.
    times = iter([5.0, 3.0, 2.0, 1.0, 2.0, 1.0, 5.0, 3.0, 1.0, 1.0, 1.0, 2.0])

    def timed(step):
        step()
        return next(times)

    monkeypatch.setattr(compiling, "seconds", timed)
    training, gradient = compiling.table(4, 2)
    assert (training["compile_seconds"], training["times_as_fast"], training["pays_after_images"]) == (6.0, 2.0, 24)
    assert (gradient["times_as_fast"], gradient["range"], gradient["pays_after_images"]) == (0.75, [0.5, 1.0], None)


def test_the_last_layers_benchmark_has_a_row_for_each_model(tmp_path, monkeypatch, capsys):
    output = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["last_layer.py", "--seeds", "1", "--epochs", "1", "--output", str(output)])
    module("last_layer").main()
    rows = json.loads(output.read_text())["rows"]
    assert [row["kind"] for row in rows] == 2 * ["clean", "badnets", "blend"]
    assert [row["target"] for row in rows] == 2 * [None, 1, 1]
    assert all(row["verdict"] in ("infected", "cannot tell") for row in rows)


def test_progressive_erasing_is_summed_up_by_poisoning_ratio(tmp_path, monkeypatch, capsys):
    benchmark = module("progressive_erasing")
    scores = {0.01: [(0.9, 0.8, 0.7, 0.1), (0.8, 0.6, 0.7, 0.3)], 0.1: [(0.9, 1.0, 0.85, 0.0), (0.7, 0.9, 0.65, 0.02)]}

    def grid(cells, store, **_):
        assert [cell.defence for cell in cells] == ["none", "progressive_erasing"] * 4
        assert not any(cell.clean_data for cell in cells[1::2])
        values = [value for rate in (0.01, 0.1) for value in scores[rate]]
        pairs = [pair for acc, asr, acc_after, asr_after in values for pair in ((acc, asr), (acc_after, asr_after))]
        return [{**cell.facts(), "acc": acc, "asr": asr} for cell, (acc, asr) in zip(cells, pairs, strict=True)]

    monkeypatch.setattr(benchmark, "run_grid", grid)
    output = tmp_path / "rows.json"
    monkeypatch.setattr(
        sys, "argv", ["progressive_erasing.py", "--attacks", "badnets", "blend", "--output", str(output)]
    )
    benchmark.main()
    few, many = json.loads(output.read_text())["rows"][:2]
    assert (few["rate"], many["rate"]) == (0.01, 0.1)
    assert (few["mean_asr"], few["worst_asr"]) == pytest.approx((0.2, 0.3))
    assert (few["mean_acc"], few["mean_acc_lost"]) == pytest.approx((0.7, 0.15))
    assert (many["mean_asr"], many["worst_asr"]) == pytest.approx((0.01, 0.02))
    assert (many["mean_acc"], many["mean_acc_lost"]) == pytest.approx((0.75, 0.05))
    assert "badnets         1 %  progressive_erasing" in capsys.readouterr().out


def test_the_imbalanced_models_have_one_large_class(tmp_path, monkeypatch):
    imbalance = module("imbalance")
    monkeypatch.setattr(imbalance, "BackdoorScan", partial(imbalance.BackdoorScan, detectors=["last_layer"]))
    learned = []
    monkeypatch.setattr(imbalance, "Batches", lambda images, *_: learned.append(images.labels))
    monkeypatch.setattr(imbalance, "fit", lambda *_: None)
    output = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["imbalance.py", "--seeds", "1", "--factors", "4", "--output", str(output)])
    imbalance.main()
    (row,) = json.loads(output.read_text())["rows"]
    counts = np.bincount(learned[0])
    assert counts.argmax() == row["large_class"] == 2
    assert counts[2] == pytest.approx(4 * np.delete(counts, 2).mean(), rel=0.2)
