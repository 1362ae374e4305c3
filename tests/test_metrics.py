"""ACC, ASR and RA of a classifier whose predictions are known by hand."""

import re

import numpy as np
import pytest
from art.attacks.poisoning import PoisoningAttackBackdoor
from scipy.stats import median_abs_deviation
from sklearn.metrics import accuracy_score

from art_aft.attacks.labels import AllToAll, AllToOne
from art_aft.data.images import Images
from art_aft.metrics import anomaly_indices, evaluate, label_matrix, target_share

TRUTH = np.array([0, 0, 1, 1, 2, 2])
CLEAN = [0, 1, 1, 1, 2, 0]  # four of six are right
TRIGGERED = [0, 1, 0, 1, 0, 0]


class LookUp:
    """A classifier that finds its answers in a table, by image number and trigger."""

    nb_classes = 3
    input_shape = (1, 1, 2)
    clip_values = (0.0, 1.0)

    def __init__(self, clean=CLEAN, triggered=TRIGGERED):
        self.table = np.array([clean, triggered])
        self.batch_sizes = []

    def predict(self, x, batch_size):
        self.batch_sizes.append(batch_size)
        numbers, has_trigger = np.rint(x[:, 0, 0, 0] * 1000).astype(int), x[:, 0, 0, 1].astype(int)
        return np.eye(self.nb_classes)[self.table[has_trigger, numbers]] - 0.5


def images(count=6):
    """Image i has i/1000 in its first pixel, and 0 in the second, where the trigger goes."""
    x = np.zeros((count, 1, 1, 2), dtype=np.float32)
    x[:, 0, 0, 0] = np.arange(count) / 1000
    return x


def trigger(x):
    x = x.copy()
    x[..., 1] = 1
    return x


def test_all_to_one_leaves_the_target_class_out():
    scores = evaluate(LookUp(), images(), TRUTH, trigger, AllToOne(0))
    assert scores.acc == pytest.approx(4 / 6)
    assert scores.asr == pytest.approx(3 / 4)  # 0, 1, 0, 0 of images 2 to 5
    assert scores.ra == pytest.approx(1 / 4)  # image 3
    assert (scores.n_clean, scores.n_triggered) == (6, 4)


def test_all_to_one_with_the_target_class():
    scores = evaluate(LookUp(), images(), TRUTH, trigger, AllToOne(0), include_target=True)
    assert scores.acc == pytest.approx(4 / 6)
    assert scores.asr == pytest.approx(4 / 6)
    assert scores.ra == pytest.approx(2 / 6)  # images 0 and 3
    assert (scores.n_clean, scores.n_triggered) == (6, 6)


def test_all_to_all_counts_all_images():
    scores = evaluate(LookUp(), images(), TRUTH, trigger, AllToAll(3))
    assert scores.asr == pytest.approx(3 / 6)  # wanted 1, 1, 2, 2, 0, 0
    assert scores.ra == pytest.approx(2 / 6)
    assert scores.n_triggered == 6


def test_a_perfect_victim_and_a_perfect_defence():
    victim = evaluate(LookUp(TRUTH, [1] * 6), images(), TRUTH, trigger, AllToOne(1))
    assert (victim.acc, victim.asr, victim.ra) == (1, 1, 0)
    defended = evaluate(LookUp(TRUTH, TRUTH), images(), TRUTH, trigger, AllToOne(1))
    assert (defended.acc, defended.asr, defended.ra) == (1, 0, 1)


def test_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, clean, triggered = rng.integers(0, 3, (3, 200))
    scores = evaluate(LookUp(clean, triggered), images(200), truth, trigger, AllToOne(2))
    others = truth != 2
    assert scores.acc == pytest.approx(accuracy_score(truth, clean))
    assert scores.asr == pytest.approx(accuracy_score([2] * others.sum(), triggered[others]))
    assert scores.ra == pytest.approx(accuracy_score(truth[others], triggered[others]))


@pytest.mark.parametrize("y", [TRUTH.tolist(), TRUTH[:, None], np.eye(3)[TRUTH], np.eye(3, dtype=np.float32)[TRUTH]])
def test_the_form_of_the_labels_does_not_matter(y):
    expected = evaluate(LookUp(), images(), TRUTH, trigger, AllToOne(0))
    assert evaluate(LookUp(), images(), y, trigger, AllToOne(0)) == expected


@pytest.mark.parametrize("attack", [PoisoningAttackBackdoor(trigger), PoisoningAttackBackdoor([trigger, trigger])])
def test_arts_attack_counts_as_its_bare_trigger(attack):
    expected = evaluate(LookUp(), images(), TRUTH, trigger, AllToOne(0))
    assert evaluate(LookUp(), images(), TRUTH, attack, AllToOne(0)) == expected


def test_the_attack_sees_only_the_images_that_count():
    seen = []

    def spy(x):
        seen.extend(np.rint(x[:, 0, 0, 0] * 1000).astype(int).tolist())
        return trigger(x)

    evaluate(LookUp(), images(), TRUTH, spy, AllToOne(1))
    assert seen == [0, 1, 4, 5]


def test_the_batch_size_reaches_predict():
    classifier = LookUp()
    evaluate(classifier, images(), TRUTH, trigger, AllToOne(0), batch_size=5)
    assert classifier.batch_sizes == [5, 5]


def test_data_are_left_alone_even_by_an_attack_in_place():
    x, y = images(), TRUTH.copy()

    def scrawl(batch):
        batch[:] = 1
        batch[..., 0] = 0
        return batch

    evaluate(LookUp(), x, y, scrawl, AllToOne(0), include_target=True)
    np.testing.assert_array_equal(x, images())
    np.testing.assert_array_equal(y, TRUTH)


def test_checked_images_are_not_checked_again():
    x = images()
    expected = evaluate(LookUp(), x, TRUTH, trigger, AllToOne(0))
    assert evaluate(LookUp(), Images(x, TRUTH), None, trigger, AllToOne(0)) == expected
    with pytest.raises(ValueError, match=r"^y: got labels beside Images, expected None"):
        evaluate(LookUp(), Images(x, TRUTH), TRUTH, trigger, AllToOne(0))
    with pytest.raises(ValueError, match=r"^x: got shape"):
        evaluate(LookUp(), Images(x.reshape(6, 1, 2, 1), TRUTH), None, trigger, AllToOne(0))
    with pytest.raises(ValueError, match=r"^x: got images checked for clip_values \(0\.0, 2\.0\)"):
        evaluate(LookUp(), Images(x, TRUTH, clip_values=(0.0, 2.0)), None, trigger, AllToOne(0))


def test_scores_are_plain_numbers():
    scores = evaluate(LookUp(), images(), TRUTH, trigger, AllToOne(0))
    assert [type(value) for value in vars(scores).values()] == [float, float, float, int, int]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": images(6).reshape(6, 1, 2, 1)}, ValueError, "x: got shape (6, 1, 2, 1), expected (N, 1, 1, 2)"),
        ({"x": images(6) + 1}, ValueError, "x: got pixels in [1, 1.005], expected clip_values [0, 1]"),
        ({"x": images(6) * np.nan}, ValueError, "x: got NaN"),
        ({"x": images(6).astype(int)}, TypeError, "x: got dtype int64"),
        ({"x": images(0), "y": []}, ValueError, "x: got an empty set"),
        ({"y": TRUTH[:5]}, ValueError, "y: got 5 labels, expected one for each of the 6 images"),
        ({"y": TRUTH + 1}, ValueError, "y: got labels in [1, 3], expected 0 to 2"),
        ({"y": None}, ValueError, "y: got None"),
        ({"y": np.zeros(6)}, ValueError, "y: got only images that have the attacker's label"),
        ({"labels": AllToOne(3)}, ValueError, "labels(y): got labels in [3, 3], expected 0 to 2"),
        ({"labels": lambda y: y[:2]}, ValueError, "labels(y): got 2 labels"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size: got 2.0"),
        ({"attack": "badnets"}, TypeError, "attack: got str"),
        ({"attack": lambda x: x[:1]}, ValueError, "attack: returned shape (1, 1, 1, 2)"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"x": images(), "y": TRUTH, "attack": trigger, "labels": AllToOne(0)} | change
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        evaluate(LookUp(), **arguments)


def test_a_classifier_without_pixel_range_is_refused():
    classifier = LookUp()
    classifier.clip_values = None
    with pytest.raises(ValueError, match=r"^classifier.clip_values: got None"):
        evaluate(classifier, images(), TRUTH, trigger, AllToOne(0))


def test_include_target_must_be_a_flag():
    with pytest.raises(TypeError, match=r"^include_target: got 'no'"):
        evaluate(LookUp(), images(), TRUTH, trigger, AllToOne(0), include_target="no")


def test_an_all_to_all_map_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="labels"):
        evaluate(LookUp(), images(), TRUTH, trigger, AllToAll(2))


@pytest.mark.parametrize("form", [lambda y: y, lambda y: np.eye(5)[y]], ids=["indices", "one-hot"])
def test_label_matrix_has_the_shares_of_each_class(form):
    truth, predicted = np.random.default_rng(0).integers(0, 5, (2, 300))
    matrix = label_matrix(form(truth), form(predicted), 5)
    for row in range(5):
        for column in range(5):
            assert matrix[row, column] == pytest.approx(np.mean(predicted[truth == row] == column))


def test_label_matrix_by_hand_with_an_absent_class():
    matrix = label_matrix([0, 0, 0, 0, 2], [0, 1, 1, 1, 2], 3)
    np.testing.assert_array_equal(matrix, [[0.25, 0.75, 0], [0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 3], [0, 0], 3), ValueError, r"^y_true: got labels in \[0, 3\]"),
        (([0, 1], [0, 3], 3), ValueError, r"^y_predicted: got labels in \[0, 3\]"),
        (([0, 1], [0], 3), ValueError, r"^y_predicted: got 1 labels"),
        (([0, 0], [0, 0], 1), ValueError, r"^nb_classes: got 1"),
        (([0, 1], [0, 1], 2.0), TypeError, r"^nb_classes: got 2.0"),
    ],
)
def test_label_matrix_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        label_matrix(*arguments)


@pytest.mark.parametrize(
    ("labels", "share"),
    [
        (AllToOne(0), 2 / 4),  # images 2 to 5 fall on 0, 1, 2, 0
        (AllToOne(1), 2 / 4),  # images 0, 1, 4, 5 fall on 1, 1, 2, 0
        (AllToOne(2), 0 / 4),
        (AllToAll(3), 3 / 6),  # wanted 1, 1, 2, 2, 0, 0
    ],
)
@pytest.mark.parametrize("form", [lambda y: y, lambda y: np.eye(3)[y]], ids=["indices", "one-hot"])
def test_target_share_by_hand(labels, share, form):
    predicted = np.array([1, 1, 0, 1, 2, 0])
    assert target_share(form(TRUTH), form(predicted), labels) == pytest.approx(share)


def test_target_share_needs_other_classes_and_equal_lengths():
    with pytest.raises(ValueError, match=r"^y_true: got only images that have the attacker's label"):
        target_share([1, 1], [0, 1], AllToOne(1))
    with pytest.raises(ValueError, match=r"^y_predicted: got 3 labels, expected one for each of the 2"):
        target_share([0, 1], [0, 1, 1], AllToOne(1))


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
