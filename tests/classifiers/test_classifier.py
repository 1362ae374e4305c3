"""Classifiers are built, copied and borrowed without a trace."""

import os
import random

import art
import numpy as np
import pytest
import torch
from art.defences.preprocessor import SpatialSmoothing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    global_rng,
    gradient_flags,
    modes,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    weights,
)

from art_aft.classifiers.classifier import borrow, build_classifier, check_classifier, clone, isolated_rng
from art_aft.models import WideResNet

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


class TestBuild:
    def test_a_model_by_name_has_the_weights_of_its_seed(self):
        with untouched():
            classifier = build_classifier("wrn-10-1", input_shape=(3, 8, 8), nb_classes=5, seed=7)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            expected = WideResNet(10, 1, nb_classes=5, in_channels=3)
        assert same_weights(classifier, expected.state_dict())
        assert not any(modes(classifier)[name] for name in modes(classifier) if name.startswith("_model"))

    @pytest.mark.parametrize("clip_values", [(0.0, 1.0), (0.0, 255.0)])
    def test_settings_arrive_in_arts_classifier(self, clip_values):
        model = TinyNet()
        optimizer = torch.optim.Adam(model.parameters())
        classifier = build_classifier(
            model, input_shape=SHAPE, nb_classes=NB_CLASSES, clip_values=clip_values, optimizer=optimizer
        )
        assert classifier.model is model
        assert classifier.optimizer is optimizer
        assert tuple(classifier.clip_values) == clip_values
        assert isinstance(classifier.loss, torch.nn.CrossEntropyLoss)

    @pytest.mark.parametrize(("name", "shown"), [("vgg-16", "vgg"), ("wrn-ten-1", "wrn-ten-1")])
    def test_an_unknown_model_is_refused_by_name(self, name, shown):
        with pytest.raises(ValueError, match=f"unknown model '{shown}'"):
            build_classifier(name, input_shape=SHAPE, nb_classes=NB_CLASSES)

    def test_a_named_model_for_channels_last_images_is_refused(self):
        with pytest.raises(ValueError, match="channels_first: got False with a model by name"):
            build_classifier("wrn-10-1", input_shape=(8, 8, 3), nb_classes=5, channels_first=False)


class TestClone:
    def test_predictions_are_the_same_and_weights_are_independent(self, x):
        classifier = tiny_classifier()
        before = classifier.predict(x)
        twin = clone(classifier)
        np.testing.assert_array_equal(twin.predict(x), before)
        with torch.no_grad():
            for parameter in twin.model.parameters():
                parameter.add_(1.0)
            twin.model.bn.running_mean.add_(1.0)
        assert np.abs(twin.predict(x) - before).max() > 0.1
        np.testing.assert_array_equal(classifier.predict(x), before)

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_preprocessing_and_pixel_range_come_along(self, encoding, x):
        original = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        twin = clone(original.classifier)
        np.testing.assert_array_equal(twin.predict(original.encode(x)), original.classifier.predict(original.encode(x)))
        assert tuple(twin.clip_values) == tuple(original.classifier.clip_values)
        assert twin.channels_first == original.classifier.channels_first

    @pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
    def test_each_module_keeps_its_own_mode_and_each_parameter_its_flag(self, training):
        classifier = mixed_classifier()
        classifier._model.training = classifier.model.training = training
        with untouched(classifier):
            twin = clone(classifier)
        assert modes(twin) == modes(classifier)
        assert not twin.model.bn.training
        assert twin.model.dropout.training
        assert gradient_flags(twin) == gradient_flags(classifier)
        assert not twin.model.conv.weight.requires_grad

    def test_the_optimizers_copy_holds_the_copys_parameters_and_momentum(self):
        classifier = tiny_classifier(momentum=0.9)
        twin = clone(classifier)
        own = {id(parameter) for parameter in twin.model.parameters()}
        held = [parameter for group in twin.optimizer.param_groups for parameter in group["params"]]
        assert {id(parameter) for parameter in held} == own
        for mine, theirs in zip(twin.model.parameters(), classifier.model.parameters(), strict=True):
            copied = twin.optimizer.state[mine]["momentum_buffer"]
            original = classifier.optimizer.state[theirs]["momentum_buffer"]
            assert torch.equal(copied, original)
            assert original.abs().sum() > 0
            assert copied.data_ptr() != original.data_ptr()

    def test_training_the_copy_with_art_is_training_the_original(self, x):
        classifier = tiny_classifier(momentum=0.9)
        y = np.arange(len(x)) % NB_CLASSES
        twin = clone(classifier)
        with untouched(classifier), torch.random.fork_rng():
            torch.manual_seed(3)
            twin.fit(x, y, batch_size=8, nb_epochs=2)
            trained = weights(twin)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            classifier.fit(x, y, batch_size=8, nb_epochs=2)
        assert same_weights(trained, classifier)

    def test_no_file_is_written_into_arts_data_folder(self):
        def listing():
            return sorted(os.path.join(*pair) for pair in files(art.config.ART_DATA_PATH))

        def files(folder):
            return ((path, name) for path, _, names in os.walk(folder) for name in names)

        before = listing()
        clone(tiny_classifier(momentum=0.9))
        assert listing() == before

    def test_a_subclass_keeps_its_class_and_attributes(self, x):
        class Marked(PyTorchClassifier):
            note = "none"

        classifier = Marked(
            TinyNet(), loss=torch.nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=NB_CLASSES, clip_values=(0, 1)
        )
        classifier.note = ["mine"]
        twin = clone(clone(classifier))
        assert type(twin) is Marked
        assert twin.note == ["mine"]
        twin.note.append("other")
        assert classifier.note == ["mine"]
        np.testing.assert_array_equal(twin.predict(x), classifier.predict(x))


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

    def test_frozen_batch_normalisation_stays_in_evaluation_mode_when_the_rest_trains(self, x):
        classifier = tiny_classifier(dropout=0.5)
        before = weights(classifier)
        with borrow(classifier, precision="float32") as module:
            module.freeze_bn = True
            module.train()
            assert not classifier.model.bn.training
            assert classifier.model.dropout.training
            module(torch.from_numpy(x))
            assert same_weights(before, classifier)
            module.freeze_bn = False
            module.train()
            assert classifier.model.bn.training

    def test_an_unknown_precision_is_refused(self):
        with (
            pytest.raises(ValueError, match=r"^precision: got 'half', expected one of 'auto'"),
            borrow(tiny_classifier(), precision="half"),
        ):
            pass


class TestCheckClassifier:
    @staticmethod
    def built(**changes):
        settings = {
            "model": TinyNet(),
            "loss": torch.nn.CrossEntropyLoss(),
            "input_shape": SHAPE,
            "nb_classes": NB_CLASSES,
            "clip_values": (0.0, 1.0),
        }
        return PyTorchClassifier(**{**settings, **changes})

    def test_the_pixel_range_comes_back(self):
        assert check_classifier("classifier", self.built(clip_values=(-1, 3))) == (-1.0, 3.0)

    @pytest.mark.parametrize("given", [None, "wrn-16-1", TinyNet()])
    def test_other_things_are_refused(self, given):
        with pytest.raises(TypeError, match=f"^victim: got {type(given).__name__}, expected ART's PyTorchClassifier"):
            check_classifier("victim", given)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"clip_values": None}, r"^victim\.clip_values: got None, expected \(low, high\)"),
            ({"clip_values": (np.zeros(3), np.array([1, 1, 2]))}, r"^victim\.clip_values: got (?s:.)*the same for all"),
            ({"input_shape": (12,)}, r"^victim\.input_shape: got \(12,\), expected that of an image"),
            ({"loss": torch.nn.MSELoss()}, r"^victim\.loss: got MSELoss, expected CrossEntropyLoss"),
            ({"model": torch.nn.Flatten()}, r"^victim\.model: got a model without parameters"),
            ({"preprocessing_defences": SpatialSmoothing()}, r"^victim\.preprocessing_defences: got some outside"),
        ],
    )
    def test_classifiers_that_cannot_be_worked_on_are_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            check_classifier("victim", self.built(**changes))


class TestIsolatedRng:
    @staticmethod
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    @pytest.mark.parametrize("seed", [None, 5])
    @pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
    def test_all_global_generators_are_left_as_they_were(self, seed, fails):
        before = global_rng()
        try:
            with isolated_rng(seed):
                self.draw()
                assert global_rng() != before
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert global_rng() == before

    def test_a_seed_fixes_torchs_stream_and_none_goes_on_with_it(self):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            expected = torch.rand(3)
            following = torch.rand(3)
            torch.manual_seed(5)
            torch.rand(3)
            with isolated_rng(5):
                assert torch.equal(torch.rand(3), expected)
            with isolated_rng():
                assert torch.equal(torch.rand(3), following)
            assert torch.equal(torch.rand(3), following)


class TestTheWatchItself:
    """The assertions of all these tests rest on `untouched`."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.model.fc.weight.data.add_(1e-6), "weights changed"),
            (lambda c: c.model.bn.running_var.mul_(1.5), "weights changed"),
            (lambda c: c.model.bn.train(), "modes changed"),
            (lambda c: c._model.eval(), "modes changed"),
            (lambda c: c.model.fc.weight.requires_grad_(False), "flags changed"),
            (lambda c: c.model.to(memory_format=torch.channels_last), "strides changed"),
            (lambda c: c.model.fc.weight.sum().backward(), "gradients changed"),
            (lambda c: c.optimizer.param_groups[0].update(lr=7.0), "the optimizer changed"),
            (lambda c: next(iter(c.optimizer.state.values()))["momentum_buffer"].add_(1), "the optimizer changed"),
            (lambda c: random.random(), "generator was moved"),
            (lambda c: np.random.rand(), "generator was moved"),
            (lambda c: torch.rand(1), "generator was moved"),
        ],
    )
    def test_it_sees_each_change(self, change, message):
        classifier = tiny_classifier(momentum=0.9)
        with pytest.raises(AssertionError, match=message), untouched(classifier):
            change(classifier)
