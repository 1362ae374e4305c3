"""Small convolutional network without normalisation."""

from __future__ import annotations

import torch
from torch import nn

from art_aft.checks import check_integer
from art_aft.models.base import register


@register("cnn")
class CNN(nn.Module):
    """
    Three 3x3 convolutions with ReLU and pooling, then two linear layers. Nothing is normalised.

    :param width: The number of channels of the first convolution. The second has twice as many, the third four times.
    :param nb_classes: The number of classes.
    :param in_channels: The number of image channels.
    :raises ValueError: If a number is too small.
    """

    def __init__(self, width: int = 32, *, nb_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        check_integer("width", width, 1)
        check_integer("nb_classes", nb_classes, 2)
        check_integer("in_channels", in_channels, 1)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        # The identity for images of 32 pixels; for others it makes the head's size independent of theirs.
        self.last_pool = nn.AdaptiveAvgPool2d(4)
        self.fc1 = nn.Linear(4 * width * 4 * 4, 8 * width)
        self.fc2 = nn.Linear(8 * width, nb_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last convolutional feature map: 128x4x4 at 32x32 with a width of 32."""
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = self.pool(torch.relu(convolution(x)))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Return logits.

        :param x: Images of shape (N, in_channels, H, W), at least 8 pixels high and wide.
        :return: Logits of shape (N, nb_classes).
        """
        x = self.last_pool(self.features(x)).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))
