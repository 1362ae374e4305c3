"""Plain convolutional network in the manner of VGG, with dropout and a flattened head."""

from __future__ import annotations

import torch
from torch import nn

from art_aft.checks import check_integer
from art_aft.models.base import register


@register("vgg")
class VGG(nn.Module):
    """
    Six 3x3 convolutions in three pairs, a pool and dropout after each pair, and one linear layer on a flattened map.

    It stands for the small networks of many tutorials: no shortcut, no global pooling, a `.view` before the head.

    | Paper link: https://arxiv.org/abs/1409.1556

    :param width: The number of channels of the first pair. The second has twice as many, the third four times.
    :param nb_classes: The number of classes.
    :param in_channels: The number of image channels.
    :raises ValueError: If a number is too small.
    """

    def __init__(self, width: int = 16, *, nb_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        check_integer("width", width, 1)
        check_integer("nb_classes", nb_classes, 2)
        check_integer("in_channels", in_channels, 1)
        layers: list[nn.Module] = []
        for pair, dropout in enumerate((0.1, 0.15, 0.2)):
            out = width * 2**pair
            for channels in (in_channels if pair == 0 else out // 2, out):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ELU(), nn.BatchNorm2d(out)]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        self.convolutions = nn.Sequential(*layers)
        # The identity for images of 32 pixels; for others it makes the head's size independent of theirs.
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.fc = nn.Linear(4 * width * 4 * 4, nb_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last convolutional feature map: 64x4x4 at 32x32 with a width of 16."""
        return self.convolutions(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Return logits.

        :param x: Images of shape (N, in_channels, H, W), at least 8 pixels high and wide.
        :return: Logits of shape (N, nb_classes).
        """
        x = self.pool(self.features(x)).contiguous()
        return self.fc(x.view(len(x), -1))
