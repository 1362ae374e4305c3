"""What the base class does for a defence, and fine-tuning, the plainest one."""

import random

import numpy as np
import pytest
import torch
from art.defences.transformer import Transformer
from helpers import (
    NB_CLASSES,
    tiny_classifier,
    tiny_data,
    untouched,
)

from art_aft.classifiers.classifier import clone
from art_aft.defences import DEFENCES, Defence, FineTuning


@pytest.fixture
def data():
    return tiny_data(24)


@pytest.fixture
def victim():
    """As it comes from training: in training mode but for one module, one parameter frozen, momentum at work."""
    classifier = tiny_classifier(momentum=0.9, dropout=0.2)
    classifier._model.train()
    classifier.model.bn.eval()
    classifier.model.fc.bias.requires_grad_(False)
    return classifier


class TestWritingADefence:
    """A subclass has a plain `__init__` and a `_purify`, and nothing more."""

    def test_purify_gets_a_copy_and_checked_data(self, data, victim):
        calls = []

        class Forget(Defence):
            def __init__(self, classifier, *, factor=0.5):
                super().__init__(classifier, factor=factor)

            def _purify(self, classifier, images, run):
                calls.append((classifier, images.pixels.dtype, images.labels.tolist()))
                # What a careless defence may do.
                classifier.predict(images.pixels)
                random.random(), np.random.rand(), torch.rand(1)
                with run.stage("Forgetting"), torch.no_grad():
                    classifier.model.fc.weight.mul_(self.factor)

        x, y = data
        defence = Forget(victim, factor=0.25)
        with untouched(victim):
            purified = defence(x.astype(np.float64), y=np.eye(NB_CLASSES)[y])
        assert calls == [(purified, np.float32, y.tolist())]
        assert torch.equal(purified.model.fc.weight, 0.25 * victim.model.fc.weight)
        assert Forget(victim).get_params() == {"factor": 0.5}
        assert [stage.name for stage in defence.report.stages] == ["Forgetting"]

    def test_settings_that_a_recipe_has_are_checked_without_a_line(self, victim):
        class Careless(Defence):
            def __init__(self, classifier, *, batch_size=8, verbose=False):
                super().__init__(classifier, batch_size=batch_size, verbose=verbose)

            def _purify(self, classifier, images, run): ...

        with pytest.raises(ValueError, match=r"^batch_size: got -1"):
            Careless(victim, batch_size=-1)
        with pytest.raises(TypeError, match=r"^verbose: got 1"):
            Careless(victim, verbose=1)

    def test_a_defence_without_purify_is_abstract(self, victim):
        with pytest.raises(TypeError, match="_purify"):
            Defence(victim)

    def test_no_class_of_this_package_but_one_stands_above_a_defence(self):
        for defence in DEFENCES.values():
            own = [base for base in defence.__mro__[1:] if base.__module__.startswith("art_aft.")]
            assert own == [Defence]
            assert type(defence) is type(Transformer)


class TestFineTuning:
    def test_it_is_the_plain_sgd_loop(self, data):
        x, y = data
        classifier = tiny_classifier()
        settings = {"nb_epochs": 3, "batch_size": 24, "learning_rate": 0.1, "padding": 0, "horizontal_flip": False}
        purified = FineTuning(classifier, precision="float32", **settings)(x, y=y)
        model = clone(classifier).model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
            optimizer.step()
        for key, value in model.state_dict().items():
            torch.testing.assert_close(purified.model.state_dict()[key], value, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"milestones": ((1, -0.1),)}, r"^milestones: got -0\.1"),
            ({"milestones": ((1, 0.1),), "schedule": "cosine"}, r"^milestones: got some with schedule 'cosine'"),
            ({"nesterov": True, "momentum": 0.0}, r"^nesterov: got True with momentum 0"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            FineTuning(tiny_classifier(), **settings)


def test_a_purification_that_diverges_is_not_accepted(data, caplog):
    defence = FineTuning(tiny_classifier(), learning_rate=1e30, nb_epochs=3, batch_size=8)
    purified = defence(data[0], y=data[1])
    assert not all(bool(torch.isfinite(value).all()) for value in purified.model.state_dict().values())
    assert not defence.report.accepted
    assert "FineTuning diverged" in caplog.text
