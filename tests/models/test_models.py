"""The victims' architectures: sizes as published, forward pass as specified."""

import math

import pytest
import torch
from torch.nn import functional as F

from art_aft.models import MODELS, build_model


@pytest.fixture(autouse=True)
def _seeded_and_on_one_thread():
    """Tiny batches gain nothing from threads, and wait long for them where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("nb_classes", "parameters"), [(10, 175_066), (43, 177_211)])
def test_wrn_16_1_has_the_parameters_of_the_paper(nb_classes, parameters):
    assert count(build_model("wrn-16-1", nb_classes=nb_classes)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("wrn-40-1", 0.6), ("wrn-40-2", 2.2), ("wrn-40-4", 8.9), ("wrn-16-8", 11.0)],
)
def test_other_sizes_have_the_parameters_of_the_wide_resnet_paper(name, millions):
    assert round(count(build_model(name, nb_classes=10)) / 1e6, 1) == millions


def test_a_name_without_numbers_means_wrn_16_1():
    assert count(build_model("wrn", nb_classes=10)) == 175_066


@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_the_first_convolution_fits_the_channels(in_channels):
    model = build_model("wrn-16-1", nb_classes=10, in_channels=in_channels)
    assert count(model) == 175_066 + (in_channels - 3) * 16 * 9
    assert model(torch.rand(2, in_channels, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "side", "shape"),
    [
        ("wrn-16-1", (32, 32), (64, 8, 8)),
        ("wrn-16-1", (16, 16), (64, 4, 4)),
        ("wrn-16-1", (64, 32), (64, 16, 8)),
        ("wrn-16-1", (30, 30), (64, 8, 8)),
        ("wrn-10-2", (32, 32), (128, 8, 8)),
        ("wrn-22-1", (32, 32), (64, 8, 8)),
    ],
)
def test_features_are_the_last_map_at_a_quarter_of_the_side(name, side, shape):
    model = build_model(name, nb_classes=43).eval()
    x = torch.rand(2, 3, *side)
    with torch.no_grad():
        assert model.features(x).shape == (2, *shape)
        assert model(x).shape == (2, 43)


def test_logits_are_the_linear_layer_of_the_pooled_features():
    model = build_model("wrn-16-1", nb_classes=10).eval()
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        features = model.features(x)
        # 8x8 average pooling, as in the original release.
        pooled = F.avg_pool2d(features, 8).flatten(1)
        expected = pooled @ model.fc.weight.T + model.fc.bias
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert features.min() == 0
    assert features.max() > 0


def test_the_forward_pass_is_the_specified_one():
    """Section 5.1, written with plain functions on the weights in their order of definition."""
    model = build_model("wrn-16-1", nb_classes=10).double().eval()
    for name, tensor in model.state_dict().items():  # no statistic or scale stays at 0 or 1
        if tensor.is_floating_point() and "conv" not in name and "shortcut" not in name:
            tensor.copy_(torch.rand_like(tensor) + 0.5)

    def norm_relu(x, layer):
        mean, var = layer.running_mean[:, None, None], layer.running_var[:, None, None]
        return ((x - mean) / (var + 1e-5).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]).clamp(0)

    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        out = F.conv2d(x, model.conv1.weight, padding=1)
        for group, stride in ((model.group1, 1), (model.group2, 2), (model.group3, 2)):
            assert len(group) == 2
            for index, block in enumerate(group):
                step = stride if index == 0 else 1
                a = norm_relu(out, block.bn1)
                residual = out if step == 1 else F.conv2d(a, block.shortcut.weight, stride=step)
                a = norm_relu(F.conv2d(a, block.conv1.weight, stride=step, padding=1), block.bn2)
                out = residual + F.conv2d(a, block.conv2.weight, padding=1)
        expected = norm_relu(out, model.bn)
        torch.testing.assert_close(model.features(x), expected)


def test_fresh_weights_have_the_specified_spread():
    model = build_model("wrn-16-1", nb_classes=10)
    convolution = model.group3[0].conv1.weight
    assert convolution.shape == (64, 32, 3, 3)
    assert convolution.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert convolution.mean().item() == pytest.approx(0, abs=0.002)
    assert not model.fc.bias.any()
    assert (model.bn.weight == 1).all()
    assert not model.bn.bias.any()


def test_weights_come_from_the_global_generator():
    def first_weight(seed):
        torch.manual_seed(seed)
        return build_model("wrn-10-1", nb_classes=2).conv1.weight

    assert torch.equal(first_weight(1), first_weight(1))
    assert not torch.equal(first_weight(1), first_weight(2))


def test_all_parameters_get_gradients():
    model = build_model("wrn-16-1", nb_classes=10)
    model(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("depth", [10.0, "16", True])
def test_a_depth_of_another_type_is_refused(depth):
    with pytest.raises(TypeError, match=rf"^depth: got {depth!r}"):
        MODELS["wrn"](depth)


@pytest.mark.parametrize("name", ["wrn-4-1", "wrn-15-1", "wrn-17-1", "wrn-18-1"])
def test_a_depth_that_gives_no_whole_blocks_is_refused(name):
    with pytest.raises(ValueError, match=rf"^depth: got {name.split('-')[1]}, expected"):
        build_model(name, nb_classes=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widen_factor": 0}, "widen_factor: got 0"),
        ({"nb_classes": 1}, "nb_classes: got 1"),
        ({"in_channels": 0}, "in_channels: got 0"),
    ],
)
def test_numbers_that_are_too_small_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}, expected"):
        MODELS["wrn"](**arguments)


def test_an_unknown_family_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown model 'mlp', expected one of: .*wrn"):
        build_model("mlp-16", nb_classes=10)


@pytest.mark.parametrize("name", ["wrn-16-one", "wrn-", "wrn--16", "wrn-16.0", "wrn 16 1", ""])
def test_a_garbled_name_is_refused_and_shown(name):
    with pytest.raises(ValueError, match=f"model: got '{name}'"):
        build_model(name, nb_classes=10)


@pytest.mark.parametrize("name", ["wrn-16-1-3", 16])
def test_a_name_that_no_family_can_read_is_refused_and_shown(name):
    with pytest.raises((TypeError, ValueError), match=f"{name!r}"):
        build_model(name, nb_classes=10)
