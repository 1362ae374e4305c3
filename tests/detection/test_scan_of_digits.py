"""The scan of models of digits with a backdoor and without one, and that its numbers are what they say."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import few, recognised

from art_aft import BackdoorScan
from art_aft.adversarial.norms import default_eps
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.adversarial.universal import targeted_success, universal_perturbations
from art_aft.classifiers.classifier import images_for, predict_labels
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.training.recipes import RECIPES

#: A network that is scanned in half of the time.
SMALL = {"model": "vgg-8", "recipe": replace(RECIPES["digits"], nb_epochs=15)}


def by_detector(report):
    return {evidence.detector: evidence for evidence in report.evidence}


@pytest.fixture(scope="module")
def scanned(infected):
    detectors = ["last_layer", "margin_pixels", "universal", "adversarial_labels"]
    return BackdoorScan(infected.classifier, detectors=detectors)(*few(infected))


def scan_of(settings, *detectors):
    victim = train_victim(settings)
    scan = BackdoorScan(victim.classifier, detectors=detectors, max_images=60)
    return scan(victim.x_clean, victim.y_clean)


@pytest.fixture(scope="module")
def benign():
    some = ["universal", "adversarial_labels", "adversarial_shift", "universal_shift"]  # the others are slow
    return scan_of(VictimSettings("badnets", rate=0.0, **SMALL), "last_layer", "margin_pixels", *some)


@pytest.fixture(scope="module")
def shifted():
    settings = VictimSettings("badnets", labels="all-to-all", **SMALL)
    return scan_of(settings, "last_layer", "margin_pixels", "adversarial_shift", "universal_shift")


class TestOnDigits:
    def test_a_backdoor_is_found_with_its_label(self, scanned):
        assert scanned.verdict == "infected"
        assert scanned.kind == "all-to-one"
        assert scanned.targets[0] == 0
        assert scanned.score >= 1
        assert scanned.notes == ()

    def test_nothing_is_found_in_a_model_without_one(self, benign):
        assert benign.verdict != "infected"
        assert (benign.kind, benign.targets) == (None, ())
        assert benign.score < 1

    def test_an_all_to_all_backdoor_is_named_with_its_shift(self, shifted):
        assert shifted.verdict == "infected"
        assert shifted.kind == "all-to-all"
        assert shifted.targets == tuple((label + 1) % 10 for label in range(10))

    def test_adversarial_examples_fall_on_the_next_label_and_one_perturbation_moves_all_there(self, shifted, benign):
        for name in ("adversarial_shift", "universal_shift"):
            found = by_detector(shifted)[name]
            assert (found.label, found.shift) == (1, True)
            assert found.score >= 1
            assert found.p_value < 0.01
            assert by_detector(benign)[name].score < 1

    def test_the_numbers_are_those_of_the_perturbations_themselves(self, infected, scanned):
        found = by_detector(scanned)["universal"]
        eps = float(found.details.removeprefix("L2 "))
        multiples = {f"{m * default_eps(2, (1, 16, 16), (0, 1)):.3g}": m for m in (0.5, 1, 2, 4)}
        exact = multiples[f"{eps:.3g}"] * default_eps(2, (1, 16, 16), (0, 1))
        images = images_for(infected.classifier, *recognised(infected))
        r = universal_perturbations(infected.classifier, images, eps=exact)
        shares = targeted_success(infected.classifier, images, r, range(10))
        assert found.scores == pytest.approx(shares)
        assert found.label == shares.argmax()
        assert found.statistic == pytest.approx(np.sort(shares)[-1] - np.sort(shares)[-2])

    def test_the_label_matrix_is_that_of_the_adversarial_examples(self, infected, scanned):
        attack = TorchAttacksPGD(infected.classifier, eps=16 / 255)
        x, y = recognised(infected)
        predicted = predict_labels(infected.classifier, attack.generate(x, y))
        for label in range(10):
            shares = np.bincount(predicted[y == label], minlength=10) / (y == label).sum()
            assert scanned.label_matrix[label] == pytest.approx(shares)

    def test_one_hot_and_8bit_data_are_taken(self, infected, scanned):
        x, y = few(infected)
        one_hot = np.eye(10, dtype=np.float32)[y]
        eightbit = np.rint(x * 255).astype(np.uint8)
        report = BackdoorScan(infected.classifier, detectors=["last_layer"])(eightbit, one_hot)
        assert (report.verdict, report.targets[0]) == ("infected", 0)
