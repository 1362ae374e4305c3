"""What a model returns is checked once, at the door."""

from collections import namedtuple

import pytest
import torch
from helpers import NB_CLASSES, SHAPE, TinyNet, tiny_classifier, untouched
from torch.utils.checkpoint import checkpoint

from art_aft.classifiers.classifier import build_classifier, check_classifier, check_outputs

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


def test_logits_pass_and_nothing_is_touched():
    classifier = changed(lambda y: y)
    with untouched(classifier):
        assert check_outputs(classifier, trained=True) is None


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
