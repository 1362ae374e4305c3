"""Families of images over which something is searched, as free pixels or one smooth picture for all images."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional as F

from art_aft.checks import check_choice, check_integer
from art_aft.data.pixels import clamped


class Family(Protocol):
    """
    A family of images: what is searched over, and what image that makes.

    A family that is blended into clean images has `images_per_step` above 0.
    """

    #: For people, such as "free pixels".
    name: str
    #: Clean images that each member is shown on in a step, fewer with many labels; 0 where it makes whole images. Eight
    #: give the margins of 24; four are too few.
    images_per_step: int

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return `count` random members for images of shape (C, H, W), with values in [0, 1]."""

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return images of shape (count, N, C, H, W) in [0, 1]; N is 1 without clean images x of shape (N, C, H, W)."""


class FreePixels:
    """Every pixel is free: MM-BD's images."""

    name, images_per_step = "free pixels", 0

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise."""
        return torch.rand(count, *shape)

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the members themselves."""
        return members[:, None]


class Smooth:
    """
    A few free values, enlarged to the size of an image: no fine structure.

    :param side: The number of free values along each axis, at most half of the pixels: else nothing would be smooth.
    """

    name, images_per_step = "smooth", 0

    def __init__(self, side: int = 8) -> None:
        self.side = check_integer("side", side, 2)

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise of few values."""
        self.size = shape[1:]
        return torch.rand(count, shape[0], *(max(1, min(self.side, length // 2)) for length in shape[1:]))

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the members, enlarged."""
        return F.interpolate(members, size=self.size, mode="bilinear", align_corners=False)[:, None]


class Blended:
    """
    One picture, blended into clean images: (1 - ratio) x + ratio p.

    :param ratio: The share of the picture, in (0, 1].
    """

    name, images_per_step = "blended", 8

    def __init__(self, ratio: float = 0.1) -> None:
        self.ratio = ratio

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise."""
        return torch.rand(count, *shape)

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the images with each picture."""
        return (1 - self.ratio) * x + self.ratio * members[:, None]


class Added:
    """
    One smooth change, added to clean images: a few free values, enlarged to the size of an image.

    :param size: The largest change of a pixel, as a share of the pixel range.
    :param side: The number of free values along each axis.
    """

    images_per_step = 8

    def __init__(self, size: float, side: int = 8) -> None:
        self.size, self.smooth = size, Smooth(side)
        self.name = f"smooth change of {size:g}"

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise of few values."""
        return self.smooth.start(count, shape)

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the images with each change."""
        return clamped(x + self.size * (2 * self.smooth.shown(members, x) - 1), 0, 1)


class Warped:
    """
    One smooth warp of clean images: a few displacements, enlarged to a field, move every pixel.

    :param size: The largest displacement, as a share of the image's sides.
    :param side: The number of free displacements along each axis.
    """

    images_per_step = 8

    def __init__(self, size: float, side: int = 4) -> None:
        self.size, self.side = size, check_integer("side", side, 2)
        self.name = f"warp by {size:g} of the side"

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return small random displacements: 0.5 stands for none."""
        return 0.5 + 0.01 * (torch.rand(count, 2, self.side, self.side) - 0.5)

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the images with each warp, at the border with the nearest pixels."""
        n, channels, height, width = x.shape
        field = F.interpolate(2 * members - 1, size=(height, width), mode="bicubic", align_corners=True)
        rows, columns = (torch.linspace(-1, 1, length, device=x.device) for length in (height, width))
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        # Coordinates run from -1 to 1, so that 2 is a whole side. Images and channels of one warp are its channels.
        grid = grid + 2 * self.size * field.permute(0, 2, 3, 1)
        stacked = x.reshape(1, n * channels, height, width).expand(len(members), -1, -1, -1)
        moved = F.grid_sample(stacked, grid, padding_mode="border", align_corners=True)
        return moved.view(len(members), n, channels, height, width)


class Profile:
    """
    One profile along an axis, the same in all rows or all columns, added to clean images.

    :param axis: "rows" (a horizontal profile, all rows alike) or "columns".
    :param size: The largest change of a pixel, as a share of the pixel range.
    """

    images_per_step = 8

    def __init__(self, axis: str = "rows", size: float = 0.1) -> None:
        self.axis = check_choice("axis", axis, ("rows", "columns"))
        self.size = size
        self.name = f"profile along {axis}"

    def start(self, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return noise along one axis."""
        height, width = shape[1:]
        return torch.rand(count, shape[0], *((1, width) if self.axis == "rows" else (height, 1)))

    def shown(self, members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the images with each profile."""
        return clamped(x + self.size * (2 * members[:, None] - 1), 0, 1)
