"""Fixtures of the tests of Neural Cleanse: searches and trainings that end at once."""

import cleansing
import pytest

from art_aft.defences import found_triggers, neural_cleanse, neural_cleanse_estimator


@pytest.fixture(scope="session")
def detection():
    """What the best of searches would find."""
    return cleansing.ideal()


@pytest.fixture
def searches(detection, monkeypatch):
    """Have every search end at once with that; the recipes that were asked for."""
    recipes = []

    def search(classifier, images, recipe, *, labels=None, verbose=False):
        recipes.append(recipe)
        return detection.triggers

    monkeypatch.setattr(neural_cleanse, "invert_triggers", search)
    monkeypatch.setattr(neural_cleanse_estimator, "invert_triggers", search)
    return recipes


@pytest.fixture
def fits(monkeypatch):
    """What unlearning gives `fit`, which trains nothing then."""
    calls = []

    def no_fit(classifier, batches, recipe, **_):
        data = {"x": batches.x.numpy(), "y": batches.y.numpy()}
        calls.append({"classifier": classifier, "recipe": recipe, **data})

    monkeypatch.setattr(found_triggers, "fit", no_fit)
    return calls
