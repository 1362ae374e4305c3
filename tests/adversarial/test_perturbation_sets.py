"""Perturbations towards all labels, and how much each label is worth where there are many."""

import numpy as np
import pytest
import torch
from helpers import SHAPE, linear_classifier

from art_aft.adversarial import perturbation_sets
from art_aft.adversarial.budget import images_per_label
from art_aft.adversarial.perturbation_sets import find_dense, towards_labels
from art_aft.adversarial.universal import targeted_success, universal_perturbations
from art_aft.classifiers.classifier import images_for, predict_labels

PLAIN = {"max_iter": 3, "precision": "float32", "seed": 2}


def given(nb_classes):
    """A linear model of many labels, and images that it gets right."""
    rng = np.random.default_rng(3)
    classifier = linear_classifier(rng.normal(size=(nb_classes, *SHAPE)).astype(np.float32))
    x = rng.uniform(0.3, 0.7, (150, *SHAPE)).astype(np.float32)
    return classifier, images_for(classifier, x, predict_labels(classifier, x))


def test_up_to_ten_labels_get_a_whole_search_each():
    classifier, images = given(10)
    expected = universal_perturbations(classifier, images, eps=0.5, batch_size=32, **PLAIN)
    np.testing.assert_array_equal(towards_labels(classifier, images, eps=0.5, **PLAIN), expected)


@pytest.mark.parametrize("norm", [2, 0])
def test_of_more_labels_the_ten_that_are_reached_most_easily_do(norm, monkeypatch):
    classifier, images = given(16)
    size = {"norm": norm, "eps": 0.5 if norm else 2.0, "precision": "float32", "seed": 2}
    searches = watched(monkeypatch)
    found = towards_labels(classifier, images, max_iter=3, **size)
    look, whole = searches
    # 32 images for ten labels, so 20 for sixteen, and a third of the steps.
    assert (look["batch_size"], look["max_iter"]) == (20, 1)
    assert (whole["batch_size"], whole["max_iter"]) == (32, 3)
    first = universal_perturbations(classifier, images, batch_size=20, max_iter=1, **size)
    reached = log_probabilities(classifier, images_for(classifier, images, max_images=62, seed=0), first)
    left = sorted(set(range(16)) - set(whole["labels"]))
    assert len(whole["labels"]) == 10
    assert reached[left].max() <= reached[whole["labels"]].min()
    np.testing.assert_array_equal(found[left], first[left])
    best = universal_perturbations(classifier, images, labels=whole["labels"], batch_size=32, max_iter=3, **size)
    np.testing.assert_array_equal(found[whole["labels"]], best)


def test_the_smallest_bound_that_works_is_that_of_two_labels():
    classifier, images = given(12)
    found = find_dense(classifier, images, "auto", **PLAIN)
    rates = targeted_success(classifier, images, found.dense, range(12))
    assert np.sort(rates)[-2] >= 1 / 3
    assert found.dense.shape == (12, *SHAPE)


def test_labels_without_a_whole_search_keep_their_direction_within_the_bound_that_works(monkeypatch):
    classifier, images = given(12)
    searches = watched(monkeypatch)
    found = find_dense(classifier, images, "auto", **PLAIN)
    look, *ladder = searches
    assert len(ladder) > 1  # else the bound is one that the first look had
    assert {tuple(each["labels"]) for each in ladder} == {tuple(ladder[0]["labels"])}
    left = sorted(set(range(12)) - set(ladder[0]["labels"]))
    first = universal_perturbations(classifier, images, **look)[left]
    np.testing.assert_allclose(found.dense[left], first * (found.eps / look["eps"]), rtol=1e-6)
    lengths = np.linalg.norm(found.dense.reshape(12, -1), axis=1)
    assert lengths.max() <= found.eps * (1 + 1e-5)


def watched(monkeypatch):
    """Return a list that the settings of every search are added to."""
    searches = []

    def watch(*arguments, **settings):
        searches.append(settings)
        return universal_perturbations(*arguments, **settings)

    monkeypatch.setattr(perturbation_sets, "universal_perturbations", watch)
    return searches


def log_probabilities(classifier, images, perturbations):
    """The mean log-probability of each label where its perturbation is added to images of other labels."""
    means = []
    for label, r in enumerate(perturbations):
        shown = torch.from_numpy(np.clip(images.pixels[images.labels != label] + r, 0, 1))
        with torch.no_grad():
            means.append(float(classifier.model(shown).log_softmax(dim=1)[:, label].mean()))
    return np.array(means)


@pytest.mark.parametrize("name", ["images", "nb_labels", "least"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: got 0"):
        images_per_label(**{"images": 8, "nb_labels": 10, "least": 2, name: 0})
