"""How large a perturbation is by default."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def default_eps(norm: float, input_shape: Sequence[int], clip_values: tuple[float, float]) -> float:
    """
    Return a perturbation size that is about as small for images of any size.

    >>> default_eps(2, (3, 32, 32), (0.0, 1.0)), default_eps(0, (3, 16, 16), (0.0, 1.0))
    (1.0, 3.0)

    :param norm: np.inf gives 4/255 of the range. 2 gives 1.0 of the range for 32x32x3 values, and grows with the square
        root of their number. 0 gives 12 pixels for 32x32, and grows with their number; it is at least one.
    :param input_shape: The shape of an image.
    :param clip_values: The pixel range.
    """
    if norm == 0:
        height, width = sorted(input_shape)[1:]  # channels are fewer
        return float(max(1, round(12 * height * width / 1024)))
    fraction = 4 / 255 if norm == np.inf else (np.prod(input_shape) / 3072) ** 0.5
    return float(fraction * (clip_values[1] - clip_values[0]))
