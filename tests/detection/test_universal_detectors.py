"""Universal perturbations as detectors, on a network whose trigger and target label are written into it."""

import numpy as np
import pytest
import torch

from art_aft.classifiers.classifier import build_classifier, images_for, predict_labels
from art_aft.detection.base import DETECTORS, Suspect

NB_CLASSES, SIDE = 6, 12


class Planted(torch.nn.Module):
    """
    Tells which pair of rows is bright; where a patch of 2x2 pixels is bright, says one label, or moves labels on.

    :param target: The label that the patch leads to; None is no backdoor.
    :param shift: What the patch adds to each label.
    """

    def __init__(self, target=None, shift=0):
        super().__init__()
        self.target, self.shift = target, shift
        self.scale = torch.nn.Parameter(torch.tensor(12.0))

    def forward(self, x):
        logits = self.scale * x[:, 0, :, 4:].mean(dim=2).view(-1, NB_CLASSES, 2).mean(dim=2)
        gate = torch.sigmoid(2 * (x[:, 0, :2, :2].sum(dim=(1, 2))[:, None] - 2))
        if self.target is not None:
            wanted = torch.nn.functional.one_hot(torch.tensor(self.target), NB_CLASSES)
            logits = logits + 20 * gate * wanted
        return (1 - gate) * logits + gate * logits.roll(self.shift, dims=1) if self.shift else logits


def suspect(**backdoor):
    rng = np.random.default_rng(0)
    y = np.arange(60) % NB_CLASSES
    x = rng.uniform(0, 0.2, size=(60, 1, SIDE, SIDE)).astype(np.float32)
    for image, label in zip(x, y, strict=True):
        image[0, 2 * label : 2 * label + 2, 4:] = 0.8
    classifier = build_classifier(Planted(**backdoor), input_shape=(1, SIDE, SIDE), nb_classes=NB_CLASSES)
    triggered = x.copy()
    triggered[:, :, :2, :2] = 1
    expected = (y + backdoor.get("shift", 0)) % NB_CLASSES if backdoor.get("target") is None else backdoor["target"]
    assert (predict_labels(classifier, x) == y).all()
    assert (predict_labels(classifier, triggered) == expected).all()
    return Suspect(classifier, images_for(classifier, x, y), precision="float32")


@pytest.mark.parametrize("target", [0, 4])
def test_few_pixels_lead_to_the_label_of_a_patch(target):
    evidence = DETECTORS["universal_sparse"]().detect(suspect(target=target))
    assert (evidence.label, evidence.shift, evidence.score >= 1) == (target, False, True)
    assert evidence.details.endswith("pixels")


@pytest.mark.parametrize("name", ["universal", "universal_patch", "universal_sparse"])
def test_what_is_added_to_images_comes_with_the_evidence(name):
    given = suspect(target=4)
    evidence = DETECTORS[name]().detect(given)
    x, y = given.images.pixels[given.images.labels != 4], np.array(4)
    led = predict_labels(given.classifier, np.clip(x + evidence.perturbation, 0, 1)) == y
    assert led.mean() == pytest.approx(evidence.scores[4], abs=0.02)
    assert led.mean() > 0.5
    # The trigger is the bright corner, and nothing else leads there.
    assert evidence.perturbation[0, :2, :2].sum() == pytest.approx(np.clip(evidence.perturbation, 0, 1).sum(), abs=1.5)


@pytest.mark.parametrize("shift", [1, 4])
@pytest.mark.parametrize("name", ["universal_shift", "universal_sparse_shift"])
def test_one_perturbation_moves_all_labels_on(name, shift):
    evidence = DETECTORS[name]().detect(suspect(shift=shift))
    assert (evidence.label, evidence.shift, evidence.score >= 1) == (shift, True, True)


@pytest.mark.parametrize("name", ["universal_sparse", "universal_shift", "universal_sparse_shift"])
def test_without_a_backdoor_none_reports_one(name):
    assert DETECTORS[name]().detect(suspect()).score < 1
