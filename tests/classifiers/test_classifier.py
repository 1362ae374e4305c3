"""Classifiers are built, copied and checked."""

import os

import art
import numpy as np
import pytest
import torch
from art.defences.preprocessor import SpatialSmoothing
from art.estimators.classification import PyTorchClassifier
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    encoded,
    gradient_flags,
    modes,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    weights,
)

from art_aft.classifiers.classifier import build_classifier, check_classifier, clone
from art_aft.models import WideResNet


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

    @pytest.mark.parametrize(("name", "shown"), [("mlp-16", "mlp-16"), ("wrn-ten-1", "wrn-ten-1")])
    def test_an_unknown_model_is_refused_by_name(self, name, shown):
        with pytest.raises(ValueError, match=f"model: got '{shown}'"):
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
            ({"preprocessing": (0.5, 0.0)}, r"^victim\.preprocessing: std: got \[0\.0\], expected numbers > 0"),
            (
                {"preprocessing": ([0.5] * 2, [1.0] * 2)},
                r"^victim\.preprocessing: mean: got 2 numbers, expected one for",
            ),
            ({"preprocessing_defences": SpatialSmoothing()}, r"^victim\.preprocessing_defences: got some outside"),
        ],
    )
    def test_classifiers_that_cannot_be_worked_on_are_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            check_classifier("victim", self.built(**changes))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (0.5, 0.0, r"std: got \[0\.0\], expected numbers > 0"),
        (0.5, [1.0, 1.0, -1.0], r"std: got \[1\.0, 1\.0, -1\.0\]"),
        (0.5, float("nan"), r"std: got NaN or infinite values"),
        (float("inf"), 1.0, r"mean: got NaN or infinite values"),
        ([0.5, 0.5], 1.0, r"mean: got 2 numbers, expected one for each of 3 channels"),
    ],
)
def test_a_normalisation_that_gives_no_numbers_is_refused(mean, std, message):
    with pytest.raises(ValueError, match=rf"^preprocessing: {message}"):
        build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES, preprocessing=(mean, std))
