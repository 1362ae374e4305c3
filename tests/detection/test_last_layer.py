"""A label that stands out in the last layer's weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import sums, tiny_classifier, tiny_data

from art_aft import BackdoorScan
from art_aft.classifiers.classifier import predict_labels
from art_aft.classifiers.layers import output_weights
from art_aft.detection.base import DETECTORS
from art_aft.detection.last_layer import positive_evidence
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.training.recipes import RECIPES


class TestMeasures:
    def test_each_measure_is_a_sum_over_features(self):
        weights = np.array([[1.0, -2.0, 3.0], [0.0, 0.0, 1.0], [-1.0, 5.0, 2.0]])
        found = positive_evidence(weights)  # relative: [1, -3, 1], [0, -1, -1], [-1, 4, 0]
        assert found["all features"] == pytest.approx([1 - 1.5 + 1, -1.0, -0.5 + 4])
        assert found["strongest features"] == pytest.approx([2.0, 0.0, 16.0])

    def test_what_all_labels_have_in_common_says_nothing(self):
        rng = np.random.default_rng(0)
        weights, common = rng.normal(size=(10, 64)), rng.normal(size=64)
        for name, values in positive_evidence(weights).items():
            assert positive_evidence(weights + common)[name] == pytest.approx(values)

    def test_the_layer_is_the_one_that_gives_the_logits(self):
        classifier = tiny_classifier()
        x, _ = tiny_data(4)
        weights = output_weights(classifier, x)
        layers = [part for part in classifier.model.modules() if isinstance(part, torch.nn.Linear)]
        assert weights == pytest.approx(layers[-1].weight.detach().numpy())


class TestScan:
    def test_the_last_layer_alone_says_that_the_others_did_not_run(self):
        victim = train_victim(VictimSettings("badnets", rate=0.0, recipe=replace(RECIPES["digits"], nb_epochs=6)))
        report = BackdoorScan(victim.classifier, detectors=["last_layer"])(victim.x_clean, victim.y_clean)
        assert report.score < 0.8
        assert report.verdict == "no evidence"
        assert set(report.omitted) == set(DETECTORS) - {"last_layer"}

    def test_a_network_without_such_a_layer_is_not_cleared(self):
        x, _ = tiny_data(60)
        classifier = sums()
        report = BackdoorScan(classifier, detectors=["last_layer"])(x, predict_labels(classifier, x))
        assert (report.evidence, report.score, report.verdict) == ((), 0.0, "cannot tell")
        assert report.omitted == ("last_layer", *report.omitted[1:])
        assert any("no detector" in note for note in report.notes)
