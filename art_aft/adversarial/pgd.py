"""Stage 1: torchattacks' projected gradient descent behind ART's `EvasionAttack`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchattacks
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_aft.adversarial.norms import default_eps
from art_aft.checks import (
    check_choice,
    check_clip_values,
    check_flag,
    check_integer,
    check_norm,
    check_number,
    check_seed,
)
from art_aft.classifiers.classifier import check_classifier, images_for
from art_aft.classifiers.pixel_module import borrow
from art_aft.data.images import Images
from art_aft.data.loaders import empty
from art_aft.data.pixels import to_float
from art_aft.runtime.devices import PRECISIONS, images_at_a_time
from art_aft.runtime.processes import check_same, exchange, world
from art_aft.runtime.random_state import isolated_rng

_NORMS = (np.inf, "inf", 2)


class TorchAttacksPGD(EvasionAttack):
    """
    Untargeted adversarial examples of any `PyTorchClassifier`: maximise the cross entropy within a norm bound.

    torchattacks works on [0, 1] and on a bare module. Here its PGD (L-infinity) and PGDL2 (L2) see the classifier
    with its preprocessing, channel order and `clip_values`. The model is frozen meanwhile, and given back as it
    was: modes, gradient flags, running statistics and the global random generators.

    | Paper link: https://arxiv.org/abs/1706.06083; Stage 1 of https://arxiv.org/abs/2202.06312, eq. (6)

    :param estimator: The classifier under attack; its model returns logits.
    :param norm: np.inf (or "inf") or 2.
    :param eps: The bound, above 0, in units of `clip_values`. None is 4/255 of the range for np.inf; for 2 it
        is 1.0 of the range for images of 32x32x3 values, and grows with the square root of their number.
    :param eps_step: The step size, in the same units. None is a quarter of `eps`.
    :param max_iter: The number of steps.
    :param num_random_init: Number of random starting points. The one that ends with the greatest loss counts, image
        by image. 0 starts once, at the image itself.
    :param clip: Whether examples are kept in `clip_values` at every step. The authors' later code does not.
    :param training_mode: Whether the model is in training mode meanwhile (batch statistics, dropout).
    :param batch_size: Images at a time. None is 128 on a processor, whose caches then hold the activations; on a GPU
        as many as keep it busy, 1,024 of 32x32x3 values, or half of that again and again where its memory does not
        hold them.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" (the same numbers as
        torchattacks by itself) or "bfloat16".
    :param seed: The seed of the random starting points.
    :param verbose: Whether to show a progress bar.
    :raises ValueError: If an argument is out of its range.
    :raises TypeError: If an argument is of another type.
    """

    attack_params = [
        *EvasionAttack.attack_params,
        "norm",
        "eps",
        "eps_step",
        "max_iter",
        "num_random_init",
        "clip",
        "training_mode",
        "batch_size",
        "precision",
        "seed",
        "verbose",
    ]
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        *,
        norm: int | float | str = np.inf,
        eps: float | None = None,
        eps_step: float | None = None,
        max_iter: int = 10,
        num_random_init: int = 0,
        clip: bool = True,
        training_mode: bool = False,
        batch_size: int | None = None,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        low, high = check_classifier("estimator", estimator)
        super().__init__(estimator=estimator)
        self.norm = check_norm("norm", norm, _NORMS)
        if eps is None:
            eps = default_eps(2 if norm == 2 else np.inf, estimator.input_shape, (low, high))
        self.eps = eps
        self.eps_step = self._quarter(eps) if eps_step is None else eps_step
        self.max_iter = max_iter
        self.num_random_init = num_random_init
        self.clip = clip
        self.training_mode = training_mode
        self.batch_size = batch_size
        self.precision = precision
        self.seed = seed
        self.verbose = verbose
        self._check_params()

    @staticmethod
    def _quarter(eps: Any) -> float:
        return check_number("eps", eps, minimum=0.0, above=True) / 4

    def _check_params(self) -> None:
        super()._check_params()
        check_norm("norm", self.norm, _NORMS)
        check_number("eps", self.eps, minimum=0.0, above=True)
        check_number("eps_step", self.eps_step, minimum=0.0, above=True)
        check_integer("max_iter", self.max_iter, 1)
        check_integer("num_random_init", self.num_random_init, 0)
        check_flag("clip", self.clip)
        check_flag("training_mode", self.training_mode)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
        check_choice("precision", self.precision, PRECISIONS)
        check_seed("seed", self.seed)
        check_flag("verbose", self.verbose)

    def set_params(self, **kwargs: Any) -> None:
        """
        Change settings, checked; on an error all stay as they were.

        :raises ValueError: If a setting is unknown or out of its range.
        :raises TypeError: If a setting is of another type.
        """
        before = vars(self).copy()
        try:
            super().set_params(**kwargs)
        except (TypeError, ValueError):
            self.__dict__.update(before)
            raise

    def generate(self, x: np.ndarray | Images, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        """
        Return an adversarial example for each image.

        Within `across_processes()`, each process attacks a part of the images and gets the others' examples; random
        starting points, and in training mode the batches, are then others than in one process.

        :param x: Images in `clip_values`, of shape (N, *input_shape), or uint8 images that stand for that range; or
            checked `Images`.
        :param y: The labels to lead away from, as indices or one-hot. None takes the labels of checked `Images` that
            have some, else the classifier's predictions.
        :param kwargs: Further arguments of ART's attacks, such as `mask`. Only None is supported.
        :return: float32 images of the same shape, at most `eps` away, in `clip_values` (with `clip`).
        :raises ValueError: If the data do not fit the classifier, or differ between processes; if a further argument is
            not None.
        """
        for name, value in kwargs.items():
            if value is not None:
                raise ValueError(f"{name}: got {type(value).__name__}, expected None: this attack has no such argument")
        classifier = self.estimator
        clip_values = low, high = check_classifier("estimator", classifier)
        images = images_for(classifier, x, y, labelled=False)
        x, labels, known = images.pixels, images.labels, bool((images.labels >= 0).all())
        # torchattacks always clips to [0, 1]. Let that stand for a wider range where no clipping is wanted.
        if not self.clip:
            low, high = low - self.eps, high + self.eps
        adversarial = empty(x.shape, np.float32, like=x)
        here = world()
        check_same(classifier.device, x=x, y=labels)
        own, shown = here.part(len(x)), self.verbose and here.rank == 0
        with (
            isolated_rng(here.seed(self.seed)),
            torch.enable_grad(),
            borrow(
                classifier,
                precision=self.precision,
                scale=(low, high),
                freeze=True,
                keep_buffers=self.training_mode,
                fold=not self.training_mode,
            ) as module,
            tqdm(
                total=own.stop - own.start, desc="Adversarial examples", disable=not shown or None, leave=False
            ) as bar,
        ):
            module.train(self.training_mode)
            attack = self._torchattack(module, high - low)
            size, start = self.batch_size or images_at_a_time(classifier.device, classifier.input_shape), own.start
            while start < own.stop:
                part = slice(start, min(start + size, own.stop))
                try:
                    found = self._of_batch(attack, module, x[part], labels[part] if known else None, low, high)
                except torch.cuda.OutOfMemoryError:
                    if self.batch_size is not None or size == 1:
                        raise
                    size //= 2
                    continue
                # Batch by batch, so that no second array of this size is needed.
                adversarial[part] = self._in_pixels(found, to_float(x[part], clip_values), low, high)
                bar.update(part.stop - start)
                start = part.stop
        exchange(adversarial, classifier.device)
        return adversarial

    def _of_batch(
        self,
        attack: torchattacks.attack.Attack,
        module: torch.nn.Module,
        x: np.ndarray,
        labels: np.ndarray | None,
        low: float,
        high: float,
    ) -> np.ndarray:
        """Return examples of images, in [0, 1] where `low` and `high` are 0 and 1; None leads away from predictions."""
        device = self.estimator.device
        pixels = to_float(torch.from_numpy(x).to(device), check_clip_values("clip_values", self.estimator.clip_values))
        images = ((pixels - low) / (high - low)).clamp_(0, 1)
        target = module(images).argmax(dim=1) if labels is None else torch.from_numpy(labels).to(device)
        return self._strongest(attack, module, images, target).cpu().numpy()

    def _in_pixels(self, found: np.ndarray, x: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return examples from [0, 1] in the range from `low` to `high`, and within the bound around `x`."""
        found = found * np.float32(high - low)
        found += np.float32(low)
        if self.norm != 2:
            # Rescaling rounds; the promise to stay within the bound and in range holds exactly all the same.
            np.clip(found, x - np.float32(self.eps), x + np.float32(self.eps), out=found)
        return np.clip(found, low, high, out=found)

    def _torchattack(self, module: torch.nn.Module, spread: float) -> torchattacks.attack.Attack:
        """Return torchattacks' attack on pixels in [0, 1], where 1 stands for `spread`."""
        attack_class = torchattacks.PGDL2 if self.norm == 2 else torchattacks.PGD
        attack = attack_class(
            module,
            eps=self.eps / spread,
            alpha=self.eps_step / spread,
            steps=self.max_iter,
            random_start=self.num_random_init > 0,
        )
        attack.set_model_training_mode(self.training_mode, self.training_mode, self.training_mode)
        return attack

    def _strongest(
        self, attack: torchattacks.attack.Attack, module: torch.nn.Module, images: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Return, image by image, the example with the greatest loss over the random starting points."""
        best = attack(images, target)
        if self.num_random_init > 1:
            loss = self._loss(module, best, target)
            for _ in range(self.num_random_init - 1):
                other = attack(images, target)
                other_loss = self._loss(module, other, target)
                stronger = other_loss > loss
                best = torch.where(stronger[:, None, None, None], other, best)
                loss = torch.where(stronger, other_loss, loss)
        return best

    @staticmethod
    @torch.no_grad()
    def _loss(module: torch.nn.Module, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(module(images), target, reduction="none")
