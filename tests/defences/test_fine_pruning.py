"""Fine-pruning cuts the least active channels, undoes the cut that went too far, and keeps the others cut."""

import numpy as np
import pytest
import torch
from helpers import (
    NB_CLASSES,
    SHAPE,
    Calls,
    TinyNet,
    same_weights,
    tiny_classifier,
    tiny_data,
    train,
    untouched,
    weights,
)

from art_aft.classifiers.classifier import build_classifier, clone, features
from art_aft.classifiers.layers import Head
from art_aft.defences import FinePruning, fine_pruning
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

TUNING = {
    "nb_epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.05,
    "padding": 1,
    "horizontal_flip": False,
    "precision": "float32",
}
IDS = 40


class Identity(torch.nn.Module):
    """As many classes as channels: the brightest channel of an image is its class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(IDS, IDS, 1, bias=False)
        self.fc = torch.nn.Linear(IDS, IDS)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(IDS)[:, :, None, None])
            self.fc.weight.copy_(torch.eye(IDS))
            self.fc.bias.zero_()

    def features(self, x):
        return self.conv(x)

    def forward(self, x):
        return self.fc(self.features(x).mean(dim=(2, 3)))


def one_image_a_class():
    """
    An image of each class, on a dark background.

    A class without an image among those that measure activity has the least active channel. Each cut costs one image.
    """
    x = np.full((IDS, IDS, 2, 2), 0.1, dtype=np.float32)
    x += np.linspace(0, 0.01, IDS, dtype=np.float32)[None, :, None, None]
    x[np.arange(IDS), np.arange(IDS)] = 1
    return x, np.arange(IDS)


def identity_classifier():
    return build_classifier(Identity(), input_shape=(IDS, 2, 2), nb_classes=IDS)


def uneven_classifier():
    """TinyNet with channels of such different activity that any few images show the same order."""
    classifier = tiny_classifier()
    with torch.no_grad():
        classifier.model.bn.bias.copy_(torch.tensor([3.0, 0.5, 7, 1, 6, 2, 5, 4]))
        classifier.model.bn.weight.fill_(0.1)
    return classifier


ORDER = [1, 3, 5, 0, 7, 6, 4, 2]


def prune(classifier, **settings):
    return FinePruning(classifier, **{**TUNING, "nb_epochs": 0, **settings})


@pytest.fixture
def asked(monkeypatch):
    """The images that activity is measured on, and those whose predictions decide when to stop."""
    seen = {"activity": [], "held_out": []}

    class Watching(Head):
        def activations(self, x, *arguments):
            seen["activity"].append(x)
            return super().activations(x, *arguments)

        def predict(self, x, inputs):
            seen["held_out"].append(x)
            return super().predict(x, inputs)

    monkeypatch.setattr(fine_pruning, "Head", Watching)
    return seen


def cut_columns(classifier):
    return (classifier.model.fc.weight == 0).all(dim=0).nonzero().flatten().tolist()


class TestOrder:
    def test_the_least_active_channels_go_first(self):
        classifier, (x, y) = uneven_classifier(), tiny_data()
        assert np.argsort(features(classifier, x, pooled=True).mean(axis=0)).tolist() == ORDER
        defence = prune(classifier, max_drop=1.0)
        purified = defence(x, y=y)
        assert list(defence.report.pruned_channels) == ORDER
        assert cut_columns(purified) == list(range(8))
        assert len(defence.report.accuracy_curve) == 9

    def test_activity_is_the_mean_over_images_not_the_greatest(self):
        # Channel 0 is bright in one image, channel 1 a little in all.
        x = np.full((IDS, IDS, 2, 2), 0.5, dtype=np.float32)
        x[:, 0], x[:, 1] = 0.01, 0.2
        x[::20, 0] = 1
        defence = prune(identity_classifier(), max_drop=1.0, max_pruned=0.05)
        defence(x, y=np.arange(IDS))
        assert list(defence.report.pruned_channels) == [0, 1]

    def test_a_negative_activity_is_less_than_none(self):
        classifier, (x, y) = uneven_classifier(), tiny_data()

        class Signed(TinyNet):
            def features(self, x):
                return self.bn(self.conv(x))

        model = Signed()
        model.load_state_dict(classifier.model.state_dict())
        with torch.no_grad():
            model.bn.bias[2] = -9
        defence = prune(build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES), max_drop=1.0)
        defence(x, y=y)
        assert list(defence.report.pruned_channels) == [2, *ORDER[:-1]]


class TestHeldOut:
    @pytest.mark.parametrize(("share", "count"), [(0.1, 4), (0.5, 20), (0.001, 1), (0.999, 39)])
    def test_a_share_of_the_images_decides_and_the_others_show_activity(self, share, count, asked):
        x, y = one_image_a_class()
        prune(identity_classifier(), held_out=share, max_drop=1.0)(x, y=y)
        (active,), held = asked["activity"], asked["held_out"]
        assert (len(held[0]), len(active)) == (count, IDS - count)
        assert all(one is held[0] for one in held)
        classes = [*held[0].mean(axis=(2, 3)).argmax(axis=1), *active.mean(axis=(2, 3)).argmax(axis=1)]
        assert sorted(classes) == list(range(IDS))
        assert len(held) == IDS + 1

    def test_which_ones_depends_on_the_seed(self, asked):
        x, y = one_image_a_class()
        for seed in (0, 1, 0):
            prune(identity_classifier(), max_drop=0.0, seed=seed)(x, y=y)
        first, second, third = asked["activity"]
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(first, third)

    def test_the_curve_is_their_accuracy_after_each_cut(self, asked):
        classifier, (x, _) = tiny_classifier(), tiny_data(40)
        with torch.no_grad():  # so that the images differ in what wins
            classifier.model.fc.bias -= torch.from_numpy(classifier.predict(x).mean(axis=0))
        y = classifier.predict(x).argmax(axis=1)
        y[::5] = (y[::5] + 1) % NB_CLASSES
        defence = prune(classifier, max_drop=1.0, held_out=0.5)
        defence(x, y=y)
        (active,), (held, *_) = asked["activity"], asked["held_out"]
        order = np.argsort(features(classifier, active, pooled=True).mean(axis=0))
        assert list(defence.report.pruned_channels) == order.tolist()
        labels = np.array([y[(x == image).all(axis=(1, 2, 3)).argmax()] for image in held])
        model = clone(classifier).model
        for cuts, accuracy in enumerate(defence.report.accuracy_curve):
            with torch.no_grad():
                maps = model.features(torch.from_numpy(held))
                maps[:, order[:cuts]] = 0
                predicted = model.fc(maps.mean(dim=(2, 3))).argmax(dim=1).numpy()
            assert accuracy == np.mean(predicted == labels)
        assert len(set(defence.report.accuracy_curve)) > 2


class TestStopping:
    @pytest.mark.parametrize("max_drop", [0.0, 0.04, 0.1, 0.5])
    def test_the_cut_that_goes_too_far_is_undone(self, max_drop, asked):
        x, y = one_image_a_class()
        classifier = identity_classifier()
        defence = prune(classifier, max_drop=max_drop, held_out=0.5)
        purified = defence(x, y=y)
        curve = defence.report.accuracy_curve
        assert curve[0] == 1
        assert curve[-1] < 1 - max_drop - 1e-9 <= min(curve[:-1])
        assert len(curve) == len(defence.report.pruned_channels) + 2
        held = asked["held_out"][0]
        labels = held.mean(axis=(2, 3)).argmax(axis=1)
        accuracy = np.mean(purified.predict(held).argmax(axis=1) == labels)
        assert accuracy == curve[-2] >= 1 - max_drop - 1e-9
        assert cut_columns(purified) == sorted(defence.report.pruned_channels)
        # Bit for bit, also the column that was cut and is back.
        kept = np.setdiff1d(np.arange(IDS), defence.report.pruned_channels)
        assert torch.equal(purified.model.fc.weight[:, kept], classifier.model.fc.weight[:, kept])

    @pytest.mark.parametrize("allowed", range(20))
    def test_a_drop_of_just_max_drop_is_allowed_in_spite_of_rounding(self, allowed):
        # Of 20 images each is a twentieth; 1 - 0.85, say, is more than 3 / 20.
        x, y = one_image_a_class()
        defence = prune(identity_classifier(), max_drop=allowed / 20, held_out=0.5)
        defence(x, y=y)
        np.testing.assert_allclose(defence.report.accuracy_curve, 1 - np.arange(allowed + 2) / 20, atol=1e-9)
        assert len(defence.report.pruned_channels) == allowed

    def test_the_drop_is_in_points_of_accuracy_and_not_a_share_of_it(self):
        x, y = one_image_a_class()
        wrong = y.copy()
        defence = prune(identity_classifier(), max_drop=0.2, held_out=0.5)
        # Half of the labels are wrong: 0.5, say, may fall to 0.3, and not just to 0.4.
        wrong[::2] = (y[::2] + 1) % IDS
        defence(x, y=wrong)
        curve = defence.report.accuracy_curve
        assert 0.2 < curve[0] < 0.8
        assert curve[-1] < curve[0] - 0.2 - 1e-9 <= curve[-2]
        np.testing.assert_allclose(curve[0] - curve[-2], 0.2)

    @pytest.mark.parametrize(("share", "count"), [(1.0, 8), (0.5, 4), (0.3, 2), (0.1, 0), (0.0, 0)])
    def test_never_more_than_a_share_of_the_channels_goes(self, share, count):
        classifier, (x, y) = uneven_classifier(), tiny_data()
        defence = prune(classifier, max_drop=1.0, max_pruned=share)
        purified = defence(x, y=y)
        assert list(defence.report.pruned_channels) == ORDER[:count]
        assert len(defence.report.accuracy_curve) == count + 1
        assert cut_columns(purified) == sorted(ORDER[:count])

    def test_by_default_four_points_may_be_lost_and_a_tenth_is_held_out(self):
        defence = FinePruning(tiny_classifier())
        assert (defence.max_drop, defence.max_pruned, defence.held_out, defence.nb_epochs) == (0.04, 1.0, 0.1, 10)

    def test_a_second_call_starts_anew(self):
        classifier, (x, y) = uneven_classifier(), tiny_data()
        defence = prune(classifier, max_drop=1.0, max_pruned=0.5)
        defence(x, y=y)
        first = defence.report
        defence(x, y=y)
        assert defence.report is not first
        assert defence.report.pruned_channels == first.pruned_channels == tuple(ORDER[:4])
        assert defence.report.accuracy_curve == first.accuracy_curve


class TestPruningOnly:
    def test_nothing_changes_but_the_heads_columns(self):
        classifier, (x, y) = uneven_classifier(), tiny_data()
        classifier._model.train()
        with untouched(classifier):
            purified = prune(classifier, max_drop=1.0, max_pruned=0.5)(x, y=y)
        before, after = weights(classifier), weights(purified)
        assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.weight"]
        columns = (before["fc.weight"] != after["fc.weight"]).any(dim=0).nonzero().flatten().tolist()
        assert columns == sorted(ORDER[:4])
        assert not after["fc.weight"][:, columns].any()

    def test_preset_paper_only_prunes(self):
        classifier, (x, y) = uneven_classifier(), tiny_data()
        defence = FinePruning(classifier, **{**fine_pruning.PAPER, "max_drop": 1.0, "max_pruned": 0.25})
        purified = defence(x, y=y)
        before, after = weights(classifier), weights(purified)
        assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.weight"]
        assert cut_columns(purified) == sorted(ORDER[:2])

    @pytest.mark.parametrize("nested", [False, True])
    def test_another_layer_may_be_named(self, nested):
        class Deep(TinyNet):
            def __init__(self):
                super().__init__()
                self.second = torch.nn.Conv2d(8, 5, 1)
                self.fc = torch.nn.Linear(5, NB_CLASSES)

            def features(self, x):
                return torch.relu(self.second(super().features(x)))

        classifier, (x, y) = uneven_classifier(), tiny_data()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Deep()
        model.load_state_dict(
            {name: value for name, value in classifier.model.state_dict().items() if not name.startswith("fc")},
            strict=False,
        )
        model, name = (torch.nn.Sequential(model), "0.second") if nested else (model, "second")
        classifier = build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES)
        defence = prune(classifier, layer=name, max_drop=1.0, max_pruned=0.5)
        purified = defence(x, y=y)
        assert list(defence.report.pruned_channels) == ORDER[:4]
        weight = purified.model.get_submodule(name).weight
        assert (weight == 0).all(dim=0).flatten().nonzero().flatten().tolist() == sorted(ORDER[:4])
        before, after = weights(classifier), weights(purified)
        assert [key for key in before if not torch.equal(before[key], after[key])] == [f"{name}.weight"]


class TestFineTuning:
    @pytest.mark.parametrize("settings", [{}, {"nesterov": True, "weight_decay": 0.1}, {"learning_rate": None}])
    def test_what_was_cut_off_stays_so(self, settings):
        (x, y), classifier = tiny_data(), tiny_classifier(momentum=0.9)
        classifier.model.load_state_dict(uneven_classifier().model.state_dict())
        purified = prune(classifier, max_drop=1.0, max_pruned=0.5, nb_epochs=3, **settings)(x, y=y)
        assert cut_columns(purified) == sorted(ORDER[:4])
        before, after = weights(classifier), weights(purified)
        assert all(not torch.equal(before[name], after[name]) for name in ("fc.weight", "fc.bias", "conv.weight"))
        kept = sorted(ORDER[4:])
        assert (before["fc.weight"][:, kept] != after["fc.weight"][:, kept]).all()

    def test_it_stays_so_before_any_callback_looks(self):
        classifier, (x, y) = uneven_classifier(), tiny_data()
        given, columns = clone(classifier), []
        watching = Calls(step=lambda _: columns.append(cut_columns(given)))
        defence = prune(classifier, max_drop=1.0, max_pruned=0.5, nb_epochs=1)
        defence(x, transformed_classifier=given, y=y, callback=watching)
        assert columns == [sorted(ORDER[:4])] * 3

    def test_it_stays_so_at_every_step_of_plain_fine_tuning_on_all_images(self, monkeypatch):
        classifier, (x, y) = uneven_classifier(), tiny_data()
        calls = []

        def watching_fit(purified, batches, recipe, *, callbacks, **settings):
            data = batches.x.numpy(), batches.y.numpy(), recipe
            calls.append({"start": weights(purified), "data": data, "columns": []})
            check = Calls(step=lambda _: calls[-1]["columns"].append(cut_columns(purified)))
            fit(purified, batches, recipe, callbacks=[*callbacks, check], **settings)

        monkeypatch.setattr(fine_pruning, "fit", watching_fit)
        prune(classifier, max_drop=1.0, max_pruned=0.5, nb_epochs=2, seed=3)(x, y=y)
        ((start, (images, labels, recipe), columns),) = [call.values() for call in calls]
        assert columns == [sorted(ORDER[:4])] * 6
        np.testing.assert_array_equal(images, x)
        np.testing.assert_array_equal(labels, y)
        assert recipe == Recipe(**{**TUNING, "nb_epochs": 2}, seed=3)
        pruned = weights(prune(classifier, max_drop=1.0, max_pruned=0.5, seed=3)(x, y=y))
        assert same_weights(start, pruned)

    def test_without_a_cut_it_is_plain_fine_tuning(self):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        purified = prune(classifier, max_pruned=0.0, nb_epochs=2, seed=3)(x, y=y)
        plain = clone(classifier)
        train(plain, x, y, Recipe(**{**TUNING, "nb_epochs": 2}, seed=3))
        assert same_weights(purified, plain)

    def test_what_is_reported_is_from_before_it(self):
        classifier, (x, y) = uneven_classifier(), tiny_data()
        one, other = (prune(classifier, nb_epochs=nb_epochs, max_drop=0.5) for nb_epochs in (0, 3))
        one(x, y=y), other(x, y=y)
        assert one.report.pruned_channels == other.report.pruned_channels
        assert one.report.accuracy_curve == other.report.accuracy_curve


class TestErrors:
    @pytest.mark.parametrize(
        ("setting", "value", "error"),
        [
            ("max_drop", -0.1, ValueError),
            ("max_drop", 1.1, ValueError),
            ("max_drop", "0.1", TypeError),
            ("max_pruned", -0.1, ValueError),
            ("max_pruned", 1.1, ValueError),
            ("held_out", 0.0, ValueError),
            ("held_out", 1, ValueError),
            ("held_out", np.nan, ValueError),
        ],
    )
    def test_a_bad_value_is_refused_by_name(self, setting, value, error):
        with pytest.raises(error, match=f"^{setting}: got "):
            FinePruning(tiny_classifier(), **{setting: value})

    def test_a_layer_that_there_is_not_is_refused_before_anything_changes(self):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        given = clone(classifier)
        with untouched(classifier, given), pytest.raises(ValueError, match=r"^layer: got 'fc9', expected a linear or"):
            prune(classifier, layer="fc9")(x, transformed_classifier=given, y=y)


def test_pruning_an_infected_classifier_keeps_its_accuracy(asked, infected):
    defence = FinePruning(infected.classifier, **fine_pruning.PAPER, held_out=0.4, precision="float32")
    with untouched(infected.classifier):
        purified = defence(infected.x, y=infected.y)
    assert 5 <= len(defence.report.pruned_channels) < 64
    assert infected.scores(purified).acc > infected.scores(infected.classifier).acc - 0.1
    # The least active ones on the clean images that were looked at.
    activity = features(infected.classifier, asked["activity"][0], pooled=True).mean(axis=0)
    kept = np.setdiff1d(np.arange(64), defence.report.pruned_channels)
    assert activity[list(defence.report.pruned_channels)].max() <= activity[kept].min() + 1e-6


def test_one_image_cannot_decide_when_to_stop():
    with pytest.raises(ValueError, match=r"^x: got images of class 0 alone"):
        FinePruning(tiny_classifier(), batch_size=1)(*tiny_data(1)[:1], y=np.zeros(1, dtype=int))
