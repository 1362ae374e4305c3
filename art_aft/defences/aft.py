"""Adversarial Fine-Tuning: the paper's Algorithm 1."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.checks import check_choice, check_integer
from art_aft.classifiers.classifier import clone
from art_aft.data.images import Images
from art_aft.defences.base import Defence, Run, register
from art_aft.defences.report import PurificationReport
from art_aft.runtime.random_state import isolated_rng, seed_for
from art_aft.training.batches import Batches, Transform
from art_aft.training.loop import fit

#: Algorithm 1 as printed, with Stages 2 and 3 as the paper's WRN-16-1 is trained.
PAPER: Mapping[str, Any] = {"batch_size": 64, "weight_decay": 1e-4}


@dataclass(frozen=True, kw_only=True)
class AdversarialFineTuningReport(PurificationReport):
    """
    What Adversarial Fine-Tuning did.

    :param adversarial_classifier: The classifier after Stage 2; None before a call.
    """

    adversarial_classifier: PyTorchClassifier | None = field(default=None, repr=False)


@register("aft")
class AdversarialFineTuning(Defence):
    """
    Remove a backdoor by fine-tuning on the infected model's own adversarial examples.

    An infected model's untargeted adversarial examples behave like triggered images: they excite the same features and
    tend to fall on the target label. A model that learns their true labels forgets the backdoor. No trigger is needed.

    `AdversarialFineTuning(classifier, **PAPER)` is Algorithm 1 as printed. The paper leaves most numbers open.

    | Paper link: https://arxiv.org/abs/2202.06312 (Algorithm 1)

    :param classifier: The classifier that may be infected.
    :param attack: Stage 1: any of ART's evasion attacks, untargeted. It attacks the classifier that is purified,
        whatever estimator it was built with. None is `TorchAttacksPGD` with its defaults.
    :param regenerate: When Stage 1 runs: "once", on the infected model (Algorithm 1), or for every "batch" of Stage 2,
        on the model as it is then (the authors' later code).
    :param nb_epochs: Passes over the adversarial examples, Stage 2.
    :param clean_epochs: Passes over the clean images, Stage 3; 0 leaves the stage out.
    :param batch_size: Images a step.
    :param learning_rate: The rate of a new SGD optimizer; None continues with the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay.
    :param padding: Random crops in Stages 2 and 3, after padding by this many pixels; 0 is none. None is 4, or less on
        images of fewer than 32 pixels: an eighth of the shorter side.
    :param horizontal_flip: Whether to flip half of the images there. Wrong for digits, letters and traffic signs.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": PAPER}

    def __init__(
        self,
        classifier: PyTorchClassifier,
        attack: EvasionAttack | None = None,
        *,
        regenerate: str = "once",
        nb_epochs: int = 10,
        clean_epochs: int = 10,
        batch_size: int = 128,
        learning_rate: float | None = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        padding: int | None = None,
        horizontal_flip: bool = True,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            attack=attack,
            regenerate=regenerate,
            nb_epochs=nb_epochs,
            clean_epochs=clean_epochs,
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
        check_choice("regenerate", self.regenerate, ("once", "batch"))
        check_integer("clean_epochs", self.clean_epochs, 0)

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> AdversarialFineTuningReport:
        attack = attack_on(classifier, self.attack, self)

        # Stage 1: adversarial examples x~ of the infected model, each with the true label of its image, eq. (6).
        with run.stage("Stage 1"):
            adversarial = (
                images if self.regenerate == "batch" else generate(attack, images, seed_for(self.seed, "attack", 0))
            )

        # Stage 2: fine-tune the infected model on (x~, y), eq. (7).
        with run.stage("Stage 2"):
            again = _regenerating(attack, images, self.seed) if self.regenerate == "batch" else None
            self._fine_tune(classifier, adversarial, self.nb_epochs, "stage 2", run, again)
        adversarial_classifier = clone(classifier)

        # Stage 3, optional: fine-tune on (x, y) to win accuracy back, eq. (8).
        with run.stage("Stage 3"):
            self._fine_tune(classifier, images, self.clean_epochs, "stage 3", run)
        return AdversarialFineTuningReport(adversarial_classifier=adversarial_classifier)

    def _fine_tune(
        self,
        classifier: PyTorchClassifier,
        images: Images,
        nb_epochs: int,
        stage: str,
        run: Run,
        transform: Transform | None = None,
    ) -> None:
        recipe = self._recipe(nb_epochs=nb_epochs, seed=seed_for(self.seed, stage))
        batches = Batches(images, recipe, classifier.device, transform=transform)
        title = stage.capitalize()
        fit(classifier, batches, recipe, callbacks=run.callbacks, verbose=self.verbose, description=title)


def check_attack(name: str, attack: Any) -> None:
    """
    Check that an attack can be Stage 1.

    :param name: The argument's name.
    :param attack: What should be one of ART's evasion attacks, untargeted, or None.
    :raises TypeError: If it is something else.
    :raises ValueError: If it is targeted.
    """
    if attack is not None and not isinstance(attack, EvasionAttack):
        raise TypeError(f"{name}: got {type(attack).__name__}, expected one of ART's evasion attacks or None")
    if getattr(attack, "targeted", False):
        raise ValueError(f"{name}: got a targeted attack, expected an untargeted one")


def attack_on(classifier: PyTorchClassifier, attack: EvasionAttack | None, settings: Any) -> EvasionAttack:
    """
    Return Stage 1's attack on the classifier that is purified; the given one stays as it is.

    :param classifier: The classifier.
    :param attack: The attack, on whatever estimator; None is `TorchAttacksPGD` with its defaults.
    :param settings: The defence, whose precision, seed and verbosity the default attack has.
    """
    if attack is None:
        seed = seed_for(settings.seed, "attack", 0)
        return TorchAttacksPGD(classifier, precision=settings.precision, seed=seed, verbose=settings.verbose)
    moved, estimator = copy.copy(attack), attack.estimator
    moved._estimator = classifier
    if estimator is not settings.classifier and getattr(estimator, "model", None) is settings.classifier.model:
        # ART's AutoProjectedGradientDescent keeps its loss in an estimator of its own around the same model.
        # `copy.copy` would pickle: ART writes the weights into its data folder for that, and leaves them there.
        moved._estimator = object.__new__(type(estimator))
        vars(moved._estimator).update(vars(estimator), _model=classifier._model)
    # ART's ProjectedGradientDescent does its work through an attack inside, AutoAttack through several.
    for name, value in vars(attack).items():
        if isinstance(value, EvasionAttack):
            setattr(moved, name, attack_on(classifier, value, settings))
        elif isinstance(value, (list, tuple)) and any(isinstance(inner, EvasionAttack) for inner in value):
            setattr(moved, name, [attack_on(classifier, inner, settings) for inner in value])
    return moved


def generate(attack: EvasionAttack, images: Images, seed: int) -> Images:
    """
    Return adversarial examples under the true labels of their images.

    :param attack: The attack, from `attack_on`. One that is not of this package gets float32 pixels and one-hot labels.
    :param images: The images, with labels.
    :param seed: The seed of everything random in it; ART's own attacks draw from the global generators.
    """
    if isinstance(attack, TorchAttacksPGD):
        attack.seed = seed
        return replace(images, pixels=attack.generate(images))
    one_hot = np.eye(attack.estimator.nb_classes, dtype=np.float32)[images.labels]
    with isolated_rng(seed):
        return replace(images, pixels=attack.generate(images.floats(), one_hot).astype(np.float32))


def _regenerating(attack: EvasionAttack, images: Images, seed: int) -> Transform:
    """Return what makes adversarial examples of each batch, of the model as it is then."""
    turns = itertools.count(1)

    def transform(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = replace(images, pixels=x.cpu().numpy(), labels=y.cpu().numpy())
        return torch.from_numpy(generate(attack, batch, seed_for(seed, "attack", next(turns))).pixels).to(x.device), y

    return transform
