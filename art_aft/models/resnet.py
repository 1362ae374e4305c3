"""Residual network with 18 layers, for images of 224 pixels."""

from __future__ import annotations

import torch
from torch import nn

from art_aft.checks import check_integer
from art_aft.models.base import register


class _Block(nn.Module):
    """Basic block: two 3x3 convolutions; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = (
            None
            if in_width == width and stride == 1
            else nn.Sequential(nn.Conv2d(in_width, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return torch.relu(residual + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


@register("resnet-18")
class ResNet18(nn.Module):
    """
    ResNet-18 with the 7x7 stem. Its parameters have the usual names, so that published weights load.

    | Paper link: https://arxiv.org/abs/1512.03385

    :param nb_classes: The number of classes.
    :param in_channels: The number of image channels.
    :raises ValueError: If a number is too small.
    """

    def __init__(self, *, nb_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        check_integer("nb_classes", nb_classes, 2)
        check_integer("in_channels", in_channels, 1)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.fc = nn.Linear(512, nb_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last convolutional feature map: 512x7x7 at 224x224."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Return logits.

        :param x: Images of shape (N, in_channels, H, W).
        :return: Logits of shape (N, nb_classes).
        """
        return self.fc(self.features(x).mean(dim=(2, 3)))
