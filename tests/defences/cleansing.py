"""What the tests of Neural Cleanse share: brief settings, made-up triggers, an ideal search."""

import numpy as np
from helpers import SHAPE

from art_aft.adversarial.inversion import Triggers
from art_aft.attacks import BadNets
from art_aft.classifiers.classifier import features, images_for
from art_aft.defences import NeuralCleanse, PyTorchNeuralCleanse
from art_aft.defences.found_triggers import Detection

SEARCH = {
    "steps": 30,
    "images_per_step": 32,
    "inversion_batch_size": 32,
    "inversion_learning_rate": 0.3,
    "precision": "float32",
}
# Every label with a mask at the median or below it is suspected.
SUSPICIOUS = {"anomaly_threshold": -1.0, "largest_suspect": 1.0}
TUNING = {"nb_epochs": 10, "batch_size": 32, "learning_rate": 0.02, "padding": 1, "horizontal_flip": False}


def cleanse(classifier, **settings):
    return NeuralCleanse(classifier, **{**SEARCH, **TUNING, **settings})


def made_up(norms, shape=SHAPE, seed=0):
    """Triggers of given norms, with masks and patterns of random numbers."""
    rng = np.random.default_rng(seed)
    masks = 0.1 + 0.8 * rng.random((len(norms), 1, *shape[1:]), dtype=np.float32)
    patterns = rng.random((len(norms), *shape), dtype=np.float32)
    k = len(norms)
    return Triggers(np.arange(k), masks, patterns, np.array(norms, dtype=float), np.ones(k), np.ones(k, dtype=int))


def pooled(classifier, x):
    return features(classifier, x, pooled=True)


def ideal():
    """What the best of searches would find: the attacker's own trigger, and large masks for the other labels."""
    black, white = np.zeros((1, 1, 16, 16), np.float32), np.ones((1, 1, 16, 16), np.float32)
    patch = BadNets()(black)
    found = made_up([9.0, *range(60, 69)], shape=(1, 16, 16))
    found.masks[0], found.patterns[0] = patch[0] == BadNets()(white)[0], patch[0]
    return Detection(found, [0])


def unlabelled(classifier, x):
    return images_for(classifier, x, labelled=False)


def wrapped(classifier, **settings):
    quick = {"steps": 3, "images_per_step": 16, "batch_size": 8, "precision": "float32"}
    return PyTorchNeuralCleanse.from_classifier(classifier, **{**quick, **settings})
