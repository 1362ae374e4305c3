"""
Backdoor triggers, one a file, as perturbation functions for ART's `PoisoningAttackBackdoor`.

A perturbation maps a batch of images to the triggered batch, of the same shape and type, and is pure: it
neither changes its input nor depends on anything but the image and its own settings. It may also have
`cover(x, rng)`, images that look triggered but keep their labels, and `fit(classifier, x, y, labels)`.
A new file in this folder with a class under `@register(name)` is all that a new attack needs.
"""

from art_aft.attacks.badnets import BadNets
from art_aft.attacks.base import PERTURBATIONS, Perturbation, register, stamp
from art_aft.attacks.blend import Blend
from art_aft.attacks.input_aware import InputAware
from art_aft.attacks.sig import SIG
from art_aft.attacks.wanet import WaNet

PERTURBATIONS.discover(__name__, __path__)

__all__ = ["PERTURBATIONS", "SIG", "BadNets", "Blend", "InputAware", "Perturbation", "WaNet", "register", "stamp"]
