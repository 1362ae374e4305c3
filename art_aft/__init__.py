"""Remove backdoors from image classifiers with Adversarial Fine-Tuning, inside the Adversarial Robustness Toolbox."""

__version__ = "0.1.0"

from art_aft.classifier import build_classifier, clone
from art_aft.defences import (
    AdversarialFineTuning,
    AdversarialFineTuningTrainer,
    AutomaticFineTuning,
    ProgressiveErasing,
)
from art_aft.evasion import TorchAttacksPGD
from art_aft.metrics import Scores, evaluate
from art_aft.poisoning import AllToAll, AllToOne, PoisonedData, poison
from art_aft.scan import BackdoorScan
from art_aft.signs import ScanReport

__all__ = [
    "AdversarialFineTuning",
    "AdversarialFineTuningTrainer",
    "AllToAll",
    "AllToOne",
    "AutomaticFineTuning",
    "BackdoorScan",
    "PoisonedData",
    "ProgressiveErasing",
    "ScanReport",
    "Scores",
    "TorchAttacksPGD",
    "build_classifier",
    "clone",
    "evaluate",
    "poison",
]
