"""What the detectors of maximum margins share."""

from __future__ import annotations

from art_aft.adversarial.families import Family
from art_aft.adversarial.margins import maximum_margins
from art_aft.detection.base import Detector, Evidence, Suspect
from art_aft.detection.statistics import outlier

# More labels than this have one start each: the others tell well enough how far a margin goes by chance.
_MANY = 50


def margin_evidence(detector: Detector, suspect: Suspect, *families: Family) -> Evidence | None:
    """
    Return how far one label's largest margin is above those of the others, over the family where that is clearest.

    :param detector: The detector that asks.
    :param suspect: The classifier and its images.
    :param families: One or more families of images.
    :return: None with fewer than three labels, of which none can stand out.
    """
    if suspect.classifier.nb_classes < 3:
        return None
    found = []
    for family in families:
        margins = maximum_margins(
            suspect.classifier,
            family,
            suspect.images,
            # A member that is shown on images costs as much as one that makes them, for each image.
            starts=1 if family.images_per_step or suspect.classifier.nb_classes > _MANY else 4,
            max_iter=80 if family.images_per_step else 100,
            precision=suspect.precision,
            seed=suspect.seed,
            verbose=suspect.verbose,
        )
        found.append(outlier(detector, margins, f"{family.name} {margins.max():.3g}", looks=len(families)))
    return min(found, key=lambda evidence: evidence.p_value)
