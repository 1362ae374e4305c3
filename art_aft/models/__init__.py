"""The victims' architectures, as plain modules, and a registry of their names."""

from art_aft.models.base import MODELS, build_model, register
from art_aft.models.cnn import CNN
from art_aft.models.preact_resnet import PreActResNet18
from art_aft.models.resnet import ResNet18
from art_aft.models.vgg import VGG
from art_aft.models.vit import ViT
from art_aft.models.wide_resnet import WideResNet

MODELS.discover(__name__, __path__)

__all__ = ["CNN", "MODELS", "VGG", "PreActResNet18", "ResNet18", "ViT", "WideResNet", "build_model", "register"]
