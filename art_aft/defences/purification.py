"""What all defences share: data and a classifier go in, a purified classifier comes out."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
from art.defences.transformer import Transformer
from art.estimators.classification import PyTorchClassifier

from art_aft.classifier import check_classifier, check_data, clone
from art_aft.registry import Registry
from art_aft.rng import isolated_rng


class Purification(Transformer):
    """
    A defence that removes a backdoor from a trained classifier.

    A subclass is a dataclass: its fields are its settings, by keyword. It checks them in `_check_params` and writes
    `_purify`, and nothing more.

    :param classifier: The classifier that may be infected: ART's `PyTorchClassifier` on images, with `clip_values`.
    :raises TypeError: If the classifier is of another kind.
    :raises ValueError: If the classifier has no pixel range, or a setting is out of its range.
    """

    classifier: PyTorchClassifier

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = [name for name in vars(cls).get("__annotations__", {}) if name not in ("classifier", "_", *cls.params)]
        cls.params = [*cls.params, *own]

    def __post_init__(self) -> None:
        check_classifier("classifier", self.classifier)
        super().__init__(classifier=self.classifier)
        self._is_fitted = True
        self._check_params()

    def __call__(
        self,
        x: np.ndarray,
        transformed_classifier: PyTorchClassifier | None = None,
        y: np.ndarray | None = None,
    ) -> PyTorchClassifier:
        """
        Return a purified classifier, in evaluation mode.

        :param x: The defender's images, in `clip_values`, of shape (N, *input_shape).
        :param transformed_classifier: None purifies a copy of the infected classifier, which stays as it is. A given
            one is purified itself, from its own weights, and returned.
        :param y: The images' labels, as indices or one-hot.
        :return: The purified classifier.
        :raises ValueError: If the data do not fit the classifier.
        """
        if transformed_classifier is None:
            checked = check_data(self.classifier, x, y)
            purified = clone(self.classifier)
        else:
            check_classifier("transformed_classifier", transformed_classifier)
            checked = check_data(transformed_classifier, x, y)
            purified = transformed_classifier
        if getattr(self, "learning_rate", 0.0) is None and purified.optimizer is None:
            raise ValueError("learning_rate: got None for a classifier without an optimizer, expected one of the two")
        with isolated_rng():
            self._purify(purified, *checked)
        purified.model.eval()
        return purified

    @abc.abstractmethod
    def _purify(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
        """
        Purify a classifier in place.

        :param classifier: The classifier to change.
        :param x: Checked float32 images.
        :param y: Label indices.
        """

    def fit(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> None:
        """No parameters to learn for this method; do nothing."""

    def set_params(self, **kwargs: Any) -> None:
        """
        Change settings, checked; on an error all stay as they were.

        :raises ValueError: If a setting is unknown (ART would drop it in silence) or out of range.
        """
        unknown = sorted(set(kwargs) - set(self.params))
        if unknown:
            raise ValueError(f"unknown parameter {unknown[0]!r}, expected one of: {', '.join(self.params)}")
        before = {key: getattr(self, key) for key in kwargs}
        try:
            super().set_params(**kwargs)
        except (TypeError, ValueError):
            self.__dict__.update(before)
            raise

    def get_params(self) -> dict[str, Any]:
        """Return all settings by name."""
        return {key: getattr(self, key) for key in self.params}


DEFENCES: Registry[type[Purification]] = Registry("defence")
register = DEFENCES.register
