"""Batch normalisation merged into convolutions: the same function in fewer layers, or the model as it is."""

import numpy as np
import pytest
import torch
from helpers import SHAPE, gradient_flags, modes, same_weights, tiny_classifier, tiny_data, weights

from art_aft import TorchAttacksPGD
from art_aft.classifiers.classifier import build_classifier
from art_aft.classifiers.pixel_module import borrow
from art_aft.runtime.folding import fold_batch_norm


class Branching(torch.nn.Module):
    """A model whose path depends on its input, which no tracing can follow."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else self.inner(x).neg()


class Asking(torch.nn.Module):
    """A model that takes another path while it is traced."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if isinstance(x, torch.Tensor) else self.inner(x) + 1


class Knotted(torch.nn.Module):
    """Convolutions whose output has two readers, that run twice, or whose statistics are those of the batch."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(3, 3, 1) for _ in range(4))
        self.bns = torch.nn.ModuleList(torch.nn.BatchNorm2d(3, track_running_stats=n != 2) for n in range(5))
        for n, bn in enumerate(self.bns):
            bn.weight.data.fill_(n + 2)
            if bn.running_var is not None:
                bn.running_var.fill_(0.5 + n)

    def forward(self, x):
        y = self.convs[0](x)
        x = self.bns[0](y) + y  # read twice
        x = self.bns[1](self.convs[1](x)) + self.bns[4](self.convs[1](x.relu()))  # runs twice
        x = self.bns[2](self.convs[2](x))  # the batch's statistics
        return self.bns[3](self.convs[3](x))  # the one that can be merged


def wrapped(kind):
    return build_classifier(kind(tiny_classifier().model), input_shape=SHAPE, nb_classes=4)


def test_the_merged_weights_are_those_of_the_formula():
    classifier = tiny_classifier()
    with borrow(classifier, precision="bfloat16", freeze=True, fold=True) as module:
        convolutions = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
        assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
        (merged,) = convolutions
        weight, bias = merged.weight.clone(), merged.bias.clone()
    conv, bn = classifier.model.conv, classifier.model.bn
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    torch.testing.assert_close(weight, conv.weight * factor[:, None, None, None])
    torch.testing.assert_close(bias, (conv.bias - bn.running_mean) * factor + bn.bias)


@pytest.mark.parametrize("scale", [None, (0.0, 255.0)])
def test_logits_and_gradients_are_those_of_the_model(scale):
    classifier = build_classifier("wrn-10-1", input_shape=(3, 16, 16), nb_classes=4)
    found = []
    for fold in (False, True):
        with borrow(classifier, precision="bfloat16", scale=scale, freeze=True, fold=fold) as module:
            module.eval()
            x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
            logits = module(x)
            (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
            layers = sum(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
        found.append((logits, gradient, layers))
    (logits, gradient, layers), (folded, folded_gradient, fewer) = found
    assert fewer < layers
    # bfloat16 rounds to three digits, in other places.
    assert (folded - logits).detach().norm() < 0.03 * logits.detach().norm()
    assert (folded_gradient - gradient).norm() < 0.1 * gradient.norm()


@pytest.mark.parametrize("kind", [Branching, Asking])
def test_a_model_that_cannot_be_merged_runs_as_it_is(kind):
    classifier, (x, y) = wrapped(kind), tiny_data(8)
    with borrow(classifier, precision="bfloat16", freeze=True, fold=True) as module:
        assert module.model is classifier.model
    assert TorchAttacksPGD(classifier, precision="bfloat16").generate(x, y).shape == x.shape


def test_only_what_stays_the_same_function_is_merged():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Knotted().eval(), torch.rand(4, 3, 5, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded(x), model(x))
    names = [name for name, part in folded.named_modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert sorted(names) == ["bns.0", "bns.1", "bns.2", "bns.4"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_float32_is_never_merged():
    classifier = tiny_classifier()
    with borrow(classifier, precision="float32", freeze=True, fold=True) as module:
        assert module.model is classifier.model


@pytest.mark.parametrize("training_mode", [False, True])
def test_stage_1_asks_for_it_in_evaluation_mode_and_leaves_the_classifier_alone(training_mode, monkeypatch):
    merged = []
    monkeypatch.setattr("art_aft.classifiers.pixel_module._fold", lambda module, classifier: merged.append(classifier))
    classifier, (x, y) = tiny_classifier(), tiny_data(8)
    TorchAttacksPGD(classifier, precision="bfloat16", training_mode=training_mode).generate(x, y)
    assert merged == ([] if training_mode else [classifier])


def test_modes_flags_weights_and_random_state_stay():
    classifier = tiny_classifier()
    classifier.model.train()
    before = weights(classifier), modes(classifier), gradient_flags(classifier), torch.get_rng_state()
    with borrow(classifier, precision="bfloat16", freeze=True, fold=True) as module:
        assert module.model is not classifier.model
    assert same_weights(classifier, before[0])
    assert (modes(classifier), gradient_flags(classifier)) == before[1:3]
    np.testing.assert_array_equal(torch.get_rng_state(), before[3])
