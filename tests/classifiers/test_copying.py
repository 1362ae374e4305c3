"""Copies of strange models: they run on their own weights, or are refused, and the original stays as it is."""

import copy
import functools

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.hugging_face import HuggingFaceClassifierPyTorch
from helpers import NB_CLASSES, SHAPE, TinyNet, tiny_classifier, tiny_data, untouched
from torch.utils.checkpoint import checkpoint

from art_aft.classifiers.classifier import build_classifier, clone

GLOBALS = {}


def classifier_of(model, **settings):
    return build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES, **settings)


def with_closure():
    model = TinyNet()
    old = model.forward
    model.forward = lambda x: old(x)
    return model


def with_wrapped_closure():
    """As `functools.wraps` leaves it, over a closure over a submodule, with a default argument and a hook's state."""
    model = with_closure()
    old = model.forward

    @functools.wraps(old)
    def forward(x, scale=2.0, *, shift=1.0):
        return old(x) * scale + shift

    model.forward = forward
    return model


def with_patched_part():
    model = TinyNet()
    old = model.conv.forward
    model.conv.forward = lambda x: old(x).clamp(min=-5)
    return model


def with_default_argument():
    model = TinyNet()
    model.forward = lambda x, old=model.forward: old(x)
    return model


def with_partial():
    model = TinyNet()
    model.forward = functools.partial(lambda own, x: type(own).forward(own, x), model)
    return model


def with_bound_method():
    model = TinyNet()
    model.forward = model.forward
    return model


def with_recursion():
    model = TinyNet()
    old = model.forward

    def forward(x, again=True):
        return forward(x, again=False) if again else old(x)

    model.forward = forward
    return model


class Keeping(TinyNet):
    """Keeps activations of the last call as attributes."""

    def forward(self, x):
        self.feature = self.features(x)
        self.kept = {"maps": [self.feature * 2]}
        return self.fc(self.feature.mean(dim=(2, 3)))


class Checkpointed(TinyNet):
    """Has no weights in the graph of its output, but in the one that the backward pass builds."""

    def forward(self, x):
        return checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)


def normed(norm):
    model = TinyNet()
    norm(model.conv)
    norm(model.fc)
    return model


MODELS = {
    "closure": with_closure,
    "wrapped closure": with_wrapped_closure,
    "patched part": with_patched_part,
    "default argument": with_default_argument,
    "partial": with_partial,
    "bound method": with_bound_method,
    "kept activations": Keeping,
    "checkpoint": Checkpointed,
    "weight_norm": functools.partial(normed, torch.nn.utils.weight_norm),
    "spectral_norm": functools.partial(normed, torch.nn.utils.spectral_norm),
    "parametrization": functools.partial(normed, torch.nn.utils.parametrizations.weight_norm),
    "script": lambda: torch.jit.script(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, NB_CLASSES))),
    "trace": lambda: torch.jit.trace(TinyNet().eval(), torch.zeros(1, *SHAPE)),
    "compiled": lambda: torch.compile(TinyNet(), backend="eager"),
}
# Old forms that torch still has, whose warnings are its own.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize("used", [False, True], ids=["new", "after fit"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_training_the_copy_changes_the_copy_alone(make, used):
    model = make()
    classifier = classifier_of(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))
    x, _ = tiny_data(8)
    y = np.arange(8) % NB_CLASSES
    if used:
        with torch.random.fork_rng():
            classifier.fit(x, y, batch_size=8, nb_epochs=1)
        classifier.optimizer.zero_grad(set_to_none=True)
        classifier.model.eval()
    before = classifier.predict(x)
    with untouched(classifier):
        twin = clone(classifier)
    assert [p.requires_grad for p in twin.model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.is_leaf and p.grad is None for p in twin.model.parameters())
    np.testing.assert_array_equal(twin.predict(x), before)
    with untouched(classifier), torch.random.fork_rng():
        twin.fit(x, y, batch_size=8, nb_epochs=1)
    assert np.abs(twin.predict(x) - before).max() > 1e-3
    # Also what is in no state_dict: a stale copy of the weights would show here.
    np.testing.assert_array_equal(classifier.predict(x), before)


def test_arts_patch_of_hugging_face_models_is_put_on_the_copy():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Net(TinyNet):
        def forward(self, x):
            return Output(super().forward(x))

    with torch.random.fork_rng():
        classifier = HuggingFaceClassifierPyTorch(
            Net(), loss=torch.nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=NB_CLASSES, clip_values=(0, 1)
        )
    x, _ = tiny_data(4)
    before = classifier.predict(x)
    with untouched(classifier):
        twin = clone(clone(classifier))
    with torch.no_grad():
        twin.model.fc.weight.add_(torch.arange(8.0))
    assert np.abs(twin.predict(x) - before).max() > 0.1
    np.testing.assert_array_equal(classifier.predict(x), before)


def test_a_copy_that_runs_on_the_originals_weights_is_refused():
    model = TinyNet()
    GLOBALS["old"] = model.conv.forward
    model.conv.forward = lambda x: GLOBALS["old"](x)
    classifier = classifier_of(model)
    with untouched(classifier), pytest.raises(ValueError, match=r"still runs on the original's weights.*transformed_c"):
        clone(classifier)
    model.conv.requires_grad_(False)
    with untouched(classifier), pytest.raises(ValueError, match="still runs on the original's weights"):
        clone(classifier)


def test_a_patch_that_calls_itself_is_refused():
    classifier = classifier_of(with_recursion())
    with untouched(classifier), pytest.raises(ValueError, match="still runs on the original's weights"):
        clone(classifier)


def test_a_model_that_gives_no_gradient_is_refused():
    class Inference(TinyNet):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    classifier = classifier_of(Inference())
    with untouched(classifier), pytest.raises(ValueError, match="got a Inference whose output gives its own parameter"):
        clone(classifier)


def test_a_model_that_cannot_be_copied_is_refused_with_the_way_out():
    class Locked(TinyNet):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    classifier = classifier_of(Locked())
    with (
        untouched(classifier),
        pytest.raises(ValueError, match=r"a Locked that cannot be copied \(no copies\).*transf"),
    ):
        clone(classifier)


def test_gradients_that_the_user_has_stay():
    classifier = classifier_of(Checkpointed())
    classifier.model.conv.weight.grad = torch.ones_like(classifier.model.conv.weight)
    with untouched(classifier):
        clone(classifier)
    assert (classifier.model.conv.weight.grad == 1).all()


def test_frozen_models_are_copied_and_stay_frozen():
    classifier = tiny_classifier()
    classifier.model.requires_grad_(False)
    with untouched(classifier):
        twin = clone(classifier)
    assert not any(p.requires_grad for p in twin.model.parameters())


def test_buffers_of_a_model_that_counts_its_calls_stay():
    class Counting(TinyNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    twin = clone(classifier_of(Counting()))
    assert twin.model.calls == 0


def test_a_function_of_one_model_is_not_rebound_in_another():
    """A closure over a part that is not the model's, here a fixed rescaling, is left alone."""
    model, outside = TinyNet(), torch.nn.Hardtanh(0, 1)
    forward = model.forward
    model.forward = lambda x: forward(outside(x))
    twin = clone(classifier_of(model))
    contents = [cell.cell_contents for cell in twin.model.forward.__closure__]
    assert outside in contents
    assert any(getattr(value, "__self__", None) is twin.model for value in contents)


def test_classifiers_of_other_inputs_are_still_copied():
    model = torch.nn.Linear(5, 3)
    classifier = PyTorchClassifier(model, loss=torch.nn.CrossEntropyLoss(), input_shape=(5,), nb_classes=3)
    assert torch.equal(clone(classifier).model.weight, model.weight)
    assert copy.deepcopy(model.state_dict()).keys() == clone(classifier).model.state_dict().keys()


def test_a_classifier_is_copied_after_art_looked_at_its_activations():
    """As `ActivationDefence` and `SpectralSignatureDefense` do: ART keeps the activations with their gradients."""
    classifier, (x, _) = tiny_classifier(), tiny_data()
    seen = classifier.get_activations(x[:4], classifier.layer_names[0], batch_size=4)
    assert any(not tensor.is_leaf for tensor in classifier._features.values())
    with untouched(classifier):
        twin = clone(classifier)
    assert np.array_equal(twin.get_activations(x[:4], classifier.layer_names[0], batch_size=4), seen)
