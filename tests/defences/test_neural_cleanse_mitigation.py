"""PyTorchNeuralCleanse mitigates in place, and abstains after filtering."""

import copy
import logging

import numpy as np
import pytest
import torch
from cleansing import made_up, pooled, unlabelled, wrapped
from helpers import (
    NB_CLASSES,
    SHAPE,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
)

from art_aft.attacks import BadNets
from art_aft.classifiers.classifier import build_classifier, clone
from art_aft.classifiers.layers import Head
from art_aft.data.images import Images
from art_aft.defences import neural_cleanse_estimator
from art_aft.defences.found_triggers import prune, unlearn
from art_aft.training.recipe import Recipe


def abstains(classifier, x):
    return (classifier.predict(x) == 0).all(axis=1)


class TestMitigating:
    RECIPE = Recipe(nb_epochs=10, batch_size=32, learning_rate=0.02, padding=1, precision="float32")

    def test_unlearning_removes_the_backdoor_in_place(self, searches, infected):
        classifier = wrapped(infected.classifier, recipe=self.RECIPE)
        assert classifier.mitigate(infected.x, infected.y, ["unlearning"]) is None
        after = infected.scores(classifier)
        assert after.asr <= 0.1
        assert after.acc >= infected.scores(infected.classifier).acc - 0.05
        assert classifier.top_indices == []
        assert not classifier.model.training

    def test_unlearning_is_that_of_the_defence(self, searches, fits, detection, infected):
        classifier = wrapped(infected.classifier, recipe=self.RECIPE, stamped_share=0.4)
        classifier.mitigate(infected.x, np.eye(10)[infected.y], ["unlearning"])
        unlearn(infected.classifier, Images(infected.x, infected.y), detection, self.RECIPE, share=0.4)
        for part in ("x", "y"):
            np.testing.assert_array_equal(fits[0][part], fits[1][part])
        assert fits[0]["recipe"] == self.RECIPE
        assert fits[0]["classifier"] is classifier

    def test_pruning_is_that_of_the_defence(self, searches, detection, infected):
        classifier, expected = wrapped(infected.classifier), clone(infected.classifier)
        classifier.mitigate(infected.x, infected.y, ["pruning"])
        prune(expected, unlabelled(expected, infected.x), detection)
        assert same_weights(classifier, expected)

    def test_filtering_abstains_on_most_triggered_and_few_clean_images(self, searches, infected):
        classifier = wrapped(infected.classifier)
        classifier.mitigate(infected.x, infected.y, ["filtering"])
        assert same_weights(classifier, infected.classifier)
        triggered = BadNets()(infected.x_test[infected.y_test != 0])
        assert abstains(classifier, triggered).mean() > 0.9
        assert abstains(classifier, infected.x).mean() == 0.05
        assert abstains(classifier, infected.x_test).mean() < 0.15
        # All others get the logits that they had.
        answered = ~abstains(classifier, infected.x_test)
        np.testing.assert_array_equal(
            classifier.predict(infected.x_test)[answered], clone(infected.classifier).predict(infected.x_test)[answered]
        )

    @pytest.mark.parametrize("quantile", [0.5, 0.8, 1.0])
    def test_the_quantile_says_how_many_clean_images_are_refused(self, quantile, searches, infected):
        classifier = wrapped(infected.classifier, filter_quantile=quantile)
        classifier.mitigate(infected.x, infected.y, ["filtering"])
        assert abs(abstains(classifier, infected.x).mean() - (1 - quantile)) < 0.01

    def test_filtering_watches_the_channel_that_the_trigger_raises_most(self, searches, detection, infected):
        classifier = wrapped(infected.classifier)
        classifier.mitigate(infected.x, infected.y, ["filtering"])
        stamped = detection.triggers.stamp(infected.x, 0)
        rise = pooled(infected.classifier, stamped).mean(axis=0) - pooled(infected.classifier, infected.x).mean(axis=0)
        assert classifier.top_indices == [rise.argmax()]
        watched_channel = pooled(infected.classifier, infected.x)[:, rise.argmax()]
        np.testing.assert_allclose(classifier.activation_threshold, np.quantile(watched_channel, 0.95), rtol=1e-5)

    def test_of_many_channels_a_hundredth_is_watched_and_their_mean_counts(self, monkeypatch):
        parts = (torch.nn.Conv2d(3, 300, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torch.nn.Sequential(*parts, torch.nn.Linear(300, NB_CLASSES))
        x, y = tiny_data()
        found = made_up([1.0, 50, 51, 52])
        monkeypatch.setattr(neural_cleanse_estimator, "invert_triggers", lambda *_, **__: found)
        classifier = wrapped(build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES))
        classifier.mitigate(x, y, ["filtering"])
        activations = [Head(classifier, x).activations(images) for images in (x, found.stamp(x, 0))]
        top = np.argsort(activations[0].mean(axis=0) - activations[1].mean(axis=0))[:3]
        assert classifier.top_indices == top.tolist()
        suspicion = activations[0][:, top].mean(axis=1)
        np.testing.assert_allclose(classifier.activation_threshold, np.quantile(suspicion, 0.95), rtol=1e-5)
        np.testing.assert_array_equal(abstains(classifier, x), suspicion > np.quantile(suspicion, 0.95))

    def test_several_are_done_in_their_order(self, searches, infected, monkeypatch):
        done = []
        for name in ("unlearn", "prune"):
            monkeypatch.setattr(neural_cleanse_estimator, name, lambda *_, _name=name, **__: done.append(_name))
        classifier = wrapped(infected.classifier)
        classifier.mitigate(infected.x, infected.y, ["pruning", "unlearning"])
        classifier.mitigate(infected.x, infected.y, ["unlearning", "filtering", "pruning"])
        assert done == ["prune", "unlearn", "unlearn", "prune"]
        assert len(classifier.top_indices) == 1
        assert len(searches) == 2

    @pytest.mark.parametrize("kinds", [["distillation"], ["unlearning", "Pruning"], "unlearning", [None]])
    def test_an_unknown_one_is_refused_before_anything_changes(self, kinds, searches, infected):
        classifier = wrapped(infected.classifier)
        with untouched(classifier), pytest.raises(ValueError, match=r"^mitigation_types: got .*, expected one of"):
            classifier.mitigate(infected.x, infected.y, kinds)
        assert searches == []
        assert classifier.detection is None
        assert classifier.top_indices == []

    def test_data_that_do_not_fit_are_refused(self, searches, infected):
        classifier = wrapped(infected.classifier)
        for x, y, message in ((infected.x, infected.y[:-1], "^y: got 119 labels"), (infected.x[0], [1], "^x: got sh")):
            with untouched(classifier), pytest.raises(ValueError, match=message):
                classifier.mitigate(x, y, ["pruning"])

    def test_without_a_suspected_label_nothing_changes_which_is_logged(self, searches, infected, caplog):
        classifier = wrapped(infected.classifier, anomaly_threshold=1e9)
        with untouched(classifier), caplog.at_level(logging.WARNING):
            classifier.mitigate(infected.x, infected.y, ["unlearning", "pruning", "filtering"])
        assert classifier.top_indices == []
        ((source, _, message),) = caplog.record_tuples
        assert source == "art_aft.defences.neural_cleanse_estimator"
        assert "suspects no label" in message

    def test_the_global_generators_stay(self, searches, infected):
        classifier, other = wrapped(infected.classifier, recipe=self.RECIPE), tiny_classifier()
        with untouched(other):
            classifier.mitigate(infected.x, infected.y, ["unlearning", "pruning", "filtering"])


class TestPredicting:
    def test_before_filtering_it_is_arts_classifier(self, caplog):
        x, _ = tiny_data()
        original = tiny_classifier()
        classifier = wrapped(original)
        with caplog.at_level(logging.INFO):
            np.testing.assert_array_equal(classifier.predict(x), original.predict(x))
        assert caplog.record_tuples == []

    def test_it_abstains_above_the_threshold_with_rows_of_zeros(self):
        x, _ = tiny_data()
        classifier = wrapped(tiny_classifier())
        plain, activity = classifier.predict(x), pooled(classifier, x)
        classifier.top_indices = [2, 5]
        suspicion = activity[:, [2, 5]].mean(axis=1)
        # Between two images.
        classifier.activation_threshold = float(np.mean(np.sort(suspicion)[10:12]))
        result = classifier.predict(x)
        high = suspicion > classifier.activation_threshold
        assert high.sum() == len(x) - 11
        assert not result[high].any()
        np.testing.assert_array_equal(result[~high], plain[~high])
        assert plain[high].any(axis=1).all()

    def test_the_batch_size_and_the_mode_are_passed_on(self):
        x, _ = tiny_data(10)
        classifier = wrapped(tiny_classifier())
        with watched(classifier) as seen:
            classifier.predict(x, batch_size=4)
            classifier.predict(x, training_mode=True)
        assert [(len(batch), training) for batch, training in seen] == [
            *[(4, False), (4, False), (2, False)],
            (10, True),
        ]

    def test_a_deep_copy_of_its_settings_is_not_shared(self):
        classifier = wrapped(tiny_classifier())
        copied = clone(classifier)
        copied.top_indices.append(1)
        assert classifier.top_indices == []
        assert copy.copy(classifier.recipe) == classifier.recipe
