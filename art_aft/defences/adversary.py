"""Stage 1 of Adversarial Fine-Tuning: the infected model's adversarial examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.adversarial.universal import carried, default_eps, universal_perturbations
from art_aft.checks import check_choice, check_clip_values, check_flag, check_integer, check_number
from art_aft.classifiers.classifier import predict_labels
from art_aft.classifiers.layers import output_weights
from art_aft.data.loaders import chunks, empty, take
from art_aft.data.pixels import to_float
from art_aft.defences.base import Tuning
from art_aft.detection.last_layer import favoured_label
from art_aft.runtime.processes import number_of_first

#: How likely by chance a label may stand out at most, to be one that examples are led to more often.
SUSPICIOUS = 0.1


@dataclass(eq=False, repr=False, kw_only=True)
class Adversary(Tuning):
    """
    How adversarial examples are made, in units of the classifier's `clip_values`; and then fine-tuned on (`Tuning`).

    :param adversary: "per_image", a perturbation of its own for every image (Algorithm 1), or "shared": one for each
        label, that leads images of all others there (the r of the paper's Section V); each epoch, every image gets one
        at random.
    :param norm: The ball's norm, np.inf or 2.
    :param eps: The ball's radius. None is 4/255 of the range for np.inf; for 2 it is 1.0 of the range at 32x32x3.
        "auto" is the smallest of 1/4, 1/2, 1, 2, 4 and 8 times that at which the attack works on the given images: nine
        of ten examples are misclassified; "shared", two labels, of which one is ordinary, carry a third of the others.
    :param eps_step: The step size. None is `eps` / 4, for "shared" `eps` / 5.
    :param max_iter: The number of steps; None is 10, for "shared" 20, each on 125 images.
    :param num_random_init: Random starting points; 0 starts at the image itself.
    :param clip: Whether examples stay in `clip_values`.
    :param training_mode: Whether the model is in training mode while it is attacked.
    :param attack_labels: The labels to lead away from: "given" or "predicted".
    :param misclassified: Images that the model gets wrong before the attack: "attack" them as the others, "keep" them
        unchanged, or "skip" them in Stage 2.
    :param regenerate: When examples are made: "once" from the infected model (Algorithm 1), or again from the current
        model at every "epoch" or "batch" (the authors' later code).
    :param sparse_share: With "shared", the share of examples, in [0, 1], whose perturbation changes few pixels by much
        (norm 0 of `universal_perturbations`) instead of all by little.
    :param focus: With "shared", the share of examples, in [0, 1], that are led to the label that stands out in the last
        layer's weights (`favoured_label`), where one does with a probability by chance of `SUSPICIOUS` or less.
    :param augment_first: Whether images are cropped and mirrored before they are attacked and not afterwards, as the
        paper does without clean data; for "shared" afresh in every batch.
    :param n_views: With `augment_first`, how many augmented copies of each image.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of the wrong type.
    """

    classifier: PyTorchClassifier
    adversary: str = "per_image"
    norm: int | float | str = np.inf
    eps: float | str | None = None
    eps_step: float | None = None
    max_iter: int | None = None
    num_random_init: int = 0
    clip: bool = True
    training_mode: bool = False
    attack_labels: str = "given"
    misclassified: str = "attack"
    regenerate: str = "once"
    sparse_share: float = 0.0
    focus: float = 0.0
    augment_first: bool = False
    n_views: int = 1

    def _check_params(self) -> None:
        super()._check_params()
        if isinstance(self.eps, str):
            check_choice("eps", self.eps, ("auto",))
        self.radius = self._attack(self.classifier, None if self.eps == "auto" else self.eps).eps
        self.known: np.ndarray | None = None  # shared perturbations of an earlier run
        self.found: np.ndarray | None = None  # those of the infected model
        # The latest; behind those of all labels, with `sparse_share`, as many sparse ones.
        self.perturbations: np.ndarray | None = None
        self.suspect: int | None = None
        check_choice("adversary", self.adversary, ("per_image", "shared"))
        check_choice("attack_labels", self.attack_labels, ("given", "predicted"))
        check_choice("misclassified", self.misclassified, ("attack", "keep", "skip"))
        check_choice("regenerate", self.regenerate, ("once", "epoch", "batch"))
        check_number("sparse_share", self.sparse_share, minimum=0.0, maximum=1.0)
        check_number("focus", self.focus, minimum=0.0, maximum=1.0)
        for name in ("sparse_share", "focus"):
            if getattr(self, name) and self.adversary != "shared":
                raise ValueError(f"{name}: got {getattr(self, name):g} with adversary {self.adversary!r}, expected 0")
        check_flag("augment_first", self.augment_first)
        check_integer("n_views", self.n_views, 1)
        if self.n_views > 1 and not self.augment_first:
            raise ValueError(f"n_views: got {self.n_views} without augment_first, expected 1")
        if self.misclassified == "skip" and self.regenerate != "once":
            raise ValueError(f"misclassified: got 'skip' with regenerate {self.regenerate!r}, expected 'once' with it")

    def _attack_infected(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return adversarial examples of the infected classifier; the images themselves where they are made later."""
        self.perturbations = self.known
        self.suspect = self._suspect(x) if self.focus else None
        given = None if self.eps == "auto" else self._attack(classifier, self.eps).eps
        self.radius = given or self._working_radius(classifier, x, y)
        if self._fresh_views:
            self._find_shared(classifier, x, y)
        adversarial = x if self._made_in_batches else self._adversarial_examples(classifier, x, y)
        self.found = self.perturbations
        return adversarial

    @property
    def _fresh_views(self) -> bool:
        """Whether perturbations that all images share are put on views of them that are new in every batch."""
        return self.augment_first and self.adversary == "shared" and (self.regenerate, self.n_views) == ("once", 1)

    @property
    def _only_added(self) -> bool:
        """Whether examples of a batch are its images and perturbations that are known: nobody asks the model."""
        return self._fresh_views and self.attack_labels == "given" and self.misclassified != "keep"

    @property
    def _made_in_batches(self) -> bool:
        """Whether examples are made of each batch when its turn comes."""
        return self.regenerate == "batch" or self._fresh_views

    def _working_radius(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
        """Return the smallest ball in which the attack works, or the largest that is tried."""
        norm = 2 if self.norm == 2 else np.inf
        eps = default_eps(norm, classifier.input_shape, check_clip_values("clip_values", classifier.clip_values)) / 8
        aimed = y if self.attack_labels == "given" else predict_labels(classifier, x)
        for _ in range(6):
            eps *= 2
            attack = self._attack(classifier, eps)
            if self.adversary == "shared":
                # Those of the ball that is taken are Stage 1's.
                self.perturbations = self._shared_perturbations(classifier, x, aimed, attack)
                share = np.sort(carried(classifier, x, aimed, self.perturbations, range(classifier.nb_classes)))[-2] * 3
            else:
                share = np.mean(predict_labels(classifier, attack.generate(x, aimed)) != y) / 0.9
            if number_of_first(float(share), classifier.device) >= 1:
                break
        return eps

    def _attacked_images(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the images that Stage 1 works on, and their labels: those that Stage 2 comes to."""
        count = len(x) if self.max_steps is None else max(1, self.max_steps * self.batch_size)
        if count < len(x):
            seen = np.random.default_rng(self._stream(5)).permutation(len(x))[:count]
            x, y = take(x, seen), y[seen]
        if self.misclassified != "skip":
            return x, y
        right = predict_labels(classifier, x) == y
        if not right.any():
            raise ValueError("misclassified: got 'skip' where the classifier gets every image wrong, expected 'attack'")
        return x[right], y[right]

    def _adversarial_examples(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, turn: int = 0
    ) -> np.ndarray:
        """Return adversarial examples of the classifier as it is now; `turn` counts how often that was done before."""
        if self.adversary == "shared":
            adversarial = self._shared_examples(classifier, x, y, turn)
        else:
            attack = self._attack(classifier, self.radius)
            attack.seed = self._stream(0, turn)
            attack.verbose = self.verbose and turn == 0
            adversarial = attack.generate(x, y if self.attack_labels == "given" else None)
        if self.misclassified == "keep":
            wrong = predict_labels(classifier, x) != y
            adversarial[wrong] = to_float(x[wrong], check_clip_values("clip_values", classifier.clip_values))
        return adversarial

    def _shared_examples(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, turn: int) -> np.ndarray:
        """Return each image with the perturbation towards another label than its own, drawn anew every turn."""
        labels = torch.from_numpy(self._find_shared(classifier, x, y, turn))
        perturbations = torch.from_numpy(cast(np.ndarray, self.perturbations))
        towards = self._elsewhere(labels, classifier.nb_classes, turn)
        clip_values = check_clip_values("clip_values", classifier.clip_values)
        adversarial = empty(x.shape, np.float32, like=x)
        for part in chunks(x):
            pixels = torch.from_numpy(to_float(x[part], clip_values))
            adversarial[part] = self._perturbed(pixels, perturbations[towards[part]], clip_values).numpy()
        return adversarial

    def _elsewhere(self, labels: torch.Tensor, nb_classes: int, turn: int) -> torch.Tensor:
        """Return which perturbation each image gets: one towards another label than its own, drawn anew every turn."""
        rng = np.random.default_rng(self._stream(4, turn))
        drawn = rng.integers(1, nb_classes, len(labels))
        towards = (labels + torch.from_numpy(drawn).to(labels.device)) % nb_classes
        if self.suspect is not None:
            focused = torch.from_numpy(rng.random(len(labels)) < self.focus).to(labels.device)
            towards = towards.where(~focused | (labels == self.suspect), torch.full_like(towards, self.suspect))
        if self.sparse_share:
            towards += nb_classes * torch.from_numpy(rng.random(len(labels)) < self.sparse_share).to(labels.device)
        return towards

    def _perturbed(self, x: torch.Tensor, r: torch.Tensor, clip_values: tuple[float, float]) -> torch.Tensor:
        return (x + r).clamp(*clip_values) if self.clip else x + r

    def _find_shared(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, turn: int = 0) -> np.ndarray:
        """Look for the shared perturbations where there are none for this turn; return the labels to lead away from."""
        y = y if self.attack_labels == "given" else predict_labels(classifier, x)
        if self.perturbations is None or (turn and self.regenerate != "once"):
            attack = self._attack(classifier, self.radius)
            self.perturbations = self._shared_perturbations(classifier, x, y, attack, turn)
        if self.sparse_share and len(self.perturbations) == classifier.nb_classes:
            sparse = self._universal(classifier, x, y, turn, norm=0, max_iter=self.max_iter or 30)
            self.perturbations = np.concatenate([self.perturbations, sparse])
        return y

    def _suspect(self, x: np.ndarray) -> int | None:
        """Return the label that stands out in the infected model's last layer, if one does."""
        weights = output_weights(self.classifier, x)
        if weights is None or len(weights) < 3:
            return None
        values, chance, _ = favoured_label(weights)
        return int(values.argmax()) if chance <= SUSPICIOUS else None

    def _shared_perturbations(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, attack: TorchAttacksPGD, turn: int = 0
    ) -> np.ndarray:
        """Return a perturbation for each label, in the attack's ball."""
        return self._universal(
            classifier,
            x,
            y,
            turn,
            norm=2 if self.norm == 2 else np.inf,
            eps=attack.eps,
            eps_step=self.eps_step,
            max_iter=self.max_iter or 20,
            num_random_init=self.num_random_init,
        )

    def _universal(
        self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, turn: int, **settings: Any
    ) -> np.ndarray:
        own: dict[str, Any] = {"precision": self.precision, "verbose": self.verbose and turn == 0}
        return universal_perturbations(classifier, x, y, seed=self._stream(0, turn), **own, **settings)

    def _attack(self, classifier: PyTorchClassifier, eps: Any) -> TorchAttacksPGD:
        names = ("norm", "eps_step", "num_random_init", "clip", "training_mode", "precision")
        chosen = {name: getattr(self, name) for name in (*names, "seed", "verbose")}
        return TorchAttacksPGD(classifier, eps=eps, max_iter=10 if self.max_iter is None else self.max_iter, **chosen)
