"""Recipes as data, and the rotation that those of the releases need."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from art_aft.attacks import Blend
from art_aft.cli.main import main
from art_aft.experiments.victims import Infection, plant
from art_aft.training.batches import Augmentation
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
    assert (RECIPES["paper"].padding, RECIPES["paper"].mirror) == (0, False)
    assert (RECIPES["augmented"].padding, RECIPES["augmented"].mirror) == (4, True)


def test_the_key_of_a_model_tells_settings_apart_but_not_where_the_data_lie():
    one = Infection("badnets", data="/here/cifar10")
    assert one.key == Infection("badnets", data="/there/cifar10").key
    others = [Infection("badnets", seed=1), Infection("blend"), Infection("badnets", labels="all-to-all")]
    assert len({one.key, *(other.key for other in others)}) == 4


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="labels: got 'some', expected one of 'all-to-one', 'all-to-all'"):
        Infection("badnets", labels="some")


def test_train_says_what_is_wrong(capsys, tmp_path):
    words = ["train", "--attack", "badnets", "--store", str(tmp_path), "--quiet"]
    assert main([*words, "--data", "nowhere"]) == 2
    assert main([*words, "--rate", "2"]) == 2
    assert main([*words, "--model", "vgg"]) == 2
    errors = capsys.readouterr().err
    assert "unknown data set 'nowhere'" in errors
    assert "rate: got 2.0" in errors
    assert "unknown model 'vgg'" in errors
    assert list(tmp_path.iterdir()) == []


BRIEF = replace(RECIPES["digits"], nb_epochs=1)


def test_normalising_reduces_by_mean_and_deviation_of_the_training_images_and_is_stored(tmp_path):
    infection = Infection("badnets", normalise=True, recipe=BRIEF)
    for _ in range(2):  # trained, then found
        scene = plant(infection, store=tmp_path)
        (operation,) = scene.classifier.preprocessing_operations
        clean = {image.tobytes() for image in scene.x_clean}
        rest = np.stack([image for image in scene.dataset.x_train if image.tobytes() not in clean])
        assert operation.mean == pytest.approx(rest.mean(), rel=1e-3)
        assert operation.std == pytest.approx(rest.std(), rel=1e-3)


def test_the_trigger_takes_the_infections_settings():
    infection = Infection("blend", trigger={"ratio": 0.5, "seed": 3}, recipe=BRIEF)
    scene = plant(infection)
    x = np.zeros((1, *scene.dataset.input_shape), dtype=np.float32)
    pattern = Blend(seed=3, ratio=1.0)(x)
    stamped, _ = scene.attack.poison(x, np.eye(10, dtype=np.float32)[:1])
    np.testing.assert_allclose(stamped, 0.5 * pattern, atol=1e-6)
    assert infection.key != replace(infection, trigger={}).key
    assert infection.benign.key == replace(infection, trigger={}).benign.key


def test_train_reads_the_triggers_settings(tmp_path, capsys):
    words = "train --attack blend --model wrn-10-1 --recipe digits --epochs 1 --quiet --normalise"
    words += " --trigger ratio=0.5 seed=3"
    rows = tmp_path / "rows.json"
    assert main([*words.split(), "--store", str(tmp_path), "--rows", str(rows)]) == 0
    (row,) = json.loads(rows.read_text())
    assert row["infection"]["trigger"] == {"ratio": 0.5, "seed": 3}
    assert row["infection"]["normalise"] is True
    assert row["command"].endswith("--recipe digits --normalise --epochs 1 --trigger ratio=0.5 seed=3")
    assert main([*words.split()[:-1], "seed:3", "--store", str(tmp_path)]) == 2
    assert "--trigger: got 'seed:3'" in capsys.readouterr().err
