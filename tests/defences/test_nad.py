"""A frozen teacher that sees what the student sees, and a student that learns its attention."""

import numpy as np
import pytest
import torch
from attention import Vgg, attention_by_hand, hooks_of, maps_of, named
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    TinyNet,
    assert_close,
    encoded,
    gradient_flags,
    same_weights,
    shifted_versions,
    tiny_classifier,
    tiny_data,
    train,
    untouched,
    watched,
    weights,
)

from art_aft.classifiers.classifier import clone
from art_aft.defences import NeuralAttentionDistillation, nad
from art_aft.defences.nad import AttentionLoss
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

SETTINGS = {
    "layers": ("conv",),
    "betas": (300.0,),
    "teacher_epochs": 3,
    "nb_epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.05,
    "padding": 2,
    "horizontal_flip": True,
    "precision": "float32",
    "seed": 3,
}


def distil(classifier, **settings):
    return NeuralAttentionDistillation(classifier, **{**SETTINGS, **settings})


@pytest.fixture
def trainings(monkeypatch):
    """What each of the two trainings is given, and how the teacher is during the student's and after it."""
    seen = []

    def watching_fit(classifier, batches, recipe, *, loss=None, **settings):
        entry = {"classifier": classifier, "start": weights(classifier), "recipe": recipe, "loss": loss}
        entry |= {"x": batches.x.numpy(), "y": batches.y.numpy()}
        seen.append(entry)
        if loss is None:
            fit(classifier, batches, recipe, **settings)
        else:
            teacher = seen[0]["classifier"]
            entry["flags"] = gradient_flags(teacher)
            entry["modes"] = {module.training for module in teacher.model.modules()}
            with watched(teacher) as shown, watched(classifier) as learnt:
                fit(classifier, batches, recipe, loss=loss, **settings)
            entry["shown"], entry["learnt"] = shown, learnt
            entry["modes"] |= {module.training for module in teacher.model.modules()}
        entry["end"] = weights(classifier)

    monkeypatch.setattr(nad, "fit", watching_fit)
    return seen


class TestTeacherAndStudent:
    def test_both_start_from_the_infected_weights_and_see_all_images(self, trainings):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        purified = distil(classifier)(x, y=y)
        teacher, student = trainings
        assert teacher["classifier"] is not student["classifier"]
        assert student["classifier"] is purified
        for training in trainings:
            assert same_weights(training["start"], classifier)
            assert not same_weights(training["end"], classifier)
            np.testing.assert_array_equal(training["x"], x)
            np.testing.assert_array_equal(training["y"], y)

    def test_each_has_its_epochs_its_own_loss_and_the_other_settings_in_common(self, trainings):
        distil(tiny_classifier())(*tiny_data()[:1], y=tiny_data()[1])
        teacher, student = (training["recipe"] for training in trainings)
        assert (teacher.nb_epochs, student.nb_epochs) == (3, 2)
        assert teacher.seed != student.seed
        common = ("batch_size", "learning_rate", "momentum", "weight_decay", "nesterov", "milestones", "padding")
        assert [getattr(teacher, name) for name in common] == [getattr(student, name) for name in common]
        assert (teacher.batch_size, teacher.learning_rate, teacher.padding, teacher.horizontal_flip) == (
            8,
            0.05,
            2,
            True,
        )
        assert trainings[0]["loss"] is None
        assert (trainings[1]["loss"].betas, trainings[1]["loss"].power) == ((300.0,), 2.0)

    def test_the_teacher_is_plainly_fine_tuned(self, trainings):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        distil(classifier)(x, y=y)
        alone = clone(classifier)
        train(alone, x, y, trainings[0]["recipe"])
        assert same_weights(alone, trainings[0]["end"])

    def test_the_teacher_is_frozen_and_in_evaluation_mode(self, trainings):
        classifier = tiny_classifier(dropout=0.5)
        classifier._model.train()
        distil(classifier)(*tiny_data()[:1], y=tiny_data()[1])
        teacher, student = trainings
        assert set(student["flags"].values()) == {False}
        assert student["modes"] == {False}
        assert same_weights(teacher["end"], teacher["classifier"])
        assert [training for _, training in student["shown"]] == [False] * 6
        assert [training for _, training in student["learnt"]] == [True] * 6

    def test_both_see_the_same_augmented_batch(self, trainings):
        x, y = tiny_data()
        distil(tiny_classifier())(x, y=y)
        shown, learnt = ([batch for batch, _ in trainings[1][who]] for who in ("shown", "learnt"))
        assert [batch.shape for batch in learnt] == [(8, *SHAPE)] * 6
        for theirs, ours in zip(shown, learnt, strict=True):
            np.testing.assert_array_equal(theirs, ours)
        versions = {key for image in x for key in shifted_versions(image, 2, 0.0, horizontal_flip=True)}
        plain = {image.tobytes() for image in x}
        seen = {image.tobytes() for batch in learnt for image in batch}
        assert seen <= versions
        assert not seen <= plain

    def test_the_maps_are_those_of_the_batch(self, trainings, monkeypatch):
        pairs = []

        class Watching(AttentionLoss):
            def forward(self, logits, batch):
                pairs.append({who: getattr(self, who)["conv"].detach().clone() for who in ("student", "teacher")})
                assert self.student["conv"].requires_grad
                assert not self.teacher["conv"].requires_grad
                return super().forward(logits, batch)

        monkeypatch.setattr(nad, "AttentionLoss", Watching)
        distil(tiny_classifier())(*tiny_data()[:1], y=tiny_data()[1])
        teacher = trainings[0]["classifier"]
        assert len(pairs) == 6
        for pair, (batch, _) in zip(pairs, trainings[1]["shown"], strict=True):
            np.testing.assert_allclose(pair["teacher"], maps_of(teacher, batch), atol=1e-5)
        # The student has the infected weights still.
        first = trainings[1]["learnt"][0][0]
        np.testing.assert_allclose(pairs[0]["student"], maps_of(tiny_classifier(), first), atol=1e-5)

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_the_teacher_sees_what_the_model_sees_of_other_pixels(self, encoding, trainings):
        x, y = tiny_data()
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        layer = {"normalised": "inner.conv", "range255": "inner.conv", "nhwc": "inner.conv", "view": "inner.conv"}
        distil(given.classifier, layers=(layer[encoding],))(given.encode(x), y=y)
        for (theirs, _), (ours, _) in zip(trainings[1]["shown"], trainings[1]["learnt"], strict=True):
            np.testing.assert_array_equal(theirs, ours)


class TestDistillation:
    def test_with_betas_of_zero_it_is_plain_fine_tuning_bit_for_bit(self, trainings):
        classifier, (x, y) = named("wrn-10-1"), tiny_data(24)
        purified = distil(classifier, layers=None, betas=(0.0, 0.0, 0.0), nb_epochs=1)(x, y=y)
        plain = clone(classifier)
        train(plain, x, y, trainings[1]["recipe"])
        assert same_weights(purified, plain)
        assert not same_weights(plain, classifier)

    def test_a_teacher_that_learnt_nothing_changes_nothing_in_one_step(self, trainings):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        # One step an epoch.
        settings = {"teacher_epochs": 0, "nb_epochs": 1, "batch_size": 24}
        purified = distil(classifier, **settings)(x, y=y)
        plain = clone(classifier)
        train(plain, x, y, trainings[1]["recipe"])
        assert same_weights(trainings[0]["end"], classifier)
        # The two networks' convolutions may differ by float32's rounding.
        assert_close(purified, weights(plain), 1e-5)
        assert not same_weights(plain, classifier)
        # A second step, and they differ.
        purified = distil(classifier, **{**settings, "nb_epochs": 2})(x, y=y)
        plain = clone(classifier)
        train(plain, x, y, trainings[-1]["recipe"])
        differences = [(value - weights(plain)[name]).abs().max() for name, value in weights(purified).items()]
        assert max(differences) > 1e-3

    def test_one_step_by_hand(self):
        classifier, (x, y) = tiny_classifier(), tiny_data(24)
        settings = {
            "batch_size": 24,
            "padding": 0,
            "horizontal_flip": False,
            "teacher_epochs": 4,
            "layers": ("conv", "bn"),
            "betas": (30.0, 70.0),
            "power": 1.0,
        }
        recipe = Recipe(nb_epochs=4, batch_size=24, learning_rate=0.05, precision="float32")
        teacher = clone(classifier)
        train(teacher, x, y, recipe)
        student, teacher = clone(classifier).model.train(), teacher.model.eval()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        for _ in range(2):
            optimizer.zero_grad()
            first, theirs_first = student.conv(torch.from_numpy(x)), teacher.conv(torch.from_numpy(x)).detach()
            second, theirs_second = student.bn(first), teacher.bn(theirs_first).detach()
            logits = student.fc(torch.relu(second).mean(dim=(2, 3)))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
            for beta, ours, theirs in ((30, first, theirs_first), (70, second, theirs_second)):
                maps = [m.abs().sum(dim=1).flatten(1) for m in (ours, theirs)]
                maps = [m / (m.square().sum(dim=1, keepdim=True).sqrt() + 1e-6) for m in maps]
                loss = loss + beta * (maps[0] - maps[1]).square().mean()
            loss.backward()
            optimizer.step()
        purified = distil(classifier, **settings)(x, y=y)
        for key, value in student.state_dict().items():
            torch.testing.assert_close(purified.model.state_dict()[key], value, rtol=1e-4, atol=1e-4)

    def test_the_students_attention_is_drawn_to_the_teachers(self, trainings):
        classifier, (x, y) = tiny_classifier(), tiny_data()

        def distance(beta):
            trainings.clear()
            settings = {
                "teacher_epochs": 20,
                "nb_epochs": 20,
                "learning_rate": 0.2,
                "padding": 0,
                "horizontal_flip": False,
            }
            student = distil(classifier, betas=(beta,), **settings)(x, y=y)
            teacher = trainings[0]["classifier"]
            ours, theirs = (attention_by_hand(maps_of(who, x)) for who in (student, teacher))
            return np.mean((ours - theirs) ** 2)

        assert distance(300.0) < 0.5 * distance(0.0)

    @pytest.mark.parametrize(("betas", "expected"), [((1.0, 2.0, 3.0), (3.0,)), ((5.0,), (5.0,))])
    def test_where_fewer_layers_are_found_the_last_betas_count(self, betas, expected, trainings):
        x, y = tiny_data()
        distil(tiny_classifier(), layers=None, betas=betas)(x, y=y)
        assert tuple(trainings[1]["loss"].betas) == expected
        trainings.clear()

    def test_each_beta_goes_with_its_layer(self, trainings):
        x, y = tiny_data(16)
        seen = []

        def note(loss, _, __):
            seen.append(dict(zip(loss.student, loss.betas, strict=True)))
            assert list(loss.student) == list(loss.teacher)

        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, inputs, output: note(module, inputs, output) if type(module) is AttentionLoss else None
        )
        try:
            # Not in the order in which they run.
            distil(named("wrn-10-1"), layers=("group3", "group1"), betas=(1.0, 2.0), batch_size=16, nb_epochs=1)(x, y=y)
        finally:
            hook.remove()
        assert seen == [{"group3": 1.0, "group1": 2.0}]

    @pytest.mark.parametrize("inplace", [False, True])
    def test_a_network_without_blocks_is_distilled(self, inplace):
        x, y = tiny_data()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            classifier = named(Vgg(inplace=inplace))
        purified = distil(classifier, layers=None, betas=(10.0, 10.0, 10.0))(x, y=y)
        assert np.isfinite(purified.predict(x)).all()
        assert not same_weights(purified, classifier)


class TestHooks:
    def test_none_is_left_behind(self, trainings):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        purified = distil(classifier)(x, y=y)
        for each in (classifier, purified, trainings[0]["classifier"]):
            assert hooks_of(each) == 0

    def test_none_is_left_behind_by_an_error(self, monkeypatch):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        counts = []

        def failing_fit(student, *_, loss=None, **__):
            if loss is not None:
                counts.append(hooks_of(student))
                raise RuntimeError("on purpose")

        monkeypatch.setattr(nad, "fit", failing_fit)
        given = clone(classifier)
        with pytest.raises(RuntimeError, match="on purpose"):
            distil(classifier)(x, transformed_classifier=given, y=y)
        assert counts == [2]
        assert hooks_of(given) == 0

    def test_hooks_of_the_user_stay(self):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        with watched(classifier) as seen:
            distil(classifier)(x, transformed_classifier=classifier, y=y)
            assert hooks_of(classifier) == 1
        assert len(seen) >= 6


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"layers": ("conv9",)}, ValueError, r"^layers: got 'conv9', expected names of the model's layers: .*conv"),
            ({"layers": ("conv", "bn")}, ValueError, r"^betas: got 1 for 2 layers, expected as many"),
            ({"betas": (1.0, 2.0)}, ValueError, r"^betas: got 2 for 1 layers, expected as many"),
            ({"layers": None, "betas": ()}, ValueError, r"^betas: got none, expected one a layer"),
            ({"layers": (), "betas": ()}, ValueError, r"^betas: got none, expected one a layer"),
            ({"betas": (-1.0,)}, ValueError, r"^betas: got -1\.0"),
            ({"betas": ("1",)}, TypeError, r"^betas: got '1'"),
            ({"teacher_epochs": -1}, ValueError, r"^teacher_epochs: got -1"),
            ({"teacher_epochs": 1.5}, TypeError, r"^teacher_epochs: got 1\.5"),
            ({"power": 0.0}, ValueError, r"^power: got 0\.0"),
            ({"power": "2"}, TypeError, r"^power: got '2'"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(self, settings, error, message):
        classifier = tiny_classifier()
        with pytest.raises(error, match=message):
            distil(classifier, **settings)
        defence = distil(classifier)
        before = defence.get_params()
        with pytest.raises(error, match=message):
            defence.set_params(seed=9, **settings)
        assert defence.get_params() == before

    def test_a_layer_without_positions_is_refused_before_anything_is_trained(self):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        given = clone(classifier)
        with untouched(classifier, given), pytest.raises(ValueError, match=r"^layers: got 'fc' with maps of size \(\)"):
            distil(classifier, layers=("fc",))(x, transformed_classifier=given, y=y)


def test_distillation_removes_a_backdoor(infected):
    defence = NeuralAttentionDistillation(
        infected.classifier,
        teacher_epochs=10,
        nb_epochs=20,
        batch_size=32,
        learning_rate=0.05,
        padding=1,
        horizontal_flip=False,
        precision="float32",
    )
    before = infected.scores(infected.classifier)
    after = infected.scores(defence(infected.x, y=infected.y))
    assert before.asr > 0.95
    assert after.asr < 0.1
    assert after.acc > before.acc - 0.05
