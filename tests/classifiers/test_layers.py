"""Which layer reads the last convolution, what it reads of each channel, and that a channel cut off is gone."""

import copy

import numpy as np
import pytest
import torch
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    Adapter,
    TinyNet,
    encoded,
    linear_classifier,
    same_weights,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
    weights,
)
from networks import ConvolutionalNet, Dense, FlatNet, Hidden, TokenNet, TwoSources, UpsideDownNet, logits_of

from art_aft.classifiers.classifier import build_classifier, clone, features, predict_labels
from art_aft.classifiers.layers import Head, NothingToPrune, output_weights

# Name of the model, its image's shape, the layer to be found, its channels, and whether its output is the model's.
NETS = {
    "wrn-10-1": ("wrn-10-1", SHAPE, "fc", 64, True),
    "preactresnet-18": ("preactresnet-18", (3, 16, 16), "fc", 512, True),
    "resnet-18": ("resnet-18", (3, 32, 32), "fc", 512, True),
    "tiny": (TinyNet, SHAPE, "fc", 8, True),
    "flat": (FlatNet, SHAPE, "classifier.0", 6, False),
    "convolutional": (ConvolutionalNet, SHAPE, "score", 7, False),
    "tokens": (TokenNet, SHAPE, "score", 6, False),
    "upside down": (UpsideDownNet, SHAPE, "fc", 6, True),
}
every_net = pytest.mark.parametrize("net", NETS)


def network(net):
    """A classifier with statistics as after some training, and a few images."""
    model, shape, *_ = NETS[net]
    if not isinstance(model, str):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = model()
    classifier = build_classifier(model, input_shape=shape, nb_classes=NB_CLASSES)
    generator = torch.Generator().manual_seed(2)
    for module in classifier.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return classifier, np.random.default_rng(0).random((5, *shape), dtype=np.float32)


def features_and_logits(classifier, x, without=()):
    """The last feature maps, and the logits where some of their channels are set to zero by hand."""
    model = clone(classifier).model.eval()
    with torch.no_grad():
        maps = model.features(torch.from_numpy(x))
        masked = maps.clone()
        masked[:, list(without)] = 0
        return maps, logits_of(model, masked).numpy()


def hooks_of(classifier):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in classifier._model.modules())


@every_net
class TestFinding:
    def test_the_layer_that_reads_the_last_convolution_is_found(self, net):
        classifier, x = network(net)
        head = Head(classifier, x)
        _, _, name, channels, is_last = NETS[net]
        assert (head.name, head.nb_channels, head.is_last) == (name, channels, is_last)
        assert head.layer is classifier.model.get_submodule(name)
        assert head.pruned == []

    def test_one_image_shows_as_much_as_many(self, net):
        classifier, x = network(net)
        one, many = Head(classifier, x[:1]), Head(classifier, x)
        assert (one.name, one.nb_channels, one.is_last) == (many.name, many.nb_channels, many.is_last)

    def test_its_name_finds_it_too(self, net):
        classifier, x = network(net)
        found = Head(classifier, x)
        named = Head(classifier, x, found.name)
        assert (named.name, named.nb_channels, named.is_last) == (found.name, found.nb_channels, found.is_last)
        np.testing.assert_array_equal(named.activations(x), found.activations(x))


@every_net
class TestReading:
    def test_activations_are_the_means_of_the_maps_over_positions(self, net):
        classifier, x = network(net)
        maps, _ = features_and_logits(classifier, x)
        activations = Head(classifier, x).activations(x)
        assert activations.shape == (len(x), NETS[net][3])
        np.testing.assert_allclose(activations, maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
        assert np.ptp(activations, axis=0).max() > 0.01

    def test_the_batch_size_does_not_matter(self, net):
        classifier, x = network(net)
        head = Head(classifier, x)
        np.testing.assert_allclose(head.activations(x, batch_size=2), head.activations(x), rtol=1e-4, atol=1e-5)
        assert head.inputs(x, batch_size=2).shape == head.inputs(x).shape

    def test_a_layer_that_goes_on_from_the_inputs_gives_the_models_logits(self, net):
        classifier, x = network(net)
        head = Head(classifier, x)
        with torch.no_grad():
            result = head.layer(head.inputs(x)).numpy()
        expected = classifier.predict(x)
        assert (result.shape == expected.shape and np.allclose(result, expected, atol=1e-4)) == head.is_last


# Like the other residual networks but with as few channels as are cut one by one here.
@pytest.mark.parametrize("net", [net for net in NETS if not net.endswith("resnet-18")])
class TestCutting:
    def test_a_cut_is_the_channel_of_the_map_set_to_zero(self, net):
        classifier, x = network(net)
        head = Head(classifier, x)
        plain = classifier.predict(x)
        activity = head.activations(x).mean(axis=0)
        for channel in (0, int(np.argmax(activity)), head.nb_channels - 1):
            _, expected = features_and_logits(classifier, x, [channel])
            before = head.cut(channel)
            np.testing.assert_allclose(classifier.predict(x), expected, rtol=1e-4, atol=1e-5)
            head.restore(before)
        _, expected = features_and_logits(classifier, x, [int(np.argmax(activity))])
        assert np.abs(expected - plain).max() > 1e-3

    def test_several_cuts_add_up(self, net):
        classifier, x = network(net)
        head = Head(classifier, x)
        channels = [4, 0, 3]
        _, expected = features_and_logits(classifier, x, channels)
        for channel in channels:
            head.cut(channel)
        assert head.pruned == channels
        np.testing.assert_allclose(classifier.predict(x), expected, rtol=1e-4, atol=1e-5)

    def test_only_the_layers_weights_of_that_channel_change(self, net):
        classifier, x = network(net)
        head, before = Head(classifier, x), weights(classifier)
        head.cut(2)
        after = weights(classifier)
        name = f"{head.name}.weight"
        assert [key for key in before if not torch.equal(before[key], after[key])] == [name]
        width = before[name].shape[1] // head.nb_channels
        columns = [column for column in range(before[name].shape[1]) if column // width == 2]
        changed = (before[name] != after[name]).flatten(1).any(dim=0)
        assert changed.nonzero().flatten().tolist() == columns
        assert not after[name][:, columns].any()

    def test_the_last_cut_can_be_undone_bit_for_bit(self, net):
        classifier, x = network(net)
        head = Head(classifier, x)
        head.cut(3)
        before = weights(classifier)
        kept = head.cut(1)
        assert not same_weights(before, classifier)
        head.restore(kept)
        assert same_weights(before, classifier)
        assert head.pruned == [3]

    def test_cuts_are_kept_after_a_step_of_training(self, net):
        classifier, x = network(net)
        head = Head(classifier, x)
        head.cut(3), head.cut(0)
        with torch.no_grad():
            head.layer.weight += 1
        moved = copy.deepcopy(head.layer.weight.detach())
        head.keep_cut()
        width = moved.shape[1] // head.nb_channels
        for channel in range(head.nb_channels):
            columns = slice(channel * width, (channel + 1) * width)
            expected = torch.zeros_like(moved[:, columns]) if channel in (0, 3) else moved[:, columns]
            assert torch.equal(head.layer.weight[:, columns], expected)

    def test_predictions_are_those_of_the_model_as_it_is_cut_now(self, net):
        classifier, x = network(net)
        output = classifier.model.get_submodule("classifier.3" if net == "flat" else NETS[net][2])
        with torch.no_grad():  # so that the images differ in what wins
            output.bias -= torch.from_numpy(classifier.predict(x).mean(axis=0))
        head = Head(classifier, x)
        inputs = head.inputs(x)
        seen = set()
        for part in np.array_split(np.arange(head.nb_channels), 4):
            _, logits = features_and_logits(classifier, x, head.pruned)
            seen.add(tuple(logits.argmax(axis=1)))
            np.testing.assert_array_equal(head.predict(x, inputs), logits.argmax(axis=1))
            for channel in part:
                head.cut(int(channel))
        assert len(seen) > 1


class TestPredicting:
    def test_the_model_does_not_run_again_where_the_layer_is_its_last(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(6)
        head = Head(classifier, x)
        inputs = head.inputs(x)
        with watched(classifier) as seen:
            labels = head.predict(x, inputs)
        assert seen == []
        np.testing.assert_array_equal(labels, predict_labels(classifier, x))

    def test_a_layer_with_something_behind_it_is_not_the_last(self):
        class Negated(TinyNet):
            def forward(self, x):
                return -super().forward(x)

        x, _ = tiny_data(6)
        classifier = build_classifier(Negated(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        head = Head(classifier, x)
        assert not head.is_last
        head.cut(0)
        np.testing.assert_array_equal(head.predict(x, head.inputs(x)), classifier.predict(x).argmax(axis=1))

    def test_its_inputs_are_those_of_the_evaluation_mode(self):
        classifier, (x, _) = tiny_classifier(dropout=0.5), tiny_data(6)
        expected = Head(classifier, x).activations(x)
        classifier._model.train()
        np.testing.assert_array_equal(Head(classifier, x).activations(x), expected)


class TestNamedLayers:
    def test_a_convolution_in_the_middle_reads_the_one_before_it(self):
        classifier, x = network("convolutional")
        head = Head(classifier, x, "conv2")
        assert (head.name, head.nb_channels, head.is_last) == ("conv2", 5, False)
        model = clone(classifier).model
        with torch.no_grad():
            maps = torch.relu(model.conv1(torch.from_numpy(x)))
            np.testing.assert_allclose(head.activations(x), maps.mean(dim=(2, 3)), atol=1e-5)
            maps[:, 3] = 0
            expected = model.head(torch.relu(model.conv2(maps)))
        head.cut(3)
        np.testing.assert_allclose(classifier.predict(x), expected, atol=1e-5)

    def test_the_first_convolution_reads_the_images_channels(self):
        classifier, x = network("convolutional")
        head = Head(classifier, x, "conv1")
        assert head.nb_channels == 3
        without = x.copy()
        without[:, 1] = 0
        expected = classifier.predict(without)
        head.cut(1)
        np.testing.assert_allclose(classifier.predict(x), expected, atol=1e-5)

    def test_a_name_inside_a_wrapped_model(self):
        x, _ = tiny_data(4)
        classifier = build_classifier(Adapter(TinyNet(), torch.sqrt), input_shape=SHAPE, nb_classes=NB_CLASSES)
        assert Head(classifier, x).name == Head(classifier, x, "inner.fc").name == "inner.fc"


class TestPixels:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_the_same_network_on_other_pixels_reads_the_same(self, encoding):
        x, _ = tiny_data(6)
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        expected = Head(tiny_classifier(), x).activations(x)
        images = given.encode(x)
        np.testing.assert_allclose(Head(given.classifier, images).activations(images), expected, atol=1e-5)

    def test_8_bit_images_stand_for_the_pixel_range(self):
        classifier = tiny_classifier()
        images = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
        floats = images.astype(np.float32) / 255
        head = Head(classifier, images)
        np.testing.assert_allclose(head.activations(images), head.activations(floats), atol=1e-6)


class TestLeavingThingsAlone:
    def victim(self):
        classifier = tiny_classifier(momentum=0.9, dropout=0.5)
        classifier._model.train()
        classifier.model.bn.eval()
        classifier.model.fc.bias.requires_grad_(False)
        return classifier

    def test_looking_changes_nothing(self):
        classifier, (x, _) = self.victim(), tiny_data(6)
        with untouched(classifier):
            head = Head(classifier, x)
            head.activations(x)
            head.predict(x, head.inputs(x))
            assert hooks_of(classifier) == 0
        head.is_last = False
        with untouched(classifier):
            head.predict(x, head.inputs(x))

    def test_a_model_that_draws_random_numbers_moves_no_global_generator(self):
        class Noisy(TinyNet):
            def forward(self, x):
                return super().forward(x + 1e-3 * torch.rand_like(x))

        classifier, (x, _) = build_classifier(Noisy(), input_shape=SHAPE, nb_classes=NB_CLASSES), tiny_data(6)
        with untouched(classifier):
            Head(classifier, x).activations(x)

    def test_cutting_changes_no_flag_and_no_gradient(self):
        classifier, (x, _) = self.victim(), tiny_data(6)
        head = Head(classifier, x)
        head.layer.weight.requires_grad_(True)
        with untouched(classifier):
            before = head.cut(1)
            assert head.layer.weight.requires_grad
            assert head.layer.weight.is_leaf
            head.restore(before)

    def test_no_hook_is_left_behind_by_a_failing_model(self):
        classifier, (x, _) = self.victim(), tiny_data(6)
        head = Head(classifier, x)
        wrong = np.zeros((2, 5, 12, 12), dtype=np.float32)
        for fails in (lambda: Head(classifier, wrong), lambda: head.inputs(wrong)):
            with untouched(classifier), pytest.raises(RuntimeError):
                fails()
            assert hooks_of(classifier) == 0


class TestErrors:
    def build(self, model):
        return build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES)

    @pytest.mark.parametrize("name", ["nothing", "bn", ""])
    def test_a_name_that_is_no_such_layer_is_refused(self, name):
        message = rf"^layer: got '{name}', expected a linear or convolution layer: conv, fc$"
        with pytest.raises(ValueError, match=message):
            Head(tiny_classifier(), tiny_data(2)[0], name)

    def test_a_layer_that_does_not_run_is_refused(self):
        classifier, x = network("upside down")
        message = r"^layer: got 'spare', which the model does not run, expected one of: first, second, fc$"
        with pytest.raises(ValueError, match=message):
            Head(classifier, x, "spare")

    def test_a_model_without_a_convolution_is_refused(self):
        classifier = linear_classifier(np.ones((NB_CLASSES, *SHAPE), dtype=np.float32))
        with pytest.raises(ValueError, match=r"^classifier\.model: got a model without a 2-dimensional convolution"):
            Head(classifier, tiny_data(2)[0])

    def test_a_single_convolution_that_nothing_reads_is_refused(self):
        pool = torch.nn.Sequential(torch.nn.Conv2d(3, NB_CLASSES, 12), torch.nn.Flatten())
        with pytest.raises(ValueError, match=r"^classifier\.model: got a single convolution and nothing that reads it"):
            Head(self.build(pool), tiny_data(2)[0])

    @pytest.mark.parametrize(("model", "layer"), [(TwoSources, None), (Dense, None), (Hidden, "5")])
    def test_where_maps_are_not_flattened_every_column_is_a_channel(self, model, layer):
        head = Head(self.build(model()), tiny_data(2)[0], layer)
        assert head.nb_channels == head.layer.weight.shape[1]
        inputs = head.inputs(tiny_data(2)[0])
        np.testing.assert_allclose(head.activations(tiny_data(2)[0]), inputs, atol=1e-6)


class TestStrangeLayers:
    def test_a_compiled_model_has_the_layers_of_the_plain_one(self):
        (x, _), model = tiny_data(), TinyNet()
        settings = {"input_shape": SHAPE, "nb_classes": NB_CLASSES}
        plain = build_classifier(model, **settings)
        compiled = build_classifier(torch.compile(TinyNet(), backend="eager"), **settings)
        compiled.predict(x)  # what runs first is compiled without hooks
        heads = Head(plain, x), Head(compiled, x)
        assert [(head.name, head.nb_channels, head.is_last) for head in heads] == [("fc", 8, True)] * 2
        assert torch.equal(heads[0].inputs(x), heads[1].inputs(x))
        np.testing.assert_array_equal(output_weights(compiled, x), model.fc.weight.detach().numpy())
        np.testing.assert_array_equal(features(compiled, x), features(plain, x))

    @pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
    @pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
    def test_a_head_whose_weights_are_computed_is_refused(self, norm):
        """A cut would be gone with the next prediction."""
        classifier = tiny_classifier()
        norm(classifier.model.fc)
        with pytest.raises(NothingToPrune, match=r"got a layer fc whose weight is computed"):
            Head(classifier, tiny_data()[0])
