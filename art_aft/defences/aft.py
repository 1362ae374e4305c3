"""Adversarial Fine-Tuning: the paper's Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier

from art_aft.batches import Augmentation
from art_aft.checks import check_choice, check_clip_values, check_flag, check_integer, check_number
from art_aft.classifier import check_data, clone
from art_aft.defences.purification import Purification, register
from art_aft.evasion import TorchAttacksPGD
from art_aft.training import BestEpoch, Recipe, fit, recalibrate_batch_norm


@register("aft")
@dataclass(eq=False, repr=False)
class AdversarialFineTuning(Purification):
    """
    Remove a backdoor by fine-tuning on the infected model's own adversarial examples.

    An infected model's untargeted adversarial examples behave like triggered images: they light up the same
    features and tend to fall on the attacker's label. To learn their true labels is to forget the backdoor, and
    needs no trigger.

    | Paper link: https://arxiv.org/abs/2202.06312 (Algorithm 1; the paper leaves most numbers open)

    Stage 1 settings, in units of the classifier's `clip_values`:

    :param classifier: The classifier that may be infected.
    :param norm: The ball's norm, np.inf or 2.
    :param eps: The ball's radius. None is 4/255 of the range for np.inf; for 2 it is 1.0 of the range at 32x32x3.
    :param eps_step: The step size. None is `eps` / 4.
    :param max_iter: The number of steps.
    :param num_random_init: Random starting points; 0 starts at the image itself.
    :param clip: Whether examples stay in `clip_values`.
    :param training_mode: Whether the model is in training mode while it is attacked.
    :param attack_labels: The labels to lead away from: "given" or "predicted".
    :param misclassified: Images that the model gets wrong before the attack: "attack" them as the others, "keep" them
        unchanged, or "skip" them in Stage 2.
    :param regenerate: When examples are made: "once" from the infected model (Algorithm 1), or again from the current
        model at every "epoch" or "batch" (the authors' later code).
    :param augment_first: Whether images are cropped and mirrored before they are attacked and not afterwards, as the
        paper does without clean data.
    :param n_views: With `augment_first`, how many augmented copies of each image.

    Stages 2 and 3:

    :param nb_epochs: Passes over the adversarial examples, Stage 2.
    :param clean_epochs: Passes over the clean images, Stage 3; 0 leaves it out, as the paper does without clean data.
    :param max_steps: End each stage after so many steps.
    :param batch_size: Images a step (the paper's WRN-16-1: 64).
    :param learning_rate: The rate of a fresh SGD optimizer in each stage; None uses the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay (the paper's WRN-16-1: 1e-4).
    :param nesterov: Whether the momentum is Nesterov's.
    :param schedule: The rate within each stage: "constant", "cosine" or "one_cycle".
    :param clean_share: The share of each Stage 2 batch that is clean; 0 is eq. (7).
    :param freeze_bn: Whether batch normalisation keeps its running statistics.
    :param recalibrate_bn: Whether these are recomputed on the clean images after each stage.
    :param padding: Random crops after padding by so many pixels.
    :param mirror: Whether to mirror half the images. Wrong for digits, letters, traffic signs.
    :param held_out: The share of the clean set, in [0, 1), that each stage's best epoch is chosen on; 0 takes the last.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of the wrong type.
    """

    classifier: PyTorchClassifier
    _: KW_ONLY
    norm: int | float | str = np.inf
    eps: float | None = None
    eps_step: float | None = None
    max_iter: int = 10
    num_random_init: int = 0
    clip: bool = True
    training_mode: bool = False
    attack_labels: str = "given"
    misclassified: str = "attack"
    regenerate: str = "once"
    augment_first: bool = False
    n_views: int = 1
    nb_epochs: int = 10
    clean_epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 128
    learning_rate: float | None = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: str = "constant"
    clean_share: float = 0.0
    freeze_bn: bool = False
    recalibrate_bn: bool = False
    padding: int = 4
    mirror: bool = True
    held_out: float = 0.0
    precision: str = "auto"
    seed: int = 0
    verbose: bool = False

    def _check_params(self) -> None:
        self._attack(self.classifier)
        self._recipe(self.nb_epochs, 0)
        check_choice("attack_labels", self.attack_labels, ("given", "predicted"))
        check_choice("misclassified", self.misclassified, ("attack", "keep", "skip"))
        check_choice("regenerate", self.regenerate, ("once", "epoch", "batch"))
        check_flag("augment_first", self.augment_first)
        check_integer("n_views", self.n_views, 1)
        check_integer("clean_epochs", self.clean_epochs, 0)
        check_number("clean_share", self.clean_share, minimum=0.0, maximum=1.0)
        check_flag("recalibrate_bn", self.recalibrate_bn)
        check_number("held_out", self.held_out, minimum=0.0, maximum=0.9)
        check_integer("seed", self.seed, 0)
        if self.n_views > 1 and not self.augment_first:
            raise ValueError(f"n_views: got {self.n_views} without augment_first, expected 1")
        if self.misclassified == "skip" and self.regenerate != "once":
            raise ValueError(f"misclassified: got 'skip' with regenerate {self.regenerate!r}, expected 'once' with it")

    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
        (x, y), held_out = self._split(x, y)
        if self.augment_first:
            x, y = self._augmented_views(classifier, x), np.tile(y, self.n_views)

        # Stage 1: adversarial examples x~ of the infected model, each with the true label of its image.
        x_adversarial, x_source, y_source = self._adversarial_examples(classifier, x, y)

        # Stage 2: fine-tune the infected model on (x~, y), eq. (7).
        self._fine_tune(classifier, x_adversarial, y_source, self.nb_epochs, 1, held_out, "Stage 2", x_source)
        self.adversarial_classifier = clone(classifier)

        # Stage 3, optional: fine-tune on (x, y) to win accuracy back, eq. (8).
        self._fine_tune(classifier, x, y, self.clean_epochs, 2, held_out, "Stage 3")

    def _adversarial_examples(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return adversarial examples, the images that they come from, and the true labels."""
        if self.regenerate == "batch":
            return x, x, y
        x_adversarial = self._attack(classifier).generate(x, y if self.attack_labels == "given" else None)
        if self.misclassified != "attack":
            right = classifier.predict(x, batch_size=self.batch_size).argmax(axis=1) == y
            if self.misclassified == "skip":
                return x_adversarial[right], x[right], y[right]
            x_adversarial[~right] = x[~right]
        return x_adversarial, x, y

    def _fine_tune(
        self,
        classifier: PyTorchClassifier,
        x: np.ndarray,
        y: np.ndarray,
        nb_epochs: int,
        stage: int,
        held_out: tuple[np.ndarray, np.ndarray] | None,
        description: str,
        x_clean: np.ndarray | None = None,
    ) -> None:
        """Fine-tune in place on (x, y), with what the settings add to the plain stage; `x_clean` belongs to Stage 2."""
        if nb_epochs == 0:
            return
        best = BestEpoch(classifier, held_out, self.batch_size) if held_out else None
        again: dict[str, Callable[..., Any]] = {}
        if x_clean is not None and self.regenerate == "epoch":
            # The first epoch has its examples already: at its start the current model is the infected one.
            again["each_epoch"] = lambda n: self._adversarial_examples(classifier, x_clean, y)[0] if n else None
        elif x_clean is not None and self.regenerate == "batch":
            again["each_batch"] = lambda images, labels: self._attacked_batch(classifier, images, labels)
        fit(
            classifier,
            x,
            y,
            self._recipe(nb_epochs, stage, augmented=not self.augment_first),
            clean=(x_clean, self.clean_share) if x_clean is not None and self.clean_share else None,
            after_epoch=best,
            verbose=self.verbose,
            description=description,
            **again,
        )
        if best:
            best.restore()
        if self.recalibrate_bn:
            recalibrate_batch_norm(classifier, x if x_clean is None else x_clean, batch_size=self.batch_size)

    def _attacked_batch(
        self, classifier: PyTorchClassifier, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attack = self._attack(classifier)
        attack.verbose = False
        given = labels.cpu().numpy() if self.attack_labels == "given" else None
        return torch.from_numpy(attack.generate(images.cpu().numpy(), given)).to(images.device), labels

    def _augmented_views(self, classifier: PyTorchClassifier, x: np.ndarray) -> np.ndarray:
        """Return `n_views` augmented copies of the images, one whole set after the other."""
        low, _ = check_clip_values("clip_values", classifier.clip_values)
        augmentation = Augmentation(self.padding, self.mirror, low, classifier.channels_first)
        rng = torch.Generator().manual_seed(self._stage_seed(0))
        views = [augmentation(torch.from_numpy(x), rng) for _ in range(self.n_views)]
        return torch.cat(views).contiguous().numpy()

    def _attack(self, classifier: PyTorchClassifier) -> TorchAttacksPGD:
        names = ("norm", "eps", "eps_step", "max_iter", "num_random_init", "clip", "training_mode", "precision")
        chosen = {name: getattr(self, name) for name in (*names, "seed", "verbose")}
        return TorchAttacksPGD(classifier, **chosen)

    def _recipe(self, nb_epochs: int, stage: int, augmented: bool = True) -> Recipe:
        return Recipe(
            nb_epochs=nb_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            schedule=self.schedule,
            padding=self.padding if augmented else 0,
            mirror=self.mirror if augmented else False,
            freeze_bn=self.freeze_bn,
            max_steps=self.max_steps,
            precision=self.precision,
            seed=self._stage_seed(stage),
        )

    def _stage_seed(self, stage: int) -> int:
        """Return a stage's own seed, so that Stage 3 does not repeat the order and the crops of Stage 2."""
        return int(np.random.SeedSequence([self.seed, stage]).generate_state(1)[0])

    def _split(
        self, x: np.ndarray, y: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray] | None]:
        """Return what is trained on, and what is held out to choose the best epoch on."""
        size = round(self.held_out * len(x))
        if size == 0:
            return (x, y), None
        order = np.random.default_rng(self.seed).permutation(len(x))
        return (x[order[size:]], y[order[size:]]), (x[order[:size]], y[order[:size]])


class AdversarialFineTuningTrainer(Trainer):
    """
    Adversarial Fine-Tuning in place, as one of ART's trainers.

    | Paper link: https://arxiv.org/abs/2202.06312

    :param classifier: The classifier that may be infected; `fit` changes it.
    :param settings: Those of `AdversarialFineTuning`, by keyword.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is unknown or of the wrong type.
    """

    def __init__(self, classifier: PyTorchClassifier, **settings: Any) -> None:
        super().__init__(classifier)
        self._defence = AdversarialFineTuning(classifier, **settings)

    def fit(self, x: np.ndarray, y: np.ndarray, **kwargs: Any) -> None:
        """
        Purify the classifier.

        :param x: The defender's images, in `clip_values`, of shape (N, *input_shape).
        :param y: Their labels, as indices or one-hot.
        :param kwargs: None are known.
        :raises ValueError: If the data do not fit the classifier.
        :raises TypeError: If there are other arguments.
        """
        if kwargs:
            raise TypeError(f"fit: got unknown argument {sorted(kwargs)[0]!r}, expected settings in the constructor")
        check_data(self.classifier, x, y)
        self._defence(x, transformed_classifier=self.classifier, y=y)
