"""Classifiers are borrowed without a trace, and predict what ART's predict does."""

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    gradient_flags,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    weights,
)

from art_aft.classifiers.classifier import build_classifier, features, predict_logits
from art_aft.classifiers.pixel_module import borrow

PRECISIONS = ("float32", "bfloat16", "auto")


@pytest.fixture
def x():
    return tiny_data()[0]


def mixed_classifier(**settings):
    """A classifier in training mode, with one module in evaluation mode and one parameter frozen by hand."""
    classifier = tiny_classifier(momentum=0.9, dropout=0.5, **settings)
    classifier._model.train()
    classifier.model.bn.eval()
    classifier.model.conv.weight.requires_grad_(False)
    return classifier


class TestBorrow:
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
    def test_modes_flags_and_generators_are_given_back(self, precision, fails, x):
        classifier = mixed_classifier()

        def use():
            with borrow(classifier, precision=precision, freeze=True) as module:
                assert not any(parameter.requires_grad for parameter in module.parameters())
                module.eval()
                module(torch.from_numpy(x))
                if fails:
                    raise KeyError("inside the block")

        with untouched(classifier):
            if fails:
                with pytest.raises(KeyError, match="inside the block"):
                    use()
            else:
                use()

    def test_parameters_stay_trainable_unless_frozen(self):
        classifier = mixed_classifier()
        before = gradient_flags(classifier)
        with borrow(classifier, precision="float32"):
            assert gradient_flags(classifier) == before

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["plain", "channels_last"])
    @pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
    def test_memory_formats_are_given_back(self, layout, fails):
        classifier = tiny_classifier()
        classifier.model.to(memory_format=layout)
        try:
            with borrow(classifier, precision="bfloat16"):
                assert classifier.model.conv.weight.is_contiguous(memory_format=torch.channels_last)
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert classifier.model.conv.weight.is_contiguous(memory_format=layout)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_predictions_afterwards_are_the_same_bit_for_bit(self, precision, matrix_units):
        # One input channel and 1x1 kernels: shapes for which both memory formats are "contiguous".
        classifier = build_classifier("wrn-10-1", input_shape=(1, 16, 16), nb_classes=10)
        x = np.random.default_rng(0).random((32, 1, 16, 16), dtype=np.float32)
        before = classifier.predict(x)
        with borrow(classifier, precision=precision) as module:
            module(torch.from_numpy(x))
        np.testing.assert_array_equal(classifier.predict(x), before)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_activations_afterwards_lie_as_before_in_memory(self, precision, matrix_units):
        classifier = build_classifier("wrn-10-1", input_shape=SHAPE, nb_classes=10)
        x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
        assert classifier.model.features(x).is_contiguous()
        with borrow(classifier, precision=precision) as module:
            module(x)
        assert classifier.model.features(x).view(4, -1).shape == (4, 64 * 9)

    @pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
    @pytest.mark.parametrize("keep", [False, True])
    def test_running_statistics_are_given_back_on_demand(self, keep, fails, x):
        classifier = tiny_classifier()
        before = weights(classifier)
        try:
            with borrow(classifier, precision="float32", keep_buffers=keep) as module:
                module.train()
                module(torch.from_numpy(x))
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert same_weights(before, classifier) == keep

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_logits_are_float32_and_those_of_arts_predict(self, precision, encoding, x, matrix_units):
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        pixels = given.encode(x)
        expected = given.classifier.predict(pixels)
        with borrow(given.classifier, precision=precision) as module:
            module.eval()
            logits = module(torch.from_numpy(pixels))
        assert logits.dtype == torch.float32
        error = np.abs(logits.detach().numpy() - expected).max()
        # bfloat16 has 8 bits: it must show, but not harm.
        assert error < 1e-5 if precision == "float32" else 1e-5 < error < 0.05

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_scaled_inputs_0_and_1_stand_for_the_given_pixel_values(self, encoding, x):
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        low, high = -0.5 * given.spread, 1.5 * given.spread
        pixels = given.encode(x)
        with borrow(given.classifier, precision="float32", scale=(low, high)) as module:
            module.eval()
            logits = module(torch.from_numpy((pixels - np.float32(low)) / np.float32(high - low)))
        np.testing.assert_allclose(logits.detach(), given.classifier.predict(pixels), atol=1e-5)

    def test_a_preprocessing_defence_applies_where_art_applies_it(self, x):
        class Negative(PreprocessorPyTorch):
            def forward(self, x, y=None):
                return 1 - x, y

        classifier = PyTorchClassifier(
            TinyNet(),
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=SHAPE,
            nb_classes=NB_CLASSES,
            clip_values=(0, 1),
            preprocessing_defences=Negative(apply_fit=False, apply_predict=True),
        )
        with borrow(classifier, precision="float32") as module:
            module.eval()
            predicted = module(torch.from_numpy(x)).detach().numpy()
            module.train()
            classifier.model.eval()
            fitted = module(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(predicted, classifier.predict(x), atol=1e-5)
        np.testing.assert_allclose(predicted, tiny_classifier().predict(1 - x), atol=1e-5)
        np.testing.assert_allclose(fitted, tiny_classifier().predict(x), atol=1e-5)
        assert np.abs(predicted - fitted).max() > 1e-3

    @pytest.mark.parametrize("precision", ["auto", "bfloat16"])
    def test_a_model_with_a_view_on_activations_still_runs_in_bfloat16(self, precision, x, matrix_units):
        given = encoded("view", TinyNet(), SHAPE, NB_CLASSES)
        dtypes = []
        given.classifier.model.inner.conv.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
        with borrow(given.classifier, precision=precision) as module:
            images = torch.from_numpy(x).requires_grad_(True)
            torch.autograd.grad(module(images).sum(), images)
        assert dtypes[-1] == torch.bfloat16

    def test_auto_falls_back_to_float32_where_a_model_has_no_bfloat16(self, x, matrix_units):
        class Picky(TinyNet):
            def features(self, x):
                features = super().features(x)
                if features.dtype == torch.bfloat16:
                    raise RuntimeError("not implemented for 'BFloat16'")
                return features

        classifier = build_classifier(Picky(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        with borrow(classifier, precision="auto") as module:
            module.eval()
            logits = module(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_array_equal(logits, classifier.predict(x))
        with (
            untouched(classifier),
            pytest.raises(RuntimeError, match="BFloat16"),
            borrow(classifier, precision="bfloat16"),
        ):
            pass

    def test_an_unknown_precision_is_refused(self):
        with (
            pytest.raises(ValueError, match=r"^precision: got 'half', expected one of 'auto'"),
            borrow(tiny_classifier(), precision="half"),
        ):
            pass


class Volumes(torch.nn.Module):
    """A model with a weight, a buffer or a traced constant of five dimensions, as video networks have."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, TinyNet()
        self.conv = torch.nn.Conv3d(1, 1, 1) if kind == "weight" else None
        self.register_buffer("bias", torch.zeros(1, 1, 1, 1, 1) if kind == "buffer" else torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        volumes = x[:, None] if self.conv is None else self.conv(x[:, None])
        if self.kind == "constant":
            volumes = volumes + torch.zeros(1, 1, 1, 1, 1)
        return self.inner((volumes + self.bias)[:, 0])


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", ["weight", "buffer", "constant"])
def test_a_model_with_tensors_of_five_dimensions_is_borrowed(kind, fold, matrix_units):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = build_classifier(Volumes(kind), input_shape=SHAPE, nb_classes=NB_CLASSES)
    x = torch.from_numpy(tiny_data(4)[0])
    with torch.no_grad():
        expected = classifier.model(x)
    with untouched(classifier), torch.no_grad(), borrow(classifier, fold=fold, freeze=True) as module:
        assert module.bfloat16
        torch.testing.assert_close(module.eval()(x), expected, rtol=0.1, atol=0.1)


class TestInPlace:
    """A model that works in place on its input."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.net = torch.nn.Hardtanh(0.2, 0.4, inplace=True), TinyNet()

        def features(self, x):
            return self.net.features(self.first(x))

        def forward(self, x):
            return self.net(self.first(x))

    @pytest.mark.parametrize("encoding", ENCODINGS[:3])
    def test_the_users_array_stays_and_predictions_are_arts(self, encoding):
        given = encoded(encoding, self.Net(), SHAPE, NB_CLASSES)
        x = given.encode(tiny_data()[0])
        before = x.copy()
        logits = predict_logits(given.classifier, x)
        features(given.classifier, x)
        np.testing.assert_array_equal(x, before)
        np.testing.assert_allclose(logits, given.classifier.predict(x), atol=1e-5)

    def test_gradients_with_respect_to_the_pixels_are_those_of_the_plain_model(self):
        classifier = build_classifier(self.Net(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        x = torch.from_numpy(tiny_data(4)[0]).requires_grad_(True)
        before = x.detach().clone()
        with borrow(classifier, precision="float32") as module:
            module.eval()
            (own,) = torch.autograd.grad(module(x).sum(), x)
        assert torch.equal(x.detach(), before)
        (expected,) = torch.autograd.grad(classifier.model.net(x.clamp(0.2, 0.4)).sum(), x)
        torch.testing.assert_close(own, expected)
