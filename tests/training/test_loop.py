"""Training is plain SGD on seeded batches, callbacks watch it, and nothing else changes."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    Calls,
    TinyNet,
    assert_close,
    encoded,
    modes,
    recorded_rates,
    same_weights,
    shifted_versions,
    tiny_classifier,
    tiny_data,
    train,
    untouched,
    watched,
    weights,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from art_aft.classifiers.classifier import build_classifier, clone
from art_aft.training.recipe import Recipe


def recipe(**settings):
    """A short recipe in float32, without augmentation."""
    return Recipe(**{"nb_epochs": 1, "batch_size": 8, "learning_rate": 0.05, "precision": "float32", **settings})


def train_by_hand(model, optimizer, x, y, *, batch_size, nb_epochs=1, seed=0, l2_sp=0.0):
    """The training loop that everybody knows, in the order that art_aft.training.batches draws."""
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    rng = torch.Generator().manual_seed(seed)
    start = [each.detach().clone() for each in model.parameters()]
    model.train()
    for _ in range(nb_epochs):
        for index in torch.randperm(len(x), generator=rng).split(batch_size):
            optimizer.zero_grad()
            moved = sum((each - old).square().sum() for each, old in zip(model.parameters(), start, strict=True))
            (torch.nn.functional.cross_entropy(model(x[index]), y[index]) + l2_sp / 2 * moved).backward()
            optimizer.step()


class LabelSpy(torch.nn.CrossEntropyLoss):
    """Cross entropy that remembers the labels."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, logits, labels):
        self.seen.append(labels.numpy().copy())
        return super().forward(logits, labels)


def numbered(n):
    """Images with their own number in one pixel."""
    x = np.full((n, *SHAPE), 0.5, dtype=np.float32)
    x[:, 0, 0, 0] = np.arange(n) / 100
    return x


def number_of(x):
    return np.rint(x[:, 0, 0, 0] * 100).astype(int)


class TestFit:
    @pytest.mark.parametrize("nesterov", [False, True])
    @pytest.mark.parametrize("nb_epochs", [1, 2])
    def test_is_the_plain_sgd_loop(self, nesterov, nb_epochs):
        x, y = tiny_data(27)
        classifier = tiny_classifier()
        model = copy.deepcopy(classifier.model)
        before = weights(classifier)
        train(classifier, x, y, recipe(nb_epochs=nb_epochs, weight_decay=1e-2, nesterov=nesterov, seed=4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=nesterov)
        train_by_hand(model, optimizer, x, y, batch_size=8, nb_epochs=nb_epochs, seed=4)
        assert_close(classifier, model.state_dict(), 1e-5)
        assert (before["fc.weight"] - weights(classifier)["fc.weight"]).abs().max() > 1e-3

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_pixels_in_another_encoding_train_the_same_network(self, encoding):
        x, y = tiny_data(24)
        plain, other = tiny_classifier(), encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        settings = recipe(nb_epochs=2, padding=2, horizontal_flip=True)
        train(plain, x, y, settings)
        train(other.classifier, other.encode(x), y, settings)
        assert_close(other.classifier, {f"inner.{name}": value for name, value in weights(plain).items()}, 1e-4)

    def test_a_frozen_parameter_is_not_trained(self):
        x, y = tiny_data()
        classifier = tiny_classifier()
        classifier.model.conv.weight.requires_grad_(False)
        before = weights(classifier)
        train(classifier, x, y, recipe(weight_decay=0.1))
        after = weights(classifier)
        assert torch.equal(before["conv.weight"], after["conv.weight"])
        assert not torch.equal(before["fc.weight"], after["fc.weight"])

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_a_seed_fixes_every_bit_and_another_seed_changes_them(self, precision):
        x, y = tiny_data()
        results = []
        for seed in (1, 1, 2):
            classifier = tiny_classifier(dropout=0.5)
            train(classifier, x, y, recipe(seed=seed, padding=2, horizontal_flip=True, precision=precision))
            results.append(weights(classifier))
        assert same_weights(results[0], results[1])
        assert not same_weights(results[0], results[2])

    def test_one_hot_labels_and_indices_mean_the_same(self):
        x, y = tiny_data()
        one, other = tiny_classifier(), tiny_classifier()
        train(one, x, y, recipe())
        train(other, x, np.eye(NB_CLASSES)[y], recipe())
        assert same_weights(one, other)

    def test_read_only_images_are_accepted(self):
        x, y = tiny_data()
        expected, classifier = tiny_classifier(), tiny_classifier()
        train(expected, x, y, recipe())
        x.setflags(write=False)
        train(classifier, x, y, recipe())
        assert same_weights(expected, classifier)

    @pytest.mark.parametrize(
        ("settings", "steps"),
        [
            ({"nb_epochs": 2}, 6),
            ({"nb_epochs": 5, "max_steps": 4}, 4),
            ({"nb_epochs": 1, "max_steps": 4}, 3),
            ({"nb_epochs": 0}, 0),
            ({"max_steps": 0}, 0),
        ],
    )
    def test_takes_as_many_steps_as_epochs_and_max_steps_allow(self, settings, steps):
        x, y = tiny_data(24)
        classifier = tiny_classifier()
        before = weights(classifier)
        with recorded_rates() as rates:
            train(classifier, x, y, recipe(**settings))
        assert len(rates) == steps
        assert same_weights(before, classifier) == (steps == 0)

    @pytest.mark.parametrize(
        ("n", "batch_size", "sizes"),
        [
            (17, 8, [8, 9]),
            (16, 8, [8, 8]),
            (18, 8, [8, 8, 2]),
            (9, 8, [9]),
            (1, 1, [1]),
            (5, 8, [5]),
            (1, 8, [1]),
        ],
    )
    def test_a_last_batch_of_one_image_joins_the_one_before(self, n, batch_size, sizes):
        classifier = tiny_classifier()
        x, y = tiny_data(n)
        with watched(classifier) as seen:
            train(classifier, x, y, recipe(batch_size=batch_size))
        # One image is tried first, to see whether the model can be trained on it.
        assert [len(batch) for batch, _ in seen][-len(sizes) :] == sizes

    def test_a_batch_size_above_the_number_of_images_takes_them_all_at_once(self):
        x, y = tiny_data(20)
        classifier = tiny_classifier()
        model = copy.deepcopy(classifier.model)
        train(classifier, x, y, recipe(batch_size=128, momentum=0.0, weight_decay=0.0))
        train_by_hand(model, torch.optim.SGD(model.parameters(), lr=0.05), x, y, batch_size=20)
        assert_close(classifier, model.state_dict(), 1e-5)

    def test_every_epoch_sees_each_image_once_with_its_label_in_a_new_order(self):
        n = 24
        y = np.arange(n) % NB_CLASSES
        classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        classifier._loss = LabelSpy()
        with watched(classifier) as seen:
            train(classifier, numbered(n), y, recipe(nb_epochs=2))
        order = np.concatenate([number_of(batch) for batch, _ in seen]).reshape(2, n)
        assert sorted(order[0]) == sorted(order[1]) == list(range(n))
        assert order[0].tolist() != order[1].tolist()
        np.testing.assert_array_equal(np.concatenate(classifier.loss.seen), y[order.ravel()])
        assert all(training for _, training in seen)

    @pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
    def test_modes_flags_and_generators_are_as_before(self, fails):
        x, y = tiny_data()
        classifier = tiny_classifier(dropout=0.5)
        classifier._model.train()
        classifier.model.dropout.eval()
        classifier.model.conv.bias.requires_grad_(False)
        before, flags = modes(classifier), [p.requires_grad for p in classifier.model.parameters()]

        def transform(images, labels):
            if fails:
                raise KeyError("inside")
            return images, labels

        with untouched():
            if fails:
                with pytest.raises(KeyError, match="inside"):
                    train(classifier, x, y, recipe(), transform=transform)
            else:
                train(classifier, x, y, recipe(), transform=transform)
        assert modes(classifier) == before
        assert [p.requires_grad for p in classifier.model.parameters()] == flags
        assert all(p.grad is None for p in classifier.model.parameters())

    def test_a_fresh_optimizer_leaves_the_classifiers_own_alone(self):
        x, y = tiny_data()
        classifier = tiny_classifier(momentum=0.9)
        before = copy.deepcopy(classifier.optimizer.state_dict())
        train(classifier, x, y, recipe())
        after = classifier.optimizer.state_dict()
        assert after["param_groups"] == before["param_groups"]
        for index, slot in before["state"].items():
            assert torch.equal(slot["momentum_buffer"], after["state"][index]["momentum_buffer"])

    def test_without_a_learning_rate_the_classifiers_own_optimizer_goes_on(self):
        x, y = tiny_data(24)
        model = TinyNet()
        classifier = build_classifier(
            model, input_shape=SHAPE, nb_classes=NB_CLASSES, optimizer=torch.optim.Adam(model.parameters(), lr=0.01)
        )
        twin = clone(classifier)
        for _ in range(2):
            train(classifier, x, y, recipe(learning_rate=None, schedule="cosine"))
            train_by_hand(twin.model, twin.optimizer, x, y, batch_size=8)
        assert_close(classifier, twin.model.state_dict(), 1e-5)
        assert {int(slot["step"]) for slot in classifier.optimizer.state.values()} == {6}

    @pytest.mark.parametrize("learning_rate", [0.05, None])
    def test_l2_sp_pulls_parameters_to_those_at_the_start_of_each_run(self, learning_rate):
        x, y = tiny_data(24)
        model = TinyNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        classifier = build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES, optimizer=optimizer)
        settings = {"learning_rate": learning_rate, "weight_decay": 0.0, "nb_epochs": 2}
        for strength in (3.0, 0.0, 1.0):
            twin = clone(classifier)
            fresh = torch.optim.SGD(twin.model.parameters(), lr=0.05, momentum=0.9)
            train(classifier, x, y, recipe(l2_sp=strength, **settings))
            train_by_hand(
                twin.model, fresh if learning_rate else twin.optimizer, x, y, batch_size=8, nb_epochs=2, l2_sp=strength
            )
            assert_close(classifier, twin.model.state_dict(), 1e-5)

    def test_without_a_learning_rate_and_an_optimizer_there_is_an_error(self):
        x, y = tiny_data()
        classifier = tiny_classifier()
        with (
            untouched(classifier),
            pytest.raises(ValueError, match=r"^learning_rate: got None for a classifier without an optimizer"),
        ):
            train(classifier, x, y, recipe(learning_rate=None))


class TestSchedules:
    """Five epochs of three steps."""

    STEPS, PEAK = 15, 0.08

    def rates(self, **settings):
        x, y = tiny_data(24)
        with recorded_rates() as rates:
            train(tiny_classifier(), x, y, recipe(nb_epochs=5, learning_rate=self.PEAK, **settings))
        assert len(rates) == settings.get("max_steps", self.STEPS)
        return rates

    def test_constant(self):
        assert self.rates() == pytest.approx([self.PEAK] * self.STEPS)

    @pytest.mark.parametrize("steps", [15, 10])
    def test_cosine_falls_to_0_over_the_steps_that_there_are(self, steps):
        expected = [self.PEAK * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]
        assert self.rates(schedule="cosine", max_steps=steps) == pytest.approx(expected)

    @pytest.mark.parametrize("steps", [15, 10])
    def test_one_cycle_rises_for_three_tenths_and_falls_to_almost_nothing(self, steps):
        start, top, end = self.PEAK / 25, 0.3 * steps - 1, self.PEAK / 25e4

        def between(one, other, share):
            return other + (one - other) * (1 + math.cos(math.pi * share)) / 2

        expected = [
            between(start, self.PEAK, t / top) if t <= top else between(self.PEAK, end, (t - top) / (steps - 1 - top))
            for t in range(steps)
        ]
        assert self.rates(schedule="one_cycle", max_steps=steps) == pytest.approx(expected)

    @pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
    def test_no_schedule_touches_the_momentum(self, schedule):
        momenta = []
        handle = register_optimizer_step_pre_hook(
            lambda optimizer, *_: momenta.append(optimizer.param_groups[0]["momentum"])
        )
        try:
            self.rates(schedule=schedule, momentum=0.7)
        finally:
            handle.remove()
        assert momenta == [0.7] * self.STEPS

    def test_milestones_count_epochs_from_0(self):
        expected = [self.PEAK] * 3 + [0.02] * 6 + [0.004] * 6
        assert self.rates(milestones=((3, 0.004), (1, 0.02))) == pytest.approx(expected)

    def test_a_milestone_at_0_replaces_the_learning_rate(self):
        assert self.rates(milestones=((0, 0.5),)) == pytest.approx([0.5] * self.STEPS)


class TestTransform:
    N = 24

    @pytest.mark.parametrize("augment_last", [False, True])
    def test_it_gets_images_and_labels_and_decides_what_is_learnt(self, augment_last):
        x, _ = tiny_data(self.N)
        y = np.arange(self.N) % NB_CLASSES
        classifier, given = tiny_classifier(), []
        classifier._loss = LabelSpy()

        def transform(images, labels):
            given.append((images.numpy().copy(), labels.numpy().copy()))
            return 1 - images, (labels + 1) % NB_CLASSES

        with watched(classifier) as seen:
            train(classifier, x, y, recipe(padding=3, seed=5), transform=transform, augment_last=augment_last)
        assert len(given) == 3
        order = torch.randperm(self.N, generator=torch.Generator().manual_seed(5)).numpy()
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in given]), y[order])
        np.testing.assert_array_equal(np.concatenate(classifier.loss.seen), (y[order] + 1) % NB_CLASSES)
        for (batch, _), (images, _), source in zip(seen, given, np.split(x[order], 3), strict=True):
            before, after = (source, images) if not augment_last else (1 - images, batch)
            for image, original in zip(np.ascontiguousarray(after), before, strict=True):
                assert image.tobytes() in shifted_versions(original, 3, 0.0)
            assert not np.array_equal(before, after)
            np.testing.assert_array_equal(*((images, source) if augment_last else (batch, 1 - images)))


class TestCallbacks:
    N = 24

    @pytest.mark.parametrize("hook", ["step", "epoch", "transform"])
    def test_a_prediction_in_any_of_them_does_not_end_training_mode(self, hook):
        x, y = tiny_data(self.N)
        classifier = tiny_classifier()

        def predicting(*given):
            classifier.predict(x)  # sets the evaluation mode
            return given if hook == "transform" else None

        settings = {"transform": predicting} if hook == "transform" else {"callbacks": [Calls(**{hook: predicting})]}
        with watched(classifier) as seen:
            train(classifier, x, y, recipe(nb_epochs=3), **settings)
        assert [training for batch, training in seen if len(batch) == 8] == [True] * 9

    def test_each_step_comes_with_its_number_after_the_optimizer(self):
        x, y = tiny_data(self.N)
        classifier, states = tiny_classifier(), {}
        watching = Calls(step=lambda step: states.update({step: weights(classifier)}))
        train(classifier, x, y, recipe(nb_epochs=2), callbacks=[watching])
        assert list(states) == [1, 2, 3, 4, 5, 6]
        for max_steps, state in states.items():
            shorter = tiny_classifier()
            train(shorter, x, y, recipe(nb_epochs=2, max_steps=max_steps))
            assert same_weights(shorter, state)

    def test_each_epoch_comes_with_its_number_and_training_goes_on(self):
        x, y = tiny_data(self.N)
        classifier, seen_states = tiny_classifier(), []

        def on_epoch(epoch):
            seen_states.append((epoch, weights(classifier)))
            classifier.predict(x)  # sets the evaluation mode

        with watched(classifier) as seen:
            train(classifier, x, y, recipe(nb_epochs=3), callbacks=[Calls(epoch=on_epoch)])
        assert [epoch for epoch, _ in seen_states] == [1, 2, 3]
        steps = [training for batch, training in seen if len(batch) == 8]
        assert steps == [True] * 9
        for nb_epochs, state in seen_states:
            shorter = tiny_classifier()
            train(shorter, x, y, recipe(nb_epochs=nb_epochs))
            assert same_weights(shorter, state)

    def test_several_are_called_in_their_order(self):
        x, y = tiny_data(self.N)
        calls = []
        callbacks = [Calls(step=lambda step, name=name: calls.append((step, name))) for name in "ab"]
        train(tiny_classifier(), x, y, recipe(), callbacks=callbacks)
        assert calls == [(step, name) for step in (1, 2, 3) for name in "ab"]
