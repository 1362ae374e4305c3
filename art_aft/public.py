"""The names that `art_aft` has itself."""

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.attacks.labels import AllToAll, AllToOne
from art_aft.attacks.poisoning import PoisonedData, poison
from art_aft.classifiers.classifier import build_classifier, clone
from art_aft.defences import (
    AdversarialFineTuning,
    AdversarialFineTuningTrainer,
    AutomaticFineTuning,
    ProgressiveErasing,
    UniversalAdversarialFineTuning,
)
from art_aft.detection import BackdoorScan, ScanReport
from art_aft.metrics import Scores, evaluate

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
    "UniversalAdversarialFineTuning",
    "build_classifier",
    "clone",
    "evaluate",
    "poison",
]
