"""Networks that generate a trigger from an image."""

from __future__ import annotations

import torch
from torch import nn


def _conv(in_width: int, width: int, relu: bool = True) -> list[nn.Module]:
    layers = [nn.Conv2d(in_width, width, 3, padding=1), nn.BatchNorm2d(width, momentum=0.05)]
    return [*layers, nn.ReLU()] if relu else layers


def build_generator(in_channels: int, out_channels: int, base_width: int, levels: int) -> nn.Sequential:
    """
    Return an encoder and decoder from images to values of the same size in (0, 1).

    :param in_channels: Channels of the images.
    :param out_channels: Channels of the result.
    :param base_width: Channels at full resolution. Each level doubles them.
    :param levels: How often the resolution is halved. Image sides must be divisible by 2**levels.
    """
    widths = [base_width * 2**level for level in range(levels)]
    layers: list[nn.Module] = []
    before = in_channels
    for width in widths:
        layers += [*_conv(before, width), *_conv(width, width), nn.MaxPool2d(2)]
        before = width
    layers += _conv(before, before)
    for width in reversed(widths):
        following = width // 2 if width > base_width else out_channels
        layers += [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), *_conv(width, width)]
        layers += _conv(width, following, relu=width > base_width)
    return nn.Sequential(*layers, _ToUnit())


class _ToUnit(nn.Module):
    """Maps numbers into (0, 1), always in float32, because masks are sharpened afterwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.float()) / (2 + 1e-7) + 0.5
