"""What the scan says on images that cannot tell: never "infected" because of them, and never a crash."""

import numpy as np
import pytest
from helpers import NB_CLASSES, SHAPE, tiny_classifier, tiny_data
from torch.utils.data import DataLoader

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
