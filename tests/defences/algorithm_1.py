"""Algorithm 1 as a plain script, and runs of the defence that can be repeated by it."""

import copy

import torch
import torchattacks
from helpers import (
    tiny_classifier,
    tiny_data,
)

from art_aft import AdversarialFineTuning, TorchAttacksPGD

SETTINGS = {"batch_size": 32, "learning_rate": 0.02, "padding": 1, "horizontal_flip": False}
N = 24


def aft(classifier, eps=0.1, **settings):
    return AdversarialFineTuning(classifier, TorchAttacksPGD(classifier, eps=eps), **{**SETTINGS, **settings})


def short(classifier, eps=0.1, **settings):
    """A run of few steps, for what needs no purified classifier."""
    attack = TorchAttacksPGD(classifier, eps=eps, max_iter=3, precision="float32")
    own = {**SETTINGS, "batch_size": 64, "nb_epochs": 1, "clean_epochs": 1, "precision": "float32"}
    return AdversarialFineTuning(classifier, attack, **{**own, **settings})


def plain(classifier, attack=None, **settings):
    """
    A run without anything random: each step takes all N images as they are.

    The order of the images then changes nothing but rounding, so that it can be repeated by hand.
    """
    defaults = {
        "nb_epochs": 3,
        "clean_epochs": 2,
        "batch_size": N,
        "learning_rate": 0.05,
        "weight_decay": 1e-3,
        "padding": 0,
        "horizontal_flip": False,
        "precision": "float32",
    }
    if attack is None:
        attack = TorchAttacksPGD(classifier, eps=0.08, max_iter=4, precision="float32")
    return AdversarialFineTuning(classifier, attack, **{**defaults, **settings})


def pgd(model, x, y, *, kind=torchattacks.PGD, eps=0.08, alpha=0.02):
    """Adversarial examples of the model as it is now, by torchattacks alone."""
    attack = kind(copy.deepcopy(model), eps=eps, alpha=alpha, steps=4, random_start=False)
    attack.set_model_training_mode(False, False, False)
    return attack(x, y)


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


def small_victim():
    """A small classifier that gets some of the data right and some wrong, with the data."""
    classifier = tiny_classifier()
    x, y = tiny_data(N)
    right = classifier.predict(x).argmax(axis=1) == y
    assert 4 < right.sum() < N - 4
    return classifier, x, y
