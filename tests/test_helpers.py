"""The assertions of many tests rest on `untouched`."""

import random

import numpy as np
import pytest
import torch
from helpers import tiny_classifier, untouched


class TestTheWatchItself:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.model.fc.weight.data.add_(1e-6), "weights changed"),
            (lambda c: c.model.bn.running_var.mul_(1.5), "weights changed"),
            (lambda c: c.model.bn.train(), "modes changed"),
            (lambda c: c._model.eval(), "modes changed"),
            (lambda c: c.model.fc.weight.requires_grad_(False), "flags changed"),
            (lambda c: c.model.to(memory_format=torch.channels_last), "strides changed"),
            (lambda c: c.model.fc.weight.sum().backward(), "gradients changed"),
            (lambda c: c.optimizer.param_groups[0].update(lr=7.0), "the optimizer changed"),
            (lambda c: next(iter(c.optimizer.state.values()))["momentum_buffer"].add_(1), "the optimizer changed"),
            (lambda c: random.random(), "generator was moved"),
            (lambda c: np.random.rand(), "generator was moved"),
            (lambda c: torch.rand(1), "generator was moved"),
        ],
    )
    def test_it_sees_each_change(self, change, message):
        classifier = tiny_classifier(momentum=0.9)
        with pytest.raises(AssertionError, match=message), untouched(classifier):
            change(classifier)
