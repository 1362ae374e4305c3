"""Distillation: the loss against torch's own divergence, who is asked about what, and that a teacher keeps a model."""

import numpy as np
import pytest
import torch
from conftest import (
    assert_close,
    linear_classifier,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
    weights,
)

from art_aft.batches import Augmentation, Batches
from art_aft.classifier import clone
from art_aft.defences import AdversarialFineTuning
from art_aft.distillation import Distillation
from art_aft.training import Recipe, fit


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
    fit(classifier, x, y, recipe(), clean=(x, 1.0), teacher=(clone(classifier), temperature))
    assert_close(classifier, before)
    fit(classifier, x, y, recipe(), clean=(x, 1.0))
    assert not same_weights(classifier, before)


def test_the_teacher_sees_the_clean_images_in_evaluation_mode_and_stays_as_it_is():
    x, y = tiny_data(24)
    classifier, teacher = tiny_classifier(), tiny_classifier(seed=1)
    with untouched(teacher), watched(classifier) as seen, watched(teacher) as asked:
        fit(classifier, 1 - x, y, recipe(padding=2), clean=(x, 0.25), teacher=(teacher, 3.0))
    assert len(asked) == len(seen) == 6
    for (shown, training), (batch, _) in zip(asked, seen, strict=True):
        assert not training
        np.testing.assert_array_equal(shown, batch[:2])


def test_a_teacher_needs_images_and_a_temperature():
    x, y = tiny_data(8)
    classifier = tiny_classifier()
    with untouched(classifier), pytest.raises(ValueError, match=r"^clean: got none with a teacher"):
        fit(classifier, x, y, recipe(), teacher=(clone(classifier), 1.0))
    with untouched(classifier), pytest.raises(ValueError, match=r"^teacher: got 0"):
        fit(classifier, x, y, recipe(), clean=(x, 0.5), teacher=(clone(classifier), 0.0))


class TestInAdversarialFineTuning:
    SETTINGS = {"clean_share": 1.0, "nb_epochs": 2, "padding": 0, "mirror": False, "precision": "float32"}

    def test_the_teacher_is_the_infected_classifier(self):
        x, y = tiny_data(24)
        victim = linear()
        settings = {**self.SETTINGS, "clean_epochs": 0, "weight_decay": 0.0}
        assert_close(AdversarialFineTuning(victim, distillation=2.0, **settings)(x, y=y), weights(victim))
        assert not same_weights(AdversarialFineTuning(victim, **settings)(x, y=y), victim)

    def test_stage_3_learns_labels(self):
        x, y = tiny_data(24)
        victim = linear()
        settings = {**self.SETTINGS, "clean_epochs": 2, "weight_decay": 0.0}
        defence = AdversarialFineTuning(victim, distillation=2.0, **settings)
        purified = defence(x, y=y)
        assert_close(defence.adversarial_classifier, weights(victim))
        assert not same_weights(purified, victim)

    def test_without_clean_images_it_is_refused(self):
        with pytest.raises(ValueError, match=r"^distillation: got 2 without clean images \(clean_share\), expected 0"):
            AdversarialFineTuning(tiny_classifier(), distillation=2.0)
        with pytest.raises(ValueError, match=r"^distillation: got -1"):
            AdversarialFineTuning(tiny_classifier(), clean_share=0.5, distillation=-1.0)
