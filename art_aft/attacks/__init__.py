"""
Backdoor triggers, one a file, for ART's `PoisoningAttackBackdoor`.

A trigger maps a batch of images to the triggered batch, of the same shape and type. It is pure: it neither changes its
input nor depends on anything but the image and its own settings.

>>> import numpy as np
>>> from art.attacks.poisoning import PoisoningAttackBackdoor
>>> from art_aft.attacks import TRIGGERS
>>> trigger = TRIGGERS["badnets"]()
>>> x = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)
>>> poisoned, labels = PoisoningAttackBackdoor(trigger).poison(x, y=np.eye(10)[[7]])
>>> poisoned[0, 0, 4:, 4:].tolist()
[[0.5, 0.5, 0.5, 0.5], [0.5, 0.0, 0.0, 1.0], [0.5, 0.0, 1.0, 0.0], [0.5, 1.0, 0.0, 1.0]]

To add a trigger, add one file to this folder::

    @register("name")
    class Mine(Trigger):
        def _stamp(self, x, out):  # x and out are (N, C, H, W); the base class checks and clips
            ...

The registry finds the file; the shell, the experiments and the contract tests take the trigger from there. A trigger in
a package of your own needs no file here: name its class in the group "art_aft.attacks" of that package's entry points.

A trigger with cover images also writes `has_covers` and `cover`; one that is trained with its victim `needs_training`
and `fit`; one whose defaults depend on the images `for_images`. `release` states how the attack's own release trains
its victims. Arguments of `__init__` become attributes of the same name, from which `state` stores them.
"""

from art_aft.attacks.badnets import BadNets
from art_aft.attacks.base import TRIGGERS, Trigger, register, stamp
from art_aft.attacks.blend import Blend
from art_aft.attacks.input_aware import InputAware
from art_aft.attacks.sig import SIG
from art_aft.attacks.wanet import WaNet

TRIGGERS.discover(__name__, __path__)

__all__ = ["SIG", "TRIGGERS", "BadNets", "Blend", "InputAware", "Trigger", "WaNet", "register", "stamp"]
