"""The attack's settings and data are checked."""

import numpy as np
import pytest
from helpers import SHAPE, tiny_classifier, tiny_data, untouched

from art_aft.adversarial.pgd import TorchAttacksPGD


def attack(classifier, norm=np.inf, **settings):
    eps = 1.5 if norm == 2 else 0.06
    return TorchAttacksPGD(classifier, norm=norm, **{"eps": eps, "max_iter": 5, "precision": "float32", **settings})


@pytest.fixture
def data():
    return tiny_data(20)


class TestParameters:
    def test_params_may_be_changed_later(self, data):
        classifier = tiny_classifier()
        changed = attack(classifier, 2)
        changed.set_params(norm=np.inf, eps=0.06, eps_step=0.015, max_iter=3)
        np.testing.assert_array_equal(changed.generate(*data), attack(classifier, max_iter=3).generate(*data))

    def test_an_unknown_parameter_is_refused(self):
        with pytest.raises(ValueError, match='"epsilon" cannot be set'):
            attack(tiny_classifier()).set_params(epsilon=0.1)
        with pytest.raises(TypeError, match="'epsilon'"):
            TorchAttacksPGD(tiny_classifier(), epsilon=0.1)

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"norm": 1}, ValueError, r"^norm: got 1, expected one of inf, 'inf', 2"),
            ({"norm": None}, ValueError, r"^norm: got None"),
            ({"eps": 0.0}, ValueError, r"^eps: got 0\.0, expected a number > 0"),
            ({"eps": -1}, ValueError, r"^eps: got -1, expected a number > 0"),
            ({"eps": float("inf")}, ValueError, r"^eps: got inf"),
            ({"eps": "0.1"}, TypeError, r"^eps: got '0\.1' \(str\), expected a number"),
            ({"eps_step": 0}, ValueError, r"^eps_step: got 0, expected a number > 0"),
            ({"max_iter": 0}, ValueError, r"^max_iter: got 0, expected an integer >= 1"),
            ({"max_iter": 2.5}, TypeError, r"^max_iter: got 2\.5 \(float\)"),
            ({"num_random_init": -1}, ValueError, r"^num_random_init: got -1"),
            ({"clip": 1}, TypeError, r"^clip: got 1 \(int\), expected True or False"),
            ({"training_mode": "no"}, TypeError, r"^training_mode: got 'no'"),
            ({"batch_size": 0}, ValueError, r"^batch_size: got 0"),
            ({"precision": "double"}, ValueError, r"^precision: got 'double', expected one of 'auto'"),
            ({"seed": -3}, ValueError, r"^seed: got -3"),
            ({"verbose": 2}, TypeError, r"^verbose: got 2"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(self, settings, error, message):
        with pytest.raises(error, match=message):
            attack(tiny_classifier(), **settings) if "norm" not in settings else TorchAttacksPGD(
                tiny_classifier(), eps=0.1, **settings
            )
        made = attack(tiny_classifier())
        with pytest.raises(error, match=message):
            made.set_params(**settings)

    @pytest.mark.parametrize(
        ("x", "y", "error", "message"),
        [
            (np.zeros((2, 3, 12), dtype=np.float32), None, ValueError, r"^x: got shape \(2, 3, 12\)"),
            (np.zeros((2, 1, 12, 12), dtype=np.float32), None, ValueError, r"^x: got shape \(2, 1, 12, 12\)"),
            (np.zeros((2, *SHAPE), dtype=np.int64), None, TypeError, r"^x: got dtype int64"),
            (np.full((2, *SHAPE), 2.0, dtype=np.float32), None, ValueError, r"^x: got pixels in \[2, 2\]"),
            (np.full((2, *SHAPE), np.nan, dtype=np.float32), None, ValueError, r"^x: got NaN or infinite"),
            (np.zeros((2, *SHAPE), dtype=np.float32), [0], ValueError, r"^y: got 1 labels, expected one for each of"),
            (np.zeros((2, *SHAPE), dtype=np.float32), [0, 4], ValueError, r"^y: got labels in \[0, 4\]"),
            (None, None, TypeError, r"^x: got NoneType"),
        ],
    )
    def test_data_that_do_not_fit_are_refused(self, x, y, error, message):
        classifier = tiny_classifier()
        with untouched(classifier), pytest.raises(error, match=message):
            attack(classifier).generate(x, y)

    def test_a_mask_is_refused_and_not_ignored(self, data):
        """ART hands it to `generate` where only a part of the image may change."""
        made = attack(tiny_classifier())
        expected = made.generate(*data)
        np.testing.assert_array_equal(made.generate(*data, mask=None), expected)
        with pytest.raises(ValueError, match=r"^mask: got ndarray, expected None: this attack has no such argument"):
            made.generate(*data, mask=np.ones(SHAPE))
