"""
Defences, one a file: each turns an infected classifier and a little clean data into a purified classifier.

A new file in this folder with a `Purification` under `@register(name)` is all that a new defence needs.
"""

from art_aft.defences.aft import AdversarialFineTuning, AdversarialFineTuningTrainer
from art_aft.defences.fine_tuning import FineTuning
from art_aft.defences.purification import DEFENCES, Purification, register

DEFENCES.discover(__name__, __path__)

__all__ = [
    "DEFENCES",
    "AdversarialFineTuning",
    "AdversarialFineTuningTrainer",
    "FineTuning",
    "Purification",
    "register",
]
