"""Distillation: the loss against torch's own divergence, and what teachers agree on."""

import numpy as np
import pytest
import torch
from helpers import assert_close, linear_classifier, same_weights, tiny_classifier, train, untouched, watched, weights

from art_aft.classifiers.classifier import clone
from art_aft.training.batches import Batch
from art_aft.training.distillation import DistillationLoss, agreed, agreeing
from art_aft.training.recipe import Recipe

RECIPE = Recipe(nb_epochs=2, batch_size=8, learning_rate=0.1, weight_decay=0.0, precision="float32")


def drawn(count):
    """Logits of ten images, the logits that a teacher gives some of them, and labels."""
    rng = torch.Generator().manual_seed(0)
    logits, wished = torch.randn(10, 4, generator=rng, requires_grad=True), torch.randn(count, 4, generator=rng)
    return logits, wished, torch.randint(0, 4, (10,), generator=rng)


def batch_of(y, teacher_logits=None):
    return Batch(torch.zeros(len(y), 1, 1, 1), y, teacher_logits)


class TestLoss:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_it_is_the_divergence_from_the_teacher_and_cross_entropy_for_the_others(self, temperature):
        logits, wished, y = drawn(6)
        loss = DistillationLoss(torch.nn.CrossEntropyLoss(), temperature)(logits, batch_of(y, wished))
        wanted, own = (wished / temperature).softmax(dim=1), (logits[:6] / temperature).log_softmax(dim=1)
        divergence = torch.nn.functional.kl_div(own, wanted, reduction="sum")
        entropy = torch.distributions.Categorical(probs=wanted).entropy().sum()
        hard = torch.nn.functional.cross_entropy(logits[6:], y[6:], reduction="sum")
        expected = (temperature**2 * (divergence + entropy) + hard) / 10
        torch.testing.assert_close(loss, expected)
        ours, theirs = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected))
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("cut", [0, 2, 6, 8])
    def test_parts_of_a_batch_add_up_to_the_whole(self, cut):
        logits, wished, y = drawn(6)
        loss, batch = DistillationLoss(torch.nn.CrossEntropyLoss(), 2.0), batch_of(y, wished)
        total = sum(
            (part.stop - part.start) * loss(logits[part], batch.part(part))
            for part in (slice(0, cut), slice(cut, 10))
            if part.stop > part.start
        )
        torch.testing.assert_close(total / 10, loss(logits, batch))

    def test_without_a_teacher_it_is_the_given_loss(self):
        logits, _, y = drawn(0)
        given = torch.nn.CrossEntropyLoss(weight=torch.ones(4), label_smoothing=0.1)
        found = DistillationLoss(given, 2.0)(logits, batch_of(y))
        torch.testing.assert_close(found, given(logits, y))

    def test_the_given_loss_stays_as_it_is(self):
        loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        DistillationLoss(loss, 1.0)
        assert loss.reduction == "mean"

    @pytest.mark.parametrize("temperature", [0.5, 4.0])
    def test_a_model_that_is_its_own_teacher_has_nothing_to_learn(self, temperature):
        rng = np.random.default_rng(0)
        classifier = linear_classifier(rng.normal(size=(4, 3, 12, 12)).astype(np.float32))
        x, y = rng.random((8, 3, 12, 12), dtype=np.float32), rng.integers(0, 4, 8)
        before = weights(classifier)
        with agreeing([clone(classifier)], temperature, "float32") as teacher:
            shown = torch.from_numpy(x)
            batch = Batch(shown, torch.from_numpy(y), teacher(shown))
            DistillationLoss(classifier.loss, temperature)(classifier.model(shown), batch).backward()
        # Of a mean over images, whose pixels are at most 1: float32's rounding of differences of probabilities.
        assert classifier.model[1].weight.grad.abs().max() < 1e-5 * temperature
        assert_close(classifier, before)
        train(classifier, x, y, RECIPE)
        assert not same_weights(classifier, before)


class TestTeachers:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_they_agree_on_the_lowest_probability_that_any_of_them_gives(self, temperature):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(3, 5, 4)) * 3
        softened = [np.exp(z / temperature) / np.exp(z / temperature).sum(axis=1, keepdims=True) for z in logits]
        lowest = np.minimum(np.minimum(softened[0], softened[1]), softened[2])
        found = agreed([torch.from_numpy(z) for z in logits], temperature)
        expected = torch.from_numpy(lowest / lowest.sum(axis=1, keepdims=True)).float()
        torch.testing.assert_close((found / temperature).softmax(dim=1), expected)

    def test_what_one_alone_believes_is_not_learnt(self):
        infected, purified = torch.tensor([[9.0, 0.0, 2.0]]), torch.tensor([[-9.0, 0.0, 2.0]])
        learnt = agreed([infected, purified], 1.0).softmax(dim=1)
        assert infected.softmax(dim=1)[0, 0] > 0.99
        assert learnt[0, 0] < 0.02
        torch.testing.assert_close(learnt[0, 2] / learnt[0, 1], torch.tensor(2.0).exp())

    def test_they_are_asked_in_evaluation_mode_and_stay_as_they_are(self):
        first, second = tiny_classifier(dropout=0.5), tiny_classifier(seed=1)
        first._model.train()
        x = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        # Batch normalisation is folded into the convolution meanwhile, which rounds otherwise.
        wanted = agreed([torch.from_numpy(c.predict(x.numpy())) for c in (clone(first), second)], 3.0)
        with untouched(first, second), watched(first) as asked:
            with agreeing([first, second], 3.0, "float32") as teacher:
                found = teacher(x)
            assert [training for _, training in asked] == [False]
            assert not found.requires_grad
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
