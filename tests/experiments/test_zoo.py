"""Many victims from one file: what it may contain, which images they learn from, the rows that describe them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from art_aft.cli.main import main
from art_aft.data.datasets import digits
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.experiments.zoo import read_zoo
from art_aft.training.recipe import Recipe
from art_aft.training.recipes import RECIPES

SETTINGS = Path(__file__).parents[2] / "examples" / "zoo" / "settings.json"
BRIEF = replace(RECIPES["digits"], nb_epochs=1)


@pytest.fixture
def write(tmp_path):
    def to_file(*entries):
        (tmp_path / "zoo.json").write_text(json.dumps(entries))
        return tmp_path / "zoo.json"

    return to_file


def victim(name="one", **settings):
    return {
        "name": name,
        "half": "choose",
        "attack": "badnets",
        "recipe": {"name": "digits", "nb_epochs": 1},
        **settings,
    }


def test_what_the_file_leaves_out_is_the_default_and_the_seed_is_the_recipes_too(write):
    (member,) = read_zoo(write(victim(seed=3, target=4)))
    assert member.settings == VictimSettings("badnets", recipe=replace(BRIEF, seed=3), target=4, seed=3)
    assert (member.name, member.half) == ("one", "choose")


def test_data_lie_in_the_folder_that_is_named(write):
    members = read_zoo(write(victim("a", data="cifar10"), victim("b", data="digits")), "/data")
    assert [member.settings.data for member in members] == [str(Path("/data/cifar10")), "digits"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half": "both"}, "half: got 'both', expected one of 'choose', 'judge'"),
        ({"attacks": "blend"}, r"settings: got a victim with \['attacks'\]"),
        ({"recipe": {"name": "long-ago"}}, "recipe: got 'long-ago'.*expected one of"),
        ({"recipe": {"epochs": 3}}, "settings: got 'one' that does not fit"),
        ({"labels": "some"}, "settings: got 'one' that does not fit"),
    ],
)
def test_a_victim_that_does_not_fit_is_refused(write, change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_zoo(write(victim(**change)))


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "zoo.json").write_text(text)
    with pytest.raises(ValueError, match=r"^settings: got .*zoo\.json, expected a JSON list of victims"):
        read_zoo(tmp_path / "zoo.json")


def test_a_name_that_is_there_twice_is_refused(write):
    with pytest.raises(ValueError, match=r"^settings: got the name 'one' twice"):
        read_zoo(write(victim(), victim(seed=1)))


def test_the_halves_of_the_packages_zoo_share_no_seed_target_or_trigger():
    halves = {half: [m.settings for m in read_zoo(SETTINGS) if m.half == half] for half in ("choose", "judge")}
    assert all(sum(settings.rate > 0 for settings in half) >= 30 for half in halves.values())
    assert all(sum(settings.rate == 0 for settings in half) >= 20 for half in halves.values())

    def facts(half):
        infected = [settings for settings in halves[half] if settings.rate]
        return (
            {settings.seed for settings in halves[half]},
            {settings.target for settings in infected if settings.labels == "all-to-one"},
            {json.dumps([settings.attack, settings.trigger]) for settings in infected if settings.trigger},
        )

    for chosen, judged in zip(facts("choose"), facts("judge"), strict=True):
        assert chosen
        assert not chosen & judged


def test_the_manifest_describes_victims_of_the_zoo_as_they_are_set():
    members = {member.name: member for member in read_zoo(SETTINGS, "data")}
    rows = json.loads(SETTINGS.with_name("manifest.json").read_text())
    assert rows
    for row in rows:
        settings = json.loads(json.dumps(asdict(members[row["name"]].settings)))
        assert row["half"] == members[row["name"]].half
        # A recipe may have got settings since, whose defaults change nothing.
        recorded = {**row["victim"], "recipe": {**json.loads(json.dumps(asdict(Recipe()))), **row["victim"]["recipe"]}}
        assert recorded == {**settings, "data": Path(settings["data"]).name}
        assert len(row["sha256"]) == 64
        assert 0 <= row["scores"]["asr"] <= 1


def test_a_victim_that_has_seen_them_is_trained_on_the_defenders_images_too():
    data = digits(seed=0)
    settings = VictimSettings("badnets", recipe=BRIEF)
    (clean, rest), (same, all_of_them) = settings.split(data), replace(settings, seen=True).split(data)
    np.testing.assert_array_equal(clean, same)
    assert sorted([*clean, *rest]) == list(all_of_them) == list(range(len(data.y_train)))
    assert settings.key != replace(settings, seen=True).key
    # Different training images give different weights; the defender has the same images.
    one, other = train_victim(settings), train_victim(replace(settings, seen=True))
    np.testing.assert_array_equal(one.x_clean, other.x_clean)
    assert not np.array_equal(*(v.classifier.model.fc.weight.detach().numpy() for v in (one, other)))


def test_train_makes_all_of_them_and_adds_their_rows(write, tmp_path, capsys):
    file = write(victim("first", target=1), victim("second", half="judge", rate=0.0, seed=5, seen=True))
    words = [
        "train",
        "--settings",
        str(file),
        "--store",
        str(tmp_path / "store"),
        "--rows",
        str(tmp_path / "rows.json"),
    ]
    assert main([*words, "--quiet"]) == 0
    first, second = json.loads((tmp_path / "rows.json").read_text())
    assert (first["name"], first["half"], first["victim"]["target"]) == ("first", "choose", 1)
    assert (second["name"], second["half"], second["victim"]["seen"]) == ("second", "judge", True)
    assert set(first["scores"]) >= {"acc", "asr", "ra"}
    stored = [json.loads(path.read_text())["sha256"] for path in (tmp_path / "store").glob("*.json")]
    assert sorted(stored) == sorted(row["sha256"] for row in (first, second))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["first", "second"]
    assert main(words) == 0  # found, not trained again
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2


def test_train_takes_an_attack_or_a_file(capsys, write):
    for words in (["train"], ["train", "--attack", "badnets", "--settings", str(write(victim()))]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
    assert main(["train", "--settings", "nowhere.json"]) == 2
    assert "--settings: got nowhere.json, expected a JSON list of victims" in capsys.readouterr().err
