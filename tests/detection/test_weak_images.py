"""What the scan says on images that cannot tell: never "infected" because of them, and never a crash."""

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES, SHAPE, tiny_classifier, tiny_data, untouched
from torch.utils.data import DataLoader, TensorDataset

from art_aft import BackdoorScan
from art_aft.adversarial.inversion import InversionRecipe
from art_aft.classifiers.classifier import predict_labels
from art_aft.detection.base import DETECTORS, Evidence

QUICK = {"reversed_trigger": InversionRecipe(steps=5, images_per_step=20)}


def right_images(n=60):
    """A classifier of TinyNet's, and images with the labels that it gives them, all four of them."""
    classifier = tiny_classifier()
    x, _ = tiny_data(n)
    logits = classifier.predict(x)
    bias = classifier.model.fc.bias.data
    bias -= bias.new_tensor(np.median(logits, axis=0))
    y = predict_labels(classifier, x)
    assert np.bincount(y, minlength=NB_CLASSES).min() >= 5
    return classifier, x, y


def only(monkeypatch, *names):
    """Have these detectors report label 2, and no others anything."""
    for name in DETECTORS:
        score = 2.0 if name in names else 0.0
        monkeypatch.setattr(
            DETECTORS[name],
            "detect",
            lambda self, suspect, name=name, score=score: Evidence(name, 2, score, 1.0, 0.5, (0.0,) * NB_CLASSES),
        )


def missing(x, y):
    return x[y != 1], y[y != 1]


def few(x, y):
    chosen = np.concatenate([np.flatnonzero(y == label)[:4] for label in range(NB_CLASSES)])
    return x[chosen], y[chosen]


class TestVerdict:
    def test_a_report_on_enough_images_counts(self, monkeypatch):
        classifier, x, y = right_images()
        only(monkeypatch, "universal")
        report = BackdoorScan(classifier, effort="full")(x, y)
        assert (report.verdict, report.targets, report.notes) == ("infected", (2,), ())

    @pytest.mark.parametrize("weaken", [few, missing])
    def test_on_weak_images_it_does_not(self, monkeypatch, weaken):
        classifier, x, y = right_images()
        only(monkeypatch, "universal", "reversed_trigger")
        report = BackdoorScan(classifier, effort="full")(*weaken(x, y))
        assert (report.verdict, report.kind, report.targets) == ("cannot tell", None, ())
        assert "does not count" in report.notes[-1]
        assert {each.detector: each.label for each in report.evidence if each.score >= 1} == {
            "universal": 2,
            "reversed_trigger": 2,
        }

    @pytest.mark.parametrize("weaken", [few, missing])
    def test_a_report_that_rests_on_weights_alone_does(self, monkeypatch, weaken):
        classifier, x, y = right_images()
        only(monkeypatch, "last_layer")
        report = BackdoorScan(classifier)(*weaken(x, y))
        assert (report.verdict, report.targets) == ("infected", (2,))

    def test_a_draw_from_enough_images_misses_no_class(self, monkeypatch):
        classifier, x, y = right_images()
        only(monkeypatch)
        # Few of one class: a draw of 20 may leave it out.
        order = np.concatenate([np.flatnonzero(y != 1), np.flatnonzero(y == 1)[:1]])
        reports = [BackdoorScan(classifier, max_images=20, seed=seed)(x[order], y[order]) for seed in range(5)]
        assert not any("none of" in note for report in reports for note in report.notes)
        of_loader = BackdoorScan(classifier)(DataLoader([*zip(*missing(x, y), strict=True)], batch_size=8))
        assert any("none of 1" in note for note in of_loader.notes)


class TestHopeless:
    @pytest.mark.parametrize("effort", ["fast", "full"])
    def test_one_class_cannot_tell(self, effort):
        classifier, x, y = right_images()
        report = BackdoorScan(classifier, effort=effort, settings=QUICK)(x[y == 2], y[y == 2])
        assert (report.verdict, report.targets) == ("cannot tell", ())
        assert any("images of class 2 alone" in note for note in report.notes)
        assert {each.detector for each in report.evidence} <= {
            "last_layer",
            "margin_pixels",
            "margin_smooth",
            "agreement",
        }

    def test_none_right_cannot_tell(self):
        classifier, x, y = right_images()
        report = BackdoorScan(classifier, settings=QUICK)(x, (y + 1) % NB_CLASSES)
        assert report.verdict == "cannot tell"
        assert any("gets none right, expected most: check the order of the labels" in note for note in report.notes)

    def test_a_single_image_cannot_tell(self):
        x = np.full((1, *SHAPE), 0.5, np.float32)
        assert BackdoorScan(tiny_classifier(), effort="full")(x, np.zeros(1, dtype=int)).verdict == "cannot tell"


def test_a_class_that_dominates_is_not_used_whole(infected):
    order = np.argsort(infected.y_test, kind="stable")
    kept = np.concatenate([order[infected.y_test[order] == k][: 60 if k == 7 else 2] for k in range(10)])
    x, y = infected.x_test[kept], infected.y_test[kept]
    with untouched(infected.classifier):
        report = BackdoorScan(infected.classifier, detectors=["margin_profile"])(x, y)
    assert report.remarks == ("only 20 images of class 7 are used: 10 times the median of the classes",)
    # 20 of class 7, and two each of nine others.
    assert any(note.startswith("only 38 images for 10 classes") for note in report.notes)
    assert report.verdict == "cannot tell"


def test_a_draw_from_a_loader_that_misses_a_class_is_no_fault_of_the_images(infected):
    x, y = infected.x_test, infected.y_test
    kept = np.concatenate([np.flatnonzero(y != 9), np.flatnonzero(y == 9)[:1]])
    x, y = x[kept], y[kept]
    loader = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=100)
    scan = BackdoorScan(infected.classifier, detectors=["latent_shift"], max_images=60)
    array, loaded = scan(x, y), scan(loader)
    missing = BackdoorScan(infected.classifier, detectors=["latent_shift"], max_images=60)
    rest = y != 9
    one_less = DataLoader(TensorDataset(torch.from_numpy(x[rest]), torch.from_numpy(y[rest])), batch_size=100)
    assert array.notes == loaded.notes
    assert not [note for note in loaded.notes if "of 10 classes" in note]
    assert [note for note in missing(one_less).notes if "images of only 9 of 10 classes, none of 9" in note]
