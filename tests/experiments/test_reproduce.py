"""`art-aft reproduce`: every table and figure has its cells, its rows, its picture and its section of the page."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from art_aft.cli import main as cli
from art_aft.defences import DEFENCES, AdversarialFineTuning, UniversalAdversarialFineTuning
from art_aft.experiments.measurements import TASKS
from art_aft.experiments.paper import artefacts, figures
from art_aft.experiments.paper import pages as results
from art_aft.experiments.paper import published as paper
from art_aft.experiments.paper.artefacts import ARTEFACTS
from art_aft.experiments.paper.scales import SCALES, scale
from art_aft.experiments.victims import VictimSettings

RESULTS = Path(__file__).parents[2] / "examples" / "results"
NAMES = [f"table{n}" for n in range(1, 11)] + [f"fig{n}" for n in range(1, 10)] + ["theory"]


@pytest.fixture(scope="module")
def tiny():
    """The smallest scale of all: one epoch, and few images."""
    smoke = scale("smoke")
    recipes = {name: replace(recipe, nb_epochs=1) for name, recipe in smoke.recipes.items()}
    quick = {
        **smoke.quick,
        "aft": {**smoke.quick["aft"], "clean_epochs": 1},
        "aft_no_clean_data": {**smoke.quick["aft_no_clean_data"], "max_steps": 2},
        "progressive_erasing": {
            **smoke.quick["progressive_erasing"],
            "settings": {"eps": 1.0, "max_iter": 1, "nb_epochs": 1, "label_epochs": 1},
            "max_images": 60,
        },
    }
    return replace(smoke, recipes=recipes, quick=quick, n_images=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grid")


def test_every_table_and_figure_of_the_paper_is_there():
    assert sorted(ARTEFACTS) == sorted(NAMES)


@pytest.mark.parametrize("size", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_its_cells_are_valid_at_every_scale(name, size):
    cells = ARTEFACTS[name].cells(scale(size, "somewhere"))
    assert cells or name == "theory"
    for cell in cells:
        assert cell.task in TASKS
        if cell.defence != "none":
            settings = set(cell.settings) - ({"every"} if cell.task == "curve" else set())
            assert settings <= set(DEFENCES[cell.defence].params)
        json.dumps(cell.facts())
        data = cell.victim.data
        assert data == "digits" if size == "smoke" else data.startswith("somewhere")


def test_a_table_has_every_cell_that_the_paper_prints():
    at = scale("cpu", "somewhere")
    for name in NAMES:
        theirs = ARTEFACTS[name].paper
        if ARTEFACTS[name].kind != "scores":
            continue
        cells = ARTEFACTS[name].cells(at)
        own = {(cell.defence, cell.victim.attack) for cell in cells}
        for defence, attacks in theirs.items():
            base = defence.partition(", ")[0]
            assert {(base, attack) for attack in attacks} <= own, (name, defence)


def test_clean_data_are_repeated_over_three_subsets():
    cells = ARTEFACTS["table2"].cells(scale("cpu", "somewhere"))
    for attack in artefacts.ATTACKS:
        for defence in (*artefacts.RIVALS, "aft", "universal_aft"):
            own = [c for c in cells if (c.victim.attack, c.defence) == (attack, defence)]
            assert [c.subset for c in own] == [0, 1, 2]
        settings = {(c.defence, c.variant): c.settings for c in cells if c.victim.attack == attack}
        assert settings["aft", ""] == AdversarialFineTuning.presets["paper"]
        assert settings["nad", ""] == DEFENCES["nad"].presets["paper"]
        assert settings["universal_aft", "distilled"] == UniversalAdversarialFineTuning.presets["distilled"]
        # On two cores a search of its own, not the paper's.
        assert settings["neural_cleanse", ""] == {"steps": 200, "largest_suspect": 0.75}
        assert DEFENCES["neural_cleanse"].presets["paper"]["steps"] == 1000


@pytest.mark.parametrize(("name", "labels", "rate"), [("table4", "all-to-all", 0.1), ("table6", "all-to-one", 0.01)])
def test_labels_and_ratios_are_the_papers(name, labels, rate):
    for cell in ARTEFACTS[name].cells(scale("full", "somewhere")):
        assert (cell.victim.labels, cell.victim.rate) == (labels, rate)


def test_a_scale_with_real_data_needs_their_folder():
    with pytest.raises(ValueError, match="data: got none"):
        scale("cpu")
    with pytest.raises(ValueError, match="scale: got 'huge'"):
        scale("huge")


@pytest.mark.parametrize("name", ["table8", "table10", "fig2", "fig5", "fig7", "fig9", "theory"])
def test_rows_picture_and_section_come_out(name, tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(artefacts, "ATTACKS", ("badnets", "wanet"))
    attacks = ["badnets"] if name == "table8" else None  # progressive erasing takes its time
    settings = {"command": f"art-aft reproduce {name}", "attacks": attacks}
    place = results.reproduce(name, tiny, folder, tmp_path, **settings)
    record = json.loads(place.read_text())
    assert record["rows"]
    assert all(row["scale"] == record["scale"] for row in record["rows"])
    kind = ARTEFACTS[name].kind
    assert place.with_suffix(".png").exists() == (kind not in ("scores", "distances"))
    text = results.section(place)
    assert f"`art-aft reproduce {name}`" in text
    assert (f"Scale {record['scale']}: " in text) == (kind != "theory")
    assert kind == "panels" or "|---|" in text
    before = place.read_bytes()
    again = results.reproduce(name, tiny, folder, tmp_path, **settings)
    assert again.read_bytes() == before


def rows_of(scores, attack="badnets", **more):
    """Rows as a grid gives them, with these (ACC, ASR) in percent, one a clean subset."""
    victim = asdict(VictimSettings(attack, data="cifar10", model="wrn-16-1"))
    base = {"scale": "cpu", "victim": victim, "defence": "aft", "settings": {}, "clean_data": True, **more}
    return [{**base, "acc": acc / 100, "asr": asr / 100} for acc, asr in scores]


def test_a_table_shows_mean_deviation_and_the_difference_to_the_paper(tmp_path):
    rows = rows_of([(80, 2), (82, 4), (84, 9)])
    record = {"artefact": "table2", "scale": "cpu", "command": "it", "rows": rows}
    (tmp_path / "table2-cpu.json").write_text(json.dumps(record))
    text = results.section(tmp_path / "table2-cpu.json")
    acc, asr = paper.TABLE_2["aft"]["badnets"]
    deviation = np.std([2, 4, 9], ddof=1)
    expected = f"82.0 ±2.0 / 5.0 ±{deviation:.1f} ({acc:.1f} / {asr:.1f}: {82 - acc:+.1f} / {5 - asr:+.1f})"
    assert expected in text


@pytest.mark.parametrize(("variant", "title"), [("shared", "shared (removed)"), ("distilled", "distilled")])
def test_variants_have_lines_of_their_own(tmp_path, variant, title):
    universal = rows_of([(79, 4)], defence="universal_aft", variant=variant, stage_2={"acc": 0.1, "asr": 0.2})
    record = {"artefact": "table2", "scale": "cpu", "command": "it", "rows": rows_of([(80, 2)]) + universal}
    (tmp_path / "table2-cpu.json").write_text(json.dumps(record))
    lines = results.section(tmp_path / "table2-cpu.json").splitlines()
    assert f"| universal AFT, {title} | 79.0 / 4.0 |" in lines
    assert any(line.startswith("| AFT | 80.0 / 2.0 (") for line in lines)


def test_stage_2_has_a_line_of_its_own(tmp_path):
    rows = rows_of([(81, 3)], stage_2={"acc": 0.78, "asr": 0.01})
    record = {"artefact": "table9", "scale": "cpu", "command": "it", "rows": rows}
    (tmp_path / "table9-cpu.json").write_text(json.dumps(record))
    text = results.section(tmp_path / "table9-cpu.json")
    assert "| AFT, Stage 2 | 78.0 / 1.0 (78.1 / 2.6: -0.1 / -1.6) |" in text
    assert "| AFT | 81.0 / 3.0 (81.8 / 2.4: -0.8 / +0.6) |" in text


def test_the_curve_tells_the_three_ways_apart():
    def row(points, **changes):
        return {**rows_of([(90, 100)])[0], "points": points, "stopped_after": None, **changes}

    before = [1, 0, 0.9, 1.0]
    second = row([before, [2, 5, 0.7, 0.1], [2, 10, 0.6, 0.05]])
    third = row([before, [2, 5, 0.7, 0.2], [3, 5, 0.8, 0.3]])
    without = row([before, [2, 4, 0.5, 0.4]], defence="aft_no_clean_data", clean_data=False, stopped_after=4)
    rows = [second, third, without]
    found = {way: figures.curve(rows, "badnets", way) for way in figures.WAYS}
    rounded = {way: ([tuple(np.round(point, 6)) for point in points], end) for way, (points, end) in found.items()}
    assert rounded["Stage 2"] == ([(0, 90, 100), (5, 70, 10), (10, 60, 5)], None)
    assert rounded["Stage 3 after Stage 2"] == ([(0, 70, 20), (5, 80, 30)], None)
    assert rounded["without clean data"] == ([(0, 90, 100), (4, 50, 40)], 4)


def test_the_rows_of_a_label_matrix_are_counted_by_hand():
    counts = [[8, 2], [1, 9]]
    one = rows_of([(90, 100)])[0] | {"counts": counts}
    assert figures.target_rows([one, one]) == pytest.approx(np.array([[0.45, 0.55], [0.45, 0.55]]))
    every = {**one, "victim": {**one["victim"], "labels": "all-to-all"}}
    assert figures.target_rows([every]) == pytest.approx(np.array([[0.8, 0.2], [0.1, 0.9]]))


def test_the_page_lists_what_was_not_run(tmp_path):
    rows = rows_of([(80, 2)])
    record = {"artefact": "table2", "scale": "cpu", "command": "it", "rows": rows}
    (tmp_path / "table2-cpu.json").write_text(json.dumps(record))
    (tmp_path / "table2-other.json").write_text("[]")  # not a result of this command
    text = results.page(tmp_path)
    missing = re.search(r"Not run: (.*)\.", text).group(1).split(", ")
    assert sorted(missing) == sorted(set(NAMES) - {"table2"})
    assert text.count("\n## ") == 1


def test_panels_without_their_picture_say_why(tmp_path):
    rows = rows_of([(83.1, 99.8)], attack="sig")
    record = {"artefact": "fig7", "scale": "cpu", "command": "it", "rows": rows}
    (tmp_path / "fig7-cpu.json").write_text(json.dumps(record))
    text = results.section(tmp_path / "fig7-cpu.json")
    assert "not kept here" in text
    assert "| sig | 83.1 / 99.8 |" in text
    (tmp_path / "fig7-cpu.png").touch()
    assert "not kept here" not in results.section(tmp_path / "fig7-cpu.json")


def test_a_section_says_what_the_victims_are(tmp_path):
    longer, other = rows_of([(80, 2)])[0], rows_of([(80, 2)])[0]
    longer["victim"]["recipe"]["nb_epochs"], other["victim"]["model"] = 20, "resnet-18"
    rows = [*rows_of([(80, 2), (81, 3)]), longer, other]
    record = {"artefact": "table2", "scale": "cpu", "command": "it", "rows": rows}
    (tmp_path / "table2-cpu.json").write_text(json.dumps(record))
    text = results.section(tmp_path / "table2-cpu.json")
    assert "Victims: wrn-16-1, 10 epochs and wrn-16-1, 20 epochs and resnet-18, 10 epochs. Made by" in text


def test_many_victims_are_trained_briefly_on_two_cores_and_at_length_elsewhere():
    epochs = {
        (name, size): {c.victim.recipe.nb_epochs for c in ARTEFACTS[name].cells(scale(size, "somewhere"))}
        for name in ("table2", "table3", "fig1")
        for size in ("cpu", "full")
    }
    assert epochs[("table2", "cpu")] == {20}
    assert epochs[("table3", "cpu")] == epochs[("fig1", "cpu")] == {5}
    assert all(min(epochs[(name, "full")]) >= 20 for name in ("table2", "table3", "fig1"))


def test_the_search_among_many_labels_is_cut_short_on_two_cores():
    def searches(name):
        cells = ARTEFACTS[name].cells(scale("cpu", "somewhere"))
        return {c.settings["steps"] for c in cells if c.defence == "neural_cleanse"}

    assert (searches("table2"), searches("table3")) == ({200}, {100})


def test_what_costs_most_among_many_labels_is_run_on_one_subset_on_two_cores():
    for size, number in (("cpu", 1), ("full", 3)):
        cells = ARTEFACTS["table3"].cells(scale(size, "somewhere"))
        own = [c for c in cells if c.victim.attack == "sig"]
        assert len([c for c in own if c.defence == "neural_cleanse"]) == number
        assert len([c for c in own if (c.defence, c.variant) == ("universal_aft", "distilled")]) == number
        assert len([c for c in own if c.defence == "auto"]) == number
        assert len([c for c in own if c.defence == "nad"]) == 3


def test_large_images_are_few_on_two_cores_and_have_a_recipe_of_their_own():
    def large(size):
        cells = ARTEFACTS["fig5"].cells(scale(size, "somewhere"))
        return [cell for cell in cells if cell.victim.data.endswith("imagenet10")]

    (only,) = large("cpu")
    assert (only.victim.model, only.victim.target, only.settings["n_images"]) == ("resnet-18", 0, 500)
    tiny = {cell.victim.recipe for cell in ARTEFACTS["table5"].cells(scale("cpu", "somewhere"))}
    assert only.victim.recipe not in tiny
    assert [cell.victim.target for cell in large("full")] == list(range(10))
    assert {cell.settings["n_images"] for cell in large("full")} == {10_000}


def test_the_page_in_the_repository_is_in_step_with_its_rows():
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == results.page(RESULTS)


def test_the_command_writes_rows_and_page(tmp_path, capsys):
    arguments = ["reproduce", "theory", "--store", str(tmp_path / "grid"), "--output", str(tmp_path / "out"), "--quiet"]
    assert cli.main(arguments) == 0
    assert "Theorem 1" in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").read_text() == results.page(tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "theory-full.json").read_text())["rows"]
    for row in rows:
        assert row["share along the trigger"] >= row["exact bound (E5)"] >= 0
        assert row["shift of the classifier"] <= row["exact bound (E3)"]
        assert row["share along the trigger"] >= row["Theorem 1, consistent"]


def test_some_attacks_can_be_chosen(tiny, folder, tmp_path, capsys):
    place = results.reproduce("table8", tiny, folder, tmp_path, command="it", attacks=["sig"])
    rows = json.loads(place.read_text())["rows"]
    assert {row["victim"]["attack"] for row in rows} == {"sig"}
    with pytest.raises(ValueError, match="attacks: got wanet, expected one that table8 has"):
        results.reproduce("table8", tiny, folder, tmp_path, command="it", attacks=["wanet"])


def test_numbers_of_digits_are_not_compared_with_the_papers(tmp_path):
    rows = [{**row, "scale": "smoke"} for row in rows_of([(80, 2)])]
    record = {"artefact": "table2", "scale": "smoke", "command": "it", "rows": rows}
    (tmp_path / "table2-smoke.json").write_text(json.dumps(record))
    assert "| AFT | 80.0 / 2.0 |" in results.section(tmp_path / "table2-smoke.json")


def test_real_data_are_asked_for(tmp_path, capsys):
    assert cli.main(["reproduce", "table2", "--scale", "cpu", "--output", str(tmp_path)]) == 2
    assert "expected the folder of the data sets" in capsys.readouterr().err
