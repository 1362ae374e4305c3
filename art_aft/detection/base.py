"""What every detector is: scores for all labels, a p-value for the most suspicious one, and a threshold."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.data.images import Images
from art_aft.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """
    What one detector found.

    :param detector: The detector's name.
    :param label: The most suspicious label; where `shift` is set, the number that is added to each true label.
    :param statistic: How far that label is ahead of the others; the detector's docstring says in which units.
    :param threshold: The statistic from which the detector reports a backdoor.
    :param p_value: How likely a clean classifier shows a label so far ahead, in (0, 1], under the detector's null
        distribution.
    :param scores: The score of each label, of shape (nb_classes,); of each shift from 1 on, (nb_classes - 1,).
    :param details: Where it was found, such as "L2 1.15".
    :param shift: Whether the scores are those of shifts, as an all-to-all backdoor has them.
    :param label_p_values: The same for each label by itself, as if it had been chosen before looking at the scores;
        empty where the detector's null distribution was not checked on clean classifiers. See `agreement`.
    :param supports: Whether it only supports the evidence of others; see `Detector.supports`.
    :param ambiguous: Whether other labels follow so closely that another detector may know the label better. A report
        then does not end a scan, and its label comes after theirs.
    :param perturbation: What was added to all images to lead them to `label`, float32 of the shape of an image, in
        units of `clip_values`; sums were clipped to these. None where the detector adds nothing to images.
    """

    detector: str
    label: int
    statistic: float
    threshold: float
    p_value: float
    scores: tuple[float, ...]
    details: str = ""
    shift: bool = False
    label_p_values: tuple[float, ...] = ()
    supports: bool = False
    ambiguous: bool = False
    perturbation: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def score(self) -> float:
        """The statistic in units of the threshold: 1 and more report a backdoor."""
        return self.statistic / self.threshold

    @property
    def names_its_label(self) -> bool:
        """Whether it reports a backdoor and leaves no doubt about the label."""
        return self.score >= 1 and not self.ambiguous


@dataclass(eq=False)
class Suspect:
    """
    A classifier under test, the images it is tested with, and what several detectors need of both.

    :param classifier: The classifier; detectors leave it as it is.
    :param images: Clean images that it gets right.
    :param precision: "auto", "float32" or "bfloat16".
    :param seed: The seed of everything random.
    :param stop_early: Whether a detector may end as soon as it reports a backdoor.
    :param settings: Settings for single detectors, by the detector's name.
    :param verbose: Whether to show progress bars.
    :param label_matrix: The labels of untargeted adversarial examples, as shares of shape (nb_classes, nb_classes) with
        the true label as the row; None until a detector has made such examples.
    """

    classifier: PyTorchClassifier
    images: Images
    precision: str = "auto"
    seed: int = 0
    stop_early: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False
    label_matrix: np.ndarray | None = None
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """
        Return what several detectors look at, made by the first that asks.

        :param name: What it is.
        :param make: Called without arguments where nobody has asked before.
        """
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]


class Detector(abc.ABC):
    """
    A test for a backdoor.

    A subclass is one file in this folder under `@register(name)`. It states its null distribution and its threshold in
    its docstring.
    """

    #: The name in the registry; `register` sets it.
    name: ClassVar[str]
    #: Detectors of lower cost run first; those of equal cost share their work. Those from `EXPENSIVE` on do not belong
    #: to the effort "fast", those from `THOROUGH` on only to "full".
    cost: ClassVar[int]
    #: The class of its entry in `Suspect.settings`.
    settings: ClassVar[type] = object
    #: The statistic from which the detector reports a backdoor.
    threshold: ClassVar[float]
    #: Whether the evidence rests on the images: then a report does not count where they are few or classes are missing.
    uses_images: ClassVar[bool] = True
    #: Whether the evidence only supports that of others, and reports nothing alone unless the user names the detector.
    supports: ClassVar[bool] = False

    @abc.abstractmethod
    def detect(self, suspect: Suspect) -> Evidence | None:
        """
        Return what speaks for a backdoor in the suspect; None where the detector cannot be applied.

        :param suspect: The classifier and its images.
        """

    def evidence(
        self,
        scores: np.ndarray,
        *,
        label: int,
        statistic: float,
        p_value: float,
        details: str = "",
        shift: bool = False,
        label_p_values: Sequence[float] | np.ndarray = (),
        ambiguous: bool = False,
        perturbation: np.ndarray | None = None,
    ) -> Evidence:
        """Return `Evidence` under the detector's own name and threshold; the parameters are those of `Evidence`."""
        values = tuple(np.asarray(scores, dtype=float).tolist())
        each = tuple(np.asarray(label_p_values, dtype=float).tolist())
        return Evidence(
            self.name,
            label,
            statistic,
            self.threshold,
            p_value,
            values,
            details,
            shift,
            each,
            self.supports,
            ambiguous,
            perturbation,
        )


#: From this cost on, a detector does not belong to the effort "fast"; from the second on, to "full" alone.
EXPENSIVE, THOROUGH = 2, 6

DETECTORS: Registry[type[Detector]] = Registry("detector", group="art_aft.detectors")


def register(name: str) -> Callable[[type[Detector]], type[Detector]]:
    """Return a decorator that registers a detector under `name`, and tells it its name."""

    def decorate(detector: type[Detector]) -> type[Detector]:
        detector.name = name
        return DETECTORS.register(name)(detector)

    return decorate
