"""When to stop where there is only the poisoned training set."""

from __future__ import annotations

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.classifiers.classifier import predict_logits
from art_aft.runtime.processes import number_of_first


def margins(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how far the logit of each image's given label is above the largest other one, shape (N,)."""
    logits = predict_logits(classifier, x)
    rows = np.arange(len(y))
    given = logits[rows, y].copy()
    logits[rows, y] = -np.inf
    return given - logits.max(axis=1)


class EarlyStop:
    """
    Remembers the weights at which one label's images have let go of it and the others' have not.

    Triggered images of an all-to-one attack have one label in the training set. While the backdoor is forgotten they
    lose it: of all labels, that one's images lose most of the margin that the infected model gave them. So at each look
    the label that has lost most is the suspect, and a look scores twice the share of the others' images that keep
    their label, averaged over the labels, minus the suspect's share. Only images that the infected model gives their
    label count.

    The weight of two, settled on CIFAR-10 with 10 % poisoned by BadNets and Blend, keeps it from the first steps, where
    the backdoor is weakest and the accuracy too.

    :param classifier: The infected classifier, to be fine-tuned in place.
    :param x: Given images, of shape (N, *input_shape), in `clip_values` or uint8.
    :param y: Their given labels, as indices.
    """

    def __init__(self, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
        self.classifier, self.x, self.y = classifier, x, y
        self.before = margins(classifier, x, y)
        #: Of each look so far: the number of steps, the score, the suspect.
        self.looks: list[tuple[int, float, int]] = []
        self._best: tuple[float, int, dict[str, torch.Tensor]] | None = None

    def look(self, step: int) -> None:
        """Judge the classifier as it is after so many steps."""
        now, known = margins(self.classifier, self.x, self.y), self.before > 0
        labels = np.unique(self.y[known])
        if len(labels) < 2:
            return
        own = [known & (self.y == label) for label in labels]
        lost = np.array([np.mean(self.before[mask] - now[mask]) for mask in own])
        kept = np.array([np.mean(now[mask] > 0) for mask in own])
        suspect = int(lost.argmax())
        score = 2 * np.delete(kept, suspect).mean() - kept[suspect]
        # Processes that round differently must not go apart.
        score = number_of_first(float(score), self.classifier.device)
        self.looks.append((step, score, int(labels[suspect])))
        if self._best is None or score > self._best[0]:
            self._best = score, step, {key: v.clone() for key, v in self.classifier.model.state_dict().items()}

    def restore(self) -> int | None:
        """Give the classifier the weights of the look with the highest score; return after how many steps it was."""
        if self._best is None:
            return None
        self.classifier.model.load_state_dict(self._best[2])
        return self._best[1]
