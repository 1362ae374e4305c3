"""The Grubbs test and leads between scores, against tables and arithmetic."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from art_aft.detection.base import Detector
from art_aft.detection.statistics import greatest, grubbs_p_value, lead


class Lead(Detector):
    name, cost, threshold = "lead", 0, 0.5

    def detect(self, suspect):
        return None


class TestGrubbs:
    @pytest.mark.parametrize(("n", "critical", "level"), [(10, 2.176, 0.05), (10, 2.410, 0.01), (20, 2.557, 0.05)])
    def test_the_p_value_is_that_of_the_tables_of_grubbs(self, n, critical, level):
        # Values of which the greatest lies `critical` standard deviations above the mean of all.
        others = np.random.default_rng(1).normal(size=n - 1)
        others = (others - others.mean()) / others.std()
        values = np.append(others, critical / np.sqrt(((n - 1) / n) ** 2 - critical**2 / n))
        grubbs = (values.max() - values.mean()) / values.std(ddof=1)
        assert grubbs == pytest.approx(critical, abs=1e-9)
        assert grubbs_p_value(values) == pytest.approx(level, rel=0.02)

    def test_it_is_a_t_test_of_one_value_against_the_others(self):
        values = np.random.default_rng(3).normal(size=8) + np.eye(8)[5] * 3
        one_sided = ttest_ind(values[[5]], np.delete(values, 5), alternative="greater").pvalue
        assert grubbs_p_value(values) == pytest.approx(8 * one_sided)

    def test_the_p_value_keeps_its_level_on_noise(self):
        rng = np.random.default_rng(2)
        rate = np.mean([grubbs_p_value(rng.normal(size=10)) <= 0.05 for _ in range(4000)])
        assert rate == pytest.approx(0.05, abs=0.011)  # three standard errors

    def test_equal_values_stand_out_by_chance(self):
        assert grubbs_p_value(np.ones(5)) == 1.0
        assert grubbs_p_value(np.ones(5) + 1e-12 * np.arange(5) ** 9) == 1.0
        assert grubbs_p_value(np.zeros(5)) == 1.0
        assert 0 < grubbs_p_value(np.array([1.0, 1.0, 1.0, 2.0])) < 1e-9

    def test_of_two_values_none_is_an_outlier(self):
        assert grubbs_p_value(np.array([0.0, 9.0])) == 1.0


class TestLead:
    def test_the_first_label_is_ahead_of_the_second(self):
        found = lead(Lead(), np.array([0.1, 0.9, 0.0, 0.3]), "L2 1")
        assert (found.detector, found.label, found.shift, found.details) == ("lead", 1, False, "L2 1")
        assert found.statistic == pytest.approx(0.6)
        assert found.score == pytest.approx(1.2)
        assert found.scores == (0.1, 0.9, 0.0, 0.3)
        assert found.p_value == grubbs_p_value(np.array([0.1, 0.9, 0.0, 0.3]))

    def test_shifts_count_from_one(self):
        assert lead(Lead(), np.array([0.1, 0.9, 0.0]), "", shift=True).label == 2

    def test_the_best_of_several_is_likelier_by_chance(self):
        weak, strong = (lead(Lead(), np.array(scores), "") for scores in ([0.2, 0.1, 0.0, 0.1], [0.9, 0.1, 0.0, 0.1]))
        best = greatest([weak, strong, weak])
        assert (best.label, best.statistic) == (0, strong.statistic)
        assert best.p_value == pytest.approx(3 * strong.p_value)
        assert greatest([weak] * 1000).p_value == 1.0
