"""What the tests of all defences share: short runs of each."""

import inspect

import pytest

from art_aft.defences import DEFENCES

# Whatever a defence has of these, it is tested with these: a short run that moves the weights.
QUICK = {
    "nb_epochs": 2,
    "clean_epochs": 1,
    "max_iter": 2,
    "batch_size": 8,
    "learning_rate": 0.05,
    "padding": 1,
    "horizontal_flip": False,
    "precision": "float32",
    "seed": 3,
    "teacher_epochs": 1,
    "betas": (100.0,),
    "steps": 3,
    "images_per_step": 16,
    "inversion_batch_size": 8,
    "min_steps": 0,
    # Every label with a mask below the median is suspected, so that there is something to unlearn.
    "anomaly_threshold": -1.0,
    "candidates": ({"nb_epochs": 2, "label_epochs": 1, "learning_rate": 0.05, "max_iter": 2},),
    "settings": {"nb_epochs": 2, "label_epochs": 1, "learning_rate": 0.05, "max_iter": 2},
    "label_epochs": 1,
    "fold_steps": 2,
    "look_again": False,  # the same search as Stage 1, once more
    "n_folds": 2,
    "largest_suspect": 1.0,
}

every_defence = pytest.mark.parametrize("name", sorted(DEFENCES))


def keywords(name):
    """The settings among the arguments of a defence's constructor."""
    parameters = inspect.signature(DEFENCES[name].__init__).parameters.values()
    return {p.name: p for p in parameters if p.name not in ("self", "classifier")}


def quick(name, classifier, **settings):
    return DEFENCES[name](
        classifier, **{**{key: value for key, value in QUICK.items() if key in keywords(name)}, **settings}
    )
