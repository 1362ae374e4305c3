"""Stage 1 is torchattacks' PGD, for every classifier and pixel range, and leaves no trace."""

import copy

import numpy as np
import pytest
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    linear_classifier,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    weights,
)

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import build_classifier
from art_aft.runtime.devices import images_at_a_time

NORMS = (np.inf, 2)
BOUND = {np.inf: 0.06, 2: 1.5}


def attack(classifier, norm=np.inf, **settings):
    return TorchAttacksPGD(
        classifier, norm=norm, **{"eps": BOUND[norm], "max_iter": 5, "precision": "float32", **settings}
    )


def torchattack(model, norm, *, random_start=False, eps=None, steps=5):
    eps = BOUND[norm] if eps is None else eps
    kind = torchattacks.PGDL2 if norm == 2 else torchattacks.PGD
    return kind(model, eps=eps, alpha=eps / 4, steps=steps, random_start=random_start)


def by_torchattacks(model, norm, x, y, *, seed=0, batch_size=128, **settings):
    """torchattacks called directly, as its own documentation does."""
    direct = torchattack(model, norm, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = zip(torch.from_numpy(x).split(batch_size), torch.from_numpy(y).split(batch_size), strict=True)
        return torch.cat([direct(images, labels) for images, labels in parts]).numpy()


def size(perturbation, norm):
    flat = perturbation.reshape(len(perturbation), -1).astype(np.float64)
    return np.linalg.norm(flat, ord=norm, axis=1)


def losses(classifier, x, y):
    logits = torch.from_numpy(classifier.predict(x))
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none").numpy()


@pytest.fixture
def data():
    return tiny_data(20)


def assert_same_examples(found, expected):
    """Where a gradient is next to nothing, its sign is a matter of rounding; all other pixels are the same."""
    assert np.mean(np.abs(found - expected) < 1e-4) > 0.995


class TestAgainstTorchattacks:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("batch_size", [128, 8])
    @pytest.mark.parametrize("random_start", [False, True], ids=["from the image", "random start"])
    def test_examples_are_bit_for_bit_those_of_torchattacks(self, norm, batch_size, random_start, data):
        x, y = data
        classifier = tiny_classifier()
        examples = attack(classifier, norm, batch_size=batch_size, num_random_init=int(random_start), seed=9).generate(
            x, y
        )
        direct = by_torchattacks(
            copy.deepcopy(classifier.model), norm, x, y, seed=9, batch_size=batch_size, random_start=random_start
        )
        assert examples.dtype == np.float32
        np.testing.assert_array_equal(examples, direct)
        assert (losses(classifier, examples, y) > losses(classifier, x, y)).all()

    def test_examples_are_those_of_arts_own_attack(self, data):
        x, y = data
        classifier = tiny_classifier()
        own = ProjectedGradientDescentPyTorch(classifier, eps=0.06, eps_step=0.015, max_iter=5, verbose=False)
        expected = own.generate(x, np.eye(NB_CLASSES)[y])
        examples = attack(classifier).generate(x, y)
        assert_same_examples(examples, expected)

    def test_a_model_in_training_mode_is_attacked_in_training_mode_on_demand(self, data):
        x, y = data
        classifier = tiny_classifier(dropout=0.3)
        before = weights(classifier)
        examples = attack(classifier, training_mode=True, seed=2).generate(x, y)
        assert same_weights(before, classifier)
        model = copy.deepcopy(classifier.model)
        direct = torchattack(model, np.inf)
        direct.set_model_training_mode(True, True, True)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            expected = direct(torch.from_numpy(x), torch.from_numpy(y)).numpy()
        np.testing.assert_array_equal(examples, expected)
        assert not np.array_equal(examples, attack(classifier, seed=2).generate(x, y))


class TestClosedForms:
    """On a linear model each step goes the same way, so that the end is known."""

    def images(self, n=12, low=0.0, high=1.0):
        return np.random.default_rng(1).uniform(low, high, (n, 1, 4, 4)).astype(np.float32)

    @pytest.mark.parametrize("clip", [True, False])
    @pytest.mark.parametrize("y", [0, 1])
    def test_linf_moves_each_pixel_by_eps_towards_the_other_class(self, y, clip):
        w = np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)
        x = self.images()
        examples = attack(linear_classifier(w), eps=0.2, clip=clip).generate(x, np.full(len(x), y))
        expected = x + 0.2 * np.sign(w[1 - y] - w[y])
        if clip:
            expected = np.clip(expected, 0, 1)
        np.testing.assert_allclose(examples, expected, atol=1e-6)

    @pytest.mark.parametrize("y", [0, 1])
    def test_l2_moves_by_eps_along_the_difference_of_the_weights(self, y):
        w = np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)
        x = self.images(low=0.4, high=0.6)
        examples = attack(linear_classifier(w), 2, eps=0.3).generate(x, np.full(len(x), y))
        direction = w[1 - y] - w[y]
        np.testing.assert_allclose(examples, x + 0.3 * direction / np.linalg.norm(direction), atol=1e-5)

    def test_pixels_that_the_model_ignores_stay(self):
        w = np.zeros((2, 1, 4, 4), dtype=np.float32)
        w[1, 0, 0, 0] = 1.0
        x = self.images()
        examples = attack(linear_classifier(w), eps=0.1).generate(x, np.zeros(len(x)))
        changed = (examples != x).any(axis=0)[0]
        assert changed[0, 0]
        assert changed.sum() == 1

    def test_steps_are_eps_step_and_no_more_than_max_iter(self):
        w = np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)
        x = self.images(low=0.4, high=0.6)
        examples = attack(linear_classifier(w), eps=0.3, eps_step=0.02, max_iter=3).generate(x, np.zeros(len(x)))
        np.testing.assert_allclose(examples, x + 0.06 * np.sign(w[1] - w[0]), atol=1e-6)


class TestBound:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("fraction", [0.1, 1.0, 8.0])
    @pytest.mark.parametrize("starts", [0, 2])
    def test_examples_are_within_the_bound_and_in_range(self, norm, fraction, starts, data):
        x, y = data
        x[:4], x[4:8] = 0.0, 1.0
        eps = fraction * BOUND[norm]
        examples = attack(tiny_classifier(), norm, eps=eps, num_random_init=starts).generate(x, y)
        assert examples.min() >= 0
        assert examples.max() <= 1
        sizes = size(examples - x, norm)
        assert (sizes <= eps * (1 + 1e-5)).all()
        assert sizes.max() > 0.5 * eps

    def test_linf_stays_within_the_bound_exactly(self, data):
        x, y = data
        given = encoded("range255", TinyNet(), SHAPE, NB_CLASSES)
        x = given.encode(x)
        examples = attack(given.classifier, eps=7.7).generate(x, y)
        assert (examples >= x - np.float32(7.7)).all()
        assert (examples <= x + np.float32(7.7)).all()

    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("encoding", [None, "range255"])
    def test_without_clipping_examples_stay_within_the_bound_but_may_leave_the_range(self, norm, encoding, data):
        x, y = data
        x[:4], x[4:8] = 0.0, 1.0
        classifier, spread = tiny_classifier(), 1.0
        if encoding:
            given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
            classifier, spread, x = given.classifier, given.spread, given.encode(x)
        eps = BOUND[norm] * spread
        examples = attack(classifier, norm, eps=eps, clip=False).generate(x, y)
        assert (size(examples - x, norm) <= eps * (1 + 1e-5)).all()
        assert examples.min() < 0
        assert examples.max() > spread

    @pytest.mark.parametrize("high", [1.0, 255.0])
    def test_the_default_bound_is_4_of_255_or_an_l2_length_of_1_at_32x32x3(self, high):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
        classifier = build_classifier(model, input_shape=(3, 32, 32), nb_classes=2, clip_values=(0.0, high))
        for norm, expected in ((np.inf, 4 / 255), ("inf", 4 / 255), (2, 1.0)):
            default = TorchAttacksPGD(classifier, norm=norm)
            assert default.eps == pytest.approx(expected * high)
            assert default.eps_step == pytest.approx(expected * high / 4)
        larger = build_classifier(TinyNet(), input_shape=(3, 224, 224), nb_classes=NB_CLASSES)
        assert TorchAttacksPGD(larger, norm=2).eps == pytest.approx(7.0)

    def test_inf_may_be_spelt_out(self, data):
        classifier = tiny_classifier()
        examples = TorchAttacksPGD(classifier, norm="inf", eps=0.06, max_iter=5, precision="float32").generate(*data)
        np.testing.assert_array_equal(examples, attack(classifier).generate(*data))


class TestEncodings:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_the_same_network_on_other_pixels_gets_the_same_examples(self, encoding, norm, data):
        x, y = data
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        expected = attack(tiny_classifier(), norm).generate(x, y)
        examples = attack(given.classifier, norm, eps=BOUND[norm] * given.spread).generate(given.encode(x), y)
        assert_same_examples(given.decode(examples), expected)

    @pytest.mark.parametrize("encoding", ["normalised", "range255", "view"])
    def test_random_starts_are_the_same_too(self, encoding, data):
        x, y = data
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        settings = {"num_random_init": 2, "seed": 6}
        expected = attack(tiny_classifier(), **settings).generate(x, y)
        examples = attack(given.classifier, eps=0.06 * given.spread, **settings).generate(given.encode(x), y)
        assert_same_examples(given.decode(examples), expected)


class TestMemory:
    """Where a GPU's memory does not hold as many images as would keep it busy."""

    @staticmethod
    def holding(most):
        classifier, seen = tiny_classifier(), []

        def forward(model, images):
            seen.append(len(images[0]))
            if len(images[0]) > most:
                raise torch.cuda.OutOfMemoryError("out of memory")

        classifier.model.register_forward_pre_hook(forward)
        return classifier, seen

    def test_fewer_images_are_attacked_at_a_time(self, data):
        classifier, seen = self.holding(6)
        examples = attack(classifier).generate(*data)
        np.testing.assert_array_equal(examples, attack(tiny_classifier(), batch_size=4).generate(*data))
        # 20 of 128, of 64, of 32, of 16, of 8 and then of 4.
        assert seen[:6] == [20, 20, 20, 16, 8, 4]
        assert set(seen[6:]) == {4}

    @pytest.mark.parametrize(("most", "settings"), [(6, {"batch_size": 8}), (0, {})])
    def test_what_was_asked_for_or_one_image_is_an_error(self, most, settings, data):
        classifier, _ = self.holding(most)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            attack(classifier, **settings).generate(*data)

    def test_a_gpu_gets_as_many_pixels_whatever_the_side_and_a_processor_few_images(self):
        gpu, cpu = torch.device("cuda"), torch.device("cpu")
        assert [images_at_a_time(gpu, (3, side, side)) for side in (32, 64, 224)] == [1024, 256, 32]
        assert images_at_a_time(cpu, (3, 32, 32)) == images_at_a_time(cpu, (3, 224, 224)) == 128


class TestLabels:
    def test_without_labels_the_classifiers_predictions_are_led_away_from(self, data):
        x, y = data
        classifier = tiny_classifier()
        predicted = classifier.predict(x).argmax(axis=1)
        assert (predicted != y).any()
        examples = attack(classifier, batch_size=6).generate(x)
        np.testing.assert_array_equal(examples, attack(classifier, batch_size=6).generate(x, predicted))
        assert not np.array_equal(examples, attack(classifier, batch_size=6).generate(x, y))

    def test_one_hot_labels_are_indices(self, data):
        x, y = data
        classifier = tiny_classifier()
        np.testing.assert_array_equal(
            attack(classifier).generate(x, np.eye(NB_CLASSES)[y]), attack(classifier).generate(x, y)
        )


class TestRandomStarts:
    @pytest.mark.parametrize("norm", NORMS)
    def test_the_strongest_of_three_is_at_least_as_strong_as_the_first(self, norm, data):
        x, y = data
        classifier = tiny_classifier()
        # One batch and one seed, so that the first of three is the only one of one.
        settings = {"max_iter": 1, "eps_step": 0.1 * BOUND[norm], "seed": 4}
        one = attack(classifier, norm, num_random_init=1, **settings).generate(x, y)
        three = attack(classifier, norm, num_random_init=3, **settings).generate(x, y)
        weaker, stronger = losses(classifier, one, y), losses(classifier, three, y)
        assert (stronger >= weaker - 1e-6).all()
        assert (stronger > weaker + 1e-4).mean() > 0.3
        unchanged = np.abs(one - three).max(axis=(1, 2, 3)) == 0
        np.testing.assert_array_equal(unchanged, np.isclose(stronger, weaker, atol=1e-7))

    def test_each_image_takes_the_greatest_loss_of_all_its_starts(self, data):
        x, y = data
        classifier = tiny_classifier()
        direct = torchattack(copy.deepcopy(classifier.model), np.inf, random_start=True, steps=2)
        with torch.random.fork_rng():
            torch.manual_seed(8)
            tries = [direct(torch.from_numpy(x), torch.from_numpy(y)).numpy() for _ in range(4)]
        best = np.argmax([losses(classifier, examples, y) for examples in tries], axis=0)
        assert len(set(best.tolist())) > 2
        expected = np.stack([tries[which][image] for image, which in enumerate(best)])
        examples = attack(classifier, max_iter=2, num_random_init=4, seed=8).generate(x, y)
        np.testing.assert_array_equal(examples, expected)

    def test_a_seed_fixes_the_starts(self, data):
        classifier = tiny_classifier()
        first, second, other = (attack(classifier, num_random_init=1, seed=seed).generate(*data) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, other)


class TestNoTrace:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("training_mode", [False, True])
    def test_classifier_and_generators_are_as_before(self, norm, precision, training_mode, data):
        classifier = tiny_classifier(momentum=0.9, dropout=0.5)
        classifier._model.train()
        classifier.model.bn.eval()
        classifier.model.fc.bias.requires_grad_(False)
        images, labels = data[0].copy(), data[1].copy()
        with untouched(classifier):
            attack(classifier, norm, precision=precision, training_mode=training_mode, num_random_init=2).generate(
                images, labels
            )
        np.testing.assert_array_equal(images, data[0])
        np.testing.assert_array_equal(labels, data[1])

    def test_the_model_is_frozen_meanwhile(self, data):
        classifier, flags = tiny_classifier(), []
        classifier.model.register_forward_pre_hook(
            lambda module, _: flags.extend(parameter.requires_grad for parameter in module.parameters())
        )
        attack(classifier).generate(*data)
        assert len(flags) > 0
        assert not any(flags)

    def test_the_same_after_an_exception_in_the_model(self, data):
        class Failing(TinyNet):
            calls = 0

            def forward(self, x):
                self.calls += 1
                if self.calls == 3:
                    raise MemoryError("in the third step")
                return super().forward(x)

        classifier = build_classifier(Failing(dropout=0.5), input_shape=SHAPE, nb_classes=NB_CLASSES)
        classifier._model.train()
        classifier.model.bn.eval()
        with untouched(classifier), pytest.raises(MemoryError, match="in the third step"):
            attack(classifier, training_mode=True, num_random_init=1).generate(*data)

    def test_gradients_switched_off_outside_do_not_matter(self, data):
        classifier = tiny_classifier()
        expected = attack(classifier).generate(*data)
        with torch.no_grad():
            examples = attack(classifier).generate(*data)
            assert not torch.is_grad_enabled()
        np.testing.assert_array_equal(examples, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_bfloat16_succeeds_as_often_as_float32(norm, infected):
    x, y = infected.x_test[:100], infected.y_test[:100]
    rates = {}
    for precision in ("float32", "bfloat16"):
        # A bound at which the attack succeeds on some images and fails on others.
        examples = attack(infected.classifier, norm, eps={np.inf: 0.075, 2: 0.7}[norm], precision=precision).generate(
            x, y
        )
        rates[precision] = np.mean(infected.classifier.predict(examples).argmax(axis=1) != y)
    assert 0.2 < rates["float32"] < 0.9
    assert rates["bfloat16"] == pytest.approx(rates["float32"], abs=0.04)
