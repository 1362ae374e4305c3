"""The label that a purification has in mind."""

import numpy as np
from helpers import SHAPE, linear_classifier, sums, tiny_data

from art_aft.classifiers.classifier import images_for, predict_labels
from art_aft.classifiers.layers import output_weights
from art_aft.detection.last_layer import favoured_label
from art_aft.detection.suspicion import SUSPICIOUS, suspected_label


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

    def test_a_label_that_perturbations_reach_first_comes_before_that_of_the_last_layer(self):
        classifier = self.with_bright_label()
        x, _ = tiny_data(60)
        images = images_for(classifier, x, predict_labels(classifier, x))
        nothing = np.zeros((6, *SHAPE), np.float32)
        forced = nothing.copy()
        forced[3] = 1e3 * np.sign(classifier.model[1].weight[3].detach().numpy().reshape(SHAPE))
        assert suspected_label(classifier, images, [nothing]) == 1
        assert suspected_label(classifier, images, [nothing, forced]) == 3

    def test_of_many_labels_the_one_far_down_the_list_is_found_too(self):
        classifier = self.with_bright_label(nb_classes=16, factor=1.0, seed=1)
        x, _ = tiny_data(60)
        images = images_for(classifier, x, predict_labels(classifier, x))
        forced = np.zeros((16, *SHAPE), np.float32)
        forced[14] = 1e3 * np.sign(classifier.model[1].weight[14].detach().numpy().reshape(SHAPE))
        assert suspected_label(classifier, images, [forced]) == 14
