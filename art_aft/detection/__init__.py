"""
Detectors, one a file: each tests a classifier for a backdoor and names the most suspicious label.

A new file in this folder with a `Detector` under `@register(name)` is all that a new detector needs. The scan runs
every registered detector, cheapest first, and knows none by name.
"""

from art_aft.detection.base import DETECTORS, EXPENSIVE, Detector, Evidence, Suspect, register
from art_aft.detection.report import ScanReport
from art_aft.detection.scan import BackdoorScan
from art_aft.detection.suspicion import suspected_label

DETECTORS.discover(__name__, __path__)

__all__ = [
    "DETECTORS",
    "EXPENSIVE",
    "BackdoorScan",
    "Detector",
    "Evidence",
    "ScanReport",
    "Suspect",
    "register",
    "suspected_label",
]
