"""Small vision transformer."""

from __future__ import annotations

import torch
from torch import nn

from art_aft.checks import check_integer
from art_aft.models.base import register


def sines(height: int, width: int, channels: int) -> torch.Tensor:
    """
    Return fixed position embeddings of a grid: sines and cosines of the row, then those of the column.

    | Paper link: https://arxiv.org/abs/2205.01580

    :param height: The number of rows.
    :param width: The number of columns.
    :param channels: The number of channels, a multiple of 4.
    :return: Shape (height * width, channels).
    """
    frequencies = 10_000.0 ** -torch.linspace(0, 1, channels // 4)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


@register("vit")
class ViT(nn.Module):
    """
    Vision transformer for small images: fixed positions, torch's own encoder, the mean of all patches before the head.

    | Paper link: https://arxiv.org/abs/2010.11929

    :param patch_size: The side of a patch, in pixels.
    :param depth: The number of encoder layers.
    :param width: The number of channels, a multiple of 32: 32 for each head.
    :param nb_classes: The number of classes.
    :param in_channels: The number of image channels.
    :raises ValueError: If a number is too small, or `width` is not a multiple of 32.
    """

    def __init__(
        self, patch_size: int = 4, depth: int = 4, width: int = 64, *, nb_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        for name, value in (
            ("patch_size", patch_size),
            ("depth", depth),
            ("width", width),
            ("in_channels", in_channels),
        ):
            check_integer(name, value, 1)
        check_integer("nb_classes", nb_classes, 2)
        if width % 32:
            raise ValueError(f"width: got {width}, expected a multiple of 32")
        self.patches = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.fc = nn.Linear(width, nb_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Return logits.

        :param x: Images of shape (N, in_channels, H, W), at least one patch high and wide.
        :return: Logits of shape (N, nb_classes).
        """
        x = self.patches(x)
        positions = sines(x.shape[2], x.shape[3], x.shape[1]).to(x)
        return self.fc(self.encoder(x.flatten(2).transpose(1, 2) + positions).mean(dim=1))
