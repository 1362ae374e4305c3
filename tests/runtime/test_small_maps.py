"""Convolutions as matrix products: the same numbers as torch's own, and only where they pay."""

import pytest
import torch

from art_aft.classifiers.classifier import build_classifier
from art_aft.classifiers.pixel_module import borrow
from art_aft.runtime import small_maps
from art_aft.runtime.small_maps import SmallMaps, _MatrixConvolution

CASES = [
    # images, in, out, height, width, kernel, stride, padding
    (2, 3, 5, 4, 4, (3, 3), (1, 1), (1, 1)),
    (3, 2, 4, 8, 6, (3, 3), (2, 2), (1, 1)),
    (1, 4, 2, 5, 7, (1, 1), (2, 3), (0, 0)),
    (2, 3, 3, 6, 5, (2, 4), (3, 2), (0, 2)),
    (2, 3, 3, 7, 7, (7, 7), (1, 1), (0, 0)),
    (2, 1, 3, 5, 5, (2, 2), (3, 3), (1, 0)),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_result_and_both_gradients_are_those_of_torch(case, memory_format):
    n, channels, out_channels, height, width, kernel, stride, padding = case
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(n, channels, height, width, dtype=torch.float64, generator=rng).to(memory_format=memory_format)
    weight = torch.rand(out_channels, channels, *kernel, dtype=torch.float64, generator=rng)
    weight = weight.to(memory_format=memory_format)
    results = []
    for convolve in (torch.conv2d, None):
        leaves = (x.clone().requires_grad_(), weight.clone().requires_grad_())
        y = convolve(*leaves, None, stride, padding) if convolve else _MatrixConvolution.apply(*leaves, stride, padding)
        slope = torch.rand(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        results.append((y, *torch.autograd.grad(y, leaves, slope)))
    for expected, got in zip(*results, strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected)
    # With one channel both orders are the same.
    assert channels == 1 or results[1][0].is_contiguous(memory_format=memory_format)


class Viewed(torch.nn.Module):
    """Flattens small maps of many channels with `.view`, as older networks do."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.Sequential(torch.nn.Conv2d(3, 256, 1), torch.nn.Conv2d(256, 256, 3, padding=1))
        self.fc = torch.nn.Linear(256 * 16, 2)

    def forward(self, x):
        maps = self.convs(x)
        return self.fc(maps.view(len(maps), -1))


def test_a_model_that_views_small_maps_keeps_bfloat16(matrix_units):
    classifier = build_classifier(Viewed(), input_shape=(3, 4, 4), nb_classes=2)
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with borrow(classifier) as module:
        assert (module.bfloat16, module.channels_last_memory) == (True, False)
        torch.testing.assert_close(module(x), classifier.model(x), atol=0.03, rtol=0.03)


@pytest.fixture
def taken(monkeypatch):
    """Count the convolutions that become matrix products, and let small ones count as large."""
    calls = []
    plain = _MatrixConvolution.apply
    monkeypatch.setattr(small_maps, "_LEAST_CHANNELS", 6)
    monkeypatch.setattr(
        small_maps._MatrixConvolution, "apply", lambda *a: calls.append(a[0].shape) or plain(*a), raising=True
    )
    return calls


@pytest.mark.parametrize(
    ("layer", "side", "expected"),
    [
        (torch.nn.Conv2d(2, 3, 3, padding=1), 4, 1),
        (torch.nn.Conv2d(2, 3, 3, padding=1, bias=False), 4, 1),
        (torch.nn.Conv2d(2, 3, 3, padding=1, stride=2), 8, 1),
        (torch.nn.Conv2d(2, 3, 3, padding=1), 5, 0),  # 25 positions
        (torch.nn.Conv2d(2, 2, 3, padding=1), 4, 0),  # too few channels
        (torch.nn.Conv2d(6, 6, 3, padding=1, groups=2), 4, 0),
        (torch.nn.Conv2d(2, 3, 3, padding=2, dilation=2), 4, 0),
        (torch.nn.Conv2d(2, 3, 3, padding="same"), 4, 0),
        (torch.nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), 4, 1),
    ],
)
def test_only_plain_convolutions_with_many_channels_and_few_positions_are_changed(taken, layer, side, expected):
    x = torch.rand(2, layer.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16), SmallMaps():
        got = layer(x)
    assert len(taken) == expected
    assert got.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(got.float(), layer(x), atol=0.03, rtol=0.03)
    (rounded,) = torch.autograd.grad(got.sum(), layer.weight)
    (exact,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.02)


def test_an_unbatched_image_is_left_to_torch(taken):
    layer = torch.nn.Conv2d(2, 3, 3, padding=1)
    with SmallMaps():
        layer(torch.rand(2, 4, 4))
    assert not taken


def test_preactresnet_uses_them_in_bfloat16_alone(monkeypatch):
    calls = []
    plain = _MatrixConvolution.apply
    monkeypatch.setattr(small_maps._MatrixConvolution, "apply", lambda *a: calls.append(a[0].dtype) or plain(*a))
    classifier = build_classifier("preactresnet-18", input_shape=(3, 32, 32), nb_classes=10)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with borrow(classifier, precision="float32") as module:
            exact = module(x)
        assert not calls
        with borrow(classifier, precision="bfloat16") as module:
            calls.clear()
            rounded = module(x)
    # Group 4: two blocks of two convolutions, and the shortcut of the first.
    assert calls == [torch.bfloat16] * 5
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
