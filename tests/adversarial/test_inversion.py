"""Outliers, the cost of a mask from step to step, and that the smallest trigger of a label is found."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import (
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    tiny_classifier,
    tiny_data,
    untouched,
)
from scipy.stats import median_abs_deviation

from art_aft.adversarial.inversion import (
    CostController,
    InversionRecipe,
    Triggers,
    _squash,
    _start,
    anomaly_indices,
    invert_triggers,
)
from art_aft.classifiers.classifier import build_classifier


class TestAnomalyIndices:
    def test_an_odd_number_by_hand(self):
        # Median 3, distances 2, 1, 0, 1, 97, whose median is 1.
        expected = np.array([2, 1, 0, 1, 97]) / 1.4826
        np.testing.assert_allclose(anomaly_indices(np.array([1.0, 2, 3, 4, 100])), expected)

    def test_an_even_number_takes_the_mean_of_the_two_in_the_middle(self):
        # Median 25, not 20; distances 15, 5, 5, 35, whose median is 10, not 5.
        expected = np.array([15, 5, 5, 35]) / 14.826
        np.testing.assert_allclose(anomaly_indices(np.array([10.0, 20, 30, 60])), expected)

    @pytest.mark.parametrize("k", [1, 2, 3, 10, 43])
    def test_they_are_scipys(self, k):
        norms = np.random.default_rng(k).lognormal(3, 1, k)
        deviation = median_abs_deviation(norms, scale=1 / 1.4826)
        expected = np.abs(norms - np.median(norms)) / deviation if k > 1 else [0]
        np.testing.assert_allclose(anomaly_indices(norms), expected, rtol=1e-12)

    def test_their_order_does_not_matter(self):
        norms = np.random.default_rng(0).random(9)
        order = np.random.default_rng(1).permutation(9)
        np.testing.assert_array_equal(anomaly_indices(norms)[order], anomaly_indices(norms[order]))

    def test_without_a_deviation_whatever_differs_is_infinitely_far(self):
        # Warnings are errors here.
        np.testing.assert_array_equal(anomaly_indices(np.array([5.0, 1, 5, 5, 9])), [0, np.inf, 0, 0, np.inf])

    @pytest.mark.parametrize("norm", [0.0, 7.0, 1e6])
    def test_equal_numbers_are_no_outliers(self, norm):
        np.testing.assert_array_equal(anomaly_indices(np.full(4, norm)), np.zeros(4))

    def test_a_rounding_error_is_no_outlier(self):
        norms = np.array([0.3, 0.1 + 0.2, 0.3, 0.3])
        assert norms[1] != norms[0]
        np.testing.assert_array_equal(anomaly_indices(norms), np.zeros(4))


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


class PixelNet(torch.nn.Module):
    """
    The class of a 6x6 image is the brightest of its thirds, 0, 2 or 3, but a white pixel in the corner makes it 1.

    A linear model: its smallest trigger for class 1 is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(36, 4)
        weight = torch.zeros(4, 6, 6)
        for third, label in enumerate((0, 2, 3)):
            weight[label, 2 * third : 2 * third + 2] = 40 / 12
        weight[:, 0, 5] = torch.tensor([0, 60, 0, 0])
        with torch.no_grad():
            self.fc.weight.copy_(weight.flatten(1))
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(x.flatten(1))


def pixel_classifier(**settings):
    return build_classifier(PixelNet(), input_shape=(1, 6, 6), nb_classes=4, **settings)


def pixel_images(n=60):
    """Images with one bright third and a black corner."""
    rng = np.random.default_rng(0)
    x = 0.2 * rng.random((n, 1, 6, 6), dtype=np.float32)
    for i in range(n):
        third = i % 3
        x[i, :, 2 * third : 2 * third + 2] += 0.7
    x[:, :, 0, 5] = 0
    return x


SHORT = InversionRecipe(steps=12, images_per_step=20, batch_size=10, patience=2, precision="float32", seed=5)
LONG = dataclasses.replace(SHORT, steps=120, images_per_step=60, batch_size=30)


@pytest.fixture(scope="module")
def found():
    return invert_triggers(pixel_classifier(), pixel_images(), LONG)


class TestKnownTrigger:
    def test_it_is_the_one_white_pixel(self, found):
        mask, pattern = found.masks[1, 0], found.patterns[1, 0]
        assert np.unravel_index(mask.argmax(), mask.shape) == (0, 5)
        assert mask[0, 5] > 0.5
        assert pattern[0, 5] > 0.9
        assert mask.sum() - mask[0, 5] < 0.2
        assert 0.5 < found.norms[1] < 1.2

    def test_the_others_are_many_times_larger_and_it_alone_is_suspected(self, found):
        others = np.delete(found.norms, 1)
        assert others.min() > 5 * found.norms[1]
        assert found.flagged(1.5) == [1]

    def test_all_of_them_work(self, found):
        classifier, x = pixel_classifier(), pixel_images()
        np.testing.assert_array_equal(np.unique(classifier.predict(x).argmax(axis=1)), [0, 2, 3])
        for row, label in enumerate(found.labels):
            carried = np.mean(classifier.predict(found.stamp(x, label)).argmax(axis=1) == label)
            assert found.success[row] == pytest.approx(carried, abs=0.02)
            # The mask is noted as the step has left it, which may have made it a little too small.
            assert carried > 0.6

    def test_norms_are_the_sums_of_the_masks(self, found):
        np.testing.assert_allclose(found.norms, found.masks.sum(axis=(1, 2, 3)), rtol=1e-5)

    def test_with_norm_2_they_are_the_roots_of_the_sums_of_squares(self):
        recipe = dataclasses.replace(SHORT, norm=2)
        found = invert_triggers(pixel_classifier(), pixel_images(), recipe)
        np.testing.assert_allclose(found.norms, np.sqrt((found.masks**2).sum(axis=(1, 2, 3))), rtol=1e-5)

    @pytest.mark.parametrize("clip_values", [(0.0, 255.0), (-1.0, 3.0)])
    def test_in_another_pixel_range_it_is_the_same(self, clip_values, found):
        low, high = clip_values

        class Scaled(PixelNet):
            def forward(self, x):
                return super().forward((x - low) / (high - low))

        classifier = build_classifier(Scaled(), input_shape=(1, 6, 6), nb_classes=4, clip_values=clip_values)
        x = np.float32(low) + np.float32(high - low) * pixel_images()
        scaled = invert_triggers(classifier, x, LONG, labels=[1])
        np.testing.assert_allclose(scaled.masks[0], found.masks[1], atol=1e-2)
        assert scaled.patterns[0, 0, 0, 5] > low + 0.9 * (high - low)
        np.testing.assert_allclose(scaled.norms[0], found.norms[1], rtol=0.02)


class TestResult:
    def test_shapes_types_and_ranges(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        found = invert_triggers(classifier, x, SHORT)
        assert found.labels.tolist() == [0, 1, 2, 3]
        assert (found.masks.shape, found.patterns.shape) == ((4, 1, 12, 12), (4, *SHAPE))
        assert found.masks.dtype == found.patterns.dtype == np.float32
        for part in (found.masks, found.patterns):
            assert part.min() > 0
            assert part.max() < 1
        assert found.norms.shape == found.success.shape == found.steps.shape == (4,)
        assert (found.success >= 0).all()
        assert (found.success <= 1).all()

    @pytest.mark.parametrize("encoding", ["nhwc", "range255", "normalised"])
    def test_the_same_network_on_other_pixels_has_the_same_triggers(self, encoding):
        x, _ = tiny_data(24)
        expected = invert_triggers(tiny_classifier(), x, SHORT)
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        found = invert_triggers(given.classifier, given.encode(x), SHORT)
        masks = found.masks.transpose(0, 3, 1, 2) if encoding == "nhwc" else found.masks
        np.testing.assert_allclose(masks, expected.masks, atol=1e-3)
        np.testing.assert_allclose(given.decode(found.patterns), expected.patterns, atol=1e-3)
        low, high = given.classifier.clip_values
        assert found.patterns.min() >= low
        assert found.patterns.max() <= high
        assert found.patterns.max() > (low + high) / 2
        assert found.stamp(given.encode(x), 2).shape == given.encode(x).shape
        np.testing.assert_allclose(given.decode(found.stamp(given.encode(x), 2)), expected.stamp(x, 2), atol=2e-3)

    def test_8_bit_images_stand_for_the_pixel_range(self):
        classifier = tiny_classifier()
        images = np.random.default_rng(0).integers(0, 256, (24, *SHAPE), dtype=np.uint8)
        expected = invert_triggers(classifier, images.astype(np.float32) / 255, SHORT)
        np.testing.assert_allclose(invert_triggers(classifier, images, SHORT).masks, expected.masks, atol=1e-3)

    def test_the_images_stay_as_they_are(self):
        x, _ = tiny_data(24)
        before = x.copy()
        invert_triggers(tiny_classifier(), x, SHORT)
        np.testing.assert_array_equal(x, before)

    def test_the_classifier_stays_as_it_is(self):
        classifier = tiny_classifier(momentum=0.9, dropout=0.5)
        classifier._model.train()
        classifier.model.bn.eval()
        classifier.model.fc.bias.requires_grad_(False)
        with untouched(classifier):
            invert_triggers(classifier, tiny_data(24)[0], SHORT)

    def test_it_is_searched_for_in_evaluation_mode(self):
        x, _ = tiny_data(24)
        expected = invert_triggers(tiny_classifier(), x, SHORT)
        classifier = tiny_classifier(dropout=0.5)
        classifier._model.train()
        np.testing.assert_array_equal(invert_triggers(classifier, x, SHORT).masks, expected.masks)

    def test_nothing_is_printed_unless_asked_for(self, capsys):
        invert_triggers(tiny_classifier(), tiny_data(24)[0], SHORT)
        assert capsys.readouterr() == ("", "")


def assert_same_triggers(found, expected, atol=1e-4):
    """Batches of other sizes round differently, which is all that may differ."""
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.steps, expected.steps)
    np.testing.assert_allclose(found.masks, expected.masks, atol=atol)
    np.testing.assert_allclose(found.patterns, expected.patterns, atol=atol)
    np.testing.assert_allclose(found.success, expected.success, atol=0.05)


def rows(found, chosen):
    return Triggers(*(getattr(found, part.name)[chosen] for part in dataclasses.fields(found)))


class TestLabels:
    @pytest.mark.parametrize("at_once", [1, 3])
    def test_how_many_share_a_batch_does_not_matter(self, at_once):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        together = invert_triggers(classifier, x, SHORT)
        assert_same_triggers(
            invert_triggers(classifier, x, dataclasses.replace(SHORT, classes_at_once=at_once)), together
        )

    @pytest.mark.parametrize("chosen", [[2], [3, 0]])
    def test_which_others_are_searched_for_does_not_matter(self, chosen):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        found = invert_triggers(classifier, x, SHORT, labels=chosen)
        assert_same_triggers(found, rows(invert_triggers(classifier, x, SHORT), chosen))

    def test_nor_when_some_stop_before_others(self):
        recipe = dataclasses.replace(SHORT, steps=60, early_stop_patience=3)
        together = invert_triggers(pixel_classifier(), pixel_images(), recipe)
        assert len(set(together.steps)) > 1
        assert together.steps.min() < 60
        for label in range(4):
            alone = invert_triggers(pixel_classifier(), pixel_images(), recipe, labels=[label])
            assert_same_triggers(alone, rows(together, [label]), atol=1e-3)

    def test_each_has_a_start_of_its_own(self):
        recipe = dataclasses.replace(SHORT, steps=1, learning_rate=1e-6)
        found = invert_triggers(tiny_classifier(), tiny_data(24)[0], recipe)
        for one in range(4):
            for other in range(one):
                assert np.abs(found.masks[one] - found.masks[other]).max() > 0.5
        # All over (0, 1), as uniform numbers are.
        np.testing.assert_allclose(np.quantile(found.masks, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.07)
        np.testing.assert_allclose(np.quantile(found.patterns, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.07)


class TestSeeds:
    def test_the_same_seed_gives_the_same_whatever_the_global_seeds(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        first = invert_triggers(classifier, x, SHORT)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            second = invert_triggers(classifier, x, SHORT)
        for part in dataclasses.fields(first):
            np.testing.assert_array_equal(getattr(first, part.name), getattr(second, part.name))

    def test_another_seed_gives_another(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        first, other = (invert_triggers(classifier, x, dataclasses.replace(SHORT, seed=seed)) for seed in (5, 6))
        assert np.abs(first.masks - other.masks).max() > 0.1


class TestSteps:
    def by_hand(self, model, x, label, recipe):
        """One label, all images in each step: Adam on the mean cross entropy plus cost times norm."""
        raw_mask, raw_pattern = (part.requires_grad_() for part in _start(label, SHAPE, True, recipe.seed))
        optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=recipe.learning_rate, betas=(0.5, 0.9))
        controller, kept = CostController(recipe), None
        for _ in range(recipe.steps):
            mask, pattern = (torch.tanh(raw) * (0.5 - 1e-6) + 0.5 for raw in (raw_mask, raw_pattern))
            logits = model((1 - mask) * x + mask * pattern)
            target = torch.full((len(x),), label)
            norm = mask.sum() if recipe.norm == 1 else mask.square().sum().sqrt()
            loss = torch.nn.functional.cross_entropy(logits, target) + controller.cost * norm
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            success = (logits.argmax(dim=1) == target).float().mean().item()
            mask, pattern = (torch.tanh(raw.detach()) * (0.5 - 1e-6) + 0.5 for raw in (raw_mask, raw_pattern))
            norm = mask.sum() if recipe.norm == 1 else mask.square().sum().sqrt()
            if controller.update(success, norm.item()) or controller.best == float("inf"):
                kept = mask, pattern
        carried = model((1 - kept[0]) * x + kept[0] * kept[1]).argmax(dim=1) == label
        return *kept, carried.float().mean().item()

    @pytest.mark.parametrize("norm", [1, 2])
    @pytest.mark.parametrize("success", [0.2, 1.0])
    def test_each_is_adam_on_cross_entropy_plus_cost_times_norm(self, norm, success):
        # With a low bar the cost rises soon; with a high one it stays 0, as long as no trigger works.
        recipe = InversionRecipe(
            steps=15,
            batch_size=24,
            learning_rate=0.2,
            norm=norm,
            init_cost=0.05,
            success=success,
            patience=2,
            precision="float32",
        )
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        found = invert_triggers(classifier, x, recipe)
        for label in range(NB_CLASSES):
            mask, pattern, share = self.by_hand(classifier.model, torch.from_numpy(x), label, recipe)
            np.testing.assert_allclose(found.masks[label], mask, atol=1e-3)
            np.testing.assert_allclose(found.patterns[label], pattern, atol=1e-3)
            np.testing.assert_allclose(found.success[label], share, atol=0.05)
        classifier.model.zero_grad(set_to_none=True)

    def test_a_trigger_that_never_works_is_the_last_one(self):
        class Never(TinyNet):
            def forward(self, x):
                return super().forward(x) - torch.tensor([0.0, 0, 0, 1000])

        classifier = build_classifier(Never(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        x, _ = tiny_data(24)
        short, long = (
            invert_triggers(classifier, x, dataclasses.replace(SHORT, steps=steps), labels=[3]) for steps in (2, 9)
        )
        assert (short.success[0], long.success[0]) == (0, 0)
        assert (short.steps[0], long.steps[0]) == (2, 9)
        assert np.abs(short.masks - long.masks).max() > 0.05

    def test_a_step_is_so_many_images_drawn_afresh(self):
        x = pixel_images(50)
        seen = []

        class Watching(PixelNet):
            def forward(self, inputs):
                seen.append(len(inputs))
                return super().forward(inputs)

        classifier = build_classifier(Watching(), input_shape=(1, 6, 6), nb_classes=4)
        recipe = dataclasses.replace(SHORT, steps=2, images_per_step=20, batch_size=8)
        invert_triggers(classifier, x, recipe, labels=[1, 2])
        assert seen == 3 * [16, 16, 8]  # the last pass measures what was kept
        seen.clear()
        # All of them, where there are fewer.
        invert_triggers(classifier, x[:10], recipe, labels=[1, 2])
        assert seen == 3 * [16, 4]

    def test_memory_bounds_how_many_labels_share_a_batch(self, monkeypatch):
        monkeypatch.setattr("art_aft.adversarial.inversion._MEMORY", 2 * 10 * 36)
        sizes = []

        class Watching(PixelNet):
            def forward(self, inputs):
                sizes.append(len(inputs))
                return super().forward(inputs)

        classifier = build_classifier(Watching(), input_shape=(1, 6, 6), nb_classes=4)
        invert_triggers(classifier, pixel_images(10), dataclasses.replace(SHORT, steps=1), labels=[0, 1, 2])
        assert sizes == [20, 20, 10, 10]  # a step, and the measurement of what was kept


class TestErrors:
    @pytest.mark.parametrize(
        ("labels", "error"), [([4], ValueError), ([0, -1], ValueError), ([0.5], TypeError), ([], ValueError)]
    )
    def test_labels_out_of_range_are_refused(self, labels, error):
        classifier, (x, _) = tiny_classifier(), tiny_data(4)
        with untouched(classifier), pytest.raises(error, match=r"^labels: got "):
            invert_triggers(classifier, x, SHORT, labels=labels)

    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (np.zeros((4, 1, 12, 12), dtype=np.float32), ValueError, r"^x: got shape \(4, 1, 12, 12\)"),
            (np.zeros((0, *SHAPE), dtype=np.float32), ValueError, r"^x: got an empty set"),
            (np.full((4, *SHAPE), 2, dtype=np.float32), ValueError, r"^x: got pixels in \[2, 2\]"),
            ([[0.0]], TypeError, r"^x: got list"),
        ],
    )
    def test_images_that_do_not_fit_are_refused(self, images, error, message):
        classifier = tiny_classifier()
        with untouched(classifier), pytest.raises(error, match=message):
            invert_triggers(classifier, images, SHORT)


def test_the_numbers_behind_a_mask_are_squashed_into_0_to_1():
    raw = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(_squash(raw), torch.sigmoid(2 * raw), atol=2e-6, rtol=0)
    assert 0 < _squash(torch.tensor(-50.0)) < _squash(torch.tensor(50.0)) < 1
