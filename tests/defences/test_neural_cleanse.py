"""Neural Cleanse finds the infected label, searches once for one question, and changes nothing without a suspect."""

import logging

import numpy as np
import pytest
import torch
from cleansing import SUSPICIOUS, cleanse, made_up, wrapped
from helpers import same_weights, tiny_classifier, tiny_data, untouched, weights

from art_aft.adversarial.inversion import InversionRecipe, invert_triggers
from art_aft.defences import NeuralCleanse, neural_cleanse, neural_cleanse_estimator


@pytest.fixture(scope="module")
def searched(infected):
    """The one search on the infected classifier."""
    return cleanse(infected.classifier).detect(infected.x)


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

    def test_it_is_printed_label_by_label(self, detection):
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
        assert defence.report is None  # of calls
        assert len(found.flagged) == 2

    def test_a_call_tells_what_it_found(self, searches, fits, detection, infected):
        defence = cleanse(infected.classifier)
        defence(infected.x, y=infected.y)
        assert defence.report.detection.flagged == [0]
        assert defence.report.detection.triggers is detection.triggers

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
        assert cleanse(classifier, **neural_cleanse.PAPER).detect(x).flagged == [0]

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
        assert defence.report.detection.triggers is found.triggers

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
        # Running statistics count, too.
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
        np.testing.assert_array_equal(defence.report.detection.triggers.masks, alone.triggers.masks)
        assert not same_weights(before, given)


class TestNothingSuspected:
    @pytest.mark.parametrize("mitigation", ["unlearning", "pruning"])
    def test_the_weights_come_back_bit_for_bit_with_a_warning(self, mitigation, searches, fits, infected, caplog):
        defence = cleanse(infected.classifier, anomaly_threshold=1e6, mitigation=mitigation)
        with untouched(infected.classifier), caplog.at_level(logging.WARNING):
            purified = defence(infected.x, y=infected.y)
        assert purified is not infected.classifier
        assert same_weights(purified, infected.classifier)
        assert defence.report.detection.flagged == []
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


@pytest.mark.parametrize(
    ("setting", "value"),
    [("inversion_batch_size", 0), ("inversion_learning_rate", 0.0), ("attack_success_threshold", 2.0)],
)
def test_errors_name_the_setting_that_was_given(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}: got"):
        NeuralCleanse(tiny_classifier(), **{setting: value})
