"""Several detectors that point at one label: the combination under its null, and what it decides."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import cauchy, t

from art_aft.detection.agreement import agreement, deciding, unconfirmed
from art_aft.detection.base import Evidence
from art_aft.detection.statistics import cauchy_combination, grubbs_p_value, tail_probabilities


def evidence(name, p_values=(), statistic=0.0):
    label = int(np.argmin(p_values)) if len(p_values) else 0
    return Evidence(name, label, statistic, 2.0, 0.5, (0.0,) * 4, label_p_values=tuple(p_values))


class TestTailProbabilities:
    def test_a_new_draw_from_the_same_normal_distribution_has_students_t(self):
        values = np.array([1.0, 2.0, 4.0, 3.5, 9.0])
        others = values[:4]
        distance = (9.0 - others.mean()) / (others.std(ddof=1) * np.sqrt(1 + 1 / 4))
        assert tail_probabilities(values)[4] == pytest.approx(t.sf(distance, 3))
        assert grubbs_p_value(values) == pytest.approx(5 * t.sf(distance, 3))

    def test_under_the_null_they_are_uniform_where_small_and_one_below_the_mean(self):
        draws = np.random.default_rng(0).normal(5, 3, size=(4000, 10))
        found = np.stack([tail_probabilities(draw) for draw in draws])[:, 3]  # a label chosen before looking
        for level in (0.01, 0.05, 0.2):
            assert np.mean(found <= level) == pytest.approx(level, abs=3 * np.sqrt(level / 4000))
        assert np.mean(found == 1) == pytest.approx(0.5, abs=0.03)

    @pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 3.0, 3.0], []])
    def test_where_nothing_can_stand_out_all_are_1(self, values):
        assert (tail_probabilities(np.array(values)) == 1).all()

    def test_one_value_above_many_equal_ones_is_as_unlikely_as_numbers_tell(self):
        found = tail_probabilities(np.array([0.0] * 9 + [1.0]))
        assert 0 < found[9] < 1e-12


class TestCauchy:
    def test_it_is_the_tail_of_a_cauchy_distribution(self):
        p = np.array([[0.03], [0.2], [0.4]])
        assert cauchy_combination(p) == pytest.approx(cauchy.sf(np.mean(np.tan((0.5 - p) * np.pi))))

    def test_it_keeps_its_level_whether_tests_depend_on_each_other_or_not(self):
        rng = np.random.default_rng(1)
        independent = rng.uniform(size=(5, 20_000))
        same = np.tile(rng.uniform(size=20_000), (5, 1))
        for p_values in (independent, same):
            assert np.mean(cauchy_combination(p_values) <= 0.01) == pytest.approx(0.01, abs=0.0025)

    def test_tiny_p_values_stay_tiny_and_ones_do_not_outvote_them(self):
        assert 1e-15 < cauchy_combination(np.array([[1e-12], [1.0], [1.0]]))[0] < 1e-11


class TestAgreement:
    def test_weak_signs_of_one_label_are_stronger_together_than_of_several(self):
        one = [evidence(name, (0.5, 0.02, 0.5, 0.5)) for name in "abc"]
        several = [evidence(name, np.roll((0.02, 0.5, 0.5, 0.5), place)) for place, name in enumerate("abc")]
        assert agreement(one).label == 1
        assert agreement(one).p_value < agreement(several).p_value
        assert agreement(one).details == "3 of 3 detectors point at it"

    def test_the_p_value_is_the_smallest_times_the_number_of_labels(self):
        parts = [evidence("a", (0.3, 0.001, 0.6, 0.9)), evidence("b", (0.2, 0.004, 0.9, 0.1))]
        columns = np.array([part.label_p_values for part in parts])
        assert agreement(parts).p_value == pytest.approx(4 * cauchy_combination(columns).min())
        assert agreement(parts).statistic == pytest.approx(-np.log10(agreement(parts).p_value))

    def test_perturbations_towards_the_same_label_lower_the_threshold_once_their_scores_add_up_to_1(self):
        parts = [evidence("a", (0.3, 0.001, 0.6, 0.9)), evidence("b", (0.2, 0.004, 0.9, 0.1))]
        halfway = replace(evidence("c", statistic=1.0), label=1)  # of 2
        assert agreement([*parts, halfway]).threshold == 6.0
        weaker, elsewhere = replace(halfway, statistic=0.9), replace(halfway, label=2)
        for other in (weaker, elsewhere, replace(halfway, shift=True), replace(halfway, supports=True)):
            assert agreement([*parts, halfway, other]).threshold == 6.0
        together = agreement([*parts, halfway, replace(halfway, detector="d", statistic=1.2)])
        assert together.threshold == 1.5
        assert together.statistic == agreement(parts).statistic
        assert together.details == "2 of 2 detectors point at it, confirmed by c (0.50), d (0.60)"

    def test_a_label_that_stands_out_unconfirmed_is_put_into_words(self):
        parts = [evidence("a", (0.3, 0.001, 0.6, 0.9)), evidence("b", (0.2, 0.0004, 0.9, 0.1))]
        assert re.search(r"^label 1 stands out \(p = 0\.002\).* nothing ran that could confirm it$", unconfirmed(parts))
        assert unconfirmed([*parts, evidence("c")]).endswith("no perturbation that leads images there confirms it")
        assert unconfirmed([evidence("a", (0.3, 0.1, 0.6, 0.9)), evidence("b", (0.2, 0.4, 0.9, 0.1))]) == ""
        assert unconfirmed([evidence("c")]) == ""

    def test_one_detector_alone_decides_by_itself(self):
        parts = [evidence("a", (0.3, 0.001, 0.6, 0.9)), evidence("b")]
        assert agreement(parts) is None
        assert deciding(parts) == parts

    def test_what_only_supports_others_does_not_decide_alone_unless_it_was_named(self):
        weights, other = replace(evidence("a", (0.3, 0.001, 0.6, 0.9)), supports=True), evidence("b")
        assert deciding([weights, other]) == [other]
        assert deciding([weights, other], named=True) == [weights, other]

    def test_it_decides_in_the_place_of_those_that_take_part(self):
        parts = [evidence("a", (0.3, 0.2, 0.6, 0.9), statistic=9.0), evidence("b", (0.3, 0.2, 0.6, 0.9)), evidence("c")]
        together, other = deciding(parts)
        assert together.threshold == 6.0
        assert (together.detector, other.detector) == ("agreement", "c")
        assert together.score < 1  # although a's own statistic is above its threshold
