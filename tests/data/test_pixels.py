"""Pixels within their range."""

import numpy as np
import pytest
import torch

from art_aft.data.pixels import clamped


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 2.5), (0.0, 255.0)])
def test_clamped_pixels_are_within_the_range_and_those_at_its_ends_keep_their_gradient(low, high):
    middle = (low + high) / 2
    x = torch.tensor([low - 1, low, middle, high, high + 1], requires_grad=True)
    found = clamped(x, low, high)
    assert found.tolist() == np.clip([low - 1, low, middle, high, high + 1], low, high).tolist()
    (3 * found).sum().backward()
    assert x.grad.tolist() == [0, 3, 3, 3, 0]
