"""Adversarial Fine-Tuning is Algorithm 1, removes a backdoor, and each setting does what it says."""

import copy

import numpy as np
import pytest
import torch
import torchattacks
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    assert_close,
    encoded,
    linear_classifier,
    recorded_rates,
    same_weights,
    shifted_versions,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
    weights,
    with_history,
)

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.adversarial.universal import universal_perturbations
from art_aft.classifiers.classifier import build_classifier, clone
from art_aft.defences import AdversarialFineTuning, AdversarialFineTuningTrainer, FineTuning

SETTINGS = {"batch_size": 32, "learning_rate": 0.02, "padding": 1, "mirror": False}
N = 24


def aft(classifier, **settings):
    return AdversarialFineTuning(classifier, **{**SETTINGS, "eps": 0.1, **settings})


def short(classifier, **settings):
    """A run of three steps a stage, for what needs no purified classifier."""
    return aft(classifier, **{"batch_size": 16, "max_steps": 3, "max_iter": 3, "precision": "float32", **settings})


def plain(classifier, **settings):
    """
    A run without anything random: each step takes all N images as they are.

    The order of the images then changes nothing but rounding, so that it can be repeated by hand.
    """
    defaults = {
        "eps": 0.08,
        "max_iter": 4,
        "nb_epochs": 3,
        "clean_epochs": 2,
        "batch_size": N,
        "learning_rate": 0.05,
        "weight_decay": 1e-3,
        "padding": 0,
        "mirror": False,
        "precision": "float32",
    }
    return AdversarialFineTuning(classifier, **{**defaults, **settings})


def pgd(model, x, y, *, kind=torchattacks.PGD, eps=0.08, alpha=0.02, training=False):
    """Adversarial examples of the model as it is now, by torchattacks alone."""
    attack = kind(copy.deepcopy(model), eps=eps, alpha=alpha, steps=4, **random_start(kind))
    attack.set_model_training_mode(training, training, training)
    return attack(x, y)


def random_start(kind):
    return {"random_start": False} if kind in (torchattacks.PGD, torchattacks.PGDL2) else {}


def predictions(model, x):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return model(x).argmax(dim=1)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


class Handmade:
    """Algorithm 1 as a plain PyTorch script of full-batch steps."""

    def __init__(self, classifier, x, y):
        self.model = copy.deepcopy(classifier.model).train()
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)

    def steps(self, x, y, number, optimizer=None):
        optimizer = optimizer or sgd(self.model)
        for _ in range(number):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(x), y).backward()
            optimizer.step()
        return self

    @property
    def state(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.fixture
def victim():
    """A small classifier that gets some of the data right and some wrong, with the data."""
    classifier = tiny_classifier()
    x, y = tiny_data(N)
    right = classifier.predict(x).argmax(axis=1) == y
    assert 4 < right.sum() < N - 4
    return classifier, x, y


@pytest.fixture(scope="module")
def defence(infected):
    return aft(infected.classifier)


@pytest.fixture(scope="module")
def purified(defence, infected):
    with untouched(infected.classifier):
        return defence(infected.x, y=infected.y)


class TestPurification:
    def test_the_backdoor_goes_and_the_accuracy_stays(self, infected, purified):
        before, after = infected.scores(infected.classifier), infected.scores(purified)
        assert before.asr >= 0.95
        assert before.acc >= 0.95
        assert after.asr <= 0.05
        assert after.acc >= 0.93
        assert after.ra >= 0.9

    def test_fine_tuning_at_the_same_rate_leaves_the_backdoor(self, infected):
        tuned = FineTuning(infected.classifier, **SETTINGS)(infected.x, y=infected.y)
        assert infected.scores(tuned).asr > 0.5

    def test_both_results_are_in_evaluation_mode(self, defence, purified):
        assert not any(module.training for module in purified.model.modules())
        assert not any(module.training for module in defence.adversarial_classifier.model.modules())

    def test_stage_2_alone_removes_the_backdoor_and_stage_3_wins_accuracy_back(self, infected, defence, purified):
        stage_2 = infected.scores(defence.adversarial_classifier)
        assert stage_2.asr <= 0.05
        assert infected.scores(purified).acc > stage_2.acc

    @pytest.mark.parametrize("encoding", ["range255", "view"])
    def test_it_works_in_bfloat16_on_other_models_and_pixels(self, encoding, infected, matrix_units):
        given = encoded(encoding, infected.classifier.model, (1, 16, 16), 10)
        purified = aft(given.classifier, eps=0.1 * given.spread)(given.encode(infected.x), y=infected.y)
        predicted = purified.predict(given.encode(infected.x_test)).argmax(axis=1)
        assert np.mean(predicted == infected.y_test) >= 0.93

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_the_same_network_on_other_pixels_is_purified_the_same(self, encoding, infected):
        given = encoded(encoding, infected.classifier.model, (1, 16, 16), 10)
        expected = short(infected.classifier)(infected.x, y=infected.y)
        purified = short(given.classifier, eps=0.1 * given.spread)(given.encode(infected.x), y=infected.y)
        x_test = infected.x_test[:200]
        logits = expected.predict(x_test)
        np.testing.assert_allclose(purified.predict(given.encode(x_test)), logits, atol=0.02)
        assert np.abs(logits - infected.classifier.predict(x_test)).max() > 1


class TestAlgorithm1:
    def test_it_is_pgd_once_then_sgd_on_the_examples_then_on_the_images(self, victim):
        classifier, x, y = victim
        hand = Handmade(classifier, x, y)
        examples = pgd(hand.model, hand.x, hand.y)
        stage_2 = hand.steps(examples, hand.y, 3).state
        stage_3 = hand.steps(hand.x, hand.y, 2).state
        defence = plain(classifier)
        with untouched(classifier):
            purified = defence(x, y=y)
        assert_close(defence.adversarial_classifier, stage_2, 1e-5)
        assert_close(purified, stage_3, 1e-5)
        assert (stage_2["fc.weight"] - stage_3["fc.weight"]).abs().max() > 1e-2

    def test_without_clean_epochs_the_result_of_stage_2_is_returned(self, victim):
        classifier, x, y = victim
        full, half = short(classifier), short(classifier, clean_epochs=0)
        complete, stopped = full(x, y=y), half(x, y=y)
        assert same_weights(stopped, half.adversarial_classifier)
        assert same_weights(stopped, full.adversarial_classifier)
        assert not same_weights(stopped, complete)
        assert stopped is not half.adversarial_classifier

    def test_without_epochs_nothing_is_changed(self, victim):
        classifier, x, y = victim
        assert same_weights(plain(classifier, nb_epochs=0, clean_epochs=0)(x, y=y), classifier)

    def test_one_hot_labels_are_indices(self, victim):
        classifier, x, y = victim
        assert same_weights(short(classifier)(x, y=y), short(classifier)(x, y=np.eye(NB_CLASSES)[y]))

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_a_seed_fixes_every_bit_and_another_seed_changes_them(self, precision, infected):
        runs = [
            short(infected.classifier, seed=seed, precision=precision, num_random_init=1)(infected.x, y=infected.y)
            for seed in (1, 1, 2)
        ]
        assert same_weights(runs[0], runs[1])
        assert not same_weights(runs[0], runs[2])

    def test_the_infected_classifier_and_the_generators_stay_whatever_their_state(self, infected):
        classifier = clone(infected.classifier)
        classifier._model.train()
        classifier.model.bn.eval()
        classifier.model.fc.bias.requires_grad_(False)
        images, labels = infected.x.copy(), infected.y.copy()
        with untouched(classifier):
            purified = short(classifier)(infected.x, y=infected.y)
        assert not same_weights(purified, classifier)
        assert torch.equal(purified.model.fc.bias, classifier.model.fc.bias)
        np.testing.assert_array_equal(infected.x, images)
        np.testing.assert_array_equal(infected.y, labels)

    @pytest.mark.parametrize(
        "settings",
        [
            {"misclassified": "keep"},
            {"misclassified": "skip"},
            {"regenerate": "epoch"},
            {"regenerate": "batch"},
            {"regenerate": "epoch", "misclassified": "keep"},
            {"augment_first": True, "n_views": 2},
            {"held_out": 0.25},
            {"recalibrate_bn": True},
            {"num_random_init": 2, "training_mode": True, "attack_labels": "predicted"},
            {"clean_share": 0.5, "freeze_bn": True, "norm": 2},
            {"learning_rate": None},
        ],
        ids=lambda settings: ", ".join(f"{name}={value}" for name, value in settings.items()),
    )
    def test_every_setting_leaves_the_infected_classifier_and_the_generators_alone(self, settings, victim):
        _, x, y = victim
        classifier = tiny_classifier(momentum=0.9, dropout=0.5)
        classifier._model.train()
        defence = short(classifier, batch_size=4, **settings)
        with untouched(classifier):
            first = defence(x, y=y)
        assert same_weights(first, defence(x, y=y))

    @pytest.mark.parametrize("recalibrate_bn", [False, True])
    def test_the_mode_that_the_classifier_comes_in_does_not_matter(self, recalibrate_bn, victim):
        _, x, y = victim
        results = []
        for training in (False, True):
            # Dropout before the layer whose statistics are recomputed.
            model = torch.nn.Sequential(torch.nn.Dropout(0.3), TinyNet())
            classifier = build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES)
            classifier._model.train(training)
            results.append(short(classifier, recalibrate_bn=recalibrate_bn)(x, y=y))
        assert same_weights(*results)


class TestInPlace:
    def test_a_given_classifier_is_purified_from_its_own_weights_and_returned(self, infected, victim):
        other, x, y = victim
        given, same = tiny_classifier(seed=5), tiny_classifier(seed=5)
        with untouched(other):
            result = short(other)(x, given, y)
        assert result is given
        assert same_weights(given, short(same)(x, y=y))
        assert not same_weights(given, same)
        assert not any(module.training for module in given.model.modules())

    def test_the_trainer_changes_its_classifier_to_what_the_transformer_returns(self, infected):
        classifier = clone(infected.classifier)
        settings = {**SETTINGS, "eps": 0.1, "max_steps": 3, "max_iter": 3}
        trainer = AdversarialFineTuningTrainer(classifier, **settings)
        assert trainer.get_classifier() is classifier
        with untouched():
            assert trainer.fit(infected.x, infected.y) is None
        expected = AdversarialFineTuning(infected.classifier, **settings)(infected.x, y=infected.y)
        assert same_weights(classifier, expected)
        assert not same_weights(classifier, infected.classifier)

    def test_the_trainer_refuses_what_it_does_not_know(self, victim):
        classifier, x, y = victim
        with pytest.raises(TypeError, match="'epsilon'"):
            AdversarialFineTuningTrainer(classifier, epsilon=0.1)
        with pytest.raises(ValueError, match=r"^eps: got 0, expected a number > 0"):
            AdversarialFineTuningTrainer(classifier, eps=0)
        with untouched(classifier):
            with pytest.raises(TypeError, match=r"^fit: got unknown argument 'nb_epochs'"):
                AdversarialFineTuningTrainer(classifier).fit(x, y, nb_epochs=3)
            with pytest.raises(ValueError, match=r"^y: got 1 labels, expected one for each of the 24 images"):
                AdversarialFineTuningTrainer(classifier).fit(x, y[:1])


class TestAttackSettings:
    def test_norm_2_attacks_within_an_l2_ball(self, victim):
        classifier, x, y = victim
        hand = Handmade(classifier, x, y)
        examples = pgd(hand.model, hand.x, hand.y, kind=torchattacks.PGDL2, eps=1.2, alpha=0.3)
        hand.steps(examples, hand.y, 3).steps(hand.x, hand.y, 2)
        assert_close(plain(classifier, norm=2, eps=1.2)(x, y=y), hand.state, 1e-4)

    def test_without_clipping_examples_may_leave_the_range(self, victim):
        classifier, x, y = victim
        x[:12] = np.round(x[:12])  # black and white
        hand = Handmade(classifier, x, y)
        examples = hand.x.clone()
        frozen = copy.deepcopy(hand.model).eval()
        for _ in range(4):
            examples.requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(frozen(examples), hand.y)
            (gradient,) = torch.autograd.grad(loss, examples)
            examples = (examples + 0.02 * gradient.sign()).detach()
        assert examples.min() < 0
        assert examples.max() > 1
        hand.steps(examples, hand.y, 3).steps(hand.x, hand.y, 2)
        assert_close(plain(classifier, clip=False)(x, y=y), hand.state, 1e-4)

    def test_random_starts_fill_the_ball(self, victim):
        classifier, x, y = victim
        settings = {"num_random_init": 1, "eps": 0.08, "eps_step": 1e-6, "max_iter": 1, "batch_size": N}
        x = 0.25 + x / 2
        with watched(classifier) as seen:
            plain(classifier, nb_epochs=1, clean_epochs=0, **settings)(x, y=y)
        (batch,) = (batch for batch, training in seen if training)
        sources = np.array([np.abs(x - image).max(axis=(1, 2, 3)).argmin() for image in batch])
        assert sorted(sources) == list(range(N))
        noise = batch - x[sources]
        assert np.abs(noise).max() <= 0.08 * (1 + 1e-5)
        # Uniform: all thirds of the interval are equally full.
        thirds = np.histogram(noise, bins=3, range=(-0.08, 0.08))[0] / noise.size
        np.testing.assert_allclose(thirds, 1 / 3, atol=0.02)

    @pytest.mark.parametrize("regenerate", ["epoch", "batch"])
    def test_random_starts_are_drawn_anew_whenever_examples_are(self, regenerate, victim):
        classifier, x, y = victim
        x = np.full_like(x, 0.5)  # so that what enters the model shows the start
        with watched(classifier) as seen:
            plain(
                classifier,
                nb_epochs=3,
                clean_epochs=0,
                num_random_init=1,
                eps_step=1e-12,
                max_iter=1,
                regenerate=regenerate,
            )(x, y=y)
        epochs = [{image.tobytes() for image in batch} for batch, training in seen if training]
        assert [len(starts) for starts in epochs] == [N, N, N]
        assert len(epochs[0] & epochs[1]) == 0
        assert len(epochs[1] & epochs[2]) == 0

    def test_training_mode_attacks_by_batch_statistics(self, victim):
        classifier, x, y = victim
        hand = Handmade(classifier, x, y)
        examples = pgd(hand.model, hand.x, hand.y, training=True)
        hand.steps(examples, hand.y, 3).steps(hand.x, hand.y, 2)
        purified = plain(classifier, training_mode=True)(x, y=y)
        assert_close(purified, hand.state, 1e-4)
        assert (weights(purified)["fc.weight"] - weights(plain(classifier)(x, y=y))["fc.weight"]).abs().max() > 1e-3

    def test_predicted_labels_steer_the_attack_but_true_labels_are_learnt(self, victim):
        classifier, x, y = victim
        hand = Handmade(classifier, x, y)
        examples = pgd(hand.model, hand.x, predictions(hand.model, hand.x))
        hand.steps(examples, hand.y, 3).steps(hand.x, hand.y, 2)
        assert_close(plain(classifier, attack_labels="predicted")(x, y=y), hand.state, 1e-4)

    @pytest.mark.parametrize("misclassified", ["attack", "keep"])
    @pytest.mark.parametrize("regenerate", ["once", "epoch", "batch"])
    def test_which_images_are_attacked_and_when(self, misclassified, regenerate, victim):
        classifier, x, y = victim
        hand = Handmade(classifier, x, y)
        optimizer = sgd(hand.model)
        for epoch in range(4):
            if epoch == 0 or regenerate != "once":
                examples = pgd(hand.model, hand.x, hand.y)
                if misclassified == "keep":
                    wrong = predictions(hand.model, hand.x) != hand.y
                    examples[wrong] = hand.x[wrong]
            hand.steps(examples, hand.y, 1, optimizer)
        purified = plain(classifier, misclassified=misclassified, regenerate=regenerate, nb_epochs=4, clean_epochs=0)(
            x, y=y
        )
        assert_close(purified, hand.state, 1e-4)

    def test_those_ways_all_differ(self, victim):
        classifier, x, y = victim
        ways = [
            {},
            {"misclassified": "keep"},
            {"misclassified": "skip"},
            {"regenerate": "epoch"},
            {"regenerate": "batch"},
            {"attack_labels": "predicted"},
        ]
        results = [weights(plain(classifier, batch_size=8, clean_epochs=0, **way)(x, y=y))["fc.weight"] for way in ways]
        for i, one in enumerate(results):
            for other in results[:i]:
                assert (one - other).abs().max() > 1e-4

    def test_skipped_images_are_not_in_stage_2_but_in_stage_3(self, victim):
        classifier, x, y = victim
        right = torch.from_numpy(classifier.predict(x).argmax(axis=1) == y)
        hand = Handmade(classifier, x, y)
        hand.steps(pgd(hand.model, hand.x, hand.y)[right], hand.y[right], 3)
        defence = plain(classifier, misclassified="skip", batch_size=int(right.sum()), clean_epochs=0)
        assert_close(defence(x, y=y), hand.state, 1e-5)
        with watched(classifier) as seen:
            plain(classifier, misclassified="skip", batch_size=4, nb_epochs=1, clean_epochs=1)(x, y=y)
        assert sum(len(batch) for batch, training in seen if training) == int(right.sum()) + N

    def test_a_batch_size_above_the_images_that_are_left_is_fine(self, victim):
        classifier, x, y = victim
        right = torch.from_numpy(classifier.predict(x).argmax(axis=1) == y)
        hand = Handmade(classifier, x, y)
        hand.steps(pgd(hand.model, hand.x, hand.y)[right], hand.y[right], 3).steps(hand.x, hand.y, 2)
        assert_close(plain(classifier, misclassified="skip")(x, y=y), hand.state, 1e-4)

    def test_if_all_images_would_be_skipped_the_error_says_so(self, victim):
        classifier, x, _ = victim
        wrong = (classifier.predict(x).argmax(axis=1) + 1) % NB_CLASSES
        with untouched(classifier), pytest.raises(ValueError, match="misclassified"):
            plain(classifier, misclassified="skip")(x, y=wrong)


class TestStageSettings:
    def test_an_own_optimizer_goes_on_through_both_stages(self, victim):
        _, x, y = victim
        model = TinyNet()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        with_history(model, optimizer, torch.from_numpy(x))
        classifier = build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES, optimizer=optimizer)
        hand = Handmade(classifier, x, y)
        own = torch.optim.Adam(hand.model.parameters(), lr=0.02)
        own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        hand.steps(pgd(hand.model, hand.x, hand.y), hand.y, 3, own).steps(hand.x, hand.y, 2, own)
        with untouched(classifier):
            purified = plain(classifier, learning_rate=None)(x, y=y)
        # Adam divides by the gradient's size, and so enlarges rounding.
        assert_close(purified, hand.state, 1e-3)
        assert {int(slot["step"]) for slot in purified.optimizer.state.values()} == {6}

    def test_the_schedule_runs_within_each_stage(self, victim):
        classifier, x, y = victim
        with recorded_rates() as rates:
            plain(classifier, schedule="cosine", batch_size=12)(x, y=y)
        halves = [np.cos(np.pi * np.arange(steps) / steps) / 2 + 0.5 for steps in (6, 4)]
        assert rates == pytest.approx(0.05 * np.concatenate(halves))

    def test_max_steps_ends_each_stage(self, victim):
        classifier, x, y = victim
        with recorded_rates() as rates:
            plain(classifier, batch_size=8, max_steps=4)(x, y=y)
        assert len(rates) == 8

    def test_stage_3_has_an_order_of_its_own(self, victim):
        classifier, x, y = victim
        with watched(classifier) as seen:
            plain(classifier, batch_size=1 + N // 2, nb_epochs=1, clean_epochs=1, clean_share=1.0)(x, y=y)
        orders = [batch.tobytes() for batch, training in seen if training]
        assert len(orders) == 4
        assert orders[:2] != orders[2:]

    @pytest.mark.parametrize(("share", "clean"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
    def test_a_share_of_each_stage_2_batch_is_clean(self, share, clean, victim):
        classifier, x, y = victim
        with watched(classifier) as seen:
            plain(classifier, batch_size=8, clean_share=share, clean_epochs=0)(x, y=y)
        originals = {image.tobytes() for image in x}
        batches = [batch for batch, training in seen if training]
        assert len(batches) == 9
        assert [sum(image.tobytes() in originals for image in batch) for batch in batches] == [clean] * 9

    def test_a_clean_share_of_1_is_training_on_the_images(self, victim):
        classifier, x, y = victim
        hand = Handmade(classifier, x, y)
        hand.steps(hand.x, hand.y, 3)
        assert_close(plain(classifier, clean_share=1.0, clean_epochs=0)(x, y=y), hand.state, 1e-5)

    def test_clean_images_keep_their_labels_where_some_are_skipped(self, victim):
        classifier, x, y = victim
        right = classifier.predict(x).argmax(axis=1) == y
        hand = Handmade(classifier, x[right], y[right])
        hand.steps(hand.x, hand.y, 3)
        defence = plain(classifier, clean_share=1.0, misclassified="skip", batch_size=int(right.sum()), clean_epochs=0)
        assert_close(defence(x, y=y), hand.state, 1e-5)

    def test_frozen_batch_normalisation_keeps_the_infected_statistics(self, victim):
        classifier, x, y = victim
        hand = Handmade(classifier, x, y)
        hand.model.bn.eval()
        hand.steps(pgd(hand.model, hand.x, hand.y), hand.y, 3).steps(hand.x, hand.y, 2)
        purified = plain(classifier, freeze_bn=True)(x, y=y)
        assert_close(purified, hand.state, 1e-4)
        for name in ("running_mean", "running_var"):
            assert torch.equal(getattr(purified.model.bn, name), getattr(classifier.model.bn, name))

    def test_recalibrated_batch_normalisation_has_the_statistics_of_the_clean_images(self, victim):
        classifier, x, y = victim
        defence = plain(classifier, recalibrate_bn=True)
        purified = defence(x, y=y)
        unlike = plain(classifier)(x, y=y)
        for result in (purified, defence.adversarial_classifier):
            with torch.no_grad():
                activations = result.model.conv(torch.from_numpy(x)).numpy()
            mean, variance = activations.mean(axis=(0, 2, 3)), activations.var(axis=(0, 2, 3), ddof=1)
            np.testing.assert_allclose(result.model.bn.running_mean, mean, atol=1e-5)
            np.testing.assert_allclose(result.model.bn.running_var, variance, atol=1e-5)
        # Weights are those of a run without it, as training uses batch statistics.
        torch.testing.assert_close(purified.model.fc.weight, unlike.model.fc.weight, rtol=0, atol=1e-5)
        assert np.abs(unlike.model.bn.running_mean.numpy() - mean).max() > 1e-3

    def test_crops_and_mirroring_apply_to_both_stages_with_new_draws_each_epoch(self, victim):
        classifier, x, y = victim
        with watched(classifier) as seen:
            plain(classifier, eps=1e-6, padding=2, mirror=True, nb_epochs=2, clean_epochs=2)(x, y=y)
        epochs = [matches(batch, x, 2) for batch, training in seen if training]
        assert len(epochs) == 4
        for sources in epochs:
            assert sorted(image for image, _ in sources) == list(range(N))
        drawn = [sorted(sources) for sources in epochs]
        assert all(drawn[i] != drawn[j] for i in range(4) for j in range(i))

    @pytest.mark.parametrize("n_views", [1, 3])
    def test_augmented_first_each_view_is_cropped_once_and_then_stays(self, n_views, victim):
        classifier, x, y = victim
        with watched(classifier) as seen:
            plain(
                classifier,
                eps=1e-6,
                augment_first=True,
                n_views=n_views,
                padding=2,
                mirror=True,
                nb_epochs=2,
                clean_epochs=1,
                batch_size=n_views * N,
            )(x, y=y)
        epochs = [sorted(matches(batch, x, 2)) for batch, training in seen if training]
        assert len(epochs) == 3
        assert epochs[0] == epochs[1] == epochs[2]
        counts = np.bincount([image for image, _ in epochs[0]])
        np.testing.assert_array_equal(counts, [n_views] * N)
        assert len(set(epochs[0])) > 0.9 * n_views * N

    def test_shared_perturbations_are_put_on_views_that_are_new_in_every_batch(self, victim):
        classifier, x, y = victim
        defence = plain(
            classifier,
            adversary="shared",
            norm=2,
            eps=0.5,
            augment_first=True,
            clip=False,
            padding=2,
            mirror=True,
            nb_epochs=3,
            clean_epochs=0,
        )
        with watched(classifier) as seen:
            defence(x, y=y)
        views = np.stack(
            [np.frombuffer(v, np.float32) for image in x for v in shifted_versions(image, 2, 0.0, mirror=True)]
        )
        source = np.repeat(np.arange(N), len(views) // N)
        drawn = []
        for batch in [batch for batch, training in seen if training]:
            pairs = []
            for label, r in enumerate(defence.found):
                left = (batch - r).reshape(N, 1, -1)
                image, view = np.nonzero(np.abs(left - views).max(axis=2) < 1e-5)
                pairs += [(source[j], j, label) for _, j in zip(image, view, strict=True)]
            assert sorted({number for number, _, _ in pairs}) == list(range(N))
            assert len(pairs) == N
            assert all(label != y[number] for number, _, label in pairs)
            drawn.append({view for _, view, _ in pairs})
        assert len(drawn) == 3
        assert all(len(drawn[i] & drawn[j]) < N / 2 for i in range(3) for j in range(i))

    def test_augmented_views_keep_the_labels_of_their_images(self, victim):
        """With nothing to crop or mirror, two views are the images twice: the same full-batch gradients."""
        classifier, x, y = victim
        hand = Handmade(classifier, np.tile(x, (2, 1, 1, 1)), np.tile(y, 2))
        hand.steps(pgd(hand.model, hand.x, hand.y), hand.y, 3).steps(hand.x, hand.y, 2)
        purified = plain(classifier, augment_first=True, n_views=2, batch_size=2 * N)(x, y=y)
        assert_close(purified, hand.state, 1e-4)

    def test_held_out_images_are_not_learnt_but_choose_each_stages_epoch(self, victim):
        classifier, x, y = victim
        settings = {"held_out": 0.25, "batch_size": 18, "learning_rate": 0.3, "momentum": 0.0, "weight_decay": 0.0}
        defence = plain(classifier, nb_epochs=6, clean_epochs=6, **settings)
        with watched(classifier) as seen:
            purified = defence(x, y=y)
        batches = [batch for batch, training in seen if training]
        assert [len(batch) for batch in batches] == [18] * 12
        learnt = [{image.tobytes() for image in batch} for batch in batches[6:]]
        assert all(part == learnt[0] for part in learnt)
        held_out = np.array([image.tobytes() not in learnt[0] for image in x])
        assert held_out.sum() == 6

        hand = Handmade(classifier, x[~held_out], y[~held_out])
        examples, picks = pgd(hand.model, hand.x, hand.y), []
        for images in (examples, hand.x):
            optimizer = torch.optim.SGD(hand.model.parameters(), lr=0.3)
            states, accuracies = [], []
            for _ in range(6):
                states.append(hand.steps(images, hand.y, 1, optimizer).state)
                right = predictions(hand.model, torch.from_numpy(x[held_out])).numpy() == y[held_out]
                accuracies.append(right.mean())
            picks.append(max(range(6), key=lambda epoch: (accuracies[epoch], epoch)))
            hand.model.load_state_dict(states[picks[-1]])
        assert min(picks) < 5  # else this test would show nothing
        assert_close(purified, hand.state, 1e-4)


def matches(batch, x, padding):
    """For each image of a batch: whose shifted or mirrored version it is, up to 1e-5, and which."""
    versions = [shifted_versions(image, padding, 0.0, mirror=True) for image in x]
    owners = [(image, version) for image, table in enumerate(versions) for version in table.values()]
    table = np.stack([np.frombuffer(raw, np.float32) for part in versions for raw in part])
    found = []
    for image in batch.reshape(len(batch), -1):
        distance = np.abs(table - image).max(axis=1)
        assert distance.min() < 1e-5
        found.append(owners[distance.argmin()])
    return found


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, r"^eps: got 0\.0, expected a number > 0"),
        ({"eps": -0.1}, ValueError, r"^eps: got -0\.1, expected a number > 0"),
        ({"norm": 3}, ValueError, r"^norm: got 3, expected np\.inf, 'inf' or 2"),
        ({"eps_step": 0}, ValueError, r"^eps_step: got 0"),
        ({"max_iter": 0}, ValueError, r"^max_iter: got 0"),
        ({"num_random_init": -1}, ValueError, r"^num_random_init: got -1"),
        ({"clip": 0}, TypeError, r"^clip: got 0 \(int\)"),
        ({"attack_labels": "true"}, ValueError, r"^attack_labels: got 'true', expected one of 'given', 'predicted'"),
        (
            {"misclassified": "drop"},
            ValueError,
            r"^misclassified: got 'drop', expected one of 'attack', 'keep', 'skip'",
        ),
        ({"misclassified": "skip", "regenerate": "epoch"}, ValueError, r"^misclassified: got 'skip' with regenerate"),
        ({"regenerate": "always"}, ValueError, r"^regenerate: got 'always', expected one of 'once', 'epoch', 'batch'"),
        ({"augment_first": 1}, TypeError, r"^augment_first: got 1"),
        ({"n_views": 0}, ValueError, r"^n_views: got 0"),
        ({"n_views": 2}, ValueError, r"^n_views: got 2 without augment_first"),
        ({"nb_epochs": -1}, ValueError, r"^nb_epochs: got -1"),
        ({"clean_epochs": -1}, ValueError, r"^clean_epochs: got -1"),
        ({"clean_share": 1.1}, ValueError, r"^clean_share: got 1\.1, expected a number >= 0 and <= 1"),
        ({"held_out": 1.0}, ValueError, r"^held_out: got 1\.0"),
        ({"held_out": -0.1}, ValueError, r"^held_out: got -0\.1"),
        ({"recalibrate_bn": "x"}, TypeError, r"^recalibrate_bn: got 'x'"),
        ({"freeze_bn": "x"}, TypeError, r"^freeze_bn: got 'x'"),
        ({"schedule": "step"}, ValueError, r"^schedule: got 'step'"),
        ({"batch_size": 0}, ValueError, r"^batch_size: got 0"),
        ({"learning_rate": -1}, ValueError, r"^learning_rate: got -1"),
        ({"seed": 0.5}, TypeError, r"^seed: got 0\.5"),
        ({"verbose": "x"}, TypeError, r"^verbose: got 'x'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        AdversarialFineTuning(tiny_classifier(), **settings)


class TestWorkingRadius:
    """`eps="auto"`: the smallest ball of a ladder in which the attack works."""

    LADDER = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

    def test_most_examples_of_a_ball_of_their_own_are_misclassified(self, infected):
        x, y = infected.x[:60], infected.y[:60]
        defence = AdversarialFineTuning(infected.classifier, eps="auto", nb_epochs=0, clean_epochs=0, mirror=False)
        defence(x, y=y)

        def works(eps):
            examples = TorchAttacksPGD(infected.classifier, eps=eps).generate(x, y)
            return np.mean(infected.classifier.predict(examples).argmax(axis=1) != y)

        ladder = [4 / 255 * multiple for multiple in self.LADDER]
        assert defence.radius in [pytest.approx(eps) for eps in ladder]
        shares = {eps: works(eps) for eps in ladder}
        expected = next((eps for eps in ladder if shares[eps] >= 0.9), ladder[-1])
        assert defence.radius == pytest.approx(expected)
        assert shares[ladder[0]] < 0.9 <= shares[ladder[-1]]
        assert defence.report.chosen == {"eps": defence.radius}

    def test_shared_perturbations_towards_two_labels_carry_a_third_of_the_others(self):
        x, y = tiny_data(60)
        classifier = linear_classifier(np.random.default_rng(0).normal(size=(NB_CLASSES, *SHAPE)).astype(np.float32))
        defence = AdversarialFineTuning(
            classifier, preset="shared", eps="auto", nb_epochs=0, padding=0, mirror=False, precision="float32"
        )
        defence(x, y=y)
        seed = int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0])
        shares = {}
        for multiple in self.LADDER:
            eps = multiple * (432 / 3072) ** 0.5
            found = universal_perturbations(classifier, x, y, eps=eps, precision="float32", seed=seed)
            shares[eps] = sorted(
                np.mean(classifier.predict(np.clip(x[y != label] + r, 0, 1)).argmax(1) == label)
                for label, r in enumerate(found)
            )[-2]
        ladder = list(shares)
        expected = next(eps for eps in ladder if shares[eps] >= 1 / 3)
        assert defence.radius == pytest.approx(expected)
        assert ladder[0] < expected

    @pytest.mark.parametrize("eps", ["large", ""])
    def test_another_word_is_refused(self, eps):
        with pytest.raises(ValueError, match=f"^eps: got '{eps}', expected one of 'auto'"):
            AdversarialFineTuning(tiny_classifier(), eps=eps)
