"""Whatever measures, attacks or copies a classifier does so in a known mode, and leaves each module's own mode."""

import numpy as np
import pytest
import torch
from helpers import SHAPE, TinyNet, global_rng, modes, tiny_data, untouched

from art_aft.adversarial.inversion import invert_triggers
from art_aft.adversarial.inversion_recipe import InversionRecipe
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.adversarial.universal import universal_perturbations
from art_aft.attacks import BadNets, InputAware
from art_aft.attacks.labels import AllToOne
from art_aft.classifiers.classifier import (
    build_classifier,
    clone,
    features,
    images_for,
    margins,
    predict_labels,
    predict_logits,
)
from art_aft.classifiers.layers import Head, output_weights
from art_aft.defences.fine_tuning import FineTuning
from art_aft.defences.neural_cleanse_estimator import PyTorchNeuralCleanse
from art_aft.detection.scan import BackdoorScan
from art_aft.experiments.compare import compare
from art_aft.metrics import evaluate
from art_aft.runtime.modes import evaluation_mode, kept_modes

X, Y = tiny_data(24)


class Restless(torch.nn.Module):
    """Draws from torch's global generator in every mode, and notes the mode that it runs in."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(self.training)
        return x + 0 * torch.rand(1)


def in_the_middle_of_training():
    """A classifier in training mode whose batch normalisation is frozen."""
    model = TinyNet(dropout=0.5)
    model.dropout = torch.nn.Sequential(Restless(), model.dropout)
    classifier = build_classifier(model, input_shape=SHAPE, nb_classes=4)
    classifier._model.train()
    classifier.model.bn.eval()
    return classifier


def compared(classifier):
    factory = {"mine": lambda c, **settings: FineTuning(c, nb_epochs=1, padding=0, **settings)}
    return compare(classifier, factory, X, Y, X, Y, BadNets(), AllToOne(0), learning_rates=(0.01,))


MEASUREMENTS = {
    "evaluate": lambda c: evaluate(c, X, Y, BadNets(), AllToOne(0)),
    "compare": compared,
    "predict_logits": lambda c: predict_logits(c, X),
    "predict_labels": lambda c: predict_labels(c, X),
    "margins": lambda c: margins(c, images_for(c, X, Y)),
    "features": lambda c: features(c, X),
    "head": lambda c: Head(c, X).activations(X),
    "output_weights": lambda c: output_weights(c, X),
    "pgd": lambda c: TorchAttacksPGD(c, max_iter=2).generate(X),
    "universal": lambda c: universal_perturbations(c, X, Y, max_iter=2),
    "inversion": lambda c: invert_triggers(c, X, InversionRecipe(steps=2)),
    "scan": lambda c: BackdoorScan(c, detectors=["last_layer", "universal", "adversarial_labels", "adversarial_shift"])(
        X, Y
    ),
    "clone": clone,
    "defence": lambda c: FineTuning(c, nb_epochs=1, padding=0)(X, y=Y),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_classifier_in_training_is_measured_in_evaluation_mode_and_left_as_it_was(name):
    classifier = in_the_middle_of_training()
    before = modes(classifier)
    assert set(before.values()) == {True, False}
    with untouched(classifier):
        MEASUREMENTS[name](classifier)
    seen = classifier.model.dropout[0].seen
    assert seen or name in ("clone", "defence", "features")  # these run a copy, or a part without dropout
    assert not any(seen)


def test_scores_are_those_of_the_evaluation_mode():
    classifier = in_the_middle_of_training()
    expected = clone(classifier)
    expected.model.eval()
    scores = [evaluate(c, X, Y, BadNets(), AllToOne(0)) for c in (classifier, expected)]
    assert scores[0] == scores[1]
    assert scores[0].acc == np.mean(predict_labels(expected, X) == Y)


@pytest.mark.parametrize("filtering", [False, True])
def test_neural_cleanses_predict_leaves_everything_as_it_was(filtering):
    classifier = PyTorchNeuralCleanse.from_classifier(in_the_middle_of_training())
    classifier._model.train()
    classifier.model.bn.eval()
    if filtering:
        classifier.top_indices, classifier.activation_threshold = [0], 1e9
    with untouched(classifier):
        logits = classifier.predict(X)
    np.testing.assert_allclose(logits, predict_logits(classifier, X), atol=1e-5)


def test_neural_cleanses_predict_draws_dropout_anew_in_training_mode():
    classifier = PyTorchNeuralCleanse.from_classifier(in_the_middle_of_training())
    before = modes(classifier)
    with torch.random.fork_rng():
        one, other = (classifier.predict(X, training_mode=True) for _ in range(2))
    assert (one != other).any()
    assert modes(classifier) == before


def test_a_trigger_that_fails_leaves_its_networks_in_their_modes():
    trigger = InputAware(in_channels=1, base_width=4, levels=1)
    trigger.pattern_generator.train()
    trigger.pattern_generator[0].eval()
    before = [module.training for module in trigger.pattern_generator.modules()]
    rng = global_rng()
    with pytest.raises(ValueError, match="x: got images of 3 channels"):
        trigger(X)
    trigger(X[:, :1])
    assert [module.training for module in trigger.pattern_generator.modules()] == before
    assert global_rng() == rng


@pytest.mark.parametrize("context", [kept_modes, evaluation_mode])
def test_modes_come_back_after_an_exception_and_other_models_are_let_be(context):
    model = in_the_middle_of_training().model
    before = [module.training for module in model.modules()]

    def fail():
        with context(model):
            assert model.training is (context is kept_modes)
            model.bn.train()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == before
    with context("a model of Keras"):
        pass
