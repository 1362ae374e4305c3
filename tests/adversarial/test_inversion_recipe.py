"""Which triggers are suspected, and what a mask costs from step to step."""

import dataclasses

import numpy as np
import pytest

from art_aft.adversarial.inversion import Triggers
from art_aft.adversarial.inversion_recipe import CostController, InversionRecipe
from art_aft.metrics import anomaly_indices


def triggers(norms, labels=None):
    k = len(norms)
    masks = np.linspace(0.1, 0.9, 4 * k, dtype=np.float32).reshape(k, 1, 2, 2)
    patterns = np.linspace(0, 1, 12 * k, dtype=np.float32).reshape(k, 3, 2, 2)
    labels = np.arange(k) if labels is None else np.array(labels)
    return Triggers(labels, masks, patterns, np.array(norms), np.ones(k), np.ones(k, dtype=int))


class TestTriggers:
    def test_only_small_norms_are_suspected(self):
        found = triggers([30.0, 31, 1, 29, 32, 90])
        assert found.anomaly_indices[5] > found.anomaly_indices[2] > 2
        assert found.flagged() == [2]

    def test_the_smallest_comes_first_and_each_under_its_label(self):
        found = triggers([30.0, 5, 31, 1, 29, 32, 33], labels=[9, 8, 7, 6, 5, 4, 3])
        assert found.flagged() == [6, 8]
        assert [type(label) for label in found.flagged()] == [int, int]

    def test_the_threshold_is_what_an_index_must_be_above(self):
        found = triggers([10.0, 11, 12, 13, 14])
        index = found.anomaly_indices[0]
        assert found.flagged(index) == []
        assert found.flagged(np.nextafter(index, 0)) == [0]
        # Those at the median or below it, whatever their index.
        assert found.flagged(-1.0) == [0, 1, 2]

    def test_the_default_threshold_is_2(self):
        # Median 3 and deviation 1.4826: 0 lies 2.02 from it, 0.1 lies 1.96 from it.
        assert triggers([0.0, 2, 3, 4, 5]).flagged() == [0]
        assert triggers([0.1, 2, 3, 4, 5]).flagged() == []

    def test_the_largest_suspicious_norm_is_a_share_of_the_median(self):
        found = triggers([30.0, 40, 99, 100, 101, 102, 103])
        assert found.flagged() == [0, 1]
        assert found.flagged(2.0, 0.4) == [0, 1]
        assert found.flagged(2.0, 0.39) == [0]
        assert found.flagged(2.0, 0.29) == []

    def test_with_no_deviation_a_smaller_norm_is_suspected(self):
        assert triggers([5.0, 5, 5, 1, 9]).flagged() == [3]
        assert triggers([5.0, 5, 5, 5]).flagged() == []

    def test_stamping_mixes_image_and_pattern_by_the_mask_of_the_label(self):
        found = triggers([3.0, 2, 1], labels=[4, 0, 2])
        x = np.random.default_rng(0).random((5, 3, 2, 2), dtype=np.float32)
        for row, label in enumerate((4, 0, 2)):
            stamped = found.stamp(x, label)
            assert stamped.dtype == np.float32
            for image, result in zip(x, stamped, strict=True):
                for channel in range(3):
                    mask, pattern = found.masks[row, 0], found.patterns[row, channel]
                    expected = image[channel] + mask * (pattern - image[channel])
                    np.testing.assert_allclose(result[channel], expected, rtol=1e-5)

    def test_anomaly_indices_are_those_of_the_norms(self):
        found = triggers([3.0, 2, 8, 1])
        np.testing.assert_array_equal(found.anomaly_indices, anomaly_indices(found.norms))


def by_the_book(steps, recipe):
    """The controller as section 7.3 of the specification words it; costs, bests and stops after each step."""
    cost, best, zero, up, down, idle, raised, lowered = 0.0, np.inf, 0, 0, 0, 0, False, False
    for success, norm in steps:
        works, previous, stop = success >= recipe.success, best, False
        if works and norm < best:
            best = norm
        if best < np.inf:
            idle = idle + 1 if best >= recipe.early_stop_threshold * previous else 0
            stop = raised and lowered and idle >= recipe.early_stop_patience
        if cost == 0 and works:
            zero += 1
            if zero == recipe.patience:
                cost, up, down, raised, lowered = recipe.init_cost, 0, 0, False, False
        else:
            zero = 0
        if works:
            up, down = up + 1, 0
        else:
            up, down = 0, down + 1
        if up == recipe.patience:
            up, cost, raised = 0, cost * recipe.cost_multiplier, True
        elif down == recipe.patience:
            down, cost, lowered = 0, cost / recipe.cost_multiplier**1.5, True
        yield cost, best, stop


WORKS, FAILS = 1.0, 0.5


def costs(*steps, recipe=None):
    """The costs after each of some steps with ever smaller masks."""
    controller = CostController(recipe or InversionRecipe())
    result = []
    for number, success in enumerate(steps):
        controller.update(success, 100.0 - number)
        result.append(controller.cost)
    return result


class TestCost:
    def test_it_is_set_after_five_successes_in_a_row(self):
        assert costs(*[WORKS] * 4, FAILS, *[WORKS] * 5) == [0] * 9 + [1e-3]

    def test_what_works_is_99_percent(self):
        assert costs(*[0.99] * 5)[-1] == 1e-3
        assert costs(*[0.9899] * 5)[-1] == 0

    def test_it_doubles_after_five_successes_of_which_the_one_that_set_it_is_the_first(self):
        assert costs(*[WORKS] * 18) == [0] * 4 + [0.001] * 4 + [0.002] * 5 + [0.004] * 5

    def test_it_falls_by_two_to_the_power_one_and_a_half_after_five_failures(self):
        steps = costs(*[WORKS] * 5, *[FAILS] * 14)
        np.testing.assert_allclose(steps[5:], [1e-3] * 4 + [1e-3 / 8**0.5] * 5 + [1e-3 / 8] * 5, rtol=1e-12)

    def test_five_must_be_in_a_row(self):
        assert costs(*[WORKS] * 5, *([FAILS] * 4 + [WORKS] * 4) * 3) == [0] * 4 + [1e-3] * 25

    def test_a_fall_does_not_forget_later_failures_and_a_rise_no_later_successes(self):
        steps = costs(*[WORKS] * 5, *[FAILS] * 5, *[WORKS] * 5, *[FAILS] * 5)
        low = 1e-3 / 8**0.5
        expected = [0] * 4 + [1e-3] * 5 + [low] * 5 + [2 * low] * 5 + [2 * low / 8**0.5]
        np.testing.assert_allclose(steps, expected, rtol=1e-12)

    def test_failures_at_cost_zero_are_forgotten_when_it_is_set(self):
        # Three failures, and then two: five, but not in a row; and the third of the last ones is no fifth.
        assert costs(*[FAILS] * 3, *[WORKS] * 5, *[FAILS] * 4) == [0] * 7 + [1e-3] * 5

    def test_other_numbers(self):
        recipe = InversionRecipe(patience=2, cost_multiplier=4.0, init_cost=0.5, success=0.8)
        steps = costs(0.8, 0.8, 0.8, 0.79, 0.8, 0.79, 0.79, 0.0, 0.0, recipe=recipe)
        assert steps == [0, 0.5, 2, 2, 2, 2, 0.25, 0.25, 0.25 / 8]


class TestBest:
    def test_it_is_the_smallest_norm_that_worked(self):
        controller = CostController(InversionRecipe())
        steps = [(FAILS, 1.0), (WORKS, 9.0), (WORKS, 9.0), (FAILS, 2.0), (0.99, 8.0), (WORKS, 8.5), (WORKS, 7.9)]
        assert [controller.update(*step) for step in steps] == [False, True, False, False, True, False, True]
        assert controller.best == 7.9

    def test_there_is_none_before_a_success(self):
        controller = CostController(InversionRecipe())
        assert not controller.update(FAILS, 3.0)
        assert controller.best == np.inf


def stops(steps, **settings):
    """The number of the step, from 1, after which the controller stops; None if it does not."""
    controller = CostController(InversionRecipe(**settings))
    for number, (success, norm) in enumerate(steps, start=1):
        controller.update(success, norm)
        if controller.stopped:
            return number
    return None


def falling(success, n, start):
    return [(success, start - i) for i in range(n)]


class TestEarlyStop:
    # The cost is set at step 5 and raised at step 9; it falls at step 14.
    ROSE_AND_FELL = [*falling(WORKS, 9, 100.0), *falling(FAILS, 5, 50.0)]

    def test_it_comes_after_25_steps_without_a_better_mask(self):
        # Step 15 is the last that betters it.
        assert stops([*self.ROSE_AND_FELL, (WORKS, 80.0), *[(WORKS, 80.0)] * 60]) == 15 + 25
        assert stops([*self.ROSE_AND_FELL, (WORKS, 80.0), *[(WORKS, 81.0)] * 24, (WORKS, 79.0)]) is None

    def test_failures_are_steps_without_a_better_mask(self):
        # The best mask is of step 9; a failing one with a smaller mask betters nothing.
        assert stops([*self.ROSE_AND_FELL, *[(FAILS, 1.0)] * 60]) == 9 + 25

    def test_a_better_mask_starts_the_count_again(self):
        steps = [*self.ROSE_AND_FELL, *[(WORKS, 95.0)] * 10, (WORKS, 90.0), *[(WORKS, 95.0)] * 60]
        assert stops(steps) == 14 + 11 + 25

    def test_without_a_rise_there_is_none(self):
        # Never five successes in a row after the cost is set.
        steps = [(WORKS, 9.0)] * 5 + ([(FAILS, 9.0)] * 5 + [(WORKS, 9.0)] * 4) * 10
        assert stops(steps) is None
        assert stops([*steps, (WORKS, 9.0), (WORKS, 9.0)]) == len(steps) + 2

    def test_without_a_fall_there_is_none(self):
        steps = [(WORKS, 9.0)] * 60
        assert stops(steps) is None
        # The fifth failure lets the cost fall, and the step after it sees that.
        assert stops([*steps, *[(FAILS, 9.0)] * 10]) == 60 + 6

    def test_a_fall_at_cost_zero_does_not_count(self):
        steps = [*[(FAILS, 9.0)] * 12, *[(WORKS, 9.0)] * 60]
        assert stops(steps) is None
        assert stops([*steps, *[(FAILS, 9.0)] * 10]) == 72 + 6

    def test_before_a_first_success_there_is_none(self):
        assert stops([(FAILS, 9.0)] * 200) is None

    def test_the_threshold_is_how_much_better_a_mask_must_be(self):
        def shrinking(by):
            norms = 80.0 * by ** np.arange(60)
            return [*self.ROSE_AND_FELL, (WORKS, 80.0), *[(WORKS, norm) for norm in norms[1:]]]

        assert stops(shrinking(0.95), early_stop_threshold=0.9) == 15 + 25
        assert stops(shrinking(0.85), early_stop_threshold=0.9) is None

    def test_another_patience(self):
        steps = [*self.ROSE_AND_FELL, (WORKS, 80.0), *[(WORKS, 80.0)] * 60]
        assert stops(steps, early_stop_patience=7) == 15 + 7


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patience": 2, "early_stop_patience": 6},
        {"patience": 3, "cost_multiplier": 1.5, "early_stop_threshold": 0.9, "success": 0.6, "early_stop_patience": 4},
    ],
)
def test_the_controller_goes_by_the_book_on_random_sequences(settings):
    recipe = InversionRecipe(**settings)
    rng = np.random.default_rng(0)
    stopped = set()
    for _ in range(40):
        # Long runs of success and of failure, and masks that shrink ever more slowly.
        works = np.repeat(rng.random(60) < 0.6, rng.integers(1, 12, 60))
        steps = [(1.0 if ok else 0.5, 100 / (i + 1) ** 0.3 + rng.normal()) for i, ok in enumerate(works)]
        controller = CostController(recipe)
        for step, expected in zip(steps, by_the_book(steps, recipe), strict=True):
            controller.update(*step)
            np.testing.assert_allclose((controller.cost, controller.best), expected[:2], rtol=1e-9)
            assert controller.stopped == expected[2]
            if controller.stopped:
                break
        stopped.add(controller.stopped)
    assert True in stopped


class TestRecipe:
    @pytest.mark.parametrize(
        ("setting", "value", "error"),
        [
            *[(name, 0, ValueError) for name in ("steps", "images_per_step", "batch_size", "patience")],
            *[(name, 1.5, TypeError) for name in ("steps", "images_per_step", "batch_size", "early_stop_patience")],
            *[(name, 0.0, ValueError) for name in ("learning_rate", "init_cost", "success", "early_stop_threshold")],
            ("early_stop_patience", 0, ValueError),
            ("init_cost", -1e-3, ValueError),
            ("learning_rate", "0.1", TypeError),
            ("success", 1.01, ValueError),
            ("cost_multiplier", 1.0, ValueError),
            ("cost_multiplier", 0.5, ValueError),
            ("norm", 3, ValueError),
            ("norm", np.inf, ValueError),
            ("classes_at_once", 0, ValueError),
            ("classes_at_once", 2.0, TypeError),
            ("precision", "float16", ValueError),
            ("seed", -1, ValueError),
        ],
    )
    def test_a_bad_value_is_refused_by_name(self, setting, value, error):
        with pytest.raises(error, match=f"^{setting}: got "):
            InversionRecipe(**{setting: value})

    def test_the_defaults_are_those_of_the_authors_example(self):
        recipe = InversionRecipe()
        numbers = (recipe.steps, recipe.images_per_step, recipe.batch_size, recipe.learning_rate, recipe.norm)
        assert numbers == (1000, 1000, 32, 0.1, 1)
        assert (recipe.init_cost, recipe.success, recipe.patience, recipe.cost_multiplier) == (1e-3, 0.99, 5, 2.0)
        assert (recipe.early_stop_threshold, recipe.early_stop_patience) == (1.0, 25)

    def test_the_ends_of_ranges_are_allowed(self):
        InversionRecipe(success=1.0, steps=1, patience=1, early_stop_patience=1, classes_at_once=1, norm=2)

    def test_it_does_not_change(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            InversionRecipe().steps = 3
