"""Any of ART's evasion attacks is Stage 1 of Adversarial Fine-Tuning."""

import numpy as np
import pytest
import torch
from algorithm_1 import Handmade, N, plain, small_victim
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    DeepFool,
    FastGradientMethod,
    ProjectedGradientDescent,
    SquareAttack,
)
from helpers import (
    NB_CLASSES,
    assert_close,
    same_weights,
    tiny_classifier,
    untouched,
    watched,
)

from art_aft import AdversarialFineTuning, TorchAttacksPGD, clone
from art_aft.runtime.random_state import isolated_rng, seed_for


@pytest.fixture
def victim():
    return small_victim()


class TestStage1:
    """Any of ART's evasion attacks is Stage 1."""

    @pytest.mark.parametrize("kind", [ProjectedGradientDescent, FastGradientMethod, DeepFool])
    def test_an_attack_of_art_makes_the_examples(self, kind, victim):
        classifier, x, y = victim
        settings = {"verbose": False} if kind is not FastGradientMethod else {}
        if kind is DeepFool:
            settings |= {"max_iter": 5}
        else:
            settings |= {"eps": 0.08, **({"eps_step": 0.02, "max_iter": 4} if kind is not FastGradientMethod else {})}
        one_hot = np.eye(NB_CLASSES, dtype=np.float32)[y]
        examples = kind(clone(classifier), **settings).generate(x, one_hot)
        hand = Handmade(classifier, x, y)
        hand.steps(torch.from_numpy(examples), hand.y, 3).steps(hand.x, hand.y, 2)
        defence = plain(classifier, kind(classifier, **settings))
        with untouched(classifier):
            purified = defence(x, y=y)
        assert_close(purified, hand.state, 1e-3)
        assert same_weights(purified, defence(x, y=y))

    def test_arts_pgd_gives_what_torchattacks_gives(self, victim):
        classifier, x, y = victim
        attack = ProjectedGradientDescent(classifier, eps=0.08, eps_step=0.02, max_iter=4, verbose=False)
        ours, theirs = plain(classifier)(x, y=y), plain(classifier, attack)(x, y=y)
        assert_close(theirs, ours.model.state_dict(), 1e-3)

    def test_an_attack_that_keeps_its_loss_in_an_estimator_of_its_own_keeps_it(self, victim, tmp_path, monkeypatch):
        classifier, x, y = victim
        monkeypatch.setattr("art.config.ART_DATA_PATH", str(tmp_path))  # where ART writes a model that it pickles
        settings = {"eps": 0.1, "max_iter": 5, "nb_random_init": 1, "verbose": False}
        one_hot = np.eye(NB_CLASSES, dtype=np.float32)[y]
        for loss in ("cross_entropy", "difference_logits_ratio"):
            attack = AutoProjectedGradientDescent(classifier, loss_type=loss, **settings)
            with isolated_rng(seed_for(0, "attack", 0)):
                examples = attack.generate(x, one_hot)
            hand = Handmade(classifier, x, y)
            hand.steps(torch.from_numpy(examples), hand.y, 3).steps(hand.x, hand.y, 2)
            assert_close(plain(classifier, attack)(x, y=y), hand.state, 1e-3)
        assert not list(tmp_path.iterdir())

    def test_an_attack_that_cannot_be_printed_works(self, victim):
        classifier, x, y = victim
        attack = SquareAttack(classifier, eps=0.1, max_iter=2, verbose=False)
        with pytest.raises(RecursionError):
            repr(attack)
        assert not same_weights(plain(classifier, attack)(x, y=y), classifier)

    def test_the_attack_meets_the_classifier_that_is_purified(self, victim):
        classifier, x, y = victim
        other = tiny_classifier(seed=5)
        attack = ProjectedGradientDescent(classifier, eps=0.08, eps_step=0.02, max_iter=4, verbose=False)
        expected = plain(clone(other))(x, y=y)
        with untouched(classifier):
            purified = plain(classifier, attack)(x, other, y)
        assert purified is other
        assert_close(other, expected.model.state_dict(), 1e-3)
        assert attack.estimator is classifier
        assert attack._attack.estimator is classifier

    def test_random_starts_are_drawn_anew_for_every_batch_and_repeat_with_the_seed(self, victim):
        classifier, x, y = victim
        x = np.full_like(x, 0.5)  # so that what enters the model shows the start
        for make in (
            lambda: TorchAttacksPGD(classifier, eps=0.08, eps_step=1e-12, max_iter=1, num_random_init=1),
            lambda: ProjectedGradientDescent(
                classifier, eps=0.08, eps_step=1e-12, max_iter=1, num_random_init=1, verbose=False
            ),
        ):
            runs = []
            for _ in range(2):
                with watched(classifier) as seen:
                    plain(classifier, make(), regenerate="batch", clean_epochs=0)(x, y=y)
                runs.append([{image.tobytes() for image in batch} for batch, training in seen if training])
            epochs = runs[0]
            assert [len(starts) for starts in epochs] == [N, N, N]
            assert len(epochs[0] & epochs[1]) == 0
            assert len(epochs[1] & epochs[2]) == 0
            assert runs[0] == runs[1]

    @pytest.mark.parametrize(
        ("attack", "error", "message"),
        [
            ("pgd", TypeError, r"^attack: got str, expected one of ART's evasion attacks or None"),
            (0.1, TypeError, r"^attack: got float"),
        ],
    )
    def test_what_is_no_attack_is_refused(self, attack, error, message, victim):
        with pytest.raises(error, match=message):
            AdversarialFineTuning(victim[0], attack)

    def test_a_targeted_attack_is_refused(self, victim):
        attack = ProjectedGradientDescent(victim[0], targeted=True, verbose=False)
        with pytest.raises(ValueError, match=r"^attack: got a targeted attack, expected an untargeted one"):
            AdversarialFineTuning(victim[0], attack)
