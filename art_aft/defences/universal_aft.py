"""Universal Adversarial Fine-Tuning: one perturbation for each label, and distillation of what two models agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.patches import find_patches, patch_side
from art_aft.adversarial.perturbation_sets import UniversalPerturbations, find_dense, towards_labels
from art_aft.checks import (
    check_choice,
    check_integer,
    check_mapping,
    check_number,
    within,
)
from art_aft.classifiers.classifier import clone
from art_aft.data.images import Images
from art_aft.defences.aft_no_clean_data import seen_in
from art_aft.defences.base import Defence, Run, register
from art_aft.defences.report import PurificationReport
from art_aft.detection.suspicion import suspected_label
from art_aft.detection.universal_patch import LARGE
from art_aft.runtime.callbacks import Callback
from art_aft.runtime.random_state import seed_for
from art_aft.training.distillation import DistillationLoss, agreeing
from art_aft.training.loop import fit
from art_aft.training.perturbed_batches import Directions, PerturbedBatches

#: The same with dense perturbations alone, towards all labels alike.
DISTILLED: Mapping[str, Any] = {"sparse_share": 0.0, "focus": 0.0}


@dataclass(frozen=True, kw_only=True)
class UniversalReport(PurificationReport):
    """
    What Universal Adversarial Fine-Tuning did.

    :param perturbations: What Stage 1 found; None before a call. Another run on the same infected classifier can be
        given them.
    :param target: The label that the focus was on; None where there was none.
    """

    perturbations: UniversalPerturbations | None = None
    target: int | None = None


@register("universal_aft")
class UniversalAdversarialFineTuning(Defence):
    """
    Remove a backdoor by fine-tuning on perturbations that all images share, and win accuracy back by distillation.

    A trigger is one change that works on all images. So Stage 1 finds, for each label, perturbations that lead all
    other images there: the r of the paper's Section V. One is dense, within an L2 bound. Two are sparse: one changes
    few scattered pixels, one a square patch, at the place from where it leads furthest. Stage 2 fine-tunes on batches,
    part of whose images carry a random perturbation under their true labels; the rest is clean. It runs twice. The
    first run learns labels alone: its result lacks the backdoor and some accuracy. The second run starts from the
    infected model again. Its clean images learn what the infected model and that result agree on, which brings most of
    the accuracy back and not the backdoor.

    This method is this package's. The paper has universal perturbations in its theory only.

    | Paper link: https://arxiv.org/abs/2202.06312 (Section V)
    | Paper link: https://arxiv.org/abs/1503.02531 (distillation)

    :param classifier: The classifier that may be infected.
    :param perturbations: What Stage 1 of an earlier run on this infected classifier found; None looks for them.
    :param eps: The L2 bound of dense perturbations, in units of `clip_values`. None is `default_eps`: 1.0 of the range
        for 32x32x3 images. "auto" is the smallest of 1/4, 1/2, 1, 2, 4 and 8 times that at which the perturbations of
        two labels, one of which the attacker did not choose, each succeed on a third of the images.
    :param max_iter: Steps of the search; None is 20 for dense perturbations and 30 for sparse ones.
    :param sparse_share: The share of the perturbed images, in [0, 1], whose perturbation is sparse. Half
        of them change scattered pixels, half a patch.
    :param focus: The share of the perturbed images, in [0, 1], whose perturbation leads to `target`.
    :param target: The label of the focus: "auto" is the one that perturbations reach much more easily than others, or
        that the last layer favours, if there is one (`suspected_label`); None is no focus.
    :param clean_share: The share of each batch, in [0, 1], that is clean.
    :param temperature: Distillation temperature. 0 disables distillation: clean images learn their labels, and Stage 2
        runs once.
    :param label_epochs: Passes over the images in the first run of Stage 2.
    :param nb_epochs: Passes over the images in the second.
    :param max_steps: The most steps of each run; Stage 1 sees no more images than these steps do. None is no limit.
    :param batch_size: Images a step.
    :param learning_rate: The (peak) rate of a new SGD optimizer; None continues with the classifier's own optimizer.
    :param momentum: SGD's momentum.
    :param weight_decay: SGD's weight decay.
    :param l2_sp: How strongly parameters are pulled to those of the infected model: the weight of half the squared
        distance, which is added to the sum of the losses of all images. The fewer images, the stronger the pull. 0 is
        not at all.
    :param schedule: The learning rate over the steps: "constant", "cosine" or "one_cycle".
    :param padding: Random crops after padding by this many pixels; 0 is none. None is 4, or less on images of fewer
        than 32 pixels: an eighth of the shorter side.
    :param horizontal_flip: Whether to flip half of the images. Wrong for digits, letters and traffic signs.
    :param precision: "auto" (bfloat16 where the device has units for it), "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param verbose: Whether to show progress bars.
    :raises ValueError: If a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"distilled": DISTILLED}

    def __init__(
        self,
        classifier: PyTorchClassifier,
        perturbations: UniversalPerturbations | None = None,
        *,
        eps: float | str | None = None,
        max_iter: int | None = None,
        sparse_share: float = 0.5,
        focus: float = 0.75,
        target: int | str | None = "auto",
        clean_share: float = 0.5,
        temperature: float = 3.0,
        label_epochs: int = 10,
        nb_epochs: int = 20,
        max_steps: int | None = None,
        batch_size: int = 64,
        learning_rate: float | None = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        l2_sp: float = 0.0,
        schedule: str = "one_cycle",
        padding: int | None = None,
        horizontal_flip: bool = True,
        precision: str = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            perturbations=perturbations,
            eps=eps,
            max_iter=max_iter,
            sparse_share=sparse_share,
            focus=focus,
            target=target,
            clean_share=clean_share,
            temperature=temperature,
            label_epochs=label_epochs,
            nb_epochs=nb_epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            l2_sp=l2_sp,
            schedule=schedule,
            padding=padding,
            horizontal_flip=horizontal_flip,
            precision=precision,
            seed=seed,
            verbose=verbose,
        )

    def _check_params(self) -> None:
        super()._check_params()
        nb_classes, shape = self.classifier.nb_classes, tuple(self.classifier.input_shape)
        if self.perturbations is not None:
            if not isinstance(self.perturbations, UniversalPerturbations):
                kind = type(self.perturbations).__name__
                raise TypeError(f"perturbations: got {kind}, expected UniversalPerturbations of a report, or None")
            if self.perturbations.dense.shape != (nb_classes, *shape):
                found = self.perturbations.dense.shape
                raise ValueError(f"perturbations: got shape {found}, expected {(nb_classes, *shape)}")
        if isinstance(self.eps, str):
            check_choice("eps", self.eps, ("auto",))
        elif self.eps is not None:
            check_number("eps", self.eps, minimum=0.0, above=True, maximum=1e30)
        if self.max_iter is not None:
            check_integer("max_iter", self.max_iter, 1)
        for name in ("sparse_share", "focus", "clean_share"):
            check_number(name, getattr(self, name), minimum=0.0, maximum=1.0)
        if isinstance(self.target, str):
            check_choice("target", self.target, ("auto",))
        elif self.target is not None and check_integer("target", self.target, 0) >= nb_classes:
            raise ValueError(f"target: got {self.target}, expected a label below {nb_classes}")
        check_number("temperature", self.temperature, minimum=0.0)
        check_integer("label_epochs", self.label_epochs, 0)
        if self.temperature and not self.clean_share:
            raise ValueError(f"temperature: got {self.temperature:g} without clean images (clean_share), expected 0")

    def _purify(self, classifier: PyTorchClassifier, images: Images, run: Run) -> UniversalReport:
        images = seen_in(images, self.max_steps, self.batch_size, self.seed)
        with run.stage("Stage 1"):
            found = self.find_perturbations(classifier, images)
            target = self._focused_label(classifier, images, found)
        teachers: list[PyTorchClassifier] = []
        if self.temperature:
            with run.stage("Stage 2 on labels"):
                teachers = [clone(classifier), clone(classifier)]
                self._fine_tune(teachers[1], images, found, target, self.label_epochs)
                teachers[1].model.eval()
        with run.stage("Stage 2"):
            self._fine_tune(classifier, images, found, target, self.nb_epochs, teachers, run.callbacks)
        return UniversalReport(perturbations=found, target=target, chosen={"eps": found.eps})

    def _focused_label(
        self, classifier: PyTorchClassifier, images: Images, found: UniversalPerturbations
    ) -> int | None:
        """Return the label of the focus, if there is one."""
        if not self.focus:
            return None
        if self.target != "auto":
            return self.target
        return suspected_label(classifier, images, found.kinds)

    def find_perturbations(self, classifier: PyTorchClassifier, images: Images) -> UniversalPerturbations:
        """
        Run Stage 1 alone, as a part of another defence, which has checked classifier and images.

        :param classifier: The classifier; it stays as it is.
        :param images: Checked images with labels.
        :return: The perturbations that were given, with what they lacked.
        """
        settings: dict[str, Any] = {
            "precision": self.precision,
            "seed": seed_for(self.seed, "attack", 0),
            "verbose": self.verbose,
        }
        found = self.perturbations or find_dense(classifier, images, self.eps, max_iter=self.max_iter or 20, **settings)
        if self.sparse_share and found.sparse is None:
            sparse = towards_labels(classifier, images, norm=0, max_iter=self.max_iter or 30, **settings)
            found = replace(found, sparse=sparse)
        if self.sparse_share and found.patches is None:
            patches = find_patches(classifier, images, patch_side(classifier, LARGE), **settings)
            shape, first = classifier.input_shape, classifier.channels_first
            added = patches.as_perturbations(shape, images.clip_values, channels_first=first)
            found = replace(found, patches=added)
        return found

    def _fine_tune(
        self,
        classifier: PyTorchClassifier,
        images: Images,
        found: UniversalPerturbations,
        target: int | None,
        nb_epochs: int,
        teachers: Sequence[PyTorchClassifier] = (),
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Fine-tune in place on perturbed and clean images; teachers, where there are some, teach the clean ones."""
        # Of the mean over images, so that the pull is as a prior, which more images overrule.
        pull = self.l2_sp / len(images)
        recipe = self._recipe(nb_epochs=nb_epochs, seed=seed_for(self.seed, "stage 2"), l2_sp=pull)
        directions = Directions(
            classifier.nb_classes,
            target,
            self.focus,
            self.sparse_share,
            self.seed,
            sparse_kinds=len(found.kinds) - 1,
        )
        loss = DistillationLoss(classifier.loss, self.temperature) if teachers else None
        with agreeing(teachers, self.temperature, self.precision) if teachers else nullcontext() as teacher:
            batches = PerturbedBatches(
                images, recipe, classifier.device, found.all, directions, clean_share=self.clean_share, teacher=teacher
            )
            watched: dict[str, Any] = {"callbacks": callbacks, "verbose": self.verbose}
            fit(classifier, batches, recipe, loss=loss, description="Stage 2", **watched)


def check_run(name: str, classifier: PyTorchClassifier, settings: Any) -> None:
    """
    Check the settings of a run that another defence is made of.

    :param name: The argument's name.
    :param classifier: The classifier.
    :param settings: What should be settings of `UniversalAdversarialFineTuning`.
    """
    with within(name):
        UniversalAdversarialFineTuning(classifier, **check_mapping(name, settings))
