"""Adversarial Fine-Tuning on the poisoned training set, stopped early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_integer
from art_aft.classifiers.classifier import margins
from art_aft.data.images import Images
from art_aft.defences.aft import attack_on, check_attack, generate
from art_aft.defences.base import Defence, Run, register
from art_aft.defences.report import PurificationReport
from art_aft.runtime.callbacks import Callback
from art_aft.runtime.processes import number_of_first
from art_aft.runtime.random_state import seed_for
from art_aft.training.augmentation import Augmentation, augmented
from art_aft.training.batches import Batches
from art_aft.training.loop import fit

# Images that each early-stopping check looks at.
_CHECKED = 2000


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingReport(PurificationReport):
    """
    What Adversarial Fine-Tuning without clean data did.

    :param stopped_after: The number of Stage 2 steps whose weights were kept; None where no check was made.
    """

    stopped_after: int | None = None


@register("aft_no_clean_data")
class AdversarialFineTuningWithoutCleanData(Defence):
    """
    Remove a backdoor with nothing but the training set that may be poisoned: Stages 1 and 2 of Algorithm 1, stopped
    early.

    Triggered images of the set keep the backdoor alive, so Stage 2 must end in time. The paper stops with the trigger
    in sight; here early stopping needs none (`EarlyStopping`). It does not work on every model: `ProgressiveErasing` is
    the safer choice.

    Images are cropped and flipped before Stage 1, as in the paper.

    | Paper link: https://arxiv.org/abs/2202.06312 (Section IV, Tables VI to VIII and X; the early stopping is this
      package's)

    :param classifier: The classifier that may be infected.
    :param attack: Stage 1, as for `AdversarialFineTuning`.
    :param nb_epochs: Passes over the adversarial examples.
    :param max_steps: The most steps of Stage 2; Stage 1 attacks no more images than these steps see. None is no limit.
    :param early_stopping_checks: Number of early-stopping checks in Stage 2, none in its first quarter. 0 disables
        early stopping.
    :param batch_size: Images a step.
    :param learning_rate: The rate of a new SGD optimizer; None continues with the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay.
    :param padding: Random crops before Stage 1, after padding by this many pixels; 0 is none. None is 4, or less on
        images of fewer than 32 pixels: an eighth of the shorter side.
    :param horizontal_flip: Whether to flip half of the images there. Wrong for digits, letters and traffic signs.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    def __init__(
        self,
        classifier: PyTorchClassifier,
        attack: EvasionAttack | None = None,
        *,
        nb_epochs: int = 1,
        max_steps: int | None = 400,
        early_stopping_checks: int = 20,
        batch_size: int = 64,
        learning_rate: float | None = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        padding: int | None = None,
        horizontal_flip: bool = True,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            attack=attack,
            nb_epochs=nb_epochs,
            max_steps=max_steps,
            early_stopping_checks=early_stopping_checks,
            batch_size=batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            padding=padding,
            horizontal_flip=horizontal_flip,
            precision=precision,
            seed=seed,
            verbose=verbose,
        )

    def _check_params(self) -> None:
        super()._check_params()
        check_attack("attack", self.attack)
        check_integer("early_stopping_checks", self.early_stopping_checks, 0)

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> EarlyStoppingReport:
        low, _ = images.clip_values
        augmentation = Augmentation(self._recipe().padding, self.horizontal_flip, low, images.channels_first)
        images = augmented(images, augmentation, seed_for(self.seed, "augmentation"))
        images = seen_in(images, self.max_steps, self.batch_size, self.seed)
        with run.stage("Stage 1"):
            attack = attack_on(classifier, self.attack, self)
            adversarial = generate(attack, images, seed_for(self.seed, "attack", 0))
        recipe = self._recipe(padding=0, horizontal_flip=False, seed=seed_for(self.seed, "stage 2"))
        batches = Batches(adversarial, recipe, classifier.device)
        stopping = None
        with run.stage("Stage 2"):
            if self.early_stopping_checks:
                chosen = np.random.default_rng(seed_for(self.seed, "checked images")).permutation(len(images))
                total = min(recipe.nb_epochs * len(batches), recipe.max_steps or recipe.nb_epochs * len(batches))
                stopping = EarlyStopping(classifier, images[chosen[:_CHECKED]], total, self.early_stopping_checks)
            callbacks = [*([stopping] if stopping else []), *run.callbacks]
            fit(classifier, batches, recipe, callbacks=callbacks, verbose=self.verbose, description="Stage 2")
        return EarlyStoppingReport(stopped_after=stopping.restore() if stopping else None)


def seen_in(images: Images, max_steps: int | None, batch_size: int, seed: int) -> Images:
    """
    Return as many of the images, drawn at random, as a number of steps sees; all of them where that is more.

    :param images: The images.
    :param max_steps: The number of steps; None is no limit.
    :param batch_size: Images a step.
    :param seed: The user's seed.
    """
    count = len(images) if max_steps is None else max(1, max_steps * batch_size)
    if count >= len(images):
        return images
    return images[np.random.default_rng(seed_for(seed, "attacked images")).permutation(len(images))[:count]]


class EarlyStopping(Callback):
    """
    Remembers the weights at which one label's images have lost it and all others' have not.

    Triggered images of an all-to-one attack have one label in the training set. While the model forgets the backdoor,
    they lose that label: of all labels, its images lose most of the margin that the infected model gave them. So each
    check suspects the label that has lost most margin. Its score is twice the share of the other images that keep their
    label, averaged over the labels, minus the share of the suspected label's images that keep it. Only images count
    that the infected model gives their label.

    The factor of two, chosen on CIFAR-10 with 10 % poisoned by BadNets and Blend, keeps early stopping from the first
    steps, where the backdoor is weakest and the accuracy is low, too.

    :param classifier: The infected classifier, to be fine-tuned in place.
    :param images: Some of the training images, with the labels given there.
    :param total: The number of steps of the run.
    :param checks: The number of checks, none in the run's first quarter.
    """

    def __init__(self, classifier: PyTorchClassifier, images: Images, total: int, checks: int) -> None:
        self.classifier, self.images, self.total = classifier, images, total
        self.every = total // checks or 1
        self.before = margins(classifier, images)
        #: Of each check so far: the number of steps, the score, the suspected label.
        self.checks: list[tuple[int, float, int]] = []
        self._best: tuple[float, int, dict[str, torch.Tensor]] | None = None

    def on_step(self, step: int) -> None:
        """Check the classifier where a check is due."""
        if step % self.every == 0 and 4 * step > self.total:
            self.check(step)

    def check(self, step: int) -> None:
        """Score the classifier as it is after this many steps."""
        now, known, y = margins(self.classifier, self.images), self.before > 0, self.images.labels
        labels = np.unique(y[known])
        if len(labels) < 2:
            return
        own = [known & (y == label) for label in labels]
        lost = np.array([np.mean(self.before[mask] - now[mask]) for mask in own])
        kept = np.array([np.mean(now[mask] > 0) for mask in own])
        suspect = int(lost.argmax())
        score = 2 * np.delete(kept, suspect).mean() - kept[suspect]
        # Processes that round differently must not go apart.
        score = number_of_first(float(score), self.classifier.device)
        self.checks.append((step, score, int(labels[suspect])))
        if self._best is None or score > self._best[0]:
            self._best = score, step, {key: v.clone() for key, v in self.classifier.model.state_dict().items()}

    def restore(self) -> int | None:
        """Give the classifier the weights of the check with the highest score; return its number of steps."""
        if self._best is None:
            return None
        self.classifier.model.load_state_dict(self._best[2])
        return self._best[1]
