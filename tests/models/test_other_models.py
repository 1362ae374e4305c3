"""Architectures other than residual networks: sizes counted by hand, properties that defences meet."""

import pytest
import torch

from art_aft.models import build_model
from art_aft.models.vit import sines


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def convolution(inputs, outputs, side=3):
    return outputs * (inputs * side * side + 1)


def linear(inputs, outputs):
    return outputs * (inputs + 1)


def test_the_vgg_has_six_convolutions_and_one_linear_layer():
    pairs = [(3, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32)]
    expected = sum(convolution(*pair) + 2 * pair[1] for pair in pairs) + linear(32 * 16, 7)
    assert count(build_model("vgg-8", nb_classes=7)) == expected


def test_the_cnn_has_three_convolutions_two_linear_layers_and_nothing_else():
    expected = convolution(1, 8) + convolution(8, 16) + convolution(16, 32) + linear(32 * 16, 64) + linear(64, 10)
    model = build_model("cnn-8", nb_classes=10, in_channels=1)
    assert count(model) == expected
    assert not list(model.buffers())


def test_the_transformer_has_its_layers():
    width, depth = 32, 3
    attention = linear(width, 3 * width) + linear(width, width)
    layer = attention + linear(width, 2 * width) + linear(2 * width, width) + 2 * 2 * width
    expected = convolution(3, width, 4) + depth * layer + 2 * width + linear(width, 10)
    assert count(build_model("vit-4-3-32", nb_classes=10)) == expected


@pytest.mark.parametrize("name", ["vgg-4", "cnn-4", "vit-4-1-32"])
@pytest.mark.parametrize("side", [(8, 8), (16, 16), (32, 32), (24, 40)])
def test_images_of_any_side_get_logits(name, side):
    model = build_model(name, nb_classes=5, in_channels=3).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, *side)).shape == (2, 5)


@pytest.mark.parametrize("name", ["vgg-4", "cnn-4", "vit-4-1-32"])
def test_all_parameters_get_gradients(name):
    model = build_model(name, nb_classes=10)
    model(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_flattened_head_knows_where_things_are_and_a_transformer_without_positions_would_not():
    x = torch.rand(1, 3, 32, 32)
    moved = x.roll(8, dims=3)  # by two patches
    for name in ("vgg-4", "vit-4-2-32"):
        model = build_model(name, nb_classes=10).eval()
        with torch.no_grad():
            assert not torch.allclose(model(x), model(moved), atol=1e-4)


def test_positions_of_a_grid_are_all_different_and_of_one_length():
    positions = sines(5, 7, 32)
    assert positions.shape == (35, 32)
    assert len(positions.unique(dim=0)) == 35
    # Each frequency has a sine and a cosine: their squares sum to 1, 8 frequencies for each axis.
    torch.testing.assert_close(positions.square().sum(dim=1), torch.full((35,), 16.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg-0", "width: got 0"),
        ("cnn-0", "width: got 0"),
        ("vit-0", "patch_size: got 0"),
        ("vit-4-0", "depth: got 0"),
        ("vit-4-4-31", "width: got 31"),
        ("vit-4-4-40", "width: got 40, expected a multiple of 32"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build_model(name, nb_classes=10)
