"""Distillation: the loss against torch's own divergence, who is asked about what, and that a teacher keeps a model."""

import numpy as np
import pytest
import torch
from helpers import (
    assert_close,
    linear_classifier,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
    weights,
)

from art_aft.classifiers.classifier import clone
from art_aft.defences import AdversarialFineTuning
from art_aft.defences import aft as aft_module
from art_aft.training.batches import Augmentation, Batches
from art_aft.training.distillation import Distillation, agreed
from art_aft.training.loop import Recipe, fit


def batches_of(said, part=slice(0, 10)):
    batches = Batches(
        torch.zeros(10, 1, 1, 1),
        torch.zeros(10, dtype=torch.long),
        nb_classes=4,
        batch_size=10,
        nb_epochs=1,
        max_steps=None,
        augmentation=Augmentation(),
        clip_values=(0.0, 1.0),
        seed=0,
    )
    batches.said, batches.part = said, part
    return batches


def recipe(**settings):
    return Recipe(
        **{
            "nb_epochs": 2,
            "batch_size": 8,
            "learning_rate": 0.1,
            "weight_decay": 0.0,
            "precision": "float32",
            **settings,
        }
    )


def linear():
    return linear_classifier(np.random.default_rng(0).normal(size=(4, 3, 12, 12)).astype(np.float32))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_loss_is_the_divergence_from_the_teacher_and_cross_entropy_for_the_others(temperature):
    rng = torch.Generator().manual_seed(0)
    logits, said = torch.randn(10, 4, generator=rng, requires_grad=True), torch.randn(6, 4, generator=rng)
    y = torch.randint(0, 4, (10,), generator=rng)
    loss = Distillation(torch.nn.CrossEntropyLoss(), batches_of(said), temperature)(logits, y)
    wanted, own = (said / temperature).softmax(dim=1), (logits[:6] / temperature).log_softmax(dim=1)
    divergence = torch.nn.functional.kl_div(own, wanted, reduction="sum")
    entropy = torch.distributions.Categorical(probs=wanted).entropy().sum()
    hard = torch.nn.functional.cross_entropy(logits[6:], y[6:], reduction="sum")
    expected = (temperature**2 * (divergence + entropy) + hard) / 10
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cut", [0, 2, 6, 8])
def test_parts_of_a_batch_add_up_to_the_whole(cut):
    rng = torch.Generator().manual_seed(0)
    logits, said = torch.randn(10, 4, generator=rng), torch.randn(6, 4, generator=rng)
    y = torch.randint(0, 4, (10,), generator=rng)
    total = sum(
        (part.stop - part.start)
        * Distillation(torch.nn.CrossEntropyLoss(), batches_of(said, part), 2.0)(logits[part], y[part])
        for part in (slice(0, cut), slice(cut, 10))
        if part.stop > part.start
    )
    whole = Distillation(torch.nn.CrossEntropyLoss(), batches_of(said), 2.0)(logits, y)
    torch.testing.assert_close(total / 10, whole)


def test_the_given_loss_stays_as_it_is():
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    Distillation(loss, batches_of(torch.zeros(0, 4)), 1.0)
    assert loss.reduction == "mean"


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_a_model_that_is_its_own_teacher_has_nothing_to_learn(temperature):
    x, y = tiny_data(24)
    classifier = linear()
    before = weights(classifier)
    fit(classifier, x, y, recipe(), clean=(x, 1.0), teachers=([clone(classifier)], temperature))
    assert_close(classifier, before)
    fit(classifier, x, y, recipe(), clean=(x, 1.0))
    assert not same_weights(classifier, before)


def test_the_teacher_sees_the_clean_images_in_evaluation_mode_and_stays_as_it_is():
    x, y = tiny_data(24)
    classifier, teacher = tiny_classifier(), tiny_classifier(seed=1)
    with untouched(teacher), watched(classifier) as seen, watched(teacher) as asked:
        fit(classifier, 1 - x, y, recipe(padding=2), clean=(x, 0.25), teachers=([teacher], 3.0))
    assert len(asked) == len(seen) == 6
    for (shown, training), (batch, _) in zip(asked, seen, strict=True):
        assert not training
        np.testing.assert_array_equal(shown, batch[:2])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_teachers_agree_on_the_lowest_probability_that_any_of_them_gives(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 4)) * 3
    softened = [np.exp(z / temperature) / np.exp(z / temperature).sum(axis=1, keepdims=True) for z in logits]
    lowest = np.minimum(np.minimum(softened[0], softened[1]), softened[2])
    found = agreed([torch.from_numpy(z) for z in logits], temperature)
    expected = torch.from_numpy(lowest / lowest.sum(axis=1, keepdims=True)).float()
    torch.testing.assert_close((found / temperature).softmax(dim=1), expected)


def test_what_one_teacher_alone_believes_is_not_taught():
    infected, purified = torch.tensor([[9.0, 0.0, 2.0]]), torch.tensor([[-9.0, 0.0, 2.0]])
    taught = agreed([infected, purified], 1.0).softmax(dim=1)
    assert infected.softmax(dim=1)[0, 0] > 0.99
    assert taught[0, 0] < 0.02
    torch.testing.assert_close(taught[0, 2] / taught[0, 1], torch.tensor(2.0).exp())


def test_teachers_need_images_and_a_temperature():
    x, y = tiny_data(8)
    classifier = tiny_classifier()
    with untouched(classifier), pytest.raises(ValueError, match=r"^clean: got none with teachers"):
        fit(classifier, x, y, recipe(), teachers=([clone(classifier)], 1.0))
    with untouched(classifier), pytest.raises(ValueError, match=r"^teachers: got 0"):
        fit(classifier, x, y, recipe(), clean=(x, 0.5), teachers=([clone(classifier)], 0.0))


class TestInAdversarialFineTuning:
    SETTINGS = {"clean_share": 1.0, "nb_epochs": 2, "padding": 0, "mirror": False, "precision": "float32"}

    @pytest.fixture
    def fits(self, monkeypatch):
        """Record, of each fine-tuning, its classifier, the weights it begins with, and its teachers with theirs."""
        seen = []

        def recorded(classifier, x, y, recipe, *, teachers=None, **settings):
            taught = [(teacher, weights(teacher)) for teacher in teachers[0]] if teachers else []
            seen.append((classifier, weights(classifier), recipe, taught, teachers and teachers[1]))
            fit(classifier, x, y, recipe, teachers=teachers, **settings)
            seen[-1] += (weights(classifier),)

        monkeypatch.setattr(aft_module, "fit", recorded)
        return seen

    def test_the_teachers_are_the_infected_classifier_and_one_purified_on_labels(self, fits):
        x, y = tiny_data(24)
        victim = tiny_classifier()
        settings = {**self.SETTINGS, "clean_share": 0.5, "clean_epochs": 1}
        defence = AdversarialFineTuning(victim, distillation=2.0, label_epochs=3, **settings)
        purified = defence(x, y=y)
        (_, began, own, no_teachers, _, labelled), (_, began_again, second, taught, temperature, _), third = fits
        assert same_weights(began, weights(victim))
        assert same_weights(began_again, weights(victim))
        assert (own.nb_epochs, second.nb_epochs, third[2].nb_epochs) == (3, 2, 1)
        assert no_teachers == third[3] == []
        assert temperature == 2.0
        assert same_weights(taught[0][1], weights(victim))
        assert same_weights(taught[1][1], labelled)
        assert not any(teacher.model.training for teacher, _ in taught)
        assert same_weights(third[-1], purified)
        assert [stage.name for stage in defence.report.stages] == ["Stage 1", "Stage 2 on labels", "Stage 2", "Stage 3"]
        # What is tried on labels is what AFT does without distillation.
        plain = AdversarialFineTuning(victim, **{**settings, "nb_epochs": 3, "clean_epochs": 0})
        assert same_weights(labelled, plain(x, y=y))

    def test_teachers_that_say_the_same_have_nothing_to_teach(self):
        x, y = tiny_data(24)
        victim = linear()
        settings = {**self.SETTINGS, "clean_epochs": 0, "weight_decay": 0.0, "label_epochs": 0}
        assert_close(AdversarialFineTuning(victim, distillation=2.0, **settings)(x, y=y), weights(victim))
        assert not same_weights(AdversarialFineTuning(victim, **settings)(x, y=y), victim)

    def test_without_clean_images_it_is_refused(self):
        with pytest.raises(ValueError, match=r"^distillation: got 2 without clean images \(clean_share\), expected 0"):
            AdversarialFineTuning(tiny_classifier(), distillation=2.0)
        with pytest.raises(ValueError, match=r"^distillation: got -1"):
            AdversarialFineTuning(tiny_classifier(), clean_share=0.5, distillation=-1.0)
