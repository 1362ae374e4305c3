"""Recipes as data, and the rotation that those of the releases need."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import same_weights
from PIL import Image

from art_aft.attacks import Blend, input_aware
from art_aft.cli.main import main
from art_aft.data.datasets import digits
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.metrics import evaluate
from art_aft.training.augmentation import Augmentation
from art_aft.training.recipe import Recipe
from art_aft.training.recipes import RECIPES


def rotated(x, degrees, low=0.0, seed=0):
    return Augmentation(rotation=degrees, low=low)(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(17, 17), (17, 25)])
def test_a_rotation_turns_a_point_by_an_angle_within_the_limit_and_keeps_its_distance(shape):
    height, width = shape
    x = torch.zeros(200, 1, height, width)
    x[:, :, height // 2, width // 2 + 7] = 1.0
    rows, columns = np.mgrid[:height, :width]
    angles = []
    for image in rotated(x, 30.0).numpy()[:, 0]:
        down = (image * rows).sum() / image.sum() - height // 2
        across = (image * columns).sum() / image.sum() - width // 2
        assert math.hypot(down, across) == pytest.approx(7, abs=0.5)
        angles.append(math.degrees(math.atan2(down, across)))
    assert max(map(abs, angles)) <= 32  # a pixel is 8 degrees wide there
    assert min(angles) < -20
    assert max(angles) > 20
    assert abs(np.mean(angles)) < 4


def test_what_comes_in_from_outside_is_the_lowest_value():
    x = torch.full((20, 1, 9, 9), 5.0)
    turned = rotated(x, 45.0, low=-1.0)
    assert turned[:, :, 4, 4].eq(5.0).all()
    assert turned.min() >= -1.0
    assert turned[:, :, 0, 0].min() < 0.0


def test_no_rotation_is_the_images_themselves():
    x = torch.rand(3, 1, 5, 5)
    assert rotated(x, 0.0) is x


def test_the_release_recipes_have_the_published_numbers():
    assert [RECIPES[name].nb_epochs for name in ("wanet", "input_aware", "paper")] == [1000, 575, 20]
    assert [RECIPES["wanet"].rate_at(epoch) for epoch in (0, 99, 100, 250, 999)] == [0.01, 0.01, 1e-3, 1e-4, 1e-6]
    assert [RECIPES["paper"].rate_at(epoch) for epoch in (0, 13, 14, 17, 18)] == [0.1, 0.1, 0.01, 0.01, 0.001]
    assert (RECIPES["paper"].padding, RECIPES["paper"].horizontal_flip) == (0, False)
    assert (RECIPES["augmented"].padding, RECIPES["augmented"].horizontal_flip) == (4, True)


def test_the_key_of_a_model_tells_settings_apart_but_not_where_the_data_lie():
    one = VictimSettings("badnets", data="/here/cifar10")
    assert one.key == VictimSettings("badnets", data="/there/cifar10").key
    others = [
        VictimSettings("badnets", seed=1),
        VictimSettings("blend"),
        VictimSettings("badnets", labels="all-to-all"),
    ]
    assert len({one.key, *(other.key for other in others)}) == 4


def test_two_data_folders_of_one_name_are_two_victims_in_the_store(tmp_path):
    folders = [tmp_path / place / "signs" for place in ("one", "two", "copy")]
    for folder, levels in zip(folders, ([10, 20], [30, 40], [10, 20]), strict=True):
        for part in ("train", "test"):
            for label, level in enumerate(levels):
                for number in range(20):
                    file = folder / part / str(label) / f"{number}.bmp"  # all files are of one size
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("L", (16, 16), level + number % 2).save(file)
    recipe = replace(RECIPES["digits"], max_steps=1)
    one, two, copy = (VictimSettings("badnets", data=str(folder), recipe=recipe) for folder in folders)
    assert one.key == copy.key != two.key
    assert one.key.startswith("signs-wrn-10-1-badnets-")
    for settings, level in ((one, 10), (two, 30), (copy, 10)):
        victim = train_victim(settings, store=tmp_path / "store")
        assert victim.dataset.x_test.min() == level
    assert len(list((tmp_path / "store").glob("*.json"))) == 2


def test_the_keys_of_data_by_name_stay_as_they_are():
    # What stands in stores and rows of earlier versions.
    assert VictimSettings("badnets").key == "digits-wrn-10-1-badnets-all-to-one-0.1-caaffc29"
    assert VictimSettings("badnets", data="cifar10").key == "cifar10-wrn-10-1-badnets-all-to-one-0.1-52c635f9"


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="labels: got 'some', expected one of 'all-to-one', 'all-to-all'"):
        VictimSettings("badnets", labels="some")


def test_train_reports_what_is_wrong(capsys, tmp_path):
    words = ["train", "--attack", "badnets", "--store", str(tmp_path), "--quiet"]
    assert main([*words, "--data", "nowhere"]) == 2
    assert main([*words, "--rate", "2"]) == 2
    assert main([*words, "--model", "mlp"]) == 2
    errors = capsys.readouterr().err
    assert "got 'nowhere'" in errors
    assert "rate: got 2.0" in errors
    assert "model: got 'mlp'" in errors
    assert list(tmp_path.iterdir()) == []


BRIEF = replace(RECIPES["digits"], nb_epochs=1)


def test_normalising_reduces_by_mean_and_deviation_of_the_training_images_and_is_stored(tmp_path):
    settings = VictimSettings("badnets", normalise=True, recipe=BRIEF)
    for _ in range(2):  # trained, then found
        victim = train_victim(settings, store=tmp_path)
        (operation,) = victim.classifier.preprocessing_operations
        clean = {image.tobytes() for image in victim.x_clean}
        rest = np.stack([image for image in victim.dataset.x_train if image.tobytes() not in clean])
        assert operation.mean == pytest.approx(rest.mean(), rel=1e-3)
        assert operation.std == pytest.approx(rest.std(), rel=1e-3)


def test_the_trigger_takes_the_victims_settings():
    settings = VictimSettings("blend", trigger={"ratio": 0.5, "seed": 3}, recipe=BRIEF)
    victim = train_victim(settings)
    x = np.zeros((1, *victim.dataset.input_shape), dtype=np.float32)
    pattern = Blend(seed=3, ratio=1.0)(x)
    stamped, _ = victim.attack.poison(x, np.eye(10, dtype=np.float32)[:1])
    np.testing.assert_allclose(stamped, 0.5 * pattern, atol=1e-6)
    assert settings.key != replace(settings, trigger={}).key
    assert settings.benign.key == replace(settings, trigger={}).benign.key


def test_train_reads_the_triggers_settings(tmp_path, capsys):
    words = "train --attack blend --model wrn-10-1 --recipe digits --epochs 1 --quiet --normalise"
    words += " --trigger ratio=0.5 seed=3"
    rows = tmp_path / "rows.json"
    assert main([*words.split(), "--store", str(tmp_path), "--rows", str(rows)]) == 0
    (row,) = json.loads(rows.read_text())
    assert row["victim"]["trigger"] == {"ratio": 0.5, "seed": 3}
    assert row["victim"]["normalise"] is True
    assert row["command"].endswith("--recipe digits --normalise --epochs 1 --trigger ratio=0.5 seed=3")
    assert main([*words.split()[:-1], "seed:3", "--store", str(tmp_path)]) == 2
    assert "--trigger: got 'seed:3'" in capsys.readouterr().err


def test_what_is_stored_with_a_victim_describes_it(tmp_path):
    settings = VictimSettings("badnets", recipe=BRIEF)
    victim = train_victim(settings, store=tmp_path)
    again = train_victim(settings, store=tmp_path)
    assert again.seconds == victim.seconds > 0
    assert again.scores == victim.scores
    assert again.scores == evaluate(
        again.classifier, victim.dataset.x_test, victim.dataset.y_test, again.attack, again.labels
    )
    assert [file.suffix for file in sorted(tmp_path.iterdir())] == [".json", ".safetensors"]
    facts = json.loads((tmp_path / f"{settings.key}.json").read_text())["facts"]
    recipe = Recipe(**{**facts["victim"].pop("recipe"), "milestones": ()})
    assert VictimSettings(**facts["victim"], recipe=recipe) == settings


def test_a_recipe_flips_only_the_images_of_a_data_set_that_allows_it():
    recipes = [replace(BRIEF, max_steps=2, precision="float32", horizontal_flip=flip) for flip in (False, True)]
    trained = []
    for data in (digits(), replace(digits(), horizontal_flip=True)):
        for recipe in recipes:
            victim = train_victim(VictimSettings("badnets", recipe=recipe), dataset=data)
            trained.append(victim.classifier.model.conv1.weight.detach().numpy())
    assert [np.array_equal(trained[0], other) for other in trained[1:]] == [True, True, False]


@pytest.mark.parametrize("attack", ["wanet", "input_aware"])
def test_showing_scores_changes_nothing(tmp_path, attack, monkeypatch):
    monkeypatch.setattr(input_aware, "MASK_STEPS", 2)
    small = {"base_width": 4, "levels": 1} if attack == "input_aware" else {}
    settings = VictimSettings(attack, clean_share=0.8, recipe=replace(BRIEF, nb_epochs=2), trigger=small)
    quiet, shown = (train_victim(settings, store=tmp_path / str(verbose), verbose=verbose) for verbose in (False, True))
    assert same_weights(quiet.classifier, shown.classifier)
    x = quiet.dataset.x_test[:20]
    np.testing.assert_array_equal(quiet.attack.perturbation(x), shown.attack.perturbation(x))
