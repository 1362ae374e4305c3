"""Defences on strange models: purified in full, or refused with the reason; the original stays as it is."""

import logging

import numpy as np
import pytest
import torch
from helpers import (
    NB_CLASSES,
    SHAPE,
    EndsInSoftmax,
    TinyNet,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    weights,
)
from quick_defences import every_defence, quick

from art_aft import BackdoorScan
from art_aft.classifiers.classifier import build_classifier
from art_aft.defences import DEFENCES, FinePruning, FineTuning, NeuralAttentionDistillation
from art_aft.defences.base import Defence

QUICK = {"nb_epochs": 1, "batch_size": 8, "padding": 0, "horizontal_flip": False, "precision": "float32"}
GLOBALS = {}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def data():
    return tiny_data(24)


def classifier_of(model):
    return build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES)


def fine_tune(classifier, data, **settings):
    x, y = data
    defence = FineTuning(classifier, **{**QUICK, **settings})
    return defence(x, y=y), defence


class Idle(Defence):
    """A defence that takes steps of size 0."""

    def __init__(self, classifier, *, nb_epochs=1):
        super().__init__(classifier, nb_epochs=nb_epochs)

    def _purify(self, classifier, images, run):
        torch.optim.SGD(classifier.model.parameters(), lr=0.0).step()


@every_defence
def test_a_model_that_returns_probabilities_is_purified_like_one_that_returns_logits(name, data):
    """What is compared is the direction in which weights have moved: rounding differs."""
    x, y = data
    moved = []
    for model, remarks in ((TinyNet(), 0), (EndsInSoftmax(), 1)):
        classifier = classifier_of(model)
        defence = quick(name, classifier)
        with untouched(classifier):
            purified = defence(x, y=y)
        before, after = (
            torch.nn.utils.parameters_to_vector(each.model.parameters()) for each in (classifier, purified)
        )
        moved.append((after - before).detach())
        assert len(defence.report.remarks) == remarks
    assert moved[0].abs().max() > 0.001
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.95


class TestUntouched:
    def test_a_patched_model_is_purified_like_the_plain_one(self, data):
        plain, patched = classifier_of(TinyNet()), classifier_of(TinyNet())
        old = patched.model.forward
        patched.model.forward = lambda x: old(x)
        with untouched(patched):
            purified, _ = fine_tune(patched, data)
        assert same_weights(purified, fine_tune(plain, data)[0])
        assert np.abs(purified.predict(data[0]) - patched.predict(data[0])).max() > 1e-4

    def test_what_cannot_be_copied_is_purified_in_place(self, data):
        x, y = data
        classifier = classifier_of(TinyNet())
        GLOBALS["old"] = classifier.model.forward
        classifier.model.forward = lambda x: GLOBALS["old"](x)
        defence = FineTuning(classifier, **QUICK)
        with untouched(classifier), pytest.raises(ValueError, match="pass transformed_classifier=classifier"):
            defence(x, y=y)
        before = weights(classifier)
        assert defence(x, transformed_classifier=classifier, y=y) is classifier
        assert not same_weights(before, classifier)

    def test_the_report_says_whether_anything_changed(self, data, caplog):
        x, y = data
        _, defence = fine_tune(tiny_classifier(), data)
        assert defence.report.changed
        assert "no weights" not in caplog.text
        idle = Idle(tiny_classifier())
        idle(x, y=y)
        assert not idle.report.changed
        changed = [(r.levelno, r.getMessage()) for r in caplog.records if "no weights" in r.getMessage()]
        assert changed == [(logging.WARNING, "Idle trained, but changed no weights of the classifier")]

    def test_nothing_asked_for_is_no_warning(self, data, caplog):
        _, defence = fine_tune(tiny_classifier(), data, nb_epochs=0)
        assert not defence.report.changed
        assert "no weights" not in caplog.text

    def test_running_statistics_count_as_changes(self, data):
        class Recalibrating(Idle):
            def _purify(self, classifier, images, run):
                classifier.model.bn.running_mean.add_(1.0)

        defence = Recalibrating(tiny_classifier())
        defence(data[0], y=data[1])
        assert defence.report.changed


@pytest.mark.parametrize("name", sorted(DEFENCES))
class TestDoor:
    def test_outputs_of_another_width_are_refused(self, name, data):
        classifier = classifier_of(TinyNet(nb_classes=NB_CLASSES + 2))
        with untouched(classifier), pytest.raises(ValueError, match=r"got outputs of shape \(2, 6\) for 2 images"):
            DEFENCES[name](classifier)(data[0], y=data[1])

    def test_frozen_models_are_refused(self, name, data):
        classifier = tiny_classifier()
        classifier.model.requires_grad_(False)
        with untouched(classifier), pytest.raises(ValueError, match="got only frozen parameters"):
            DEFENCES[name](classifier)(data[0], y=data[1])

    def test_half_models_are_refused(self, name, data):
        classifier = tiny_classifier()
        classifier.model.half()
        with untouched(classifier), pytest.raises(ValueError, match="parameters of type float16, expected float32"):
            DEFENCES[name](classifier)(data[0], y=data[1])


STRANGE = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "parametrization": torch.nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.parametrize("norm", STRANGE.values(), ids=STRANGE)
def test_layers_with_computed_weights_are_fine_tuned(norm, data):
    model = TinyNet()
    for layer in (model.conv, model.fc):
        norm(layer)
    classifier = classifier_of(model)
    with untouched(classifier):
        purified, defence = fine_tune(classifier, data)
    assert defence.report.changed
    assert np.abs(purified.predict(data[0]) - classifier.predict(data[0])).max() > 1e-4


def test_torchscript_is_fine_tuned_as_the_module_that_it_was_made_of(data):
    plain = classifier_of(TinyNet())
    scripted = classifier_of(torch.jit.script(torch.nn.Sequential(TinyNetParts(plain.model))))
    with untouched(scripted):
        purified, _ = fine_tune(scripted, data)
    expected, _ = fine_tune(plain, data)
    for own, other in zip(purified.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


class TinyNetParts(torch.nn.Module):
    """TinyNet in a form that TorchScript compiles."""

    def __init__(self, net):
        super().__init__()
        self.conv, self.bn, self.fc = net.conv, net.bn, net.fc

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean(dim=[2, 3]))


COMPILED = {
    "fine-tuning": lambda classifier: FineTuning(classifier, **QUICK),
    "fine-pruning": lambda classifier: FinePruning(classifier, max_drop=1.0, max_pruned=0.5, **QUICK),
    "attention": lambda classifier: NeuralAttentionDistillation(classifier, betas=(10.0,), teacher_epochs=1, **QUICK),
}


@pytest.mark.parametrize("in_place", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED)
def test_compiled_models_are_purified_like_plain_ones(make, in_place, data):
    x, y = data
    plain, compiled = classifier_of(TinyNet()), classifier_of(torch.compile(TinyNet(), backend="eager"))
    model = compiled.model
    expected = make(plain)(x, y=y)
    if in_place:
        assert make(compiled)(x, transformed_classifier=compiled, y=y) is compiled
        purified = compiled
    else:
        with untouched(compiled):
            purified = make(compiled)(x, y=y)
    assert compiled.model is model
    own = {name.removeprefix("_orig_mod."): value for name, value in weights(purified).items()}
    assert same_weights(own, weights(expected))
    np.testing.assert_allclose(purified.predict(x), expected.predict(x), atol=1e-5)


def test_a_model_that_works_in_place_leaves_the_images_alone(data):
    class InPlace(TinyNet):
        def forward(self, x):
            return super().forward(x.sub_(0.5).relu_())

    x, y = data
    before = x.copy()
    classifier = classifier_of(InPlace())
    fine_tune(classifier, data)
    DEFENCES["aft"](classifier, **QUICK)(x, y=y)
    np.testing.assert_array_equal(x, before)


class Behind(torch.nn.Module):
    """A network whose first part passes no gradient to the pixels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.no_grad():
            features = self.model.features(x)
        return self.model.fc(features.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["aft", "universal_aft", "auto", "neural_cleanse", "scan"])
def test_a_model_that_passes_no_gradient_to_its_pixels_is_refused_with_the_reason(name, data):
    classifier = classifier_of(Behind(TinyNet()))
    asked = BackdoorScan(classifier, detectors=["universal"]) if name == "scan" else quick(name, classifier)
    with (
        untouched(classifier),
        pytest.raises(ValueError, match=r"^classifier\.model: got outputs without a gradient of the pixels"),
    ):
        asked(data[0], y=data[1])


class Watching(TinyNet):
    """A network that counts its calls, and keeps ranges as observers of quantisation do, in evaluation mode, too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(3))

    def forward(self, x):
        self.calls = self.calls + 1  # another tensor in its place
        self.largest.copy_(x.detach().amax(dim=(0, 2, 3)))
        return super().forward(x)


@pytest.mark.parametrize("name", ["aft", "universal_aft", "auto", "nad", "scan"])
def test_a_model_that_watches_its_input_stays_as_it_is(name, data):
    classifier = classifier_of(Watching())
    calls = classifier.model.calls
    asked = BackdoorScan(classifier, effort="fast") if name == "scan" else quick(name, classifier)
    with untouched(classifier):
        asked(data[0], y=data[1])
    assert classifier.model.calls is calls
    assert (float(calls), float(classifier.model.largest.sum())) == (0, 0)


@pytest.mark.parametrize("other", [{"nb_classes": 3}, {"input_shape": (3, 8, 8)}])
def test_a_classifier_of_another_kind_is_not_purified_with_settings_made_for_this_one(other, data):
    kind = {"input_shape": SHAPE, "nb_classes": NB_CLASSES, **other}
    another = build_classifier(TinyNet(nb_classes=kind["nb_classes"]), **kind)
    defence = quick("universal_aft", tiny_classifier(), target=3)
    with untouched(another), pytest.raises(ValueError, match=r"^transformed_classifier: got one of \(input_shape"):
        defence(data[0], transformed_classifier=another, y=data[1])
