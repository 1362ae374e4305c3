"""The victims' architectures, as plain modules, and a registry of their names."""

from art_aft.models.base import MODELS, build_model, register
from art_aft.models.wide_resnet import WideResNet

MODELS.discover(__name__, __path__)

__all__ = ["MODELS", "WideResNet", "build_model", "register"]
