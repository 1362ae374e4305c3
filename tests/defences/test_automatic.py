"""Automatic settings: the strongest that keeps the accuracy, chosen on images that train nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import same_weights, tiny_classifier, tiny_data, untouched

from art_aft.classifiers.classifier import build_classifier, clone, images_for
from art_aft.defences import (
    AccuracyLost,
    AutomaticFineTuning,
    FinePruning,
    UniversalAdversarialFineTuning,
    automatic,
    universal_aft,
)
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

GENTLE = {
    "nb_epochs": 1,
    "temperature": 0.0,
    "sparse_share": 0.0,
    "schedule": "constant",
    "learning_rate": 1e-4,
    "max_iter": 2,
}
# A rate at which nothing is left of what the classifier knew.
WILD = {**GENTLE, "nb_epochs": 3, "learning_rate": 100.0}
OWN = {
    "min_steps": 0,
    "pruning_drop": 0.0,
    "look_again": False,
    "batch_size": 8,
    "padding": 0,
    "horizontal_flip": False,
    "precision": "float32",
    "seed": 5,
}


@pytest.fixture(scope="module")
def data():
    """Images that are brightest in the channel of their label, and dark for the last label."""
    x, _ = tiny_data(60)
    y = np.arange(60) % 4
    x *= 0.2
    for label in range(3):
        x[y == label, label] += 0.8
    return x, y


@pytest.fixture(scope="module")
def trained(data):
    classifier = tiny_classifier()
    recipe = Recipe(nb_epochs=10, batch_size=20, learning_rate=0.1, precision="float32")
    fit(classifier, Batches(images_for(classifier, *data), recipe, classifier.device), recipe)
    assert accuracy(classifier, *data) == 1
    return classifier


@pytest.fixture
def victim(trained):
    return clone(trained)


def held_out(x, y, share=0.2, seed=OWN["seed"]):
    order = np.random.default_rng(seed).permutation(len(x))
    size = round(share * len(x))
    return (x[order[:size]], y[order[:size]]), (x[order[size:]], y[order[size:]])


def by_hand(classifier, settings):
    own = {key: value for key, value in OWN.items() if key not in ("min_steps", "pruning_drop", "look_again")}
    return UniversalAdversarialFineTuning(classifier, **settings, **own)


def chosen(settings):
    return {**settings, "eps": pytest.approx((432 / 3072) ** 0.5), "target": None, "n_pruned": 0}


def accuracy(classifier, x, y):
    return np.mean(classifier.predict(x).argmax(axis=1) == y)


def test_the_first_setting_that_keeps_the_accuracy_is_taken(victim, data):
    defence = AutomaticFineTuning(victim, candidates=(WILD, GENTLE, {**GENTLE, "learning_rate": 1e-5}), **OWN)
    with untouched(victim):
        purified = defence(data[0], y=data[1])
    held, shown = held_out(*data)
    assert same_weights(purified, by_hand(victim, GENTLE)(shown[0], y=shown[1]))
    report = defence.report
    assert [trial.settings for trial in report.trials] == [chosen(WILD), chosen(GENTLE)]
    assert [trial.accepted for trial in report.trials] == [False, True]
    assert (report.chosen, report.accepted) == (chosen(GENTLE), True)
    assert (report.n_images, report.n_held_out) == (60, 12)
    assert report.accuracy_before == accuracy(victim, *held) == 1
    assert report.accuracy_after == report.trials[1].accuracy == pytest.approx(accuracy(purified, *held))
    lost = by_hand(victim, WILD)(shown[0], y=shown[1])
    assert report.trials[0].accuracy == pytest.approx(accuracy(lost, *held))
    assert report.trials[0].accuracy < 0.95
    assert [stage.name for stage in report.stages] == ["Trial 1", "Trial 2"]
    assert [stage.name for stage in report.trials[0].stages] == ["Stage 1", "Stage 2"]
    assert sum(stage.seconds for stage in report.stages) <= report.seconds


def test_the_strongest_ends_the_search_if_it_is_good_enough(victim, data):
    defence = AutomaticFineTuning(victim, candidates=(GENTLE, WILD), **OWN)
    defence(data[0], y=data[1])
    assert len(defence.report.trials) == 1


def test_idle_channels_are_pruned_before_the_first_trial(victim, data, monkeypatch):
    monkeypatch.setattr(automatic, "_DECIDING", 1)
    defence = AutomaticFineTuning(
        victim, candidates=(GENTLE, WILD), **{**OWN, "pruning_drop": 0.3, "max_accuracy_drop": 0.9}
    )
    with untouched(victim):
        purified = defence(data[0], y=data[1])
    _, shown = held_out(*data)
    pruning = FinePruning(victim, max_drop=0.3, held_out=0.2, nb_epochs=0, precision="float32", seed=OWN["seed"])
    pruned = pruning(shown[0], y=shown[1])
    n_pruned = len(pruning.report.pruned_channels)
    assert n_pruned > 0
    assert same_weights(purified, by_hand(pruned, GENTLE)(shown[0], y=shown[1]))
    assert defence.report.n_pruned == defence.report.chosen["n_pruned"] == n_pruned
    assert [stage.name for stage in defence.report.stages] == ["Pruning", "Trial 1"]
    assert defence.report.accuracy_before == 1  # the infected classifier's, not that of the pruned one


@pytest.mark.parametrize("cheaper", ["pruned", "whole"])
def test_a_rejected_trial_is_repeated_without_pruning_and_the_next_begin_where_less_was_lost(
    victim, data, monkeypatch, cheaper
):
    def ruined(self, classifier, images, run):
        """Return a copy that "lost" two channels, and knows nothing where that is to cost more."""
        copy = clone(classifier)
        with torch.no_grad():
            for parameter in copy.model.parameters():
                parameter.mul_(1.0 if cheaper == "pruned" else 0.0)
        return copy, 2

    monkeypatch.setattr(AutomaticFineTuning, "_prune", ruined)
    still = {**GENTLE, "nb_epochs": 0}
    if cheaper == "pruned":  # all trials lose the same; the first of the best is pruned
        defence = AutomaticFineTuning(victim, candidates=(WILD, WILD), **OWN)
        defence(data[0], y=data[1])
        assert [trial.settings["n_pruned"] for trial in defence.report.trials] == [2, 0, 2]
    else:
        defence = AutomaticFineTuning(victim, candidates=(still, GENTLE), **{**OWN, "max_accuracy_drop": 0.0})
        purified = defence(data[0], y=data[1])
        assert [trial.settings["n_pruned"] for trial in defence.report.trials] == [2, 0]
        assert [trial.accepted for trial in defence.report.trials] == [False, True]
        assert same_weights(purified, victim)
        assert defence.report.n_pruned == 0


def test_few_images_do_not_decide_on_pruning(victim, data):
    defence = AutomaticFineTuning(victim, candidates=(GENTLE,), **{**OWN, "pruning_drop": 0.3})
    purified = defence(data[0], y=data[1])
    _, shown = held_out(*data)
    assert same_weights(purified, by_hand(victim, GENTLE)(shown[0], y=shown[1]))
    assert [stage.name for stage in defence.report.stages] == ["Trial 1"]


def test_a_network_without_channels_is_not_pruned(data, monkeypatch):
    monkeypatch.setattr(automatic, "_DECIDING", 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(data[0][0].size, 4))
    classifier = build_classifier(model, input_shape=data[0].shape[1:], nb_classes=4)
    defence = AutomaticFineTuning(classifier, candidates=(GENTLE,), **{**OWN, "pruning_drop": 0.3})
    purified = defence(data[0], y=data[1])
    _, shown = held_out(*data)
    assert same_weights(purified, by_hand(classifier, GENTLE)(shown[0], y=shown[1]))
    assert defence.report.n_pruned == 0


def test_where_all_lose_too_much_the_best_comes_back_and_the_report_says_so(victim, data):
    defence = AutomaticFineTuning(victim, candidates=(WILD, {**WILD, "learning_rate": 50.0}), **OWN)
    purified = defence(data[0], y=data[1])
    report = defence.report
    assert not report.accepted
    assert report.accuracy_after == max(trial.accuracy for trial in report.trials)
    assert report.chosen in [trial.settings for trial in report.trials if trial.accuracy == report.accuracy_after]
    assert accuracy(purified, *held_out(*data)[0]) == pytest.approx(report.accuracy_after)


@pytest.mark.parametrize(
    ("drops", "taken"), [((0.30, 0.12, 0.10), 1), ((0.30, 0.16, 0.10), 2), ((0.12, 0.10, 0.11), 0)]
)
def test_of_those_that_lose_least_within_a_standard_error_the_strongest_comes_back(drops, taken):
    tried = [SimpleNamespace(drop=drop, error=0.05 - 0.01 * place) for place, drop in enumerate(drops)]
    assert automatic._strongest_of_the_best(tried) is tried[taken]


@pytest.mark.parametrize("in_place", [False, True])
def test_or_an_error_that_leaves_the_classifier_as_it_was(victim, data, in_place):
    defence = AutomaticFineTuning(victim, candidates=(WILD,), otherwise="raise", **OWN)
    given = clone(victim)
    with untouched(victim, given), pytest.raises(AccuracyLost, match=r"^max_accuracy_drop: of 1\.000, 1 trials left"):
        defence(data[0], transformed_classifier=given if in_place else None, y=data[1])


@pytest.mark.parametrize("beyond", [0.0, -1e-6])
def test_a_loss_and_its_error_of_exactly_the_bound_are_accepted(victim, data, beyond):
    (x, y), _ = held_out(*data)
    first = AutomaticFineTuning(victim, candidates=(WILD,), **OWN)
    lost = 1.0 - (first(data[0], y=data[1]).predict(x).argmax(axis=1) == y)
    bound = lost.mean() + lost.std() / np.sqrt(12)
    second = AutomaticFineTuning(victim, candidates=(WILD,), max_accuracy_drop=bound + beyond, **OWN)
    second(data[0], y=data[1])
    assert second.report.accepted == (beyond == 0)


def test_perturbations_are_searched_for_once(victim, data, monkeypatch):
    searched = []
    search = universal_aft.find_dense

    def watch(classifier, images, *arguments, **settings):
        searched.append(len(images))
        return search(classifier, images, *arguments, **settings)

    monkeypatch.setattr(universal_aft, "find_dense", watch)
    candidates = ({**WILD, "eps": "auto"}, {**GENTLE, "eps": "auto"})
    defence = AutomaticFineTuning(victim, candidates=candidates, **OWN)
    defence(data[0], y=data[1])
    assert searched == [48]
    first, second = (trial.settings["eps"] for trial in defence.report.trials)
    assert first == second
    ladder = [2.0**k * (432 / 3072) ** 0.5 for k in range(-2, 4)]
    assert any(first == pytest.approx(eps) for eps in ladder)


def test_the_focus_is_on_the_label_that_the_infected_last_layer_favours(victim, data):
    with torch.no_grad():
        victim.model.fc.weight[2] *= 50
    defence = AutomaticFineTuning(victim, candidates=(GENTLE,), **OWN)
    defence(data[0], y=data[1])
    assert defence.report.chosen["target"] == 2


def test_few_images_are_seen_more_often(victim, data):
    defence = AutomaticFineTuning(victim, candidates=(GENTLE,), **{**OWN, "min_steps": 20})
    defence(data[0], y=data[1])
    assert defence.report.chosen["nb_epochs"] == 4  # 48 images, 6 steps an epoch


def test_what_is_held_out_trains_nothing(victim, data, monkeypatch):
    trained_on = []
    run = UniversalAdversarialFineTuning.run_within

    def watch(defence, classifier, images):
        trained_on.append({image.tobytes() for image in images.pixels})
        return run(defence, classifier, images)

    monkeypatch.setattr(UniversalAdversarialFineTuning, "run_within", watch)
    AutomaticFineTuning(victim, candidates=(WILD, GENTLE), **OWN)(data[0], y=data[1])
    hidden = {image.tobytes() for image in held_out(*data)[0][0]}
    assert [(len(images), len(hidden & images)) for images in trained_on] == [(48, 0), (48, 0)]


def test_a_backdoor_goes_with_the_default_candidates(infected):
    candidates = [{**settings, "max_iter": 2} for settings in automatic.CANDIDATES]  # the search takes most of the time
    own = {"horizontal_flip": False, "padding": 1, "batch_size": 32, "min_steps": 60}
    defence = AutomaticFineTuning(infected.classifier, candidates=candidates, **own)
    purified = defence(infected.x, y=infected.y)
    scores = infected.scores(purified)
    assert scores.asr < 0.1
    assert scores.acc > infected.scores(infected.classifier).acc - 0.03
    assert defence.report.accepted
    assert defence.report.remaining_label is None
    assert defence.report.stages[-1].name == "Second look"
    assert defence.report.chosen["nb_epochs"] == 20  # of three steps


@pytest.mark.parametrize("look_again", [True, False])
def test_a_result_in_which_a_label_still_stands_out_is_not_accepted(infected, look_again):
    nothing = {"nb_epochs": 0, "temperature": 0.0, "max_iter": 8}  # the backdoor stays as it is
    own = {"horizontal_flip": False, "min_steps": 0, "look_again": look_again}
    defence = AutomaticFineTuning(infected.classifier, candidates=(nothing,), **own)
    assert infected.scores(defence(infected.x, y=infected.y)).asr > 0.9
    report = defence.report
    assert report.trials[0].accepted
    assert report.remaining_label == (0 if look_again else None)
    assert report.accepted is not look_again
    assert [note.partition(":")[0] for note in report.notes] == ["label 0 still stands out"] * look_again


@pytest.mark.parametrize("learning_rate", [1e4, 1e12, 1e30])
def test_a_result_that_diverged_is_no_verdict_on_its_labels(victim, data, learning_rate):
    ruin = {**WILD, "learning_rate": learning_rate, "sparse_share": 0.5}
    defence = AutomaticFineTuning(victim, candidates=(ruin,), **{**OWN, "look_again": True})
    purified = defence(data[0], y=data[1])
    assert not defence.report.accepted
    if not np.isfinite(purified.predict(data[0])).all():
        assert defence.report.remaining_label is None
    assert accuracy(purified, *data) < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": ()}, r"^candidates: got \(\), expected settings of at least one"),
        ({"candidates": ({"eps": -1.0},)}, r"^candidates: eps: got -1"),
        ({"max_accuracy_drop": 2}, r"^max_accuracy_drop: got 2"),
        ({"pruning_drop": 2}, r"^pruning_drop: got 2"),
        ({"min_steps": -1}, r"^min_steps: got -1"),
        ({"held_out": 0}, r"^held_out: got 0"),
        ({"otherwise": "weep"}, r"^otherwise: got 'weep', expected one of 'return', 'raise'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(victim, settings, message):
    with pytest.raises(ValueError, match=message):
        AutomaticFineTuning(victim, **settings)


def test_one_image_is_too_few(victim, data):
    with untouched(victim), pytest.raises(ValueError, match=r"^x: got images of class \d alone"):
        AutomaticFineTuning(victim)(data[0][:1], y=data[1][:1])
