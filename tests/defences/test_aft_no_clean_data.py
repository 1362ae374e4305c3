"""Adversarial Fine-Tuning without clean data: what an early-stopping check scores, and which weights are kept."""

import numpy as np
import pytest
import torch
from helpers import (
    linear_classifier,
    same_weights,
    shifted_versions,
    tiny_classifier,
    tiny_data,
    train,
    watched,
    weights,
)

from art_aft import AllToOne, TorchAttacksPGD, clone, poison
from art_aft.attacks import BadNets
from art_aft.classifiers.classifier import images_for, predict_labels
from art_aft.data.datasets import digits, split_clean
from art_aft.data.images import Images
from art_aft.defences import AdversarialFineTuningWithoutCleanData
from art_aft.defences.aft_no_clean_data import EarlyStopping
from art_aft.runtime.callbacks import Callback
from art_aft.training.recipe import Recipe

QUICK = {"nb_epochs": 2, "batch_size": 8, "padding": 0, "horizontal_flip": False, "precision": "float32"}


def quick(classifier, **settings):
    attack = TorchAttacksPGD(classifier, max_iter=2, precision="float32")
    return AdversarialFineTuningWithoutCleanData(classifier, attack, **{**QUICK, **settings})


class Watch(Callback):
    """Remembers what it is told, and a classifier's weights after each step."""

    def __init__(self, classifier):
        self.classifier, self.events, self.states = classifier, [], {}

    def on_stage(self, name):
        self.events.append(name)

    def on_step(self, step):
        self.events.append(step)
        self.states[step] = weights(self.classifier)


# Images are unit vectors: a column of logits for each. The last image's label is not what the infected model says.
LABELS = np.array([0, 0, 1, 1, 2, 2])
INFECTED = [[5, 5, 0, 0, 0, 1], [0, 0, 2, 2, 0, 0], [0, 0, 0, 0, 2, 0]]


def set_logits(classifier, columns):
    with torch.no_grad():
        next(classifier.model.parameters()).copy_(torch.tensor(columns, dtype=torch.float32))


@pytest.fixture
def stop():
    classifier = linear_classifier(np.array(INFECTED, dtype=float).reshape(3, 1, 1, 6))
    images = Images(np.eye(6, dtype=np.float32).reshape(6, 1, 1, 6), LABELS)
    return EarlyStopping(classifier, images, total=100, checks=1)


def test_a_check_scores_what_is_counted_by_hand(stop):
    # Margins of 0: -1 and 3, lost 4 on average, one of two kept; of 1: 1 and -1, lost 2, one kept; of 2: kept.
    set_logits(stop.classifier, [[0, 3, 0, 1, 0, 9], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
    stop.check(7)
    assert stop.checks == [(7, pytest.approx(2 * (0.5 + 1) / 2 - 0.5), 0)]


def test_the_suspect_is_the_label_that_lost_most(stop):
    set_logits(stop.classifier, [[5, 5, 0, 0, 4, 0], [0, 0, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0]])
    stop.check(1)
    assert stop.checks == [(1, pytest.approx(2 * 1 - 0), 2)]


def test_the_best_checks_weights_are_kept(stop):
    best = [[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]]
    forgets_all = [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    for step, columns in enumerate([INFECTED, best, forgets_all, best], start=1):
        set_logits(stop.classifier, columns)
        stop.check(step)
    scores = [score for _, score, _ in stop.checks]
    assert scores == pytest.approx([2 - 1, 2 - 0, 0, 2 - 0])
    set_logits(stop.classifier, forgets_all)
    assert stop.restore() == 2
    assert next(stop.classifier.model.parameters()).tolist() == best


def test_with_a_single_label_there_is_nothing_to_compare():
    classifier = linear_classifier(np.array(INFECTED, dtype=float).reshape(3, 1, 1, 6))
    images = Images(np.eye(6, dtype=np.float32).reshape(6, 1, 1, 6)[:2], LABELS[:2])
    stop = EarlyStopping(classifier, images, total=10, checks=1)
    before = clone(classifier)
    stop.check(1)
    assert stop.restore() is None
    assert same_weights(classifier, before)


@pytest.mark.parametrize(("checks", "checked_at"), [(1, [6]), (2, [3, 6]), (4, [2, 3, 4, 5, 6]), (50, [2, 3, 4, 5, 6])])
def test_stage_2_ends_with_the_best_of_evenly_spaced_checks(monkeypatch, checks, checked_at):
    x, _ = tiny_data(24)
    purified = linear_classifier(np.random.default_rng(0).normal(size=(3, *x.shape[1:])))
    y = predict_labels(purified, x)
    assert len(set(y)) == 3
    stops = []
    original = EarlyStopping.__init__

    def remember(self, *arguments):
        original(self, *arguments)
        stops.append(self)

    monkeypatch.setattr(EarlyStopping, "__init__", remember)
    defence, watch = quick(purified, early_stopping_checks=checks), Watch(purified)
    defence(x, purified, y, callback=watch)
    assert [step for step, _, _ in stops[0].checks] == checked_at
    best = max(stops[0].checks, key=lambda check: check[1])[0]
    assert defence.report.stopped_after == best
    assert same_weights(purified, watch.states[best])


def test_every_stage_and_step_is_told_and_watching_changes_nothing():
    x, y = tiny_data(20)
    victim = tiny_classifier()
    defence, watch = quick(victim, early_stopping_checks=0), Watch(victim)
    purified = defence(x, y=y, callback=watch)
    assert watch.events == ["Stage 1", "Stage 2", 1, 2, 3, 4, 5, 6]
    assert same_weights(purified, quick(victim, early_stopping_checks=0)(x, y=y))
    assert defence.report.stopped_after is None


def test_a_check_at_the_last_step_changes_nothing():
    x, y = tiny_data(24)
    plain = quick(tiny_classifier(), early_stopping_checks=0)(x, y=y)
    checked = quick(tiny_classifier(), early_stopping_checks=1)(x, y=y)
    assert same_weights(plain, checked)


def test_images_are_cropped_and_flipped_once_before_stage_1_and_keep_their_labels():
    x, y = tiny_data(24)
    classifier = tiny_classifier()
    attack = TorchAttacksPGD(classifier, eps=1e-6, max_iter=1, precision="float32")
    settings = {**QUICK, "padding": 2, "horizontal_flip": True, "batch_size": 24, "early_stopping_checks": 0}
    with watched(classifier) as seen:
        AdversarialFineTuningWithoutCleanData(classifier, attack, **settings)(x, y=y)
    epochs = [sorted(image.tobytes() for image in batch) for batch, training in seen if training]
    assert len(epochs) == 2
    assert epochs[0] == epochs[1]
    views = np.stack(
        [np.frombuffer(raw, np.float32) for image in x for raw in shifted_versions(image, 2, 0.0, horizontal_flip=True)]
    )
    batch = next(batch for batch, training in seen if training).reshape(24, 1, -1)
    sources = np.abs(batch - views).max(axis=2).argmin(axis=1) // (len(views) // 24)
    assert sorted(sources) == list(range(24))


def test_stage_1_attacks_no_more_images_than_stage_2_sees():
    x, y = tiny_data(24)
    classifier = tiny_classifier()
    with watched(classifier) as seen:
        quick(classifier, max_steps=2, batch_size=4, early_stopping_checks=0)(x, y=y)
    assert sum(len(batch) for batch, training in seen if training) == 8
    tried = [len(batch) for batch, training in seen if not training]
    # Two grey images and eight others try the model out, and all of them its accuracy, once.
    assert (set(tried), tried.count(24)) == ({2, 8, 24}, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"early_stopping_checks": -1}, r"^early_stopping_checks: got -1"), ({"max_steps": -1}, r"^max_steps: got -1")],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdversarialFineTuningWithoutCleanData(tiny_classifier(), **settings)


def test_the_attackers_label_is_the_suspect_once_the_backdoor_is_forgotten(infected):
    data = digits(seed=0)
    _, rest = split_clean(data.y_train, share=0.1, seed=0)
    planted = poison(data.x_train[rest], data.y_train[rest], BadNets(), AllToOne(0), rate=0.1, seed=0)
    classifier = clone(infected.classifier)
    stop = EarlyStopping(classifier, images_for(classifier, planted.x, planted.y), total=1, checks=1)
    stop.check(0)
    # Somebody who knows the trigger unlearns it.
    train(classifier, BadNets()(infected.x), infected.y, Recipe(nb_epochs=20, batch_size=32, precision="float32"))
    assert infected.scores(classifier).asr < 0.1
    stop.check(1)
    assert stop.checks[1][2] == 0
    assert stop.restore() == 1
