"""Pre-activation residual network with 18 layers, for small images."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from art_aft.checks import check_integer
from art_aft.models.base import register
from art_aft.models.wide_resnet import PreActBlock


@register("preactresnet-18")
class PreActResNet18(nn.Module):
    """
    PreActResNet-18, the victim of WaNet and Input-aware. There is no normalisation after the last group.

    | Paper link: https://arxiv.org/abs/1603.05027

    :param nb_classes: The number of classes.
    :param in_channels: The number of image channels.
    :raises ValueError: If a number is too small.
    """

    def __init__(self, *, nb_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        check_integer("nb_classes", nb_classes, 2)
        check_integer("in_channels", in_channels, 1)
        widths = [64, 64, 128, 256, 512]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        for group in range(4):
            stride = 1 if group == 0 else 2
            self.add_module(
                f"group{group + 1}",
                nn.Sequential(
                    PreActBlock(widths[group], widths[group + 1], stride),
                    PreActBlock(widths[group + 1], widths[group + 1], 1),
                ),
            )
        self.fc = nn.Linear(widths[4], nb_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last convolutional feature map: 512x4x4 at 32x32."""
        x = self.conv1(x)
        for group in range(4):
            x = cast(nn.Module, getattr(self, f"group{group + 1}"))(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Return logits.

        :param x: Images of shape (N, in_channels, H, W).
        :return: Logits of shape (N, nb_classes).
        """
        return self.fc(self.features(x).mean(dim=(2, 3)))
