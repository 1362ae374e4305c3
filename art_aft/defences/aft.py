"""Adversarial Fine-Tuning: the paper's Algorithm 1."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_clip_values, check_flag, check_integer, check_number
from art_aft.classifiers.classifier import clone
from art_aft.data.loaders import hold_out, take
from art_aft.defences.adversary import Adversary
from art_aft.defences.base import Purification, register
from art_aft.defences.early_stop import EarlyStop
from art_aft.defences.presets import ADVERSARIAL_FINE_TUNING as PRESETS
from art_aft.training.batch_norm import recalibrate_batch_norm
from art_aft.training.batches import Augmentation, augmented_views
from art_aft.training.checkpoints import BestEpoch
from art_aft.training.loop import fit


@register("aft")
@dataclass(eq=False, repr=False)
class AdversarialFineTuning(Adversary, Purification):
    """
    Remove a backdoor by fine-tuning on the infected model's own adversarial examples.

    An infected model's untargeted adversarial examples behave like triggered images: they light up the same
    features and tend to fall on the attacker's label. To learn their true labels is to forget the backdoor, and
    needs no trigger.

    After a call, `adversarial_classifier` is the classifier as it was after Stage 2, `radius` the ball's, and with
    `n_looks`, `stopped_after` the number of steps after which Stage 2 ended. A function `on_step(stage, step)` that is
    put on it is called after each step.

    | Paper link: https://arxiv.org/abs/2202.06312 (Algorithm 1; the paper leaves most numbers open)

    :param classifier: The classifier that may be infected.

    Stage 1 has the settings of `Adversary`. Stages 2 and 3, beside those of `Tuning` (the paper's WRN-16-1:
    `batch_size` 64, `weight_decay` 1e-4):

    :param nb_epochs: Passes over the adversarial examples, Stage 2.
    :param clean_epochs: Passes over the clean images, Stage 3; 0 leaves it out, as the paper does without clean data.
    :param clean_share: The share of each Stage 2 batch that is clean; 0 is eq. (7).
    :param distillation: The temperature at which those clean images are taught what the infected model says of them,
        not their labels, as far as a copy agrees that Stage 2 was tried on with labels; 0 is their labels.
    :param label_epochs: With `distillation`, passes over the adversarial examples that make that copy.
    :param recalibrate_bn: Whether batch normalisation's statistics are recomputed on the clean images after each stage.
    :param held_out: The share of the clean set, up to 0.9, that each stage's best epoch is chosen on; 0 takes the last.
    :param n_looks: How often Stage 2 is judged by the given images, but for its first quarter, for an early end where
        they are the poisoned training set: it ends with the weights of the best look (see `EarlyStop`); 0 is no look.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of the wrong type.

    Presets: "paper", Algorithm 1 as printed, with Stages 2 and 3 as WRN-16-1 is trained; "shared", one perturbation a
    label in an L2 ball, half of each batch clean, no Stage 3; "distilled", that and then again, with the clean
    half taught by the infected model and its result, which is more accurate; "mixed", that with half of the
    perturbations sparse, and three quarters towards the suspected label, if there is one, which removes more at lower
    rates; "no_clean_data", for the poisoned training set: cropped and mirrored before Stage 1, no Stage 3, and an early
    end.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    classifier: PyTorchClassifier
    _: KW_ONLY
    clean_epochs: int = 10
    clean_share: float = 0.0
    distillation: float = 0.0
    label_epochs: int = 10
    recalibrate_bn: bool = False
    held_out: float = 0.0
    n_looks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.on_step: Callable[[int, int], None] | None = None
        self.stopped_after: int | None = None

    def _check_params(self) -> None:
        super()._check_params()
        check_integer("clean_epochs", self.clean_epochs, 0)
        check_number("clean_share", self.clean_share, minimum=0.0, maximum=1.0)
        check_number("distillation", self.distillation, minimum=0.0)
        check_integer("label_epochs", self.label_epochs, 0)
        check_flag("recalibrate_bn", self.recalibrate_bn)
        check_number("held_out", self.held_out, minimum=0.0, maximum=0.9)
        check_integer("n_looks", self.n_looks, 0)
        if self.distillation and not self.clean_share:
            raise ValueError(f"distillation: got {self.distillation:g} without clean images (clean_share), expected 0")
        if self.n_looks and self.held_out:
            raise ValueError(f"n_looks: got {self.n_looks} with held_out {self.held_out:g}, expected one of the two")

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> Mapping[str, Any]:
        held_out = None
        if size := round(self.held_out * len(x)):
            (x, y), held_out = hold_out(x, y, size, self.seed)
        if self.augment_first and not self._fresh_views:
            clip_values = check_clip_values("clip_values", classifier.clip_values)
            augmentation = Augmentation(self.padding, self.mirror, clip_values[0], classifier.channels_first)
            x = augmented_views(x, augmentation, self.n_views, clip_values, self._stream(1))
            y = np.tile(y, self.n_views)

        # Stage 1: adversarial examples x~ of the infected model, each with the true label of its image.
        x_source, y_source = self._attacked_images(classifier, x, y)
        with self._stage("Stage 1"):
            x_adversarial = self._attack_infected(classifier, x_source, y_source)
        teachers = self._teachers(classifier, x_adversarial, y_source, x_source) if self.distillation else []

        # Stage 2: fine-tune the infected model on (x~, y), eq. (7).
        with self._stage("Stage 2") as told:
            self._fine_tune(classifier, x_adversarial, y_source, self.nb_epochs, 2, held_out, told, x_source, teachers)
        self.adversarial_classifier = clone(classifier)

        # Stage 3, optional: fine-tune on (x, y) to win accuracy back, eq. (8).
        with self._stage("Stage 3") as told:
            self._fine_tune(classifier, x, y, self.clean_epochs, 3, held_out, told)
        return {"chosen": {"eps": self.radius} | ({"steps": self.stopped_after} if self.n_looks else {})}

    def _teachers(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, x_clean: np.ndarray
    ) -> list[PyTorchClassifier]:
        """Return the infected model, which knows more than labels tell, and a copy that lacks its backdoor."""
        infected, purified = clone(classifier), clone(classifier)
        with self._stage("Stage 2 on labels"):
            self._fine_tune(purified, x, y, self.label_epochs, 2, None, None, x_clean)
        purified.model.eval()
        return [infected, purified]

    def _fine_tune(
        self,
        classifier: PyTorchClassifier,
        x: np.ndarray,
        y: np.ndarray,
        nb_epochs: int,
        stage: int,
        held_out: tuple[np.ndarray, np.ndarray] | None,
        accuracies: list[float] | None,
        x_clean: np.ndarray | None = None,
        teachers: Sequence[PyTorchClassifier] = (),
    ) -> None:
        """
        Fine-tune in place on (x, y), with what the settings add to the plain stage; `x_clean` belongs to Stage 2.

        Without `accuracies` nobody looks on: neither for an early end nor for `on_step`.
        """
        if nb_epochs == 0:
            return
        adversarial = x_clean is not None
        best = BestEpoch(classifier, held_out, self.batch_size) if held_out else None
        watched = accuracies is not None
        looks = adversarial and watched and self.n_looks
        stop = self._early_stop(classifier, cast(np.ndarray, x_clean), y) if looks else None
        total = self._steps(len(x), nb_epochs)
        every = total // max(self.n_looks, 1) or 1
        turns, steps = itertools.count(1), itertools.count(1)
        clip_values = check_clip_values("clip_values", classifier.clip_values)
        known = adversarial and self._only_added
        shared = torch.from_numpy(cast(np.ndarray, self.perturbations)).to(classifier.device) if known else None

        def each_epoch(epoch: int) -> np.ndarray | None:
            # The first epoch has its examples already: at its start the current model is the infected one.
            return self._adversarial_examples(classifier, cast(np.ndarray, x_clean), y, next(turns)) if epoch else None

        def each_batch(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if shared is not None:
                # On the device, where the images are already.
                towards = self._elsewhere(labels, classifier.nb_classes, next(turns))
                return self._perturbed(images, shared[towards], clip_values), labels
            x_batch, y_batch = images.cpu().numpy(), labels.cpu().numpy()
            adversarial = self._adversarial_examples(classifier, x_batch, y_batch, next(turns))
            return torch.from_numpy(adversarial).to(images.device), labels

        def after_step() -> None:
            step = next(steps)
            # In the first steps all labels come and go.
            if stop and step % every == 0 and 4 * step > total:
                stop.look(step)
            if self.on_step:
                self.on_step(stage, step)

        online = adversarial and self._made_in_batches
        redrawn = self.regenerate == "epoch" or self.adversary == "shared"
        fit(
            classifier,
            x,
            y,
            self._recipe(nb_epochs, stage, augmented=self._fresh_views or not self.augment_first),
            each_epoch=each_epoch if adversarial and redrawn and not online else None,
            each_batch=each_batch if online else None,
            clean=(cast(np.ndarray, x_clean), self.clean_share) if adversarial and self.clean_share else None,
            teachers=(teachers, self.distillation) if teachers else None,
            after_step=after_step if stop or (watched and self.on_step) else None,
            after_epoch=best,
            in_range=self.clip,
            verbose=self.verbose,
            description=f"Stage {stage}",
        )
        if best and accuracies is not None:
            best.restore()
            accuracies += best.accuracies
        if stop:
            self.stopped_after = stop.restore()
        if self.recalibrate_bn:
            recalibrate_batch_norm(classifier, x if x_clean is None else x_clean, batch_size=self.batch_size)

    def _early_stop(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, count: int = 2000) -> EarlyStop:
        """Return the judge of Stage 2, with some of the images at random."""
        looked_at = np.random.default_rng(self._stream(6)).permutation(len(x))[:count]
        return EarlyStop(classifier, take(x, looked_at), y[looked_at])
