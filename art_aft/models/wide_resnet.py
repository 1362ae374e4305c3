"""Wide residual networks for small images."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from art_aft.checks import check_integer
from art_aft.models.base import register


class PreActBlock(nn.Module):
    """
    Pre-activation basic block; the shortcut is a 1x1 convolution of the activation where the width changes.

    :param in_width: The number of input channels.
    :param width: The number of output channels.
    :param stride: The stride of the first convolution.
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        unchanged = in_width == width and stride == 1
        self.shortcut = None if unchanged else nn.Conv2d(in_width, width, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activation = torch.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(activation)
        return residual + self.conv2(torch.relu(self.bn2(self.conv1(activation))))


@register("wrn")
class WideResNet(nn.Module):
    """
    WRN-depth-factor without dropout, for images of any side: WRN-16-1 is the paper's victim on CIFAR-10 and GTSRB.

    | Paper link: https://arxiv.org/abs/1605.07146

    :param depth: 6 n + 4 for n blocks in each of the three groups.
    :param widen_factor: The groups have 16, 32 and 64 channels times this.
    :param nb_classes: The number of classes.
    :param in_channels: The number of image channels.
    :raises ValueError: If `depth` is not 6 n + 4, or a number is too small.
    """

    def __init__(self, depth: int = 16, widen_factor: int = 1, *, nb_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        check_integer("depth", depth, 10)
        if (depth - 4) % 6:
            raise ValueError(f"depth: got {depth}, expected 6 n + 4, such as 10, 16, 28 or 40")
        check_integer("widen_factor", widen_factor, 1)
        check_integer("nb_classes", nb_classes, 2)
        check_integer("in_channels", in_channels, 1)
        blocks = (depth - 4) // 6
        widths = [16] + [16 * 2**group * widen_factor for group in range(3)]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        for group in range(3):
            first = PreActBlock(widths[group], widths[group + 1], stride=1 if group == 0 else 2)
            rest = [PreActBlock(widths[group + 1], widths[group + 1], stride=1) for _ in range(blocks - 1)]
            self.add_module(f"group{group + 1}", nn.Sequential(first, *rest))
        self.bn = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], nb_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last convolutional feature map, after normalisation and ReLU: 64x8x8 for WRN-16-1 at 32x32."""
        x = self.conv1(x)
        for group in range(3):
            x = cast(nn.Module, getattr(self, f"group{group + 1}"))(x)
        return torch.relu(self.bn(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Return logits.

        :param x: Images of shape (N, in_channels, H, W).
        :return: Logits of shape (N, nb_classes).
        """
        return self.fc(self.features(x).mean(dim=(2, 3)))
