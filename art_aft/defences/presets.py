"""Sets of settings of Adversarial Fine-Tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# As the paper trains WRN-16-1.
_WRN: Mapping[str, Any] = {"batch_size": 64, "weight_decay": 1e-4}

_SHARED: Mapping[str, Any] = {
    **_WRN,
    "adversary": "shared",
    "norm": 2,
    "clean_share": 0.5,
    "clean_epochs": 0,
    "learning_rate": 0.1,
    "schedule": "one_cycle",
}

_DISTILLED: Mapping[str, Any] = {**_SHARED, "distillation": 3.0, "nb_epochs": 20, "augment_first": True}

ADVERSARIAL_FINE_TUNING: Mapping[str, Mapping[str, Any]] = {
    "paper": {**_WRN, "regenerate": "once", "clean_share": 0.0},
    "no_clean_data": {
        **_WRN,
        "augment_first": True,
        "clean_epochs": 0,
        "nb_epochs": 1,
        "max_steps": 400,
        "n_looks": 20,
    },
    "shared": _SHARED,
    "distilled": _DISTILLED,
    "mixed": {**_DISTILLED, "sparse_share": 0.5, "focus": 0.75},
}
