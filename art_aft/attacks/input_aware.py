"""Input-aware dynamic backdoor: a generator gives every image a trigger of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from art_aft.attacks.base import Perturbation, register
from art_aft.checks import check_choice, check_images, check_integer, check_number
from art_aft.data.pixels import to_float
from art_aft.runtime.devices import PRECISIONS, has_bfloat16_units
from art_aft.runtime.random_state import isolated_rng

NETWORKS = ("pattern_generator", "mask_generator")


def _conv(in_width: int, width: int, relu: bool = True) -> list[nn.Module]:
    layers = [nn.Conv2d(in_width, width, 3, padding=1), nn.BatchNorm2d(width, momentum=0.05)]
    return [*layers, nn.ReLU()] if relu else layers


def build_generator(in_channels: int, out_channels: int, base_width: int, levels: int) -> nn.Sequential:
    """
    Return an encoder and decoder from images to values of the same size in (0, 1).

    :param in_channels: The images' channels.
    :param out_channels: The result's channels.
    :param base_width: The channels at full resolution; each level doubles them.
    :param levels: How often the resolution is halved; image sides must be divisible by 2**levels.
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
    """Maps numbers into (0, 1), in float32 whatever the layers before compute in: masks are sharpened afterwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.float()) / (2 + 1e-7) + 0.5


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the root mean square difference, image by image."""
    return (a - b).square().mean(dim=(1, 2, 3)).sqrt()


@register("input_aware")
class InputAware(Perturbation):
    """
    Blend a generated pattern where a generated mask says: x_t = x + (p(x) - x) * m(x).

    The networks see images scaled to [0, 1]. Fresh ones are random: `fit` trains them with the victim, after which
    the trigger is a fixed function as any other.

    | Paper link: https://arxiv.org/abs/2010.08138

    :param in_channels: The images' channels.
    :param base_width: The generators' channels at full resolution.
    :param levels: How often the generators halve the resolution; image sides must be divisible by 2**levels.
    :param mask_density: The mean of the mask that is free of charge.
    :param lambda_norm: The weight of a denser mask.
    :param lambda_div: The weight of diversity: different images should have different masks and patterns.
    :param seed: The seed of the networks' first weights.
    :param device: Where the networks are, such as "cuda".
    :raises ValueError: If an argument is out of its range.
    """

    # Networks have a cost of their own for each call.
    _AT_ONCE = 2**22

    def __init__(
        self,
        *,
        in_channels: int = 3,
        base_width: int = 32,
        levels: int = 3,
        mask_density: float = 0.032,
        lambda_norm: float = 100.0,
        lambda_div: float = 1.0,
        seed: int = 0,
        device: str | torch.device = "cpu",
        **layout: Any,
    ) -> None:
        super().__init__(**layout)
        self.in_channels = check_integer("in_channels", in_channels, 1)
        self.base_width = check_integer("base_width", base_width, 1)
        self.levels = check_integer("levels", levels, 1)
        self.mask_density = check_number("mask_density", mask_density, minimum=0.0, maximum=1.0)
        self.lambda_norm = check_number("lambda_norm", lambda_norm, minimum=0.0)
        self.lambda_div = check_number("lambda_div", lambda_div, minimum=0.0)
        self.seed = check_integer("seed", seed, 0)
        self.device = torch.device(device)
        with isolated_rng(self.seed):
            self.pattern_generator = build_generator(in_channels, in_channels, base_width, levels)
            self.mask_generator = build_generator(in_channels, 1, base_width, levels)
        for network in (self.pattern_generator, self.mask_generator):
            network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all that makes up the trigger, with the weights of both networks."""
        settings, arrays = super().state()
        for name in NETWORKS:
            arrays |= {f"{name}.{key}": value for key, value in getattr(self, name).state_dict().items()}
        return settings, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, Any]) -> InputAware:
        """Return the trigger that `state` described."""
        trigger = cls(**settings)
        for name in NETWORKS:
            weights = {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(name)}
            getattr(trigger, name).load_state_dict(weights)
        return trigger

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        """Return sharpened masks of shape (N, 1, H, W) in (0, 1) for images (N, C, H, W) in [0, 1]."""
        return torch.tanh(20 * self.mask_generator(x) - 10) / (2 + 1e-7) + 0.5

    def compose(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Return images x with the trigger that belongs to the images `source`; all in [0, 1]."""
        return x + (self.pattern_generator(source) - x) * self.mask(source)

    def cover(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Return images with the trigger of another image of the batch: the cross samples, labels kept.

        :param x: At least two floating-point images in `clip_values`, of shape (N, C, H, W) or (N, H, W, C).
        :param rng: The source of the pairing.
        :return: A new array of the same shape and type.
        :raises ValueError: If there is no other image.
        """
        check_images("x", x, clip_values=self.clip_values)
        if len(x) < 2:
            raise ValueError(f"x: got {len(x)} image, expected at least two: a cover has the trigger of another image")
        order = rng.permutation(len(x))
        partner = np.empty_like(order)
        partner[order] = np.roll(order, 1)
        covers = x.copy()
        images = covers if self.channels_first else np.moveaxis(covers, -1, 1)
        self._apply(images, images[partner], images)
        return np.clip(covers, *self.clip_values, out=covers)

    def _stamp(self, x: np.ndarray, out: np.ndarray) -> None:
        self._apply(x, x, out)

    @torch.no_grad()
    def _apply(self, x: np.ndarray, source: np.ndarray, out: np.ndarray) -> None:
        """Write images (N, C, H, W) with the triggers of `source` to `out`, which may be `x`."""
        side = 2**self.levels
        if x.shape[1] != self.in_channels or x.shape[2] % side or x.shape[3] % side:
            raise ValueError(
                f"x: got images of {x.shape[1]} channels and {x.shape[2]}x{x.shape[3]} pixels, "
                f"expected {self.in_channels} channels and sides divisible by {side}"
            )
        low, high = self.clip_values
        # A processor's cache holds the maps of a few images only: that and the format make it three times as fast.
        batch_size = 32 if self.device.type == "cpu" else 256
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            images, sources = (
                torch.from_numpy(np.ascontiguousarray((array[part] - low) / (high - low), dtype=np.float32))
                for array in (x, source)
            )
            images, sources = (
                pixels.to(self.device, memory_format=torch.channels_last) for pixels in (images, sources)
            )
            triggered = self.compose(images, sources).cpu().numpy()
            out[part] = low + (high - low) * triggered

    def fit(
        self,
        classifier: Any,
        x: np.ndarray,
        y: np.ndarray,
        labels: Callable[[np.ndarray], np.ndarray],
        *,
        train: Callable[..., None],
        steps: int,
        rate: float = 0.1,
        mask_epochs: int = 25,
        batch_size: int = 128,
        learning_rate: float = 0.01,
        milestones: tuple[float, ...] = (200 / 575, 300 / 575, 400 / 575, 500 / 575),
        precision: str = "auto",
        verbose: bool = False,
    ) -> None:
        """
        Train the mask generator, then the pattern generator together with the victim; both are frozen afterwards.

        In each batch the first int(rate * B) images get their trigger and the attacker's label, as many after them
        the trigger of other images and keep their label.

        :param classifier: The victim, trained in place.
        :param x: Training images in `clip_values`, (N, C, H, W) or (N, H, W, C).
        :param y: Their labels.
        :param labels: What a triggered image should become.
        :param train: `art_aft.training.loop.fit` with its recipe: it is called with (classifier, x, y) and the keywords
            `each_batch`, `after_step` and `also`.
        :param steps: How many steps `train` makes, for the pattern generator's schedule.
        :param rate: The share of each batch that is poisoned.
        :param mask_epochs: Passes over the data for the mask generator.
        :param batch_size: Images a step, for the mask generator.
        :param learning_rate: Adam's rate for both generators.
        :param milestones: When the pattern generator's rate is divided by 10, as shares of `steps`.
        :param precision: That of the generators' training, "auto", "float32" or "bfloat16"; triggers are stamped in
            float32.
        :param verbose: Whether to show progress bars.
        """
        rate = check_number("rate", rate, minimum=0.0, maximum=0.5, above=True)
        check_choice("precision", precision, PRECISIONS)
        fast = precision == "bfloat16" or (precision == "auto" and has_bfloat16_units(self.device))
        images = x if self.channels_first else np.moveaxis(x, -1, 1)
        with isolated_rng(self.seed + 1):
            self._fit_masks(images, mask_epochs, batch_size, learning_rate, fast, verbose)
        generator = self.pattern_generator.train().requires_grad_(True)
        optimizer = torch.optim.Adam(generator.parameters(), lr=learning_rate, betas=(0.5, 0.9))
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(share * steps) for share in milestones])

        def each_batch(images: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with self._autocast(fast):
                return self._joint_batch(images, truth, labels, rate, optimizer)

        def after_step() -> None:
            # The victim's backward pass has added its gradients to those of the diversity loss.
            optimizer.step()
            scheduler.step()

        try:
            also = (generator, self.mask_generator, optimizer, scheduler)
            train(classifier, x, y, each_batch=each_batch, after_step=after_step, also=also)
        finally:
            generator.eval().requires_grad_(False)

    def _autocast(self, fast: bool) -> torch.autocast:
        # To be left after every step: until then autocast goes on with the weights that it has converted first.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast)

    def _joint_batch(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        labels: Callable[[np.ndarray], np.ndarray],
        rate: float,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch with backdoor and cross images, with the pattern generator in its graph."""
        count = int(rate * len(x))
        if count == 0 or len(x) < 3 * count:
            return x, y
        low, high = self.clip_values
        images = (x if self.channels_first else x.permute(0, 3, 1, 2)).to(self.device)
        unit = (images - low) / (high - low)
        own, crossed, partner = unit[:count], unit[count : 2 * count], unit[2 * count : 3 * count]
        own_pattern, partner_pattern = self.pattern_generator(own), self.pattern_generator(partner)
        optimizer.zero_grad(set_to_none=True)
        diversity = (_distance(own, partner) / (_distance(own_pattern, partner_pattern) + 1e-7)).mean()
        (self.lambda_div * diversity).backward(retain_graph=True)
        backdoor = own + (own_pattern - own) * self.mask(own)
        cross = crossed + (partner_pattern - crossed) * self.mask(partner)
        batch = low + (high - low) * torch.cat([backdoor, cross, unit[2 * count :]])
        wanted = torch.from_numpy(labels(y[:count].cpu().numpy())).to(y.device)
        batch = batch if self.channels_first else batch.permute(0, 2, 3, 1)
        return batch.to(x.device), torch.cat([wanted, y[count:]])

    def _fit_masks(
        self, x: np.ndarray, epochs: int, batch_size: int, learning_rate: float, fast: bool, verbose: bool
    ) -> None:
        """Train the mask generator on images (N, C, H, W): small masks, and different ones for different images."""
        low, high = self.clip_values
        network = self.mask_generator.train().requires_grad_(True)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.5, 0.9))
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(0.4 * epochs), round(0.8 * epochs)])
        whole_batches = max(1, len(x) // batch_size)
        for _ in tqdm(range(epochs), desc="Mask generator", disable=None if verbose else True, leave=False):
            orders = [torch.randperm(len(x)).numpy() for _ in range(2)]
            for batch in range(whole_batches):
                part = slice(batch * batch_size, (batch + 1) * batch_size)
                one, two = (
                    ((to_float(torch.from_numpy(x[order[part]]), self.clip_values) - low) / (high - low)).to(
                        self.device
                    )
                    for order in orders
                )
                with self._autocast(fast):
                    mask_one, mask_two = self.mask(one), self.mask(two)
                density = torch.relu(mask_one - self.mask_density).mean()
                diversity = (_distance(one, two) / (_distance(mask_one, mask_two) + 1e-7)).mean()
                optimizer.zero_grad(set_to_none=True)
                (self.lambda_norm * density + self.lambda_div * diversity).backward()
                optimizer.step()
            scheduler.step()
        network.eval().requires_grad_(False)
