"""Neural Cleanse finds the infected label, unlearns or prunes it, and has the interface that ART knows."""

import copy
import dataclasses
import logging

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from art.estimators.poison_mitigation.neural_cleanse.neural_cleanse import NeuralCleanseMixin
from helpers import (
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
    weights,
)

from art_aft.adversarial.inversion import InversionRecipe, Triggers, invert_triggers
from art_aft.attacks import BadNets
from art_aft.classifiers.classifier import build_classifier, clone, features
from art_aft.classifiers.layers import Head
from art_aft.defences import NeuralCleanse, PyTorchNeuralCleanse, neural_cleanse, neural_cleanse_estimator
from art_aft.defences.neural_cleanse import Detection, excited_channels, prune, unlearn
from art_aft.training.loop import Recipe, fit

SEARCH = {
    "steps": 30,
    "images_per_step": 32,
    "inversion_batch_size": 32,
    "inversion_learning_rate": 0.3,
    "precision": "float32",
}
# Every label with a mask at the median or below it is suspected.
SUSPICIOUS = {"anomaly_threshold": -1.0, "largest_suspect": 1.0}
TUNING = {"nb_epochs": 10, "batch_size": 32, "learning_rate": 0.02, "padding": 1, "mirror": False}


def cleanse(classifier, **settings):
    return NeuralCleanse(classifier, **{**SEARCH, **TUNING, **settings})


@pytest.fixture(scope="module")
def searched(infected):
    """The one search on the infected classifier."""
    return cleanse(infected.classifier).detect(infected.x)


@pytest.fixture(scope="module")
def detection():
    """What the best of searches would find: the attacker's own trigger, and large masks for the other labels."""
    black, white = np.zeros((1, 1, 16, 16), np.float32), np.ones((1, 1, 16, 16), np.float32)
    patch = BadNets()(black)
    found = made_up([9.0, *range(60, 69)], shape=(1, 16, 16))
    found.masks[0], found.patterns[0] = patch[0] == BadNets()(white)[0], patch[0]
    return Detection(found, [0])


@pytest.fixture
def searches(detection, monkeypatch):
    """Have every search end at once with that; the recipes that were asked for."""
    recipes = []

    def search(classifier, x, recipe, *, labels=None, verbose=False):
        recipes.append(recipe)
        return detection.triggers

    monkeypatch.setattr(neural_cleanse, "invert_triggers", search)
    monkeypatch.setattr(neural_cleanse_estimator, "invert_triggers", search)
    return recipes


@pytest.fixture
def fits(monkeypatch):
    """What `fit` is given, which trains nothing then."""
    calls = []

    def no_fit(classifier, x, y, recipe, **_):
        calls.append({"classifier": classifier, "x": x, "y": y, "recipe": recipe})

    monkeypatch.setattr(neural_cleanse, "fit", no_fit)
    return calls


def made_up(norms, shape=SHAPE, seed=0):
    """Triggers of given norms, with masks and patterns of random numbers."""
    rng = np.random.default_rng(seed)
    masks = 0.1 + 0.8 * rng.random((len(norms), 1, *shape[1:]), dtype=np.float32)
    patterns = rng.random((len(norms), *shape), dtype=np.float32)
    k = len(norms)
    return Triggers(np.arange(k), masks, patterns, np.array(norms, dtype=float), np.ones(k), np.ones(k, dtype=int))


def pooled(classifier, x):
    return features(classifier, x, pooled=True)


class TestDetection:
    def test_the_infected_label_is_suspected(self, searched):
        norms = searched.triggers.norms
        assert 0 in searched.flagged
        assert norms[0] < 0.5 * np.median(norms)

    def test_its_trigger_works_on_images_of_all_classes(self, searched, infected):
        others = infected.x_test[infected.y_test != 0]
        labels = infected.classifier.predict(searched.triggers.stamp(others, 0)).argmax(axis=1)
        assert np.mean(labels == 0) > 0.9

    def test_its_mask_is_a_few_pixels(self, searched):
        # Where they lie is left open: after so short a search, and with crops, that is often beside the trigger.
        assert (searched.triggers.masks[0, 0] > 0.5).sum() <= 64

    def test_it_says_so(self, detection):
        lines = str(detection).splitlines()
        assert len(lines) == 10
        assert lines[0] == (
            f"label 0: norm {detection.triggers.norms[0]:.1f}, "
            f"anomaly index {detection.triggers.anomaly_indices[0]:.1f} (suspected)"
        )
        assert lines[9].startswith("label 9: norm ")
        assert "suspected" not in "".join(lines[1:])

    def test_to_detect_changes_nothing(self):
        classifier = tiny_classifier(momentum=0.9, dropout=0.5)
        classifier._model.train()
        defence = cleanse(classifier, steps=2, **SUSPICIOUS)
        with untouched(classifier):
            found = defence.detect(tiny_data()[0])
        assert defence.detection is found
        assert len(found.flagged) == 2

    def test_a_call_tells_what_it_found(self, searches, fits, detection, infected):
        defence = cleanse(infected.classifier)
        defence(infected.x, y=infected.y)
        assert defence.detection.flagged == [0]
        assert defence.detection.triggers is detection.triggers

    def test_a_mask_that_is_hardly_smaller_than_the_others_is_not_suspected(self, monkeypatch):
        norms = [60.0, 100, 101, 102, 103]
        for module in (neural_cleanse, neural_cleanse_estimator):
            monkeypatch.setattr(module, "invert_triggers", lambda *_, **__: made_up(norms))
        x, y = tiny_data()
        classifier = tiny_classifier(nb_classes=5)
        # 60 is 0.594 of the median, far outside the deviation.
        for largest, flagged in ((0.59, []), (0.6, [0]), (1.0, [0])):
            assert cleanse(classifier, largest_suspect=largest).detect(x).flagged == flagged
            estimator = wrapped(classifier, largest_suspect=largest)
            assert [label for label, *_ in estimator.outlier_detection(x, y)] == flagged
        norms[0] = 80
        assert cleanse(classifier).detect(x).flagged == []
        assert wrapped(classifier).outlier_detection(x, y) == []
        assert cleanse(classifier, preset="paper").detect(x).flagged == [0]

    def test_the_settings_are_those_of_the_search(self, searches, infected):
        defence = cleanse(
            infected.classifier,
            steps=7,
            images_per_step=5,
            inversion_batch_size=3,
            inversion_learning_rate=0.7,
            init_cost=0.02,
            attack_success_threshold=0.9,
            patience=4,
            cost_multiplier=1.7,
            early_stop_patience=9,
            classes_at_once=2,
            learning_rate=0.5,
            batch_size=99,
        )
        defence.detect(infected.x)
        (recipe,) = searches
        expected = InversionRecipe(
            steps=7,
            images_per_step=5,
            batch_size=3,
            learning_rate=0.7,
            init_cost=0.02,
            success=0.9,
            patience=4,
            cost_multiplier=1.7,
            early_stop_patience=9,
            classes_at_once=2,
            precision="float32",
            seed=recipe.seed,
        )
        assert recipe == expected
        cleanse(infected.classifier, seed=1).detect(infected.x)
        assert searches[1].seed != recipe.seed

    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (np.zeros((3, 1, 12, 12), dtype=np.float32), ValueError, r"^x: got shape"),
            (None, TypeError, r"^x: got NoneType"),
        ],
    )
    def test_images_that_do_not_fit_are_refused(self, images, error, message):
        with pytest.raises(error, match=message):
            cleanse(tiny_classifier()).detect(images)


class TestOneSearch:
    @pytest.fixture
    def counted(self, monkeypatch):
        calls = []

        def search(*arguments, **settings):
            calls.append(arguments)
            return invert_triggers(*arguments, **settings)

        monkeypatch.setattr(neural_cleanse, "invert_triggers", search)
        return calls

    def defence(self, classifier):
        return cleanse(classifier, steps=2, nb_epochs=1, **SUSPICIOUS)

    def test_tuning_the_unlearning_needs_no_second_one(self, counted):
        x, y = tiny_data()
        defence = self.defence(tiny_classifier())
        results = [defence(x, y=y)]
        for settings in ({"learning_rate": 0.1}, {"nb_epochs": 3}, {"stamped_share": 1.0}, {"mitigation": "pruning"}):
            defence.set_params(**settings)
            results.append(defence(x, y=y))
        assert len(counted) == 1
        for number, result in enumerate(results):
            assert not any(same_weights(result, other) for other in results[:number])

    def test_detecting_first_is_the_same_search(self, counted):
        x, y = tiny_data()
        defence = self.defence(tiny_classifier())
        found = defence.detect(x)
        defence(x, y=y)
        assert len(counted) == 1
        assert defence.detection.triggers is found.triggers

    def test_another_threshold_judges_the_same_triggers_anew(self, counted):
        x, _ = tiny_data()
        defence = self.defence(tiny_classifier())
        assert len(defence.detect(x).flagged) == 2
        defence.set_params(anomaly_threshold=1e9)
        assert defence.detect(x).flagged == []
        assert len(counted) == 1

    def test_other_images_are_searched_anew(self, counted):
        x, _ = tiny_data()
        defence = self.defence(tiny_classifier())
        first = defence.detect(x).triggers
        second = defence.detect(x[:20]).triggers
        other = x.copy()
        other[3, 1, 2, 2] = 0.5
        third = defence.detect(other).triggers
        assert len(counted) == 3
        assert not np.array_equal(first.masks, second.masks)
        assert not np.array_equal(first.masks, third.masks)

    def test_other_weights_are_searched_anew(self, counted):
        x, y = tiny_data()
        classifier = tiny_classifier()
        defence = self.defence(classifier)
        defence(x, y=y)
        defence(x, transformed_classifier=tiny_classifier(seed=1), y=y)
        assert len(counted) == 2
        defence.detect(x)
        assert len(counted) == 3
        # Statistics are weights too.
        with torch.no_grad():
            classifier.model.bn.running_mean[0] += 0.1
        defence.detect(x)
        assert len(counted) == 4
        defence.detect(x)
        assert len(counted) == 4

    @pytest.mark.parametrize(
        "settings", [{"steps": 3}, {"inversion_learning_rate": 0.2}, {"seed": 4}, {"init_cost": 0.1}]
    )
    def test_another_search_is_another_search(self, settings, counted):
        x, _ = tiny_data()
        defence = self.defence(tiny_classifier())
        defence.detect(x)
        defence.set_params(**settings)
        defence.detect(x)
        assert len(counted) == 2

    def test_it_is_of_the_classifier_that_is_purified(self, counted):
        x, y = tiny_data()
        given = tiny_classifier(seed=1)
        before = weights(given)
        defence = self.defence(tiny_classifier())
        defence(x, transformed_classifier=given, y=y)
        assert counted[0][0] is given
        alone = self.defence(tiny_classifier(seed=1)).detect(x)
        np.testing.assert_array_equal(defence.detection.triggers.masks, alone.triggers.masks)
        assert not same_weights(before, given)


class TestUnlearning:
    def test_it_removes_the_backdoor_and_keeps_the_accuracy(self, searches, infected):
        before = infected.scores(infected.classifier)
        with untouched(infected.classifier):
            purified = cleanse(infected.classifier)(infected.x, y=infected.y)
        after = infected.scores(purified)
        assert before.asr > 0.95
        assert after.asr <= 0.1
        assert after.acc >= before.acc - 0.05
        assert len(searches) == 1

    @pytest.mark.parametrize(("share", "count"), [(0.2, 24), (1.0, 120), (0.001, 1)])
    def test_a_share_of_the_images_is_stamped_and_keeps_its_true_labels(
        self, share, count, searches, fits, detection, infected
    ):
        x = infected.x.copy()
        cleanse(infected.classifier, stamped_share=share)(x, y=infected.y)
        ((given, labels),) = [(call["x"], call["y"]) for call in fits]
        np.testing.assert_array_equal(x, infected.x)
        np.testing.assert_array_equal(labels, infected.y)
        stamped = (given != x).any(axis=(1, 2, 3))
        assert stamped.sum() == count
        np.testing.assert_array_equal(given[stamped], detection.triggers.stamp(x[stamped], 0))
        assert given.min() >= 0
        assert given.max() <= 1 + 1e-6

    def test_stamped_are_images_of_all_classes_in_no_order(self, searches, fits, infected):
        for seed in (0, 1):
            cleanse(infected.classifier, stamped_share=0.5, seed=seed)(infected.x, y=infected.y)
        chosen = [(call["x"] != infected.x).any(axis=(1, 2, 3)) for call in fits]
        assert (chosen[0] != chosen[1]).any()
        assert set(infected.y[chosen[0]]) == set(range(10))
        assert 5 < chosen[0][:60].sum() < 55

    def test_the_training_is_that_of_the_settings(self, searches, fits, infected):
        defence = cleanse(infected.classifier, weight_decay=0.1, freeze_bn=True, max_steps=5, seed=4)
        purified = defence(infected.x, y=infected.y)
        assert fits[0]["classifier"] is purified
        expected = Recipe(**TUNING, weight_decay=0.1, freeze_bn=True, max_steps=5, precision="float32")
        assert dataclasses.replace(fits[0]["recipe"], seed=0) == expected
        defence.set_params(seed=5)
        defence(infected.x, y=infected.y)
        assert fits[1]["recipe"].seed != fits[0]["recipe"].seed

    def test_several_suspected_labels_share_the_stamped_images_evenly(self, fits):
        classifier, (x, y) = tiny_classifier(), tiny_data(40)
        found = made_up([1.0, 9, 2, 3])
        unlearn(classifier, x, y, Detection(found, [0, 2, 3]), Recipe(), share=0.75)
        given = fits[0]["x"]
        counts = [np.isclose(given, found.stamp(x, label)).all(axis=(1, 2, 3)).sum() for label in range(4)]
        assert counts == [10, 0, 10, 10]
        assert (given == x).all(axis=(1, 2, 3)).sum() == 10
        np.testing.assert_array_equal(fits[0]["y"], y)

    def test_8_bit_images_are_stamped_as_floats(self, fits):
        classifier = tiny_classifier()
        images = np.random.default_rng(0).integers(0, 256, (10, *SHAPE), dtype=np.uint8)
        before, found = images.copy(), made_up([1.0, 9, 2, 3])
        unlearn(classifier, images, np.zeros(10, dtype=int), Detection(found, [1]), Recipe(), share=1.0)
        np.testing.assert_array_equal(images, before)
        np.testing.assert_allclose(fits[0]["x"], found.stamp(images.astype(np.float32) / 255, 1), atol=1e-6)

    def test_it_trains_in_place(self):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        expected, found = clone(classifier), made_up([1.0, 9, 2, 3])
        recipe = Recipe(nb_epochs=2, batch_size=8, precision="float32")
        unlearn(classifier, x, y, Detection(found, [1]), recipe, share=1.0)
        fit(expected, found.stamp(x, 1), y, recipe)
        assert same_weights(classifier, expected)


class TestPruning:
    def cut_by_hand(self, classifier, channels):
        """What the classifier says where these channels of its last map are zero."""
        model = clone(classifier).model.eval()

        def predict(x):
            with torch.no_grad():
                maps = model.features(torch.from_numpy(x))
                maps[:, list(channels)] = 0
                return model.fc(maps.mean(dim=(2, 3))).argmax(dim=1).numpy()

        return predict

    def ranked(self, classifier, x, stamped):
        rise = pooled(classifier, stamped).mean(axis=0) - pooled(classifier, x).mean(axis=0)
        return np.argsort(-rise)

    @pytest.mark.parametrize("until", [0.05, 0.4, 0.8, 1.1])
    def test_the_channels_that_the_trigger_raises_most_go_until_it_works_no_more(self, until, detection, infected):
        classifier = clone(infected.classifier)
        stamped = detection.triggers.stamp(infected.x, 0)
        ranked = self.ranked(classifier, infected.x, stamped)
        telling = infected.classifier.predict(infected.x).argmax(axis=1) != 0
        pruned = prune(classifier, infected.x, detection, until=until, max_pruned=1.0)
        assert pruned == ranked[: len(pruned)].tolist()
        shares = [
            np.mean(self.cut_by_hand(infected.classifier, ranked[:n])(stamped[telling]) == 0)
            for n in range(len(pruned) + 1)
        ]
        assert shares[-1] < until
        assert min(shares[:-1], default=np.inf) >= until

    @pytest.mark.parametrize(("share", "count"), [(0.3, 19), (0.1, 6), (0.0, 0)])
    def test_never_more_than_a_share_of_them_goes(self, share, count, detection, infected):
        classifier = clone(infected.classifier)
        pruned = prune(classifier, infected.x, detection, until=0.0, max_pruned=share)
        assert len(pruned) == count
        cut = (classifier.model.fc.weight == 0).all(dim=0).nonzero().flatten().tolist()
        assert cut == sorted(pruned)

    def test_the_default_is_30_percent(self, detection, infected):
        classifier = clone(infected.classifier)
        assert len(prune(classifier, infected.x, detection, until=0.0)) == 19

    def test_only_those_columns_of_the_head_change(self, detection, infected):
        classifier = clone(infected.classifier)
        before = weights(classifier)
        pruned = prune(classifier, infected.x, detection)
        after = weights(classifier)
        assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.weight"]
        kept = np.setdiff1d(np.arange(64), pruned)
        assert torch.equal(before["fc.weight"][:, kept], after["fc.weight"][:, kept])

    def test_the_defence_does_that_and_the_backdoor_hardly_works(self, searches, fits, detection, infected):
        expected = clone(infected.classifier)
        prune(expected, infected.x, detection)
        with untouched(infected.classifier):
            purified = cleanse(infected.classifier, mitigation="pruning")(infected.x, y=infected.y)
        assert same_weights(purified, expected)
        assert fits == []
        assert infected.scores(purified).asr < 0.5
        assert infected.scores(purified).acc > 0.7

    def test_images_that_are_taken_for_the_label_anyway_do_not_count(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        with torch.no_grad():
            classifier.model.fc.bias[1] += 100
        assert prune(classifier, x, Detection(made_up([1.0, 9, 2, 3]), [1])) == []

    def test_of_several_labels_each_image_tells_of_each(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        head, found = Head(classifier, x), made_up([1.0, 9, 2, 3])
        order, stamped = excited_channels(head, x, Detection(found, [2, 0]), (0.0, 1.0))
        assert len(stamped) == 48
        np.testing.assert_array_equal(stamped[:24], found.stamp(x, 2))
        np.testing.assert_array_equal(stamped[24:], found.stamp(x, 0))
        np.testing.assert_array_equal(order, self.ranked(classifier, x, stamped))
        # A trigger that works on all, for one label of two: half of all stamped images.
        with torch.no_grad():
            classifier.model.fc.weight[2] = 0
            classifier.model.fc.weight[:2] = 0
            classifier.model.fc.weight[3] = -1
            classifier.model.fc.bias.copy_(torch.tensor([0.0, 0.0, 0.1, 100]))
        assert prune(clone(classifier), x, Detection(found, [2, 0]), until=0.05) == []


class TestNothingSuspected:
    @pytest.mark.parametrize("mitigation", ["unlearning", "pruning"])
    def test_the_weights_come_back_bit_for_bit_with_a_warning(self, mitigation, searches, fits, infected, caplog):
        defence = cleanse(infected.classifier, anomaly_threshold=1e6, mitigation=mitigation)
        with untouched(infected.classifier), caplog.at_level(logging.WARNING):
            purified = defence(infected.x, y=infected.y)
        assert purified is not infected.classifier
        assert same_weights(purified, infected.classifier)
        assert defence.detection.flagged == []
        assert fits == []
        ((source, level, message),) = caplog.record_tuples
        assert (source, level) == ("art_aft.defences.neural_cleanse", logging.WARNING)
        assert "suspects no label" in message

    def test_with_a_suspicion_there_is_no_warning(self, searches, fits, infected, caplog):
        with caplog.at_level(logging.INFO):
            cleanse(infected.classifier)(infected.x, y=infected.y)
        assert caplog.record_tuples == []


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "value", "error"),
        [
            ("mitigation", "filtering", ValueError),
            ("mitigation", None, ValueError),
            ("anomaly_threshold", "2", TypeError),
            ("anomaly_threshold", np.nan, ValueError),
            ("largest_suspect", 0.0, ValueError),
            ("largest_suspect", 1.1, ValueError),
            ("stamped_share", 0.0, ValueError),
            ("stamped_share", 1.1, ValueError),
            ("steps", 0, ValueError),
            ("images_per_step", 0, ValueError),
            ("init_cost", 0.0, ValueError),
            ("patience", 0, ValueError),
            ("cost_multiplier", 1.0, ValueError),
            ("early_stop_patience", 0, ValueError),
            ("classes_at_once", 0, ValueError),
        ],
    )
    def test_a_bad_value_is_refused_by_name(self, setting, value, error):
        classifier = tiny_classifier()
        with pytest.raises(error, match=f"^{setting}: got "):
            NeuralCleanse(classifier, **{setting: value})
        defence = NeuralCleanse(classifier)
        before = defence.get_params()
        with pytest.raises(error, match=f"^{setting}: got "):
            defence.set_params(**{setting: value})
        assert defence.get_params() == before


def wrapped(classifier, **settings):
    quick = {"steps": 3, "images_per_step": 16, "batch_size": 8, "precision": "float32"}
    return PyTorchNeuralCleanse.from_classifier(classifier, **{**quick, **settings})


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
        unlearn(infected.classifier, infected.x, infected.y, detection, self.RECIPE, share=0.4)
        for part in ("x", "y"):
            np.testing.assert_array_equal(fits[0][part], fits[1][part])
        assert fits[0]["recipe"] == self.RECIPE
        assert fits[0]["classifier"] is classifier

    def test_pruning_is_that_of_the_defence(self, searches, detection, infected):
        classifier, expected = wrapped(infected.classifier), clone(infected.classifier)
        classifier.mitigate(infected.x, infected.y, ["pruning"])
        prune(expected, infected.x, detection)
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
        told = ~abstains(classifier, infected.x_test)
        np.testing.assert_array_equal(
            classifier.predict(infected.x_test)[told], clone(infected.classifier).predict(infected.x_test)[told]
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


@pytest.mark.parametrize(
    ("setting", "value"),
    [("inversion_batch_size", 0), ("inversion_learning_rate", 0.0), ("attack_success_threshold", 2.0)],
)
def test_errors_name_the_setting_that_was_given(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}: got"):
        NeuralCleanse(tiny_classifier(), **{setting: value})


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
