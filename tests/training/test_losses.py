"""Whatever the reduction of a user's loss is, a step is that of its mean; what is no loss of labels is refused."""

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES, SHAPE, TinyNet, assert_close, tiny_data, untouched, weights

from art_aft.classifiers.classifier import build_classifier, check_classifier
from art_aft.defences import DEFENCES, FineTuning

SETTINGS = {"nb_epochs": 2, "batch_size": 8, "padding": 0, "horizontal_flip": False, "precision": "float32"}
EXPECTED = r"^classifier\.loss: got {}, expected CrossEntropyLoss, NLLLoss, or a loss of logits"


def classifier_with(loss):
    classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES)
    classifier._loss = loss
    return classifier


def tuned(loss, name="fine_tuning", **settings):
    x, y = tiny_data(24)
    return DEFENCES[name](classifier_with(loss), **SETTINGS, **settings)(x, y=y)


class Focal(torch.nn.CrossEntropyLoss):
    """As people write it: a subclass that averages, whatever its reduction is."""

    def forward(self, logits, y):
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        return ((1 - (-loss).exp()) ** 2 * loss).mean()


class Own(torch.nn.Module):
    """Cross entropy by hand, as a module of its own."""

    def forward(self, logits, y):
        return -logits.log_softmax(dim=1)[torch.arange(len(y)), y].mean()


class Summed(torch.nn.Module):
    def forward(self, logits, y):
        return -logits.log_softmax(dim=1)[torch.arange(len(y)), y].sum()


class TestAnyReduction:
    @pytest.mark.parametrize("reduction", ["none", "sum"])
    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("fine_tuning", {}),
            ("nad", {"teacher_epochs": 1, "betas": (100.0,)}),
            ("universal_aft", {"max_iter": 2, "label_epochs": 1}),
        ],
    )
    def test_the_weights_are_those_of_the_mean(self, name, more, reduction):
        expected = tuned(torch.nn.CrossEntropyLoss(), name, **more)
        found = tuned(torch.nn.CrossEntropyLoss(reduction=reduction), name, **more)
        assert_close(found, weights(expected), tolerance=1e-4)

    @pytest.mark.parametrize("name", ["fine_tuning", "universal_aft"])
    def test_a_module_of_its_own_is_cross_entropy_if_it_computes_that(self, name):
        more = {"max_iter": 2, "label_epochs": 1} if name == "universal_aft" else {}
        assert_close(tuned(Own(), name, **more), weights(tuned(torch.nn.CrossEntropyLoss(), name, **more)), 1e-4)

    def test_a_step_of_a_subclass_is_one_along_its_own_gradient(self):
        x, y = tiny_data(8)
        classifier = classifier_with(Focal())
        model = classifier.model.train()
        probabilities = model(torch.from_numpy(x)).softmax(dim=1)[torch.arange(8), torch.from_numpy(y)]
        (-((1 - probabilities) ** 2) * probabilities.log()).mean().backward()
        expected = (model.fc.weight - 0.01 * model.fc.weight.grad).detach()
        classifier = classifier_with(Focal())
        plain = {"nb_epochs": 1, "learning_rate": 0.01, "momentum": 0.0, "weight_decay": 0.0}
        purified = FineTuning(classifier, **{**SETTINGS, **plain})(x, y=y)
        torch.testing.assert_close(purified.model.fc.weight.detach(), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", ["nad", "universal_aft"])
    def test_a_subclass_works_where_losses_of_images_are_put_together(self, name):
        more = {"nad": {"betas": (100.0,)}, "universal_aft": {"max_iter": 2, "label_epochs": 1}}[name]
        purified = tuned(Focal(), name, **more)
        assert all(bool(torch.isfinite(value).all()) for value in purified.model.state_dict().values())


@pytest.mark.parametrize(
    "loss",
    [
        torch.nn.MSELoss(),
        torch.nn.BCEWithLogitsLoss(),
        Summed(),
        Focal(reduction="sum"),
        torch.nn.CrossEntropyLoss,
        None,
    ],
    ids=["MSE", "BCE", "summed", "no sum", "class", "None"],
)
def test_what_is_no_mean_is_refused_at_the_start(loss):
    classifier = classifier_with(loss)
    name = loss.__name__ if isinstance(loss, type) else type(loss).__name__
    with untouched(classifier), pytest.raises(ValueError, match=EXPECTED.format(name)):
        FineTuning(classifier)


@pytest.mark.parametrize("nb_classes", [2, 3, 6, 40])
def test_losses_are_told_apart_for_every_number_of_classes(nb_classes):
    classifier = build_classifier(TinyNet(nb_classes=nb_classes), input_shape=SHAPE, nb_classes=nb_classes)
    weight = torch.from_numpy(np.linspace(0.5, 2, nb_classes, dtype=np.float32))
    for loss in (Own(), Focal(), torch.nn.MultiMarginLoss(), torch.nn.CrossEntropyLoss(weight, reduction="none")):
        classifier._loss = loss
        check_classifier("classifier", classifier)
    classifier._loss = torch.nn.MSELoss()
    with pytest.raises(ValueError, match=r"loss: got MSELoss"):
        check_classifier("classifier", classifier)


def test_a_loss_that_counts_its_calls_is_not_called_by_the_check():
    class Counting(torch.nn.CrossEntropyLoss):
        calls = 0

        def forward(self, logits, y):
            self.calls += 1
            return super().forward(logits, y)

    loss = Counting()
    check_classifier("classifier", classifier_with(loss))
    assert loss.calls == 0
