"""The early end without clean data: what a look scores, which weights are kept, and that no trigger is needed."""

import numpy as np
import pytest
import torch
from helpers import linear_classifier, same_weights, tiny_classifier, tiny_data, weights

from art_aft.attacks import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison
from art_aft.classifiers.classifier import clone, predict_labels
from art_aft.data.datasets import digits, split_clean
from art_aft.defences import AdversarialFineTuning
from art_aft.defences.early_stop import EarlyStop
from art_aft.training.loop import Recipe, fit

QUICK = {"nb_epochs": 2, "clean_epochs": 0, "batch_size": 8, "max_iter": 2, "padding": 0, "precision": "float32"}

# Images are unit vectors: a column of logits for each. The last image's label is not what the infected model says.
LABELS = np.array([0, 0, 1, 1, 2, 2])
INFECTED = [[5, 5, 0, 0, 0, 1], [0, 0, 2, 2, 0, 0], [0, 0, 0, 0, 2, 0]]


def set_logits(classifier, columns):
    with torch.no_grad():
        next(classifier.model.parameters()).copy_(torch.tensor(columns, dtype=torch.float32))


@pytest.fixture
def stop():
    classifier = linear_classifier(np.array(INFECTED, dtype=float).reshape(3, 1, 1, 6))
    return EarlyStop(classifier, np.eye(6, dtype=np.float32).reshape(6, 1, 1, 6), LABELS)


def test_a_look_scores_what_is_counted_by_hand(stop):
    # Margins of 0: -1 and 3, lost 4 on average, one of two kept; of 1: 1 and -1, lost 2, one kept; of 2: kept.
    set_logits(stop.classifier, [[0, 3, 0, 1, 0, 9], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
    stop.look(7)
    assert stop.looks == [(7, pytest.approx(2 * (0.5 + 1) / 2 - 0.5), 0)]


def test_the_suspect_is_the_label_that_lost_most(stop):
    set_logits(stop.classifier, [[5, 5, 0, 0, 4, 0], [0, 0, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0]])
    stop.look(1)
    assert stop.looks == [(1, pytest.approx(2 * 1 - 0), 2)]


def test_the_best_looks_weights_are_kept(stop):
    best = [[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]]
    forgets_all = [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    for step, columns in enumerate([INFECTED, best, forgets_all, best], start=1):
        set_logits(stop.classifier, columns)
        stop.look(step)
    scores = [score for _, score, _ in stop.looks]
    assert scores == pytest.approx([2 - 1, 2 - 0, 0, 2 - 0])
    set_logits(stop.classifier, forgets_all)
    assert stop.restore() == 2
    assert next(stop.classifier.model.parameters()).tolist() == best


def test_with_a_single_label_there_is_nothing_to_compare():
    classifier = linear_classifier(np.array(INFECTED, dtype=float).reshape(3, 1, 1, 6))
    stop = EarlyStop(classifier, np.eye(6, dtype=np.float32).reshape(6, 1, 1, 6)[:2], LABELS[:2])
    before = clone(classifier)
    stop.look(1)
    assert stop.restore() is None
    assert same_weights(classifier, before)


@pytest.mark.parametrize(("n_looks", "looked_at"), [(1, [6]), (2, [3, 6]), (4, [2, 3, 4, 5, 6]), (50, [2, 3, 4, 5, 6])])
def test_stage_2_ends_with_the_best_of_evenly_spaced_looks(monkeypatch, n_looks, looked_at):
    x, _ = tiny_data(24)
    purified = linear_classifier(np.random.default_rng(0).normal(size=(3, *x.shape[1:])))
    y = predict_labels(purified, x)
    assert len(set(y)) == 3
    states, stops = {}, []
    original = EarlyStop.__init__

    def remember(self, *arguments):
        original(self, *arguments)
        stops.append(self)

    monkeypatch.setattr(EarlyStop, "__init__", remember)
    defence = AdversarialFineTuning(purified, n_looks=n_looks, **QUICK)
    defence.on_step = lambda stage, step: states.setdefault(
        step, {key: value.clone() for key, value in weights(purified).items()}
    )
    defence(x, purified, y)
    assert [step for step, _, _ in stops[0].looks] == looked_at
    best = max(stops[0].looks, key=lambda look: look[1])[0]
    assert defence.stopped_after == defence.report.chosen["steps"] == best
    assert same_weights(purified, states[best])


def test_every_step_of_both_stages_is_told():
    x, y = tiny_data(20)
    told = []
    defence = AdversarialFineTuning(tiny_classifier(), **{**QUICK, "clean_epochs": 1})
    defence.on_step = lambda stage, step: told.append((stage, step))
    purified = defence(x, y=y)
    assert told == [(2, step) for step in range(1, 7)] + [(3, step) for step in range(1, 4)]
    quiet = AdversarialFineTuning(tiny_classifier(), **{**QUICK, "clean_epochs": 1})
    assert same_weights(purified, quiet(x, y=y))
    assert "steps" not in quiet.report.chosen


def test_looking_changes_nothing_but_the_end():
    x, y = tiny_data(24)
    plain = AdversarialFineTuning(tiny_classifier(), **QUICK)(x, y=y)
    looked = AdversarialFineTuning(tiny_classifier(), n_looks=1, **QUICK)(x, y=y)
    assert same_weights(plain, looked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_looks": -1}, r"^n_looks: got -1"), ({"n_looks": 2, "held_out": 0.2}, r"^n_looks: got 2 with held_out 0.2")],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdversarialFineTuning(tiny_classifier(), **settings)


def test_the_attackers_label_is_the_suspect_once_the_backdoor_is_forgotten(infected):
    data = digits(seed=0)
    _, rest = split_clean(data.y_train, share=0.1, seed=0)
    planted = poison(data.x_train[rest], data.y_train[rest], BadNets(), AllToOne(0), rate=0.1, seed=0)
    classifier = clone(infected.classifier)
    stop = EarlyStop(classifier, planted.x, planted.y)
    stop.look(0)
    # Somebody who knows the trigger unlearns it.
    fit(classifier, BadNets()(infected.x), infected.y, Recipe(nb_epochs=20, batch_size=32, precision="float32"))
    assert infected.scores(classifier).asr < 0.1
    stop.look(1)
    assert stop.looks[1][2] == 0
    assert stop.restore() == 1
