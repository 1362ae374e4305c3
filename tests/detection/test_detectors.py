"""What every registered detector must do, and what single ones find where the answer is known."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import SHAPE, linear_classifier, tiny_classifier, tiny_data, untouched

from art_aft import BackdoorScan
from art_aft.adversarial.inversion import InversionRecipe, Triggers
from art_aft.adversarial.patches import Patches
from art_aft.classifiers.classifier import images_for, predict_labels
from art_aft.detection import reversed_trigger, universal, universal_patch
from art_aft.detection.base import DETECTORS, Suspect, register
from art_aft.detection.statistics import grubbs_p_value

QUICK = InversionRecipe(steps=40, images_per_step=120)


def suspect(nb_classes=4, **settings):
    """A small classifier, and images that it gets right."""
    classifier = tiny_classifier(momentum=0.9, nb_classes=nb_classes)
    x, _ = tiny_data(24)
    images = images_for(classifier, x, predict_labels(classifier, x))
    return Suspect(classifier, images, settings={"reversed_trigger": QUICK}, **settings)


@pytest.mark.parametrize("name", sorted(DETECTORS))
class TestContract:
    @pytest.mark.parametrize("nb_classes", [2, 3])
    def test_evidence_has_a_score_for_each_label_and_a_p_value(self, name, nb_classes):
        evidence = DETECTORS[name]().detect(suspect(nb_classes))
        if evidence is None:
            assert nb_classes == 2, "only two labels are too few for a detector"
            return
        assert evidence.detector == name
        assert evidence.threshold == DETECTORS[name].threshold
        first = int(evidence.shift)
        assert len(evidence.scores) == nb_classes - first
        assert first <= evidence.label < nb_classes
        assert 0 < evidence.p_value <= 1
        assert 0 <= evidence.statistic < math.inf
        assert evidence.score == pytest.approx(evidence.statistic / evidence.threshold)
        assert all(type(score) is float for score in evidence.scores)

    def test_the_same_seed_gives_the_same_evidence_and_leaves_classifier_and_generators_as_they_were(self, name):
        given = suspect(seed=3)
        with untouched(given.classifier):
            first = DETECTORS[name]().detect(given)
        assert first == DETECTORS[name]().detect(suspect(seed=3))

    def test_it_is_a_file_of_its_own_that_states_its_null_and_its_threshold(self, name):
        detector = DETECTORS[name]
        assert detector.name == name
        assert detector.__module__.rpartition(".")[2] == name
        assert detector.threshold > 0
        text = sys.modules[detector.__module__].__doc__
        for part in ("Score of", "Statistic:", "Null distribution:", "Threshold:", "Fails:"):
            assert f"| {part}" in text


MEASURED = {
    "last_layer": 2.0,
    "latent_shift": 2.0,
    "margin_blended": 2.0,
    "margin_pixels": 2.0,
    "margin_profile": 2.0,
    "margin_smooth": 2.0,
    "universal": 0.5,
    "universal_patch": 0.4,
    "universal_shift": 0.25,
    "universal_smooth": 0.5,
    "universal_sparse": 0.5,
    "universal_sparse_shift": 0.25,
    "universal_warp": 0.8,
    "adversarial_labels": 0.25,
    "adversarial_shift": 0.2,
    "reversed_trigger": 0.5,
}


def test_the_thresholds_are_those_that_were_measured():
    assert {name: DETECTORS[name].threshold for name in MEASURED} == MEASURED


def test_what_detectors_share_is_made_once():
    given, made = suspect(), []
    for _ in range(2):
        assert given.shared("part", lambda: made.append(1) or "made") == "made"
    assert made == [1]


class TestHypotheses:
    """A linear model has no backdoor but its weights: they can be chosen so that one hypothesis is plainly right."""

    def test_of_a_label_that_every_direction_leads_to(self):
        weights = np.zeros((4, *SHAPE), dtype=np.float32)
        for label in range(4):
            weights[label, :, 3 * label : 3 * label + 3] = 0.05
        weights[2, :, :, 0] = 3.0  # one column of pixels that any image can be given
        x = np.full((40, *SHAPE), 0.5, dtype=np.float32)
        x[..., 0] = 0.0
        y = np.arange(40) % 4
        for label in range(4):
            x[y == label, :, 3 * label : 3 * label + 3, 1:] = 0.9
        classifier = linear_classifier(weights)
        assert (predict_labels(classifier, x) == y).all()
        report = BackdoorScan(classifier, detectors=["universal"], precision="float32")(x, y)
        assert (report.verdict, report.kind, report.targets) == ("infected", "all-to-one", (2,))

    @pytest.mark.parametrize("shift", [1, 2, 3])
    def test_of_a_shift(self, shift):
        """Class k lies next to class k + shift: half its weights are shared."""
        blocks = np.zeros((4, 3 * 12 * 12), dtype=np.float32)
        for label in range(4):
            blocks[label, 100 * label : 100 * label + 100] = 0.2
        weights = blocks.copy()
        for label in range(4):
            weights[(label + shift) % 4] += 0.9 * blocks[label]
        if shift == 2:
            pytest.skip("with four classes a shift by two is a swap, which clean models show too")
        x = np.clip(0.2 + 2.5 * blocks[np.arange(40) % 4], 0, 1).reshape(40, *SHAPE)
        y = np.arange(40) % 4
        classifier = linear_classifier(weights.reshape(4, *SHAPE))
        assert (predict_labels(classifier, x) == y).all()
        report = BackdoorScan(classifier, detectors=["adversarial_shift"], precision="float32")(x, y)
        (found,) = (evidence for evidence in report.evidence if evidence.detector == "adversarial_shift")
        assert found.label == shift
        assert found.score > 1


class TestPatch:
    @pytest.mark.parametrize(
        ("small", "large", "statistic", "label", "side", "ambiguous"),
        [
            ((0.1, 0.2, 0.0, 0.1), (0.3, 0.9, 0.4, 0.2), 0.5, 1, 3, False),
            # Where most images follow the smaller patch, others may, too; that more follow the larger one says less.
            ((0.7, 0.1, 0.9, 0.1), (1.0, 0.9, 1.0, 0.2), 0.4, 2, 2, True),
            ((0.5, 0.1, 1.0, 0.1), (0.5, 0.9, 0.4, 0.2), 0.5, 2, 2, False),
            ((0.4, 0.1, 0.6, 0.1), (1.0, 0.9, 0.4, 0.2), 0.2, 2, 2, False),
        ],
    )
    def test_a_second_label_counts_for_a_half_at_most_where_the_patch_is_small(
        self, monkeypatch, small, large, statistic, label, side, ambiguous
    ):
        def find(classifier, images, side, **settings):
            success = np.array(small if side == 2 else large)
            return Patches(success, np.full((4, 2), (3, 4)), np.zeros((4, 3, side, side)))

        sides = {universal_patch.SMALL: 2, universal_patch.LARGE: 3}
        monkeypatch.setattr(universal_patch, "patch_side", lambda classifier, share: sides[share])
        monkeypatch.setattr(universal_patch, "find_patches", find)
        found = DETECTORS["universal_patch"]().detect(suspect())
        assert (found.label, found.ambiguous) == (label, ambiguous)
        assert found.details == f"{side}x{side} pixels at row 3, column 4"
        assert found.statistic == pytest.approx(statistic)
        assert len(found.scores) == 4


class TestUniversal:
    def test_of_many_labels_the_most_successful_and_the_median_get_a_whole_search(self, monkeypatch):
        success = np.array([0.1, 0.9, 0.0, 0.3, 0.2, 0.05, 0.4, 0.01, 0.02])
        looked = []

        def rates(classifier, images, perturbations, labels, *, relative):
            whole = len(labels) < len(success)
            looked.append(list(labels))
            # A whole search finds perturbations that work on a few images more.
            return success[labels] + (0.05 if whole else 0.0)

        monkeypatch.setattr(universal, "targeted_success", rates)
        found = DETECTORS["universal"]().detect(suspect(9))
        assert looked == 4 * [list(range(9)), [1, 6, 3, 4, 0]]
        assert found.label == 1
        assert found.statistic == pytest.approx(0.5)
        assert found.scores[2] == 0.0


class TestReversedTrigger:
    def found(self, monkeypatch, norms, success):
        triggers = Triggers(
            labels=np.arange(len(norms)),
            masks=np.full((len(norms), 1, 12, 12), 0.5),
            patterns=np.zeros((len(norms), *SHAPE)),
            norms=np.array(norms),
            success=np.array(success),
            steps=np.ones(len(norms)),
        )
        monkeypatch.setattr(reversed_trigger, "invert_triggers", lambda *_, **__: triggers)
        return DETECTORS["reversed_trigger"]().detect(suspect())

    def test_the_statistic_is_by_which_share_the_smallest_is_smaller(self, monkeypatch):
        found = self.found(monkeypatch, [20.0, 5.0, 25.0, 22.0], [1.0, 1.0, 1.0, 1.0])
        assert (found.label, found.statistic) == (1, pytest.approx(0.75))
        assert found.p_value == pytest.approx(grubbs_p_value(-np.log([20.0, 5.0, 25.0, 22.0])))

    def test_a_trigger_that_does_not_work_is_infinitely_large(self, monkeypatch):
        found = self.found(monkeypatch, [20.0, 5.0, 25.0, 22.0], [1.0, 0.8, 1.0, 1.0])
        assert (found.label, found.scores[1]) == (0, np.inf)
        assert found.p_value == pytest.approx(grubbs_p_value(-np.log([20.0, 144.0, 25.0, 22.0])))

    @pytest.mark.parametrize(("success", "statistic"), [([1.0, 0.0, 0.0, 0.0], 1.0), ([0.0] * 4, 0.0)])
    def test_one_that_works_alone_is_ahead_and_none_is_not(self, monkeypatch, success, statistic):
        found = self.found(monkeypatch, [20.0, 5.0, 25.0, 22.0], success)
        assert found.statistic == statistic
        assert 0 < found.p_value <= 1

    def test_its_recipe_comes_from_the_settings(self, monkeypatch):
        seen = []
        plain = reversed_trigger.invert_triggers
        monkeypatch.setattr(
            reversed_trigger,
            "invert_triggers",
            lambda c, x, recipe, **s: seen.append(recipe) or plain(c, x, QUICK, **s),
        )
        given = suspect(seed=5)
        DETECTORS["reversed_trigger"]().detect(given)
        given.settings = {}
        DETECTORS["reversed_trigger"]().detect(given)
        assert seen == [QUICK, InversionRecipe(steps=100, images_per_step=64, seed=5)]

    def test_of_many_labels_the_most_promising_get_a_whole_search(self, monkeypatch):
        norms = np.array([9.0, 40.0, 3.0, 30.0, 8.0, 20.0, 7.0])
        looked = []

        def invert(classifier, x, recipe, *, labels, verbose):
            looked.append((recipe.steps, labels))
            triggers = np.zeros((len(labels), 1, *SHAPE[1:]))
            # Label 6 does not work yet at the first look, and has the smallest trigger in the end.
            late = np.array([label == 6 and recipe.steps < 100 for label in labels])
            found = np.where(np.array(labels) == 6, 1.0, norms[labels])
            return Triggers(np.array(labels), triggers, triggers, found, np.where(late, 0.5, 1.0), np.ones(len(labels)))

        monkeypatch.setattr(reversed_trigger, "invert_triggers", invert)
        given = suspect(7)
        given.settings = {}
        found = DETECTORS["reversed_trigger"]().detect(given)
        assert looked == [(25, [0, 1, 2, 3, 4, 5, 6]), (100, [2, 4, 0, 5])]
        assert found.label == 2
        assert found.statistic == pytest.approx(1 - 3 / 8)


class TestOtherPackages:
    def test_a_detector_of_an_installed_package_takes_part_in_the_scan(self, installed):
        example = Path(__file__).with_name("noise_labels.py").read_text()
        assert len(example.splitlines()) < 40
        installed(DETECTORS, "noise_labels", example, "noise_labels = noise_labels:NoiseLabels")
        report = BackdoorScan(tiny_classifier(), effort="fast")(*tiny_data(24))
        found = {each.detector: each.scores for each in report.evidence}
        names = list(found)
        assert names.index("latent_shift") < names.index("noise_labels") < names.index("agreement")
        assert sum(found["noise_labels"]) == pytest.approx(1)

    def test_a_name_that_is_taken_is_refused(self):
        with pytest.raises(ValueError, match="last_layer"):
            register("last_layer")(type("Other", (DETECTORS["universal"],), {}))
