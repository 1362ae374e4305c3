"""What the detectors of universal changes by families share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from art_aft.adversarial.families import Family
from art_aft.adversarial.margins import family_success
from art_aft.detection.base import Detector, Evidence, Suspect
from art_aft.detection.statistics import greatest, lead
from art_aft.detection.universal import ORDINARY


def success_evidence(detector: Detector, suspect: Suspect, families: Sequence[Family]) -> Evidence:
    """
    Return the largest lead of one label's targeted success rate, over families of growing size.

    The search ends where the change towards an ordinary label, the median one, works too.

    :param detector: The detector that asks.
    :param suspect: The classifier and its images.
    :param families: Families of changes of clean images, the smallest first.
    """
    found: list[Evidence] = []
    for family in families:
        rates = family_success(
            suspect.classifier,
            family,
            suspect.images,
            precision=suspect.precision,
            seed=suspect.seed,
            verbose=suspect.verbose,
        )
        found.append(lead(detector, rates, family.name))
        if np.median(rates) > ORDINARY or (suspect.stop_early and found[-1].score >= 1):
            break
    return greatest(found)
