"""Training is plain SGD on seeded, augmented batches, and leaves nothing else changed."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    assert_close,
    encoded,
    modes,
    recorded_rates,
    same_weights,
    shifted_versions,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
    weights,
)
from scipy.stats import binomtest, chisquare
from torch.optim.optimizer import register_optimizer_step_pre_hook

from art_aft.classifiers.classifier import build_classifier, clone
from art_aft.data.loaders import batch_sizes
from art_aft.training.batch_norm import recalibrate_batch_norm
from art_aft.training.batches import Augmentation
from art_aft.training.checkpoints import BestEpoch
from art_aft.training.loop import Recipe, fit


def recipe(**settings):
    """A short recipe in float32, without augmentation."""
    return Recipe(**{"nb_epochs": 1, "batch_size": 8, "learning_rate": 0.05, "precision": "float32", **settings})


def train_by_hand(model, optimizer, x, y, *, batch_size, nb_epochs=1, seed=0):
    """The training loop that everybody knows, in the order that art_aft.training.batches draws."""
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    rng = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(nb_epochs):
        for index in torch.randperm(len(x), generator=rng).split(batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()


class LabelSpy(torch.nn.CrossEntropyLoss):
    """Cross entropy that remembers the labels."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, logits, labels):
        self.seen.append(labels.numpy().copy())
        return super().forward(logits, labels)


def numbered(n, mark=0.0):
    """Images that carry their own number in one pixel and a mark in the next."""
    x = np.full((n, *SHAPE), 0.5, dtype=np.float32)
    x[:, 0, 0, 0] = np.arange(n) / 100
    x[:, 0, 0, 1] = mark
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
        fit(classifier, x, y, recipe(nb_epochs=nb_epochs, weight_decay=1e-2, nesterov=nesterov, seed=4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=nesterov)
        train_by_hand(model, optimizer, x, y, batch_size=8, nb_epochs=nb_epochs, seed=4)
        assert_close(classifier, model.state_dict())
        assert (before["fc.weight"] - weights(classifier)["fc.weight"]).abs().max() > 1e-3

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_pixels_in_another_encoding_train_the_same_network(self, encoding):
        x, y = tiny_data(24)
        plain, other = tiny_classifier(), encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        settings = recipe(nb_epochs=2, padding=2, mirror=True)
        fit(plain, x, y, settings)
        fit(other.classifier, other.encode(x), y, settings)
        assert_close(other.classifier, {f"inner.{name}": value for name, value in weights(plain).items()}, 1e-4)

    def test_a_frozen_parameter_is_not_trained(self):
        x, y = tiny_data()
        classifier = tiny_classifier()
        classifier.model.conv.weight.requires_grad_(False)
        before = weights(classifier)
        fit(classifier, x, y, recipe(weight_decay=0.1))
        after = weights(classifier)
        assert torch.equal(before["conv.weight"], after["conv.weight"])
        assert not torch.equal(before["fc.weight"], after["fc.weight"])

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_a_seed_fixes_every_bit_and_another_seed_changes_them(self, precision):
        x, y = tiny_data()
        results = []
        for seed in (1, 1, 2):
            classifier = tiny_classifier(dropout=0.5)
            fit(classifier, x, y, recipe(seed=seed, padding=2, mirror=True, precision=precision))
            results.append(weights(classifier))
        assert same_weights(results[0], results[1])
        assert not same_weights(results[0], results[2])

    def test_one_hot_labels_and_indices_mean_the_same(self):
        x, y = tiny_data()
        one, other = tiny_classifier(), tiny_classifier()
        fit(one, x, y, recipe())
        fit(other, x, np.eye(NB_CLASSES)[y], recipe())
        assert same_weights(one, other)

    def test_read_only_images_are_accepted(self):
        x, y = tiny_data()
        expected, classifier = tiny_classifier(), tiny_classifier()
        fit(expected, x, y, recipe())
        x.setflags(write=False)
        fit(classifier, x, y, recipe())
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
            fit(classifier, x, y, recipe(**settings))
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
            fit(classifier, x, y, recipe(batch_size=batch_size))
        assert [len(batch) for batch, _ in seen] == sizes

    def test_a_batch_size_above_the_number_of_images_takes_them_all_at_once(self):
        x, y = tiny_data(20)
        classifier = tiny_classifier()
        model = copy.deepcopy(classifier.model)
        fit(classifier, x, y, recipe(batch_size=128, momentum=0.0, weight_decay=0.0))
        train_by_hand(model, torch.optim.SGD(model.parameters(), lr=0.05), x, y, batch_size=20)
        assert_close(classifier, model.state_dict())

    def test_every_epoch_sees_each_image_once_with_its_label_in_a_new_order(self):
        n = 24
        y = np.arange(n) % NB_CLASSES
        classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        classifier._loss = LabelSpy()
        with watched(classifier) as seen:
            fit(classifier, numbered(n), y, recipe(nb_epochs=2))
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

        def each_batch(images, labels):
            if fails:
                raise KeyError("inside")
            return images, labels

        with untouched():
            if fails:
                with pytest.raises(KeyError, match="inside"):
                    fit(classifier, x, y, recipe(), each_batch=each_batch)
            else:
                fit(classifier, x, y, recipe(), each_batch=each_batch)
        assert modes(classifier) == before
        assert [p.requires_grad for p in classifier.model.parameters()] == flags
        assert all(p.grad is None for p in classifier.model.parameters())

    def test_a_fresh_optimizer_leaves_the_classifiers_own_alone(self):
        x, y = tiny_data()
        classifier = tiny_classifier(momentum=0.9)
        before = copy.deepcopy(classifier.optimizer.state_dict())
        fit(classifier, x, y, recipe())
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
            fit(classifier, x, y, recipe(learning_rate=None, schedule="cosine"))
            train_by_hand(twin.model, twin.optimizer, x, y, batch_size=8)
        assert_close(classifier, twin.model.state_dict(), 1e-5)
        assert {int(slot["step"]) for slot in classifier.optimizer.state.values()} == {6}

    def test_without_a_learning_rate_and_an_optimizer_there_is_an_error(self):
        x, y = tiny_data()
        classifier = tiny_classifier()
        with (
            untouched(classifier),
            pytest.raises(ValueError, match=r"^learning_rate: got None for a classifier without an optimizer"),
        ):
            fit(classifier, x, y, recipe(learning_rate=None))

    @pytest.mark.parametrize("freeze", [False, True])
    def test_frozen_batch_normalisation_keeps_its_statistics_while_its_weights_learn(self, freeze):
        x, y = tiny_data()
        classifier = tiny_classifier()
        before = weights(classifier)
        fit(classifier, x, y, recipe(freeze_bn=freeze))
        after = weights(classifier)
        assert torch.equal(before["bn.running_mean"], after["bn.running_mean"]) == freeze
        assert torch.equal(before["bn.running_var"], after["bn.running_var"]) == freeze
        assert not torch.equal(before["bn.weight"], after["bn.weight"])


class TestSchedules:
    """Five epochs of three steps."""

    STEPS, PEAK = 15, 0.08

    def rates(self, **settings):
        x, y = tiny_data(24)
        with recorded_rates() as rates:
            fit(tiny_classifier(), x, y, recipe(nb_epochs=5, learning_rate=self.PEAK, **settings))
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


class TestHooks:
    N = 24

    def test_each_epoch_may_replace_the_images(self):
        y = np.zeros(self.N, dtype=int)
        classifier, asked = tiny_classifier(), []

        def each_epoch(epoch):
            asked.append(epoch)
            return numbered(self.N, mark=epoch / 10) if epoch in (1, 2) else None

        with watched(classifier) as seen:
            fit(classifier, numbered(self.N), y, recipe(nb_epochs=4), each_epoch=each_epoch)
        assert asked == [0, 1, 2, 3]
        marks = [set(np.round(batch[:, 0, 0, 1], 1).tolist()) for batch, _ in seen]
        # None keeps what there is.
        assert marks == [{0.0}] * 3 + [{np.float32(0.1).round(1).item()}] * 3 + [{np.float32(0.2).round(1).item()}] * 6
        for epoch in range(4):
            numbers = np.concatenate([number_of(batch) for batch, _ in seen[3 * epoch : 3 * epoch + 3]])
            assert sorted(numbers) == list(range(self.N))

    def test_each_batch_gets_augmented_images_and_decides_what_is_learnt(self):
        x, _ = tiny_data(self.N)
        y = np.arange(self.N) % NB_CLASSES
        classifier, given = tiny_classifier(), []
        classifier._loss = LabelSpy()

        def each_batch(images, labels):
            given.append((images.numpy().copy(), labels.numpy().copy()))
            return 1 - images, (labels + 1) % NB_CLASSES

        with watched(classifier) as seen:
            fit(classifier, x, y, recipe(padding=3, seed=5), each_batch=each_batch)
        assert len(given) == 3
        order = torch.randperm(self.N, generator=torch.Generator().manual_seed(5)).numpy()
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in given]), y[order])
        np.testing.assert_array_equal(np.concatenate(classifier.loss.seen), (y[order] + 1) % NB_CLASSES)
        for (batch, _), (images, _), source in zip(seen, given, np.split(x[order], 3), strict=True):
            np.testing.assert_array_equal(batch, 1 - images)
            for image, original in zip(images, source, strict=True):
                assert image.tobytes() in shifted_versions(original, 3, 0.0)
            assert not np.array_equal(images, source)

    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
    def test_a_share_of_each_batch_is_the_clean_image_of_the_same_number(self, share):
        y = np.arange(self.N) % NB_CLASSES
        classifier = tiny_classifier()
        classifier._loss = LabelSpy()
        with watched(classifier) as seen:
            fit(
                classifier,
                numbered(self.N),
                y,
                recipe(nb_epochs=2),
                clean=(numbered(self.N, mark=1.0), share),
            )
        for batch, _ in seen:
            assert batch[:, 0, 0, 1].sum() == share * 8
        numbers = np.concatenate([number_of(batch) for batch, _ in seen])
        assert sorted(numbers[: self.N]) == sorted(numbers[self.N :]) == list(range(self.N))
        np.testing.assert_array_equal(np.concatenate(classifier.loss.seen), y[numbers])

    @pytest.mark.parametrize(
        ("clean", "message"),
        [
            ((numbered(24), 1.5), r"^clean: got 1\.5, expected a number >= 0 and <= 1"),
            ((numbered(23), 0.5), r"got 24 labels, expected one for each of the 23 images"),
        ],
    )
    def test_a_wrong_clean_share_is_refused(self, clean, message):
        classifier = tiny_classifier()
        with untouched(classifier), pytest.raises(ValueError, match=message):
            fit(classifier, numbered(self.N), np.zeros(self.N), recipe(), clean=clean)

    @pytest.mark.parametrize("hook", ["each_epoch", "each_batch", "after_step", "after_epoch"])
    def test_a_prediction_in_any_hook_does_not_end_training_mode(self, hook):
        x, y = tiny_data(self.N)
        classifier = tiny_classifier()

        def predicting(*given):
            classifier.predict(x)  # sets the evaluation mode
            return given if hook == "each_batch" else None

        with watched(classifier) as seen:
            fit(classifier, x, y, recipe(nb_epochs=3), **{hook: predicting})
        assert [training for batch, training in seen if len(batch) == 8] == [True] * 9

    def test_after_epoch_is_told_the_number_of_epochs_and_training_goes_on(self):
        x, y = tiny_data(self.N)
        classifier, told = tiny_classifier(), []

        def after_epoch(epoch):
            told.append((epoch, weights(classifier)))
            classifier.predict(x)  # sets the evaluation mode

        with watched(classifier) as seen:
            fit(classifier, x, y, recipe(nb_epochs=3), after_epoch=after_epoch)
        assert [epoch for epoch, _ in told] == [1, 2, 3]
        steps = [training for batch, training in seen if len(batch) == 8]
        assert steps == [True] * 9
        for nb_epochs, state in told:
            shorter = tiny_classifier()
            fit(shorter, x, y, recipe(nb_epochs=nb_epochs))
            assert same_weights(shorter, state)


class TestAugmentation:
    IMAGE = np.arange(1, 1 + 2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6)

    def copies(self, n):
        return torch.from_numpy(np.repeat(self.IMAGE[np.newaxis], n, axis=0))

    @pytest.mark.parametrize("padding", [1, 2])
    @pytest.mark.parametrize("mirror", [False, True])
    def test_each_shift_and_side_comes_with_the_same_probability(self, padding, mirror):
        n = 3000
        versions = shifted_versions(self.IMAGE, padding, -7.0, mirror=mirror)
        assert len(versions) == (2 * padding + 1) ** 2 * (1 + mirror)
        augmented = Augmentation(padding, mirror, -7.0)(self.copies(n), torch.Generator().manual_seed(0)).numpy()
        found = np.array([versions[image.tobytes()] for image in np.ascontiguousarray(augmented)])
        counts = np.bincount(found, minlength=len(versions))
        assert chisquare(counts).pvalue > 1e-3

    def test_mirroring_alone_flips_about_half_left_to_right(self):
        n = 2000
        augmented = Augmentation(mirror=True)(self.copies(n), torch.Generator().manual_seed(0)).numpy()
        flipped = (augmented == self.IMAGE[:, :, ::-1]).all(axis=(1, 2, 3))
        kept = (augmented == self.IMAGE).all(axis=(1, 2, 3))
        assert (flipped ^ kept).all()
        assert binomtest(int(flipped.sum()), n).pvalue > 1e-3

    def test_channels_last_images_are_augmented_the_same(self):
        x = torch.rand(50, 3, 6, 7, generator=torch.Generator().manual_seed(1))
        first = Augmentation(2, True, 0.5)(x, torch.Generator().manual_seed(2))
        last = Augmentation(2, True, 0.5, channels_first=False)(x.permute(0, 2, 3, 1), torch.Generator().manual_seed(2))
        assert torch.equal(last.permute(0, 3, 1, 2), first)
        assert not torch.equal(first, x)

    def test_without_padding_and_mirror_nothing_happens_and_nothing_is_drawn(self):
        x, rng = self.copies(4), torch.Generator().manual_seed(3)
        before = rng.get_state()
        assert torch.equal(Augmentation()(x, rng), x)
        assert torch.equal(rng.get_state(), before)

    def test_in_training_the_border_has_the_lowest_pixel_value_and_epochs_differ(self):
        n, low = 12, -3.0
        classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES, clip_values=(low, 2.0))
        x, y = tiny_data(n)
        with watched(classifier) as seen:
            fit(classifier, x, y, recipe(nb_epochs=2, batch_size=n, padding=3, mirror=True))
        versions = [shifted_versions(image, 3, low, mirror=True) for image in x]
        shifts = []
        for batch, _ in seen:
            found = {}
            for image in np.ascontiguousarray(batch):
                (number,) = (i for i, version in enumerate(versions) if image.tobytes() in version)
                found[number] = versions[number][image.tobytes()]
            assert sorted(found) == list(range(n))
            shifts.append([found[number] for number in range(n)])
        assert shifts[0] != shifts[1]


def test_batch_sizes_add_up_and_only_the_last_may_differ():
    for n in range(1, 40):
        for batch_size in range(2, 12):
            sizes = batch_sizes(n, batch_size)
            assert sum(sizes) == n
            assert all(size == batch_size for size in sizes[:-1])
            assert 1 <= sizes[-1] <= batch_size + 1
            assert sizes[-1] != 1 or n == 1


class TestRecalibrateBatchNorm:
    @staticmethod
    def net(*first):
        return torch.nn.Sequential(*first, torch.nn.BatchNorm2d(3, momentum=0.3), TinyNet())

    @staticmethod
    def expected(batches):
        """The plain average over batches of their means and unbiased variances, per channel."""
        means = np.mean([batch.mean(axis=(0, 2, 3)) for batch in batches], axis=0)
        return means, np.mean([batch.var(axis=(0, 2, 3), ddof=1) for batch in batches], axis=0)

    @pytest.mark.parametrize("batch_size", [24, 8, 100])
    def test_statistics_are_those_of_the_images_and_weights_stay(self, batch_size):
        x, _ = tiny_data(24)
        classifier = build_classifier(self.net(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        before = weights(classifier)
        with untouched():
            recalibrate_batch_norm(classifier, x, batch_size=batch_size)
        mean, variance = self.expected([x[start : start + batch_size] for start in range(0, 24, batch_size)])
        layer = classifier.model[0]
        np.testing.assert_allclose(layer.running_mean, mean, atol=1e-6)
        np.testing.assert_allclose(layer.running_var, variance, atol=1e-6)
        assert layer.momentum == 0.3
        after = weights(classifier)
        for name, value in before.items():
            if "running" not in name and "num_batches" not in name:
                assert torch.equal(value, after[name]), name
        assert not torch.equal(before["1.bn.running_mean"], after["1.bn.running_mean"])

    def test_statistics_are_those_behind_the_preprocessing(self):
        x, _ = tiny_data(24)
        mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 1.0, 2.0])
        classifier = build_classifier(self.net(), input_shape=SHAPE, nb_classes=NB_CLASSES, preprocessing=(mean, std))
        recalibrate_batch_norm(classifier, x, batch_size=24)
        expected_mean, expected_variance = self.expected([(x - mean[:, None, None]) / std[:, None, None]])
        np.testing.assert_allclose(classifier.model[0].running_mean, expected_mean, atol=1e-5)
        np.testing.assert_allclose(classifier.model[0].running_var, expected_variance, atol=1e-5)

    @pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
    def test_the_mode_that_the_classifier_is_in_does_not_matter(self, training):
        x, _ = tiny_data(24)
        classifier = build_classifier(self.net(torch.nn.Dropout(0.5)), input_shape=SHAPE, nb_classes=NB_CLASSES)
        classifier._model.train(training)
        before = modes(classifier)
        recalibrate_batch_norm(classifier, x, batch_size=24)
        assert modes(classifier) == before
        np.testing.assert_allclose(classifier.model[1].running_mean, x.mean(axis=(0, 2, 3)), atol=1e-6)

    def test_a_layer_without_statistics_and_a_model_without_layers_are_fine(self):
        x, _ = tiny_data(8)
        bare = torch.nn.Sequential(torch.nn.BatchNorm2d(3, track_running_stats=False), torch.nn.Flatten())
        model = torch.nn.Sequential(*bare, torch.nn.Linear(432, NB_CLASSES))
        classifier = build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES)
        with untouched(classifier):
            recalibrate_batch_norm(classifier, x)

    def test_images_that_do_not_fit_are_refused(self):
        classifier = tiny_classifier()
        with untouched(classifier), pytest.raises(ValueError, match=r"^x: got shape \(4, 3, 12\), expected \(N, 3, 12"):
            recalibrate_batch_norm(classifier, np.zeros((4, 3, 12), dtype=np.float32))


class TestBestEpoch:
    X = np.array([0.1, 0.3, 0.5, 0.7], dtype=np.float32).reshape(4, 1, 1, 1)
    Y = np.array([0, 0, 1, 1])

    @staticmethod
    def set_threshold(classifier, threshold):
        """Say 1 for pixels above the threshold."""
        with torch.no_grad():
            classifier.model[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
            classifier.model[1].bias.copy_(torch.tensor([0.0, -threshold]))

    @staticmethod
    def classifier():
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
        return build_classifier(model, input_shape=(1, 1, 1), nb_classes=2)

    @pytest.mark.parametrize(
        ("thresholds", "best"),
        [
            ((0.0, 0.4, 0.2), 0.4),  # accuracies 1/2, 1, 3/4
            ((0.4, 0.0, 0.35, 0.2), 0.35),  # 1, 1/2, 1, 3/4: the latest of equals
            ((0.0, 0.2), 0.2),  # 1/2, 3/4
            ((0.9,), 0.9),
        ],
    )
    def test_restores_the_weights_of_the_most_accurate_epoch(self, thresholds, best):
        classifier = self.classifier()
        choice = BestEpoch(classifier, (self.X, self.Y), batch_size=3)
        for epoch, threshold in enumerate(thresholds, start=1):
            self.set_threshold(classifier, threshold)
            choice(epoch)
        self.set_threshold(classifier, 123.0)
        choice.restore()
        assert classifier.model[1].bias[1].item() == pytest.approx(-best)

    def test_without_an_epoch_there_is_nothing_to_restore(self):
        classifier = self.classifier()
        with untouched(classifier):
            BestEpoch(classifier, (self.X, self.Y), batch_size=3).restore()

    def test_in_training_the_chosen_epoch_is_that_of_a_shorter_run(self):
        x, y = tiny_data(40)
        x_held_out, y_held_out = tiny_data(40, seed=1)
        settings = {"learning_rate": 0.5, "momentum": 0.0}
        accuracies, states = [], []
        for nb_epochs in range(1, 6):
            shorter = tiny_classifier()
            fit(shorter, x, y, recipe(nb_epochs=nb_epochs, **settings))
            accuracies.append(np.mean(shorter.predict(x_held_out).argmax(axis=1) == y_held_out))
            states.append(weights(shorter))
        best = max(range(5), key=lambda epoch: (accuracies[epoch], epoch))
        assert best < 4  # else this test would show nothing
        classifier = tiny_classifier()
        choice = BestEpoch(classifier, (x_held_out, y_held_out), batch_size=16)
        fit(classifier, x, y, recipe(nb_epochs=5, **settings), after_epoch=choice)
        choice.restore()
        assert same_weights(classifier, states[best])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"nb_epochs": -1}, ValueError, r"^nb_epochs: got -1, expected an integer >= 0"),
        ({"nb_epochs": 1.5}, TypeError, r"^nb_epochs: got 1\.5 \(float\), expected an integer"),
        ({"batch_size": 0}, ValueError, r"^batch_size: got 0, expected an integer >= 1"),
        ({"learning_rate": 0.0}, ValueError, r"^learning_rate: got 0\.0, expected a number > 0"),
        ({"learning_rate": float("nan")}, ValueError, r"^learning_rate: got nan"),
        ({"momentum": 1.5}, ValueError, r"^momentum: got 1\.5, expected a number >= 0 and <= 1"),
        ({"weight_decay": -1e-4}, ValueError, r"^weight_decay: got -0\.0001"),
        ({"nesterov": True, "momentum": 0}, ValueError, r"^nesterov: got True with momentum 0"),
        ({"nesterov": "yes"}, TypeError, r"^nesterov: got 'yes' \(str\), expected True or False"),
        ({"schedule": "linear"}, ValueError, r"^schedule: got 'linear', expected one of 'constant'"),
        (
            {"schedule": "cosine", "milestones": ((1, 0.1),)},
            ValueError,
            r"^milestones: got some with schedule 'cosine'",
        ),
        ({"milestones": ((-1, 0.1),)}, ValueError, r"^milestones: got -1"),
        ({"milestones": ((1, -0.1),)}, ValueError, r"^milestones: got -0\.1"),
        ({"padding": -1}, ValueError, r"^padding: got -1"),
        ({"mirror": 1}, TypeError, r"^mirror: got 1 \(int\), expected True or False"),
        ({"freeze_bn": None}, TypeError, r"^freeze_bn: got None"),
        ({"max_steps": -1}, ValueError, r"^max_steps: got -1"),
        ({"precision": "float16"}, ValueError, r"^precision: got 'float16', expected one of 'auto'"),
        ({"seed": -1}, ValueError, r"^seed: got -1"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Recipe(**settings)
