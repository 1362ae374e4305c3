"""Input-aware dynamic backdoor: a generator gives every image a trigger of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from art_aft.attacks.base import TrainVictim, Trigger, register
from art_aft.attacks.generators import build_generator
from art_aft.attacks.labels import LabelMap
from art_aft.checks import check_choice, check_images, check_instance, check_integer, check_number, check_seed
from art_aft.data.pixels import to_float
from art_aft.runtime.callbacks import Callback
from art_aft.runtime.devices import PRECISIONS, check_device, has_bfloat16_units
from art_aft.runtime.modes import evaluation_mode
from art_aft.runtime.random_state import isolated_rng

NETWORKS = ("pattern_generator", "mask_generator")

# The mask generator finds small masks within some 150 steps. Before that its evaluation mode is far from its training
# mode, and masks may cover the whole image.
MASK_STEPS = 500


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the root mean square difference of each pair of images."""
    return (a - b).square().mean(dim=(1, 2, 3)).sqrt()


class _StepWithVictim(Callback):
    """Steps the pattern generator after the victim, whose backward pass adds its gradients to the diversity loss's."""

    def __init__(self, generator: nn.Module, mask_generator: nn.Module, learning_rate: float, drops: list[int]) -> None:
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=learning_rate, betas=(0.5, 0.9))
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, drops)
        self.parts = (generator, mask_generator, self.optimizer, self.scheduler)

    def on_step(self, step: int) -> None:
        self.optimizer.step()
        self.scheduler.step()


@register("input_aware")
class InputAware(Trigger):
    """
    Replace the image by a generated pattern where a generated mask is 1: x_t = x + (p(x) - x) * m(x).

    A fresh trigger's networks are random. `fit` trains them with the victim; afterwards the trigger is a fixed function
    as any other. The networks see pixels in [0, 1], whereas those of the attack's release see normalised pixels.

    | Paper link: https://arxiv.org/abs/2010.08138

    :param in_channels: Channels of the images.
    :param base_width: Channels of the generators at full resolution.
    :param levels: How often the generators halve the resolution. Image sides must be divisible by 2**levels.
    :param mask_density: Mean of the mask, in [0, 1], up to which it costs nothing.
    :param lambda_norm: Weight of the mask's excess density in the loss.
    :param lambda_div: Weight of diversity in the loss: different images should have different patterns, and different
        masks. In the masks' loss it is squared, as in the attack's release.
    :param seed: Seed of the networks' initial weights, and of the training of the masks.
    :param device: Where the networks are, such as "cuda".
    :raises ValueError: If an argument is out of its range.
    """

    release = {"normalise": True, "model": "preactresnet-18"}

    # Every call of the networks has a fixed cost.
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
        self.seed = check_seed("seed", seed)
        self.device = check_device("device", device)
        with isolated_rng(self.seed):
            self.pattern_generator = build_generator(in_channels, in_channels, base_width, levels)
            self.mask_generator = build_generator(in_channels, 1, base_width, levels)
        for network in (self.pattern_generator, self.mask_generator):
            network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @classmethod
    def for_images(
        cls, input_shape: tuple[int, ...], clip_values: tuple[float, float], seed: int = 0, /, **settings: Any
    ) -> InputAware:
        """Return the trigger for the images of a data set. Sides that 8 does not divide get smaller networks."""
        sizes = {} if input_shape[1] % 8 == 0 else {"base_width": 16, "levels": 2}
        chosen = {"clip_values": clip_values, "in_channels": input_shape[0], "seed": seed, **sizes}
        return cls(**{**chosen, **settings})

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return everything that defines the trigger, with the weights of both networks."""
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

    def has_covers(self) -> bool:
        """Return True: the covers are the paper's cross samples."""
        return True

    def cover(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Return images with the trigger of another image of the batch.

        :param x: At least two floating-point images in `clip_values`, of shape (N, C, H, W) or (N, H, W, C).
        :param rng: The source of the pairing.
        :return: A new array of the same shape and type.
        :raises ValueError: If there is no other image.
        """
        check_images("x", x, clip_values=self.clip_values)
        check_instance("rng", rng, np.random.Generator, "numpy's Generator")
        if len(x) < 2:
            raise ValueError(f"x: got {len(x)} image, expected at least two: covers have the trigger of another image")
        order = rng.permutation(len(x))
        partner = np.empty_like(order)
        partner[order] = np.roll(order, 1)
        covers = x.copy()
        images = covers if self.channels_first else np.moveaxis(covers, -1, 1)
        self._apply(images, images[partner], images)
        return np.clip(covers, *self.clip_values, out=covers)

    def _stamp(self, x: np.ndarray, out: np.ndarray) -> None:
        with evaluation_mode(self.pattern_generator):  # scores shown during `fit` must not change running statistics
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
        # A processor's cache holds the feature maps of a few images only. Small batches make this three times as fast.
        batch_size = 32 if self.device.type == "cpu" else 256
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            units = (np.ascontiguousarray((a[part] - low) / (high - low), dtype=np.float32) for a in (x, source))
            images, sources = (
                torch.from_numpy(unit).to(self.device, memory_format=torch.channels_last) for unit in units
            )
            triggered = self.compose(images, sources).cpu().numpy()
            out[part] = low + (high - low) * triggered

    def needs_training(self) -> bool:
        """Return True: the networks are trained with the victim."""
        return True

    def fit(
        self,
        classifier: Any,
        x: np.ndarray,
        y: np.ndarray,
        labels: LabelMap,
        *,
        train: TrainVictim,
        nb_epochs: int,
        steps: int,
        rate: float = 0.1,
        resumed: bool = False,
        verbose: bool = False,
        mask_epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 0.01,
        milestones: tuple[float, ...] = (200 / 575, 300 / 575, 400 / 575, 500 / 575),
        precision: str = "auto",
    ) -> None:
        """
        Train the mask generator, then the pattern generator together with the victim.

        In each batch the first int(rate * B) images get their trigger and the attacker's label. As many after them get
        the trigger of other images and keep their label. The arguments up to `verbose` are those of `Trigger.fit`.

        :param mask_epochs: Passes over the data for the mask generator. None is a quarter of the victim's epochs, or as
            many as it takes to make `MASK_STEPS` steps; no pass if `resumed`, as the checkpoint contains the masks.
        :param batch_size: Images a step, for the mask generator.
        :param learning_rate: Adam's learning rate for both generators.
        :param milestones: When the pattern generator's learning rate is divided by 10, as shares of `steps`.
        :param precision: "auto", "float32" or "bfloat16", for the generators' training. Triggers are always stamped in
            float32.
        """
        rate = check_number("rate", rate, minimum=0.0, maximum=0.5, above=True)
        check_choice("precision", precision, PRECISIONS)
        fast = precision == "bfloat16" or (precision == "auto" and has_bfloat16_units(self.device))
        if mask_epochs is None:
            enough = math.ceil(MASK_STEPS / max(1, len(x) // batch_size))
            mask_epochs = 0 if resumed else max(2, nb_epochs // 4, enough)
        images = x if self.channels_first else np.moveaxis(x, -1, 1)
        with isolated_rng(self.seed + 1):
            self._fit_masks(images, mask_epochs, batch_size, learning_rate, fast, verbose)
        generator = self.pattern_generator.train().requires_grad_(True)
        drops = [round(share * steps) for share in milestones]
        callback = _StepWithVictim(generator, self.mask_generator, learning_rate, drops)

        def transform(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with self._autocast(fast):
                return self._joint_batch(x, y, labels, rate, callback.optimizer)

        try:
            train(transform, callback)
        finally:
            generator.eval().requires_grad_(False)

    def _autocast(self, fast: bool) -> torch.autocast:
        # Leave it after every step: until then autocast reuses the weights that it converted at first.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast)

    def _joint_batch(
        self, x: torch.Tensor, y: torch.Tensor, labels: LabelMap, rate: float, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch with triggered and cross images, whose graph includes the pattern generator."""
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
        """Train the mask generator on images (N, C, H, W) towards small masks that differ from image to image."""
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
                # The release multiplies by lambda_div twice here, and once in the patterns' loss.
                (self.lambda_norm * density + self.lambda_div**2 * diversity).backward()
                optimizer.step()
            scheduler.step()
        network.eval().requires_grad_(False)
