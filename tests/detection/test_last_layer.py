"""A label that stands out in the last layer's weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from helpers import SHAPE, linear_classifier, tiny_classifier, tiny_data

from art_aft import BackdoorScan
from art_aft.classifiers.classifier import images_for, predict_labels
from art_aft.classifiers.layers import output_weights
from art_aft.detection.base import DETECTORS
from art_aft.detection.last_layer import SUSPICIOUS, favoured_label, positive_evidence, suspected_label
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.training.recipes import RECIPES


class Sums(torch.nn.Module):
    """A network whose logits are not a layer's output, but sums of that."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.layer(x).mean(dim=(2, 3)).reshape(len(x), 4, 2).sum(dim=2)


def sums():
    return PyTorchClassifier(
        Sums(), loss=torch.nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=4, clip_values=(0, 1)
    )


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


class TestSuspectedLabel:
    def with_bright_label(self, nb_classes=6, factor=5.0, seed=0):
        weights = np.random.default_rng(seed).normal(size=(nb_classes, *SHAPE)).astype(np.float32)
        weights[1] *= factor
        return linear_classifier(weights)

    def test_it_is_the_label_that_stands_out(self, infected):
        x, _ = tiny_data(4)
        assert suspected_label(self.with_bright_label(), x) == 1
        assert suspected_label(infected.classifier, infected.x) == 0

    def test_checked_images_serve_as_well(self):
        classifier = self.with_bright_label()
        assert suspected_label(classifier, images_for(classifier, tiny_data(4)[0], labelled=False)) == 1

    def test_there_is_none_where_none_stands_out_by_more_than_chance(self):
        classifier = self.with_bright_label(factor=1.0, seed=1)
        x, _ = tiny_data(4)
        _, p_value, _ = favoured_label(output_weights(classifier, x))
        assert p_value > SUSPICIOUS
        assert suspected_label(classifier, x) is None

    def test_there_is_none_with_two_labels_or_without_such_a_layer(self):
        x, _ = tiny_data(4)
        assert suspected_label(self.with_bright_label(nb_classes=2), x) is None
        assert suspected_label(sums(), x) is None
