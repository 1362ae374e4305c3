"""PyTorchNeuralCleanse has the interface that ART knows, mitigates in place and abstains."""

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from art.estimators.poison_mitigation.neural_cleanse.neural_cleanse import NeuralCleanseMixin
from cleansing import SUSPICIOUS, pooled, wrapped
from helpers import (
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    weights,
)

from art_aft.adversarial.inversion import InversionRecipe
from art_aft.classifiers.classifier import clone
from art_aft.defences import PyTorchNeuralCleanse


class TestTheInterface:
    def test_it_is_arts(self):
        classifier = wrapped(tiny_classifier())
        assert isinstance(classifier, NeuralCleanseMixin)
        assert isinstance(classifier, PyTorchClassifier)

    def test_it_is_built_as_arts_classifier_is(self):
        model = TinyNet()
        built = PyTorchNeuralCleanse(
            model, torch.nn.CrossEntropyLoss(), SHAPE, NB_CLASSES, clip_values=(0.0, 1.0), steps=9, norm=2
        )
        assert (built.model, built.input_shape, built.nb_classes) == (model, SHAPE, NB_CLASSES)
        assert (built.steps, built.norm, built.get_params()["steps"]) == (9, 2, 9)
        x, _ = tiny_data()
        np.testing.assert_allclose(built.predict(x), tiny_classifier().predict(x), atol=1e-6)

    def test_a_wrapped_classifier_predicts_the_same_and_the_original_stays(self):
        x, y = tiny_data()
        original = tiny_classifier(momentum=0.9, dropout=0.5)
        original._model.train()
        expected = clone(original).predict(x)
        with untouched(original):
            classifier = wrapped(original)
        np.testing.assert_array_equal(classifier.predict(x), expected)
        assert not any(module.training for module in classifier.model.modules())
        assert same_weights(classifier, original)
        before = weights(original)
        classifier.fit(x, y, batch_size=8, nb_epochs=1)
        assert same_weights(before, original)
        assert not same_weights(classifier, original)
        owned = {id(p) for group in classifier.optimizer.param_groups for p in group["params"]}
        assert owned == {id(p) for p in classifier.model.parameters()}

    def test_settings_are_passed_on(self):
        classifier = wrapped(tiny_classifier(), steps=11, stamped_share=0.7, seed=5)
        assert (classifier.steps, classifier.stamped_share, classifier.seed, classifier.recipe.seed) == (11, 0.7, 5, 5)

    @pytest.mark.parametrize("encoding", ["nhwc", "normalised", "range255"])
    def test_other_pixels_keep_their_encoding(self, encoding):
        x, y = tiny_data()
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        plain, other = wrapped(tiny_classifier(), **SUSPICIOUS), wrapped(given.classifier, **SUSPICIOUS)
        np.testing.assert_allclose(other.predict(given.encode(x)), plain.predict(x), atol=1e-4)
        np.testing.assert_array_equal(other.clip_values, given.classifier.clip_values)
        assert other.channels_first == given.classifier.channels_first
        clean, stamped, labels = plain.backdoor_examples(x, y)
        found = other.backdoor_examples(given.encode(x), y)
        assert len(stamped) > 0
        np.testing.assert_array_equal(found[2], labels)
        np.testing.assert_allclose(given.decode(found[0]), clean, atol=1e-6)
        np.testing.assert_allclose(given.decode(found[1]), stamped, atol=1e-3)
        for classifier, images in ((plain, x), (other, given.encode(x))):
            classifier.mitigate(images, y, ["unlearning", "pruning", "filtering"])
        assert other.top_indices == plain.top_indices
        logits = [c._predict_classifier(images) for c, images in ((plain, x), (other, given.encode(x)))]
        np.testing.assert_allclose(logits[1], logits[0], atol=1e-2)

    @pytest.mark.parametrize("thing", [None, "wrn-16-1", TinyNet()], ids=["None", "name", "module"])
    def test_what_is_no_pytorch_classifier_is_refused(self, thing):
        with pytest.raises(TypeError, match=r"^classifier: got .*, expected ART's PyTorchClassifier"):
            PyTorchNeuralCleanse.from_classifier(thing)

    @pytest.mark.parametrize(
        ("setting", "value", "error"),
        [
            ("steps", 0, ValueError),
            ("images_per_step", 0, ValueError),
            ("stamped_share", 0.0, ValueError),
            ("largest_suspect", 1.1, ValueError),
            ("filter_quantile", 1.1, ValueError),
            ("anomaly_threshold", "2", TypeError),
            ("seed", -1, ValueError),
            ("precision", "half", ValueError),
            ("norm", 3, ValueError),
            ("cost_multiplier", 1.0, ValueError),
        ],
    )
    def test_a_bad_value_is_refused_by_name(self, setting, value, error):
        with pytest.raises(error, match=f"^{setting}: got "):
            wrapped(tiny_classifier(), **{setting: value})

    def test_what_the_mixin_asks_of_a_framework(self):
        x, y = tiny_data()
        classifier = wrapped(tiny_classifier(momentum=0.9))
        np.testing.assert_allclose(
            classifier._get_penultimate_layer_activations(x), pooled(classifier, x), rtol=1e-5, atol=1e-6
        )
        classifier._prune_neuron_at_index(3)
        assert (classifier.model.fc.weight == 0).all(dim=0).nonzero().flatten().tolist() == [3]
        before = weights(classifier)
        classifier._fit_classifier(x, np.eye(NB_CLASSES)[y], batch_size=8, nb_epochs=1)
        assert not same_weights(before, classifier)

    def test_a_copy_is_as_independent_as_that_of_any_classifier(self):
        x, _ = tiny_data()
        classifier = wrapped(tiny_classifier(), steps=4)
        copied = clone(classifier)
        assert type(copied) is PyTorchNeuralCleanse
        assert copied.steps == 4
        with untouched(classifier):
            copied._prune_neuron_at_index(0)
        assert not np.allclose(copied.predict(x), classifier.predict(x))


class TestTheSearch:
    def test_the_settings_are_those_of_the_search(self, searches, infected):
        settings = {
            "steps": 7,
            "images_per_step": 5,
            "batch_size": 3,
            "learning_rate": 0.7,
            "norm": 2,
            "init_cost": 0.02,
            "patience": 4,
            "cost_multiplier": 1.7,
            "early_stop_threshold": 0.9,
            "early_stop_patience": 9,
            "classes_at_once": 2,
            "precision": "float32",
            "seed": 6,
        }
        classifier = wrapped(infected.classifier, **settings, attack_success_threshold=0.9)
        classifier.outlier_detection(infected.x, infected.y)
        assert searches == [InversionRecipe(**settings, success=0.9)]

    def test_without_early_stopping_all_steps_are_taken(self, searches, infected):
        classifier = wrapped(infected.classifier, steps=40, early_stop=False)
        classifier.outlier_detection(infected.x, infected.y)
        assert searches[0].early_stop_patience > 40

    @pytest.mark.parametrize("target", [2, np.array(2), np.array([2]), np.array([0, 0, 1, 0]), np.eye(4)[2:3]])
    def test_a_backdoor_of_one_label(self, target):
        x, y = tiny_data()
        classifier = wrapped(tiny_classifier(), **SUSPICIOUS)
        with untouched(classifier):
            mask, pattern = classifier.generate_backdoor(x, y, target)
        assert (mask.shape, pattern.shape) == ((1, 12, 12), SHAPE)
        classifier.outlier_detection(x, y)
        triggers = classifier.detection.triggers
        np.testing.assert_allclose(mask, triggers.masks[2], atol=1e-4)
        np.testing.assert_allclose(pattern, triggers.patterns[2], atol=1e-4)

    def test_a_label_that_there_is_not_is_refused(self):
        x, y = tiny_data()
        with pytest.raises(ValueError, match=r"^y_target: got "):
            wrapped(tiny_classifier()).generate_backdoor(x, y, 4)

    def test_outliers_come_with_label_mask_and_pattern_the_smallest_first(self, searches, detection, infected):
        classifier = wrapped(infected.classifier, **SUSPICIOUS)
        with untouched(classifier):
            found = classifier.outlier_detection(infected.x, np.eye(10)[infected.y])
        norms = detection.triggers.norms
        assert [label for label, *_ in found] == np.argsort(norms)[:5].tolist()
        for label, mask, pattern in found:
            np.testing.assert_array_equal(mask, detection.triggers.masks[label])
            np.testing.assert_array_equal(pattern, detection.triggers.patterns[label])
        assert classifier.detection.flagged == [label for label, *_ in found]
        classifier.anomaly_threshold = 2.0
        assert [label for label, *_ in classifier.outlier_detection(infected.x, infected.y)] == [0]


class TestBackdoorExamples:
    def test_they_are_the_images_of_other_classes_with_their_true_labels(self, searches, detection, infected):
        classifier = wrapped(infected.classifier)
        clean, stamped, labels = classifier.backdoor_examples(infected.x, infected.y)
        others = infected.y != 0
        np.testing.assert_array_equal(clean, infected.x[others])
        np.testing.assert_allclose(stamped, detection.triggers.stamp(infected.x[others], 0), atol=1e-6)
        np.testing.assert_array_equal(labels, np.eye(10)[infected.y[others]])
        assert stamped.dtype == np.float32

    def test_of_each_suspected_label_in_turn(self, searches, detection, infected):
        classifier = wrapped(infected.classifier, **SUSPICIOUS)
        clean, stamped, labels = classifier.backdoor_examples(infected.x, infected.y)
        flagged = np.argsort(detection.triggers.norms)[:5]
        start = 0
        for label in flagged:
            others = infected.y != label
            rows = slice(start, start + others.sum())
            np.testing.assert_array_equal(clean[rows], infected.x[others])
            expected = detection.triggers.stamp(infected.x[others], label)
            np.testing.assert_allclose(stamped[rows], expected, atol=1e-6)
            np.testing.assert_array_equal(labels[rows].argmax(axis=1), infected.y[others])
            start += others.sum()
        assert start == len(clean) == len(stamped) == len(labels)

    def test_without_a_suspected_label_there_are_none(self, searches, infected):
        clean, stamped, labels = wrapped(infected.classifier, anomaly_threshold=1e9).backdoor_examples(
            infected.x, infected.y
        )
        assert clean.shape == stamped.shape == (0, 1, 16, 16)
        assert labels.shape == (0, 10)

    def test_a_working_backdoor_is_told_from_none(self, searches, infected):
        classifier = wrapped(infected.classifier)
        clean, stamped, labels = classifier.backdoor_examples(infected.x, infected.y)
        assert classifier.check_backdoor_effective(stamped, labels) is True
        assert classifier.check_backdoor_effective(clean, labels) is False

    @pytest.mark.parametrize(("n", "wrong", "effective"), [(20, 1, True), (21, 1, False), (20, 0, False)])
    def test_one_image_in_twenty_is_enough(self, n, wrong, effective):
        x, _ = tiny_data(n)
        classifier = wrapped(tiny_classifier())
        labels = classifier.predict(x).argmax(axis=1)
        labels[:wrong] = (labels[:wrong] + 1) % NB_CLASSES
        assert classifier.check_backdoor_effective(x, labels) is effective
        assert classifier.check_backdoor_effective(x, np.eye(NB_CLASSES)[labels]) is effective


class TestEstimatorSettings:
    @pytest.mark.parametrize(("setting", "value"), [("attack_success_threshold", 2.0), ("norm", 1.5), ("norm", np.inf)])
    def test_impossible_ones_are_refused(self, setting, value):
        with pytest.raises(ValueError, match=f"^{setting}: got"):
            PyTorchNeuralCleanse.from_classifier(tiny_classifier(), **{setting: value})

    def test_set_params_checks_and_leaves_all_as_it_was_on_an_error(self):
        classifier = PyTorchNeuralCleanse.from_classifier(tiny_classifier(), steps=7)
        with pytest.raises(ValueError, match=r"^steps: got 0"):
            classifier.set_params(patience=3, steps=0)
        assert (classifier.steps, classifier.patience) == (7, 5)
        classifier.set_params(patience=3)
        assert classifier.patience == 3

    def test_a_clone_for_refitting_has_them(self):
        classifier = PyTorchNeuralCleanse.from_classifier(tiny_classifier(momentum=0.9), steps=7)
        again = classifier.clone_for_refitting()
        assert (again.clip_values == classifier.clip_values).all()
        assert again.steps == 7
