"""Loaders give what arrays give, in memory that does not grow with the number of images."""

import gc
import tempfile

import numpy as np
import pytest
import torch
from art.data_generators import PyTorchDataGenerator
from helpers import NB_CLASSES, SHAPE, global_rng, same_weights, tiny_classifier, tiny_data, weights
from torch.utils.data import DataLoader, Dataset, TensorDataset

from art_aft import (
    AdversarialFineTuning,
    AdversarialFineTuningTrainer,
    AllToOne,
    BackdoorScan,
    TorchAttacksPGD,
    evaluate,
)
from art_aft.attacks import BadNets
from art_aft.data import loaders
from art_aft.data.loaders import batch_sizes
from art_aft.defences import (
    AdversarialFineTuningWithoutCleanData,
    FinePruning,
    FineTuning,
    NeuralAttentionDistillation,
    NeuralCleanse,
    UniversalAdversarialFineTuning,
)
from art_aft.runtime.devices import PeakMemory

SETTINGS = {"batch_size": 8, "nb_epochs": 2, "padding": 1, "precision": "float32"}
FORMS = {
    "once": (AdversarialFineTuning, {"clean_epochs": 1}),
    "every batch": (AdversarialFineTuning, {"regenerate": "batch", "clean_epochs": 0}),
    "universal": (UniversalAdversarialFineTuning, {"label_epochs": 1, "clean_share": 0.5}),
    "universal in few steps": (UniversalAdversarialFineTuning, {"temperature": 0.0, "max_steps": 2}),
    "no clean data": (AdversarialFineTuningWithoutCleanData, {"early_stopping_checks": 2}),
    "no clean data in few steps": (AdversarialFineTuningWithoutCleanData, {"max_steps": 2}),
    "pruned": (FinePruning, {"max_drop": 0.5}),
    "distilled attention": (NeuralAttentionDistillation, {"teacher_epochs": 1}),
    "cleansed": (
        NeuralCleanse,
        {"steps": 2, "images_per_step": 16, "anomaly_threshold": -1.0, "largest_suspect": 1.0, "stamped_share": 1.0},
    ),
}


def loader(x, y, **settings):
    return DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=5, **settings)


class ArrayLike(Dataset):
    """Images that are made when they are asked for, so that the set itself takes no memory."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.full(SHAPE, (index % 251) / 251, dtype=np.float32), index % NB_CLASSES


@pytest.fixture
def small_chunks(monkeypatch):
    """Seven images at a time."""
    monkeypatch.setattr(loaders, "_CHUNK", 7 * int(np.prod(SHAPE)))


@pytest.mark.usefixtures("small_chunks")
class TestDefences:
    @pytest.mark.parametrize("form", FORMS)
    def test_a_loader_gives_the_weights_that_arrays_give(self, form):
        classifier, (x, y) = tiny_classifier(), tiny_data(23)
        kind, settings = FORMS[form]
        defence = kind(classifier, **SETTINGS, **settings)
        expected = defence(x, y=y)
        found = defence(loader(x, y))
        assert same_weights(found, expected)
        assert not same_weights(found, classifier)

    def test_8_bit_images_stay_8_bit(self):
        classifier, (x, y) = tiny_classifier(), tiny_data(23)
        x = (255 * x).astype(np.uint8)
        mapped, labels = loaders.read(loader(x, y), lambda *pair: pair)
        assert isinstance(mapped, np.memmap)
        assert mapped.dtype == np.uint8
        np.testing.assert_array_equal(mapped, x)
        np.testing.assert_array_equal(labels, y)
        defence = AdversarialFineTuning(classifier, **SETTINGS)
        assert same_weights(defence(loader(x, y)), defence(x, y=y))

    def test_other_defences_the_trainer_and_arts_generator(self):
        (x, y), settings = tiny_data(23), {**SETTINGS, "nb_epochs": 1}
        classifier = tiny_classifier()
        expected = FineTuning(classifier, **settings)(x, y=y)
        wrapped = PyTorchDataGenerator(loader(x, y), 23, 5)
        assert same_weights(FineTuning(classifier, **settings)(wrapped), expected)
        trained = tiny_classifier()
        AdversarialFineTuningTrainer(trained, **settings).fit(wrapped)
        assert same_weights(trained, AdversarialFineTuning(classifier, **settings)(x, y=y))

    def test_one_hot_labels_and_a_mapped_array_of_the_users_own(self, tmp_path):
        classifier, (x, y) = tiny_classifier(), tiny_data(23)
        defence = AdversarialFineTuning(classifier, **SETTINGS)
        expected = defence(x, y=y)
        assert same_weights(defence(loader(x, np.eye(NB_CLASSES)[y])), expected)
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
        assert same_weights(defence(mapped, y=y), expected)
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), x)

    def test_no_file_is_left_and_no_random_state_changed(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        classifier, (x, y) = tiny_classifier(), tiny_data(23)
        before, rng = weights(classifier), global_rng()
        AdversarialFineTuning(classifier, **SETTINGS)(loader(x, y, shuffle=True))
        assert global_rng() == rng
        assert same_weights(classifier, before)
        assert list(tmp_path.iterdir()) == []

    def test_memory_does_not_grow_with_the_images(self):
        count = 30_000
        size = count * 4 * int(np.prod(SHAPE))
        settings = {"nb_epochs": 1, "clean_epochs": 0, "precision": "float32", "padding": 0}
        classifier = tiny_classifier()
        attack = TorchAttacksPGD(classifier, max_iter=1, precision="float32")
        defence = AdversarialFineTuning(classifier, attack, **settings)
        images = DataLoader(ArrayLike(count), batch_size=500)
        defence(DataLoader(ArrayLike(1000), batch_size=500))
        gc.collect()  # else what is freed meanwhile hides what is taken
        with PeakMemory(classifier.device) as of_loader:
            defence(images)
        x = np.zeros((count, *SHAPE), dtype=np.float32)
        with PeakMemory(classifier.device) as of_arrays:
            defence(x, y=np.arange(count) % NB_CLASSES)
        if of_loader.bytes is None:
            pytest.skip("memory is known on Linux only")
        assert of_loader.bytes < size / 2
        assert of_arrays.bytes > size  # the examples: the meter sees them


class TestEvaluate:
    @pytest.mark.parametrize("include_target", [False, True])
    def test_a_loader_gives_the_scores_that_arrays_give(self, include_target):
        classifier, (x, y) = tiny_classifier(), tiny_data(23)
        rest = {"attack": BadNets(), "labels": AllToOne(1), "include_target": include_target}
        rng = global_rng()
        assert evaluate(classifier, loader(x, y), None, **rest) == evaluate(classifier, x, y, **rest)
        assert global_rng() == rng

    def test_batches_of_the_attackers_label_alone(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(10)
        y = np.repeat([1, 2], 5)
        scores = evaluate(classifier, loader(x, y), None, BadNets(), AllToOne(1))
        assert (scores.n_clean, scores.n_triggered) == (10, 5)
        with pytest.raises(ValueError, match="attacker's label already"):
            evaluate(classifier, loader(x[:5], y[:5]), None, BadNets(), AllToOne(1))


class TestScan:
    def test_a_loader_gives_the_report_that_arrays_give(self):
        classifier, (x, y) = tiny_classifier(), tiny_data(23)
        scan = BackdoorScan(
            classifier,
            detectors=["last_layer", "universal", "adversarial_labels", "adversarial_shift"],
            precision="float32",
        )
        found, expected = scan(loader(x, y)), scan(x, y)
        assert found.evidence == expected.evidence
        np.testing.assert_array_equal(found.label_matrix, expected.label_matrix)

    def test_every_image_of_a_loader_is_as_likely_to_be_drawn(self):
        x, y = np.arange(17.0)[:, None], np.arange(17)
        counts = np.zeros(17)
        for seed in range(2000):
            images, labels = loaders.sample(loader(x, y), 6, seed, lambda *pair: pair)
            np.testing.assert_array_equal(images[:, 0], labels)
            assert len(np.unique(labels)) == 6
            counts[labels] += 1
        share = 6 / 17
        assert np.abs(counts / 2000 - share).max() < 4.5 * np.sqrt(share * (1 - share) / 2000)


class TestErrors:
    def check(self, match, data, error=ValueError, **more):
        classifier = tiny_classifier()
        before, rng = weights(classifier), global_rng()
        for work in (
            AdversarialFineTuning(classifier, **SETTINGS),
            BackdoorScan(classifier),
            lambda x, y=None: evaluate(classifier, x, y, BadNets(), AllToOne(1)),
        ):
            with pytest.raises(error, match=match):
                work(data, **more)
        assert same_weights(classifier, before)
        assert global_rng() == rng

    def test_labels_beside_a_loader(self):
        x, y = tiny_data(8)
        self.check("y: got labels beside DataLoader", loader(x, y), y=y)

    def test_a_loader_without_labels(self):
        self.check("pairs", DataLoader(torch.zeros(4, *SHAPE)), TypeError)

    def test_a_loader_without_batches(self):
        x, y = tiny_data(8)
        self.check("without batches", loader(x, y, drop_last=True, sampler=range(3)))

    def test_a_bad_image_in_the_last_batch(self):
        x, y = tiny_data(8)
        x[-1] = 2
        self.check("clip_values", loader(x, y))

    def test_pixels_of_two_types(self):
        x, y = (torch.from_numpy(part) for part in tiny_data(4))
        batches = [(x, y), ((255 * x).byte(), y)]
        with pytest.raises(ValueError, match=r"float32 and of uint8"):
            loaders.read(DataLoader(batches, batch_size=None), lambda a, b: (a, b))


def test_batch_sizes_add_up_and_only_the_last_may_differ():
    for n in range(1, 40):
        for batch_size in range(2, 12):
            sizes = batch_sizes(n, batch_size)
            assert sum(sizes) == n
            assert all(size == batch_size for size in sizes[:-1])
            assert 1 <= sizes[-1] <= batch_size + 1
            assert sizes[-1] != 1 or n == 1
