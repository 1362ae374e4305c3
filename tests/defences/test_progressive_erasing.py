"""Progressive erasing: who judges whom, what is picked, and that the backdoor goes without clean data."""

import numpy as np
import pytest
from helpers import linear_classifier, same_weights, tiny_classifier, tiny_data, untouched

from art_aft.attacks import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison
from art_aft.classifiers.classifier import clone, images_for, margins
from art_aft.data.datasets import digits, split_clean
from art_aft.defences import ProgressiveErasing, UniversalAdversarialFineTuning
from art_aft.defences.progressive_erasing import least_of_each_label

QUICK = {
    "nb_epochs": 2,
    "temperature": 0.0,
    "sparse_share": 0.0,
    "schedule": "constant",
    "learning_rate": 0.05,
    "max_iter": 2,
}
OWN = {"min_steps": 0, "batch_size": 8, "padding": 0, "horizontal_flip": False, "precision": "float32", "seed": 3}


@pytest.fixture
def runs(monkeypatch):
    """Record each run: its images, labels and steps, the weights it starts from, the perturbations it is given."""
    seen = []
    original = UniversalAdversarialFineTuning.run_within

    def run_within(defence, classifier, images, callback=None):
        seen.append((images.pixels, images.labels, defence.max_steps, clone(classifier), defence.perturbations))
        return original(defence, classifier, images, callback)

    monkeypatch.setattr(UniversalAdversarialFineTuning, "run_within", run_within)
    return seen


def erasing(classifier, **settings):
    """Return a defence of two folds and one round."""
    own = {"settings": QUICK, "n_folds": 2, "fold_steps": 5, "shares": (0.3,), **OWN}
    return ProgressiveErasing(classifier, **{**own, **settings})


def numbered(n=40):
    """Images that can be told apart, with all four labels."""
    x, _ = tiny_data(n)
    return x, np.arange(n) % 4


def test_margins_are_the_given_logit_above_the_next():
    weights = np.zeros((3, 1, 1, 2))
    weights[:, 0, 0, 0] = [1.0, 2.0, 4.0]
    x = np.array([[[[1.0, 0.0]]], [[[0.5, 0.0]]], [[[1.0, 0.0]]]], dtype=np.float32)
    classifier = linear_classifier(weights)
    found = margins(classifier, images_for(classifier, x / 4, np.array([2, 2, 0])))
    np.testing.assert_allclose(found, [0.5, 0.25, -0.75])


def test_each_label_has_its_share_of_those_that_lost_least():
    values = np.array([5.0, 1.0, 2.0, 3.0, 9.0, 8.0, 7.0])
    y = np.array([0, 0, 0, 0, 1, 1, 2])
    assert least_of_each_label(values, y, 0.5).tolist() == [False, True, True, False, False, True, True]
    assert least_of_each_label(values, y, 1.0).all()


def test_each_label_is_scored_by_a_model_that_did_not_see_it(runs):
    victim = tiny_classifier()
    x, y = numbered()
    defence = erasing(victim)
    with untouched(victim):
        defence(x, y=y)
    *folds, last = runs
    left_out = [set(range(4)) - set(labels) for _, labels, *_ in folds]
    assert sorted(len(labels) for labels in left_out) == [2, 2]
    assert left_out[0] | left_out[1] == {0, 1, 2, 3}
    for images, labels, steps, begun, _ in folds:
        others = np.isin(y, labels)
        assert {image.tobytes() for image in images} == {image.tobytes() for image in x[others]}
        assert (steps, len(images)) == (5, 20)
        assert same_weights(begun, victim)
    assert last[2] is None
    assert same_weights(last[3], victim)


def test_what_an_image_lost_is_its_margin_before_less_that_of_its_judge():
    victim = tiny_classifier()
    x, y = numbered()
    defence = erasing(victim, max_images=None)
    defence(x, y=y)
    assert [stage.name for stage in defence.report.stages] == ["Fold 1", "Fold 2", "Round 1"]
    left_out = np.random.default_rng([OWN["seed"], 1]).permutation(4)[:2]
    seen = np.random.default_rng([OWN["seed"], 0]).permutation(40)
    others = seen[~np.isin(y[seen], left_out)]
    own = {key: value for key, value in OWN.items() if key != "min_steps"}
    judge, of_others = clone(victim), images_for(victim, x[others], y[others])
    UniversalAdversarialFineTuning(victim, **{**QUICK, "max_steps": 5}, **own).run_within(judge, of_others)
    judged = np.isin(y, left_out)
    images = images_for(victim, x[judged], y[judged])
    expected = margins(victim, images) - margins(judge, images)
    np.testing.assert_allclose(defence.report.lost[judged], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_the_round_is_a_purification_on_the_images_picked(runs):
    victim = tiny_classifier()
    x, y = numbered()
    defence = erasing(victim, min_steps=6)
    purified = defence(x, y=y)
    images, labels, _, _, known = runs[-1]
    picked, lost = defence.report.picked, defence.report.lost
    assert picked.sum() == len(images) == 12  # three of each label's ten
    assert np.bincount(y[picked]).tolist() == [3, 3, 3, 3]
    assert {image.tobytes() for image in images} == {image.tobytes() for image in x[picked]}
    for label in range(4):
        of_label = y == label
        assert lost[of_label & picked].max() <= lost[of_label & ~picked].min()
    own = {key: value for key, value in OWN.items() if key != "min_steps"}
    by_hand = UniversalAdversarialFineTuning(victim, known, **{**QUICK, "nb_epochs": 3}, **own)  # two steps an epoch
    assert same_weights(purified, by_hand(images, y=labels))
    assert defence.report.chosen == {"n_picked": 12}


def test_perturbations_are_looked_for_once_in_each_call(runs, monkeypatch):
    victim = tiny_classifier()
    x, y = numbered()
    defence = erasing(victim, shares=(0.3, 0.5))
    defence(x, y=y)
    known = [run[4] for run in runs]
    assert [found is None for found in known] == [True, False, False, False]
    assert all(found is known[1] for found in known[1:])
    defence(x, y=y)
    assert runs[4][4] is None


def test_later_rounds_are_judged_by_the_purified_model(runs):
    victim = tiny_classifier()
    x, y = numbered()
    first = erasing(victim)
    purified = first(x, y=y)
    second = erasing(victim, shares=(0.3, 0.6))
    second(x, y=y)
    assert second.report.picked.sum() == 24
    np.testing.assert_allclose(
        second.report.lost,
        margins(victim, images_for(victim, x, y)) - margins(purified, images_for(victim, x, y)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert same_weights(runs[-1][3], victim)


def test_with_one_fold_the_judge_sees_all(runs):
    x, y = numbered()
    erasing(tiny_classifier(), n_folds=1)(x, y=y)
    assert [len(run[0]) for run in runs] == [40, 12]


def test_images_beyond_the_most_have_no_part(runs):
    x, y = numbered()
    defence = erasing(tiny_classifier(), max_images=24, shares=(1.0,))
    defence(x, y=y)
    assert np.isnan(defence.report.lost).sum() == 16
    np.testing.assert_array_equal(defence.report.picked, ~np.isnan(defence.report.lost))
    assert len(runs[-1][0]) == 24


def test_later_rounds_pick_among_all(runs):
    x, y = numbered()
    defence = erasing(tiny_classifier(), max_images=24, shares=(1.0, 0.5))
    defence(x, y=y)
    assert not np.isnan(defence.report.lost).any()
    assert np.bincount(y[defence.report.picked]).tolist() == [5, 5, 5, 5]
    assert [len(run[0]) for run in runs[-2:]] == [24, 20]
    assert {image.tobytes() for image in runs[-1][0]} == {image.tobytes() for image in x[defence.report.picked]}


def test_in_place_gives_the_same(runs):
    x, y = numbered()
    victim = tiny_classifier()
    given = clone(victim)
    assert erasing(victim)(x, transformed_classifier=given, y=y) is given
    assert same_weights(given, erasing(victim)(x, y=y))
    assert not same_weights(given, victim)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_folds": 0}, r"^n_folds: got 0"),
        ({"fold_steps": 0}, r"^fold_steps: got 0"),
        ({"shares": ()}, r"^shares: got \(\), expected at least one share"),
        ({"shares": (0.0,)}, r"^shares: got 0"),
        ({"max_images": 0}, r"^max_images: got 0"),
        ({"settings": {"eps": -1.0}}, r"^settings: eps: got -1"),
        ({"min_steps": -1}, r"^min_steps: got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveErasing(tiny_classifier(), **settings)


@pytest.mark.parametrize(("n_folds", "labels"), [(2, 2), (3, 2), (2, 3)])
def test_too_few_labels_are_an_error(n_folds, labels):
    x, _ = tiny_data(12)
    victim = tiny_classifier()
    with untouched(victim), pytest.raises(ValueError, match=rf"^n_folds: got {n_folds} for {labels} labels"):
        erasing(victim, n_folds=n_folds)(x, y=np.arange(12) % labels)


def test_the_backdoor_goes_without_clean_data(infected):
    data = digits(seed=0)
    _, rest = split_clean(data.y_train, share=0.1, seed=0)
    planted = poison(data.x_train[rest], data.y_train[rest], BadNets(), AllToOne(0), rate=0.1, seed=0)
    assert infected.scores(infected.classifier).asr > 0.98
    settings = {"nb_epochs": 3, "max_iter": 4, "eps": 1.0, "learning_rate": 0.05}
    own = {"n_folds": 3, "fold_steps": 20, "min_steps": 80, "batch_size": 32, "horizontal_flip": False, "padding": 1}
    defence = ProgressiveErasing(infected.classifier, settings=settings, **own)
    scores = infected.scores(defence(planted.x, y=planted.y))
    assert [stage.name for stage in defence.report.stages[-2:]] == ["Round 1", "Round 2"]
    target = planted.y == 0
    assert planted.is_poisoned[target].mean() > 0.5
    assert planted.is_poisoned[target & defence.report.picked].mean() < 0.05
    assert scores.asr < 0.15
    assert scores.acc > 0.9
