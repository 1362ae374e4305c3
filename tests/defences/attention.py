"""What the tests of Neural Attention Distillation share: attention by hand, and a network without blocks."""

import numpy as np
import torch
from helpers import NB_CLASSES, SHAPE

from art_aft.classifiers.classifier import build_classifier, clone


def attention_by_hand(maps, power=2.0):
    attention = (np.abs(maps.astype(np.float64)) ** power).sum(axis=1).reshape(len(maps), -1)
    return attention / (np.sqrt((attention**2).sum(axis=1, keepdims=True)) + 1e-6)


def maps_of(classifier, x):
    """The output of TinyNet's convolution, in evaluation mode."""
    with torch.no_grad():
        return clone(classifier).model.eval().conv(torch.from_numpy(x)).numpy()


class Vgg(torch.nn.Module):
    """Maps of 12, 6 and 3 positions a side; the parts have no blocks."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        parts = []
        for before, after, pooled in ((3, 4, True), (4, 4, False), (4, 6, True), (6, 6, True)):
            parts += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.ReLU(inplace=inplace)]
            parts += [torch.nn.MaxPool2d(2)] if pooled else []
        self.features = torch.nn.Sequential(*parts)
        self.classifier = torch.nn.Linear(6, NB_CLASSES)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(2).mean(dim=2))


def named(model, shape=SHAPE):
    return build_classifier(model, input_shape=shape, nb_classes=NB_CLASSES)


def images(shape=SHAPE, n=4):
    return np.random.default_rng(0).random((n, *shape), dtype=np.float32)


def hooks_of(classifier):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in classifier._model.modules())
