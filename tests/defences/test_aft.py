"""Adversarial Fine-Tuning is Algorithm 1, removes a backdoor."""

import copy

import numpy as np
import pytest
import torch
from algorithm_1 import SETTINGS, Handmade, N, aft, pgd, plain, sgd, short, small_victim
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    assert_close,
    encoded,
    recorded_rates,
    same_weights,
    shifted_versions,
    tiny_classifier,
    untouched,
    watched,
    with_history,
)

from art_aft import AdversarialFineTuning, AdversarialFineTuningTrainer, TorchAttacksPGD, build_classifier, clone
from art_aft.defences import FineTuning
from art_aft.defences.aft import PAPER


@pytest.fixture
def victim():
    return small_victim()


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
        assert after.asr <= 0.15
        assert after.acc >= 0.93
        assert after.ra >= 0.9

    def test_fine_tuning_at_the_same_rate_leaves_the_backdoor(self, infected):
        tuned = FineTuning(infected.classifier, **SETTINGS)(infected.x, y=infected.y)
        assert infected.scores(tuned).asr > 0.5

    def test_both_results_are_in_evaluation_mode(self, defence, purified):
        assert not any(module.training for module in purified.model.modules())
        assert not any(module.training for module in defence.report.adversarial_classifier.model.modules())

    def test_stage_2_alone_removes_the_backdoor_and_stage_3_wins_accuracy_back(self, infected, defence, purified):
        stage_2 = infected.scores(defence.report.adversarial_classifier)
        assert stage_2.asr <= 0.15
        assert infected.scores(purified).acc > stage_2.acc

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_it_works_in_bfloat16_on_other_models_and_pixels(self, encoding, victim, matrix_units):
        """The purified network has moved as in single precision, up to the rounding of three digits."""
        classifier, x, y = victim
        given, before = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES), classifier.predict(x)
        expected = (plain(classifier)(x, y=y).predict(x) - before).ravel()
        attack = TorchAttacksPGD(given.classifier, eps=0.08 * given.spread, max_iter=4)
        purified = plain(given.classifier, attack, precision="auto")(given.encode(x), y=y)
        moved = (purified.predict(given.encode(x)) - before).ravel()
        # Single precision comes closer than a ten-thousandth, in every encoding.
        assert 0.001 < np.linalg.norm(moved - expected) / np.linalg.norm(expected) < 0.05

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_the_same_network_on_other_pixels_is_purified_the_same(self, encoding, victim):
        """One step of each stage, so that rounding is not amplified: the bound is that of single-precision sums."""
        classifier, x, y = victim
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        settings = {"nb_epochs": 1, "clean_epochs": 1}
        expected = plain(classifier, **settings)(x, y=y).predict(x)
        attack = TorchAttacksPGD(given.classifier, eps=0.08 * given.spread, max_iter=4, precision="float32")
        purified = plain(given.classifier, attack, **settings)(given.encode(x), y=y)
        np.testing.assert_allclose(purified.predict(given.encode(x)), expected, atol=2e-3)
        assert np.abs(expected - classifier.predict(x)).max() > 0.1


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
        assert_close(defence.report.adversarial_classifier, stage_2, 1e-4)
        assert_close(purified, stage_3, 1e-4)
        assert (stage_2["fc.weight"] - stage_3["fc.weight"]).abs().max() > 1e-2

    def test_the_default_attack_is_torchattacks_pgd_with_its_defaults(self, victim):
        classifier, x, y = victim
        given = plain(classifier, TorchAttacksPGD(classifier, precision="float32"))(x, y=y)
        settings = {name: value for name, value in plain(classifier).get_params().items() if name != "attack"}
        assert same_weights(AdversarialFineTuning(classifier, **settings)(x, y=y), given)

    def test_examples_of_every_batch_are_those_of_the_model_as_it_is(self, victim):
        classifier, x, y = victim
        hand, optimizer = Handmade(classifier, x, y), None
        optimizer = sgd(hand.model)
        for _ in range(4):
            hand.steps(pgd(hand.model, hand.x, hand.y), hand.y, 1, optimizer)
        purified = plain(classifier, regenerate="batch", nb_epochs=4, clean_epochs=0)(x, y=y)
        assert_close(purified, hand.state, 1e-3)
        once = plain(classifier, nb_epochs=4, clean_epochs=0)(x, y=y)
        assert (once.model.fc.weight - purified.model.fc.weight).abs().max() > 1e-2

    def test_without_clean_epochs_the_result_of_stage_2_is_returned(self, victim):
        classifier, x, y = victim
        full, half = short(classifier), short(classifier, clean_epochs=0)
        complete, stopped = full(x, y=y), half(x, y=y)
        assert same_weights(stopped, half.report.adversarial_classifier)
        assert same_weights(stopped, full.report.adversarial_classifier)
        assert not same_weights(stopped, complete)
        assert stopped is not half.report.adversarial_classifier

    def test_without_epochs_nothing_is_changed(self, victim):
        classifier, x, y = victim
        assert same_weights(plain(classifier, nb_epochs=0, clean_epochs=0)(x, y=y), classifier)

    def test_the_papers_settings_are_plain_arguments(self, victim):
        classifier, _, _ = victim
        defence = AdversarialFineTuning(classifier, **PAPER)
        assert (defence.batch_size, defence.weight_decay, defence.regenerate) == (64, 1e-4, "once")
        assert len(defence.params) <= 15

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_a_seed_fixes_every_bit_and_another_seed_changes_them(self, precision, victim):
        classifier, x, y = victim
        runs = [short(classifier, batch_size=8, seed=seed, precision=precision)(x, y=y) for seed in (1, 1, 2)]
        assert same_weights(runs[0], runs[1])
        assert not same_weights(runs[0], runs[2])

    @pytest.mark.parametrize("settings", [{}, {"regenerate": "batch"}, {"learning_rate": None}], ids=str)
    def test_every_setting_leaves_the_infected_classifier_and_the_generators_alone(self, settings, victim):
        _, x, y = victim
        classifier = tiny_classifier(momentum=0.9, dropout=0.5)
        classifier._model.train()
        classifier.model.bn.eval()
        classifier.model.fc.bias.requires_grad_(False)
        images, labels = x.copy(), y.copy()
        defence = short(classifier, batch_size=4, **settings)
        with untouched(classifier):
            first = defence(x, y=y)
        assert same_weights(first, defence(x, y=y))
        assert torch.equal(first.model.fc.bias, classifier.model.fc.bias)
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, labels)

    def test_the_mode_that_the_classifier_comes_in_does_not_matter(self, victim):
        _, x, y = victim
        results = []
        for training in (False, True):
            model = torch.nn.Sequential(torch.nn.Dropout(0.3), TinyNet())
            classifier = build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES)
            classifier._model.train(training)
            results.append(short(classifier)(x, y=y))
        assert same_weights(*results)


class TestInPlace:
    def test_a_given_classifier_is_purified_from_its_own_weights_and_returned(self, victim):
        other, x, y = victim
        given, same = tiny_classifier(seed=5), tiny_classifier(seed=5)
        with untouched(other):
            result = short(other)(x, given, y)
        assert result is given
        assert same_weights(given, short(same)(x, y=y))
        assert not same_weights(given, same)
        assert not any(module.training for module in given.model.modules())

    def test_the_trainer_changes_its_classifier_to_what_the_transformer_returns(self, victim):
        infected, x, y = victim
        classifier = clone(infected)
        settings = {**SETTINGS, "nb_epochs": 1, "clean_epochs": 1}
        trainer = AdversarialFineTuningTrainer(classifier, TorchAttacksPGD(classifier, eps=0.1), **settings)
        assert trainer.get_classifier() is classifier
        with untouched():
            assert trainer.fit(x, y) is None
        attack = TorchAttacksPGD(infected, eps=0.1)
        assert same_weights(classifier, AdversarialFineTuning(infected, attack, **settings)(x, y=y))
        assert not same_weights(classifier, infected)

    def test_the_trainer_refuses_what_it_does_not_know(self, victim):
        classifier, x, y = victim
        with pytest.raises(TypeError, match="'epsilon'"):
            AdversarialFineTuningTrainer(classifier, epsilon=0.1)
        with pytest.raises(ValueError, match=r"^nb_epochs: got -1"):
            AdversarialFineTuningTrainer(classifier, nb_epochs=-1)
        with untouched(classifier):
            with pytest.raises(TypeError, match=r"^fit: got unknown argument 'nb_epochs'"):
                AdversarialFineTuningTrainer(classifier).fit(x, y, nb_epochs=3)
            with pytest.raises(ValueError, match=r"^y: got 1 labels, expected one for each of the 24 images"):
                AdversarialFineTuningTrainer(classifier).fit(x, y[:1])


class TestStages2And3:
    def test_an_own_optimizer_continues_through_both_stages(self, victim):
        _, x, y = victim
        model = TinyNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.8)
        with_history(model, optimizer, torch.from_numpy(x))
        classifier = build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES, optimizer=optimizer)
        hand = Handmade(classifier, x, y)
        own = torch.optim.SGD(hand.model.parameters(), lr=0.02, momentum=0.8)
        own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        hand.steps(pgd(hand.model, hand.x, hand.y), hand.y, 3, own).steps(hand.x, hand.y, 2, own)
        with untouched(classifier):
            purified = plain(classifier, learning_rate=None)(x, y=y)
        assert_close(purified, hand.state, 1e-4)

    def test_the_rate_is_the_same_in_every_step(self, victim):
        classifier, x, y = victim
        with recorded_rates() as rates:
            plain(classifier, batch_size=12)(x, y=y)
        assert rates == [0.05] * 10

    def test_stage_3_has_an_order_of_its_own(self, victim):
        classifier, x, y = victim
        attack = TorchAttacksPGD(classifier, eps=1e-9, max_iter=1, precision="float32")
        with watched(classifier) as seen:
            plain(classifier, attack, batch_size=1 + N // 2, nb_epochs=1, clean_epochs=1)(x, y=y)
        orders = [batch.tobytes() for batch, training in seen if training]
        assert len(orders) == 4
        assert orders[:2] != orders[2:]

    def test_crops_and_flips_apply_to_both_stages_with_new_draws_each_epoch(self, victim):
        classifier, x, y = victim
        attack = TorchAttacksPGD(classifier, eps=1e-6, max_iter=1, precision="float32")
        with watched(classifier) as seen:
            plain(classifier, attack, padding=2, horizontal_flip=True, nb_epochs=2, clean_epochs=2)(x, y=y)
        epochs = [matches(batch, x, 2) for batch, training in seen if training]
        assert len(epochs) == 4
        for sources in epochs:
            assert sorted(image for image, _ in sources) == list(range(N))
        drawn = [sorted(sources) for sources in epochs]
        assert all(drawn[i] != drawn[j] for i in range(4) for j in range(i))


def matches(batch, x, padding):
    """For each image of a batch: whose shifted or flipped version it is, up to 1e-5, and which."""
    versions = [shifted_versions(image, padding, 0.0, horizontal_flip=True) for image in x]
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
        ({"regenerate": "always"}, ValueError, r"^regenerate: got 'always', expected one of 'once', 'batch'"),
        ({"nb_epochs": -1}, ValueError, r"^nb_epochs: got -1"),
        ({"clean_epochs": -1}, ValueError, r"^clean_epochs: got -1"),
        ({"batch_size": 0}, ValueError, r"^batch_size: got 0"),
        ({"learning_rate": -1}, ValueError, r"^learning_rate: got -1"),
        ({"seed": 0.5}, TypeError, r"^seed: got 0\.5"),
        ({"verbose": "x"}, TypeError, r"^verbose: got 'x'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        AdversarialFineTuning(tiny_classifier(), **settings)
