"""The first work of a process takes longer: done before any clock starts."""

from __future__ import annotations

from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.classifiers.classifier import check_outputs, clone, images_for
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe


def warm_up(classifier: PyTorchClassifier, x: Any, y: np.ndarray | None = None) -> None:
    """
    Attack and train a copy for one step, so that no defence's seconds contain what only the first call takes.

    The first step loads parts of torch, and makes kernels and memory ready.

    :param classifier: The classifier; it stays as it is.
    :param x: Images as the defences take them; a few of them are used.
    :param y: Their labels; None with `Images`.
    """
    check_outputs(classifier)
    few, copied, recipe = images_for(classifier, x, y, max_images=64), clone(classifier), Recipe(nb_epochs=1)
    TorchAttacksPGD(copied, max_iter=1).generate(few)
    if any(parameter.requires_grad for parameter in copied.model.parameters()):
        fit(copied, Batches(few, recipe, copied.device), recipe)
