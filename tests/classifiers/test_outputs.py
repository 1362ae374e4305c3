"""What a model returns is checked once, at the door."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from art.defences.postprocessor import GaussianNoise, HighConfidence, Rounded
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.hugging_face import HuggingFaceClassifierPyTorch
from helpers import ENCODINGS, NB_CLASSES, SHAPE, TinyNet, encoded, same_weights, tiny_classifier, tiny_data, untouched
from torch.utils.checkpoint import checkpoint

from art_aft.adversarial.inversion import invert_triggers
from art_aft.adversarial.inversion_recipe import InversionRecipe
from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.adversarial.universal import universal_perturbations
from art_aft.attacks import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.classifiers.classifier import build_classifier, check_classifier, check_outputs, images_for
from art_aft.classifiers.pixel_module import are_probabilities, borrow
from art_aft.defences import FineTuning
from art_aft.experiments.compare import compare
from art_aft.metrics import evaluate

Pair = namedtuple("Pair", ["logits", "extra"])

BAD_OUTPUTS = {
    "tuple": (lambda y: (y, y), r"outputs of type tuple with shapes \(2, 4\), \(2, 4\), expected a tensor of logits"),
    "named tuple": (lambda y: Pair(y, None), r"outputs of type Pair with shapes \(2, 4\), expected"),
    "dict": (lambda y: {"logits": y}, r"outputs of type dict with shapes \(2, 4\), expected"),
    "nothing": (lambda y: None, "outputs of type NoneType, expected"),
    "maps": (lambda y: y[:, :, None, None], r"outputs of shape \(2, 4, 1, 1\) for 2 images, expected .*\(N, 4\)"),
    "wider": (lambda y: torch.cat([y, y], 1), r"outputs of shape \(2, 8\) for 2 images"),
    "narrower": (lambda y: y[:, :3], r"outputs of shape \(2, 3\) for 2 images"),
    "one row": (lambda y: y[:1], r"outputs of shape \(1, 4\) for 2 images"),
    "NaN": (lambda y: y * float("nan"), "NaN or infinite outputs for two grey images"),
    "infinite": (lambda y: y / 0, "NaN or infinite outputs for two grey images"),
}


class Changed(TinyNet):
    def __init__(self, change):
        super().__init__(dropout=0.5)
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


def changed(change):
    classifier = build_classifier(Changed(change), input_shape=SHAPE, nb_classes=NB_CLASSES)
    classifier.model.train()
    classifier.model.bn.eval()
    return classifier


@pytest.mark.parametrize(("change", "message"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
def test_other_outputs_than_logits_are_refused(change, message):
    classifier = changed(change)
    with untouched(classifier), pytest.raises(ValueError, match=f"^classifier.model: got {message}"):
        check_outputs(classifier)


def test_probabilities_pass_with_a_remark_and_nothing_is_touched():
    classifier = changed(lambda y: y.softmax(dim=1))
    with untouched(classifier):
        (remark,) = check_outputs(classifier, trained=True)
    assert remark.startswith("the model returns probabilities: their logarithms")


def test_the_logits_of_probabilities_are_their_logarithms_with_gradients_where_one_label_is_all():
    plain, softmaxed = changed(lambda y: 10 * y), changed(lambda y: (10 * y).softmax(dim=1))
    x = torch.from_numpy(tiny_data(8)[0])
    found = []
    for classifier in (plain, softmaxed):
        with borrow(classifier, precision="float32") as module:
            module.eval()
            images = x.clone().requires_grad_()
            logits = module(images)
            # The margin of the least likely label over the next: far below what a probability of 1 leaves.
            low = logits.sort(dim=1).values
            found.append(
                (
                    logits - logits.amax(dim=1, keepdim=True),
                    torch.autograd.grad((low[:, 1] - low[:, 0]).sum(), images)[0],
                )
            )
    for expected, given in zip(*found, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("outputs", [[[0.5, 0.6]], [[1.5, -0.5]], [[0.5, 0.5], [2.0, 1.0]]])
def test_what_does_not_sum_to_1_or_is_negative_is_no_probability(outputs):
    assert not are_probabilities(torch.tensor(outputs))


def test_no_outputs_are_no_probabilities():
    assert not are_probabilities(torch.empty(0, 3))


def test_logits_pass_and_nothing_is_touched():
    classifier = changed(lambda y: y)
    with untouched(classifier):
        assert check_outputs(classifier, trained=True) == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16], ids=str)
def test_models_of_another_precision_are_refused_by_type(dtype):
    classifier = changed(lambda y: y)
    classifier.model.to(dtype)
    name = str(dtype).removeprefix("torch.")
    with untouched(classifier), pytest.raises(ValueError, match=f"got parameters of type {name}, expected float32"):
        check_outputs(classifier)


def test_models_that_convert_their_input_pass():
    class Double(TinyNet):
        def forward(self, x):
            return super().forward(x.double())

    check_outputs(build_classifier(Double().double(), input_shape=SHAPE, nb_classes=NB_CLASSES), trained=True)


def test_an_error_of_the_model_is_shown():
    def fail(y):
        raise KeyError("no such head")

    with pytest.raises(ValueError, match=r"got an error for two grey images of shape \(3, 12, 12\): 'no such head'"):
        check_outputs(changed(fail))


class TestTrained:
    def test_frozen_models_are_refused_only_where_they_would_be_trained(self):
        classifier = tiny_classifier()
        classifier.model.requires_grad_(False)
        check_outputs(classifier)
        with untouched(classifier), pytest.raises(ValueError, match="got only frozen parameters, expected some"):
            check_outputs(classifier, trained=True)

    def test_layers_in_a_plain_list_are_refused(self):
        class Listed(TinyNet):
            def __init__(self):
                super().__init__()
                self.layers = [torch.nn.Linear(NB_CLASSES, NB_CLASSES)]

            def forward(self, x):
                return self.layers[0](super().forward(x))

        classifier = build_classifier(Listed(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        check_outputs(classifier)
        with untouched(classifier), pytest.raises(ValueError, match=r"weights that model\.parameters"):
            check_outputs(classifier, trained=True)

    def test_checkpointed_activations_pass(self):
        class Checkpointed(TinyNet):
            def forward(self, x):
                return checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)

        check_outputs(build_classifier(Checkpointed(), input_shape=SHAPE, nb_classes=NB_CLASSES), trained=True)

    def test_outputs_without_a_gradient_are_refused(self):
        classifier = changed(torch.Tensor.detach)
        check_outputs(classifier)
        with untouched(classifier), pytest.raises(ValueError, match="got outputs without a gradient"):
            check_outputs(classifier, trained=True)


def test_a_hugging_face_processor_is_refused():
    classifier = tiny_classifier()
    classifier.processor = lambda x: x
    with pytest.raises(ValueError, match=r"^victim\.processor: got one, expected None"):
        check_classifier("victim", classifier)


ENTRY_POINTS = {
    "evaluate": lambda c, x, y: evaluate(c, x, y, BadNets(), AllToOne(0)),
    "compare": lambda c, x, y: compare(c, ["fine_tuning"], x, y, x, y, BadNets(), AllToOne(0)),
    "PGD": lambda c, x, y: TorchAttacksPGD(c, max_iter=1).generate(x, y),
    "universal": lambda c, x, y: universal_perturbations(c, x, y, max_iter=1),
    "triggers": lambda c, x, y: invert_triggers(c, x, InversionRecipe(steps=1)),
}


@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize("kind", ["wider", "tuple", "dict"])
def test_every_entry_point_refuses_them(entry, kind):
    classifier, (x, y) = changed(BAD_OUTPUTS[kind][0]), tiny_data(24)
    classifier._model.eval()  # as ART's predict leaves it
    message = r"^classifier\.(model|predict): got outputs of (shape \(\d+, 8\)|type (tuple|dict) with shapes)"
    with untouched(classifier), pytest.raises(ValueError, match=message):
        ENTRY_POINTS[entry](classifier, x, y)


class TestPredict:
    """ART's own predict must do what the model does, and no more."""

    @staticmethod
    def check(classifier, x):
        check_outputs(classifier, images_for(classifier, x, labelled=False))

    @pytest.mark.parametrize("encoding", ENCODINGS)
    @pytest.mark.parametrize("as_bytes", [False, True])
    def test_every_encoding_of_pixels_passes(self, encoding, as_bytes):
        other = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        x = other.encode(tiny_data(24)[0])
        if as_bytes:
            x = np.rint(x * (255 / other.spread)).astype(np.uint8)
        with untouched(other.classifier):
            self.check(other.classifier, x)

    def test_a_classifier_in_training_passes_and_stays(self):
        classifier = changed(lambda y: y)
        with untouched(classifier):
            self.check(classifier, tiny_data(24)[0])

    @staticmethod
    def with_postprocessing(*steps):
        return PyTorchClassifier(
            TinyNet(),
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=SHAPE,
            nb_classes=NB_CLASSES,
            clip_values=(0.0, 1.0),
            postprocessing_defences=list(steps),
        )

    def test_postprocessing_that_keeps_the_labels_passes(self):
        self.check(self.with_postprocessing(Rounded(decimals=3)), tiny_data(24)[0])

    @pytest.mark.parametrize("step", [HighConfidence(cutoff=1e6), GaussianNoise(scale=1e3)], ids=lambda s: s.__class__)
    def test_postprocessing_that_changes_the_labels_is_named(self, step):
        np.random.seed(0)
        name = type(step).__name__
        with pytest.raises(ValueError, match=rf"^classifier\.predict: got other labels .*postprocessing.* \({name}\)"):
            self.check(self.with_postprocessing(step), tiny_data(24)[0])

    def test_a_predict_of_its_own_is_named(self):
        class Shifting(PyTorchClassifier):
            def predict(self, x, **more):
                return np.roll(super().predict(x, **more), 1, axis=1)

        model = TinyNet()
        settings = {"loss": torch.nn.CrossEntropyLoss(), "input_shape": SHAPE, "nb_classes": NB_CLASSES}
        classifier = Shifting(model, clip_values=(0.0, 1.0), **settings)
        x, y = tiny_data(24)
        with untouched(classifier), pytest.raises(ValueError, match="Shifting has a predict of its own"):
            FineTuning(classifier)(x, y=y)

    def test_a_sequential_with_a_forward_of_its_own_is_named(self):
        class Negated(torch.nn.Sequential):
            def forward(self, x):
                return -super().forward(x)

        classifier = build_classifier(Negated(TinyNet()), input_shape=SHAPE, nb_classes=NB_CLASSES)
        with pytest.raises(ValueError, match=r"parts of a Sequential and not Negated\.forward"):
            self.check(classifier, tiny_data(24)[0])


class TestMoreThanLogits:
    def test_the_logits_of_several_heads_are_trained_on_where_only_training_returns_them(self):
        """As Inception does; the other heads get no gradient."""

        class Heads(TinyNet):
            def forward(self, x):
                logits = super().forward(x)
                return Pair(logits, logits * float("nan")) if self.training else logits

        classifier = build_classifier(Heads(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        x, y = tiny_data(24)
        settings = {"nb_epochs": 2, "batch_size": 8, "padding": 0, "horizontal_flip": False, "precision": "float32"}
        expected = FineTuning(tiny_classifier(), **settings)(x, y=y)
        assert same_weights(FineTuning(classifier, **settings)(x, y=y), expected)

    def test_arts_own_class_for_hugging_face_passes(self):
        class Output(TinyNet):
            def forward(self, x):
                return Pair(super().forward(x), None)

        settings = {"loss": torch.nn.CrossEntropyLoss(), "input_shape": SHAPE, "nb_classes": NB_CLASSES}
        classifier = HuggingFaceClassifierPyTorch(Output(), clip_values=(0.0, 1.0), **settings)
        check_outputs(classifier, images_for(classifier, tiny_data(24)[0], labelled=False), trained=True)


class TestSingleImages:
    class Flat(TinyNet):
        """With batch normalisation of one number an image."""

        def __init__(self):
            super().__init__()
            self.last = torch.nn.BatchNorm1d(NB_CLASSES)

        def forward(self, x):
            return self.last(super().forward(x))

    def tuned(self, n, batch_size):
        classifier = build_classifier(self.Flat(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        x, y = tiny_data(n)
        settings = {"nb_epochs": 1, "padding": 0, "horizontal_flip": False}
        with untouched(classifier):
            return FineTuning(classifier, batch_size=batch_size, **settings)(x, y=y)

    def test_batches_of_one_are_refused_at_the_door(self):
        with pytest.raises(ValueError, match=r"^batch_size: got a batch of one image, expected two or more"):
            self.tuned(8, 1)

    def test_a_last_one_alone_is_no_problem(self):
        assert self.tuned(9, 8)
