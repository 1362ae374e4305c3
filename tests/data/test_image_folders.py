"""Data sets from image files, 8-bit pixels, and features of the last convolution."""

import zipfile

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from PIL import Image

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.attacks import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.classifiers.classifier import build_classifier, features, images_for
from art_aft.data import datasets
from art_aft.data.pixels import to_8bit, to_float
from art_aft.metrics import evaluate
from art_aft.models import build_model
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

RNG = np.random.default_rng(0)


def write(folder, classes, count, size=(6, 5)):
    """Write PNG files of random pixels in class folders; return what was written, by class and name."""
    pixels = {}
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{number:03}.png")
            pixels[name, number] = image
    return pixels


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "gtsrb"
    return root, write(root / "train", ["b", "a"], 3), write(root / "test", ["a", "b"], 2)


def pack(root):
    """Turn the two part folders into zip files."""
    for part in ("train", "test"):
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for file in (root / part).glob("*/*"):
                archive.write(file, f"{file.parent.name}/{file.name}")
                file.unlink()
        for name in (root / part).iterdir():
            name.rmdir()
        (root / part).rmdir()


@pytest.mark.parametrize("packed", [False, True])
def test_folders_and_zips_hold_the_pixels_that_were_written(folder, packed):
    root, train, test = folder
    if packed:
        pack(root)
    data = datasets.load(root)
    assert (data.name, data.nb_classes, data.input_shape, data.x_train.dtype) == ("gtsrb", 2, (3, 6, 5), np.uint8)
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.y_test.tolist() == [0, 0, 1, 1]
    for x, y, written in ((data.x_train, data.y_train, train), (data.x_test, data.y_test, test)):
        for row, label in enumerate(y):
            name = "ab"[label]
            image = written[name, row - y.tolist().index(label)]
            np.testing.assert_array_equal(np.moveaxis(x[row], 0, -1), image)


@pytest.mark.parametrize(
    ("name", "flip"),
    [("gtsrb", False), ("GTSRB", False), ("svhn", False), ("cifar10", True), ("gtsrb-team/cifar10", True)],
)
def test_traffic_signs_and_digits_are_not_flipped_by_the_folders_whole_name(tmp_path, name, flip):
    write(tmp_path / name / "train", ["a", "b"], 1)
    write(tmp_path / name / "test", ["a"], 1)
    assert datasets.load(tmp_path / name).horizontal_flip is flip
    for given in (True, False):
        assert datasets.image_folders(tmp_path / name, horizontal_flip=given).horizontal_flip is given


def test_a_name_that_only_contains_another_one_is_a_name_of_its_own(tmp_path):
    assert [datasets.may_be_flipped(tmp_path / name) for name in ("gtsrb-team", "mnist2", "MNIST")] == [
        True,
        True,
        False,
    ]
    assert not datasets.may_be_flipped("digits")


def test_what_is_wrong_with_a_folder_is_reported(tmp_path):
    with pytest.raises(ValueError, match=r"got '.*nowhere', expected 'digits', 'cifar10' or a folder"):
        datasets.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"without train/ or train\.zip"):
        datasets.load(tmp_path)
    write(tmp_path / "train", ["a"], 1)
    write(tmp_path / "test", ["c"], 1)
    with pytest.raises(ValueError, match="class 'c' in the test part"):
        datasets.load(tmp_path)
    write(tmp_path / "train" / "..", ["train/b"], 1, size=(7, 7))
    with pytest.raises(ValueError, match=r"got \(3, 7, 7\) for 'b/000\.png'"):
        datasets.load(tmp_path)


def test_cifar10_comes_through_arts_loader(monkeypatch):
    x = RNG.integers(0, 256, (4, 32, 32, 3))
    answer = ((x / 255.0, np.eye(10)[[1, 2, 3, 4]]), (x[:1] / 255.0, np.eye(10)[[5]]), 0.0, 1.0)
    monkeypatch.setattr("art.utils.load_dataset", lambda name: answer if name == "cifar10" else None)
    data = datasets.load("cifar10")
    np.testing.assert_array_equal(data.x_train, np.moveaxis(x, -1, 1))
    assert data.y_train.tolist() == [1, 2, 3, 4]
    assert data.y_test.tolist() == [5]


@pytest.mark.parametrize("clip_values", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)])
def test_8_bit_pixels_stand_for_the_whole_range_and_come_back(clip_values):
    low, high = clip_values
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected = low + (high - low) * np.arange(256).reshape(x.shape) / 255
    np.testing.assert_allclose(to_float(x, clip_values), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_float(torch.from_numpy(x), clip_values).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(to_8bit(expected, clip_values), x)


def test_8_bit_data_give_what_the_same_floats_give():
    x8 = RNG.integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    x, y = x8.astype(np.float32) / 255, RNG.integers(0, 3, 40)
    results = []
    for data in (x8, x):
        classifier = build_classifier("wrn-10-1", input_shape=(1, 8, 8), nb_classes=3, device_type="cpu")
        recipe = Recipe(nb_epochs=2, batch_size=8, precision="float32", padding=1)
        fit(classifier, Batches(images_for(classifier, data, y), recipe, classifier.device), recipe)
        adversarial = TorchAttacksPGD(classifier, precision="float32").generate(data, y)
        results.append((classifier.predict(x), adversarial, evaluate(classifier, data, y, BadNets(), AllToOne(0))))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-3)
    assert np.abs(results[0][1] - x).max() <= 4 / 255 + 1e-6
    assert results[0][2].asr == pytest.approx(results[1][2].asr, abs=0.05)


class TestModels:
    @pytest.mark.parametrize(
        ("name", "nb_classes", "parameters"),
        [
            ("preactresnet-18", 10, 11_171_146),
            ("preactresnet-18", 43, 11_188_075),
            ("resnet-18", 10, 11_181_642),
            ("resnet-18", 200, 11_279_112),
            ("resnet-18", 1000, 11_689_512),
        ],
    )
    def test_parameter_counts_are_the_published_ones(self, name, nb_classes, parameters):
        model = build_model(name, nb_classes=nb_classes)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters

    @pytest.mark.parametrize(
        ("name", "side", "shape"),
        [("preactresnet-18", 32, (512, 4, 4)), ("resnet-18", 224, (512, 7, 7)), ("wrn-16-1", 32, (64, 8, 8))],
    )
    def test_features_have_the_papers_shapes(self, name, side, shape):
        classifier = build_classifier(name, input_shape=(3, side, side), nb_classes=10, device_type="cpu")
        x = RNG.random((2, 3, side, side)).astype(np.float32)
        maps = features(classifier, x)
        assert maps.shape == (2, *shape)
        pooled = features(classifier, x, pooled=True)
        np.testing.assert_allclose(pooled, maps.mean(axis=(2, 3)), atol=1e-5)
        head = classifier.model.fc
        logits = pooled @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        np.testing.assert_allclose(classifier.predict(x), logits, rtol=1e-4, atol=1e-4)

    def test_features_of_a_foreign_model_are_its_last_convolutions_output_and_no_hook_stays(self):
        first, second = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 5, 3)
        model = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), torch.nn.Flatten())
        model.append(torch.nn.Linear(5 * 16, 3))
        classifier = PyTorchClassifier(
            model, torch.nn.CrossEntropyLoss(), (1, 8, 8), 3, clip_values=(0, 1), device_type="cpu"
        )
        x = RNG.random((5, 1, 8, 8)).astype(np.float32)
        with torch.no_grad():
            expected = second(torch.relu(first(torch.from_numpy(x)))).numpy()
        model.train()
        np.testing.assert_allclose(features(classifier, x, batch_size=2), expected, atol=1e-6)
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())

    def test_a_model_without_convolutions_is_refused(self):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        classifier = PyTorchClassifier(
            model, torch.nn.CrossEntropyLoss(), (1, 8, 8), 3, clip_values=(0, 1), device_type="cpu"
        )
        with pytest.raises(ValueError, match=r"classifier\.model: got a model without a 2-dimensional convolution"):
            features(classifier, np.zeros((1, 1, 8, 8), np.float32))
