"""
Defences, one a file: each turns an infected classifier and a few images into a purified classifier.

A new file in this folder with a `Defence` under `@register(name)` is all that a new defence needs.
"""

from art_aft.adversarial.perturbation_sets import UniversalPerturbations
from art_aft.defences.aft import AdversarialFineTuning
from art_aft.defences.aft_no_clean_data import AdversarialFineTuningWithoutCleanData
from art_aft.defences.automatic import AccuracyLost, AutomaticFineTuning
from art_aft.defences.base import DEFENCES, Defence, Run, register
from art_aft.defences.fine_pruning import FinePruning
from art_aft.defences.fine_tuning import FineTuning
from art_aft.defences.nad import NeuralAttentionDistillation
from art_aft.defences.neural_cleanse import NeuralCleanse
from art_aft.defences.neural_cleanse_estimator import PyTorchNeuralCleanse
from art_aft.defences.progressive_erasing import ProgressiveErasing
from art_aft.defences.report import PurificationReport, Stage, Trial
from art_aft.defences.trainer import AdversarialFineTuningTrainer
from art_aft.defences.universal_aft import UniversalAdversarialFineTuning

DEFENCES.discover(__name__, __path__)

__all__ = [
    "DEFENCES",
    "AccuracyLost",
    "AdversarialFineTuning",
    "AdversarialFineTuningTrainer",
    "AdversarialFineTuningWithoutCleanData",
    "AutomaticFineTuning",
    "Defence",
    "FinePruning",
    "FineTuning",
    "NeuralAttentionDistillation",
    "NeuralCleanse",
    "ProgressiveErasing",
    "PurificationReport",
    "PyTorchNeuralCleanse",
    "Run",
    "Stage",
    "Trial",
    "UniversalAdversarialFineTuning",
    "UniversalPerturbations",
    "register",
]
