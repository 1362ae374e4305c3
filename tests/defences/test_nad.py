"""Attention maps and the loss on them by hand; a frozen teacher that sees what the student sees."""

import numpy as np
import pytest
import torch
from helpers import (
    ENCODINGS,
    NB_CLASSES,
    SHAPE,
    Adapter,
    TinyNet,
    encoded,
    gradient_flags,
    linear_classifier,
    same,
    same_weights,
    shifted_versions,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
    weights,
)

from art_aft.classifiers.classifier import build_classifier, clone
from art_aft.defences import NeuralAttentionDistillation, nad
from art_aft.defences.nad import DistillationLoss, attention_layers, attention_map
from art_aft.training.loop import Recipe, fit

SETTINGS = {
    "layers": ("conv",),
    "betas": (300.0,),
    "teacher_epochs": 3,
    "nb_epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.05,
    "padding": 2,
    "mirror": True,
    "precision": "float32",
    "seed": 3,
}


def distil(classifier, **settings):
    return NeuralAttentionDistillation(classifier, **{**SETTINGS, **settings})


def attention_by_hand(maps, power=2.0):
    attention = (np.abs(maps.astype(np.float64)) ** power).sum(axis=1).reshape(len(maps), -1)
    return attention / (np.sqrt((attention**2).sum(axis=1, keepdims=True)) + 1e-6)


def maps_of(classifier, x):
    """What TinyNet's convolution puts out, in evaluation mode."""
    with torch.no_grad():
        return clone(classifier).model.eval().conv(torch.from_numpy(x)).numpy()


class TestAttentionMap:
    def test_one_map_by_hand(self):
        # Sums of squares over the channels: 1, 8, 9, 16.
        maps = torch.tensor([[[[1.0, 2], [-3, 4]], [[0, -2], [0, 0]]]])
        expected = torch.tensor([[1.0, 8, 9, 16]]) / 402**0.5
        torch.testing.assert_close(attention_map(maps), expected)

    @pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 0.5])
    def test_it_is_numpys_for_any_power(self, power):
        maps = np.random.default_rng(0).normal(size=(3, 5, 4, 6)).astype(np.float32)
        result = attention_map(torch.from_numpy(maps), power)
        assert result.shape == (3, 24)
        np.testing.assert_allclose(result, attention_by_hand(maps, power), rtol=1e-5)
        np.testing.assert_allclose(result.norm(dim=1), 1, rtol=1e-5)

    def test_the_power_is_2_unless_given(self):
        maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        assert torch.equal(attention_map(maps), attention_map(maps, 2.0))
        assert not torch.allclose(attention_map(maps), attention_map(maps, 1.0), atol=1e-2)

    def test_how_loud_an_image_is_does_not_matter(self):
        maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        louder = maps * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1)
        torch.testing.assert_close(attention_map(louder), attention_map(maps), rtol=1e-5, atol=1e-6)

    def test_a_silent_map_is_no_division_by_zero(self):
        maps = torch.zeros(1, 3, 2, 2, requires_grad=True)
        result = attention_map(maps)
        assert torch.equal(result, torch.zeros(1, 4))
        result.sum().backward()
        assert torch.isfinite(maps.grad).all()

    def test_half_precision_becomes_float32_first(self):
        maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
        assert attention_map(maps).dtype == torch.float32
        torch.testing.assert_close(attention_map(maps), attention_map(maps.float()))


class TestLoss:
    def maps(self, seed):
        generator = torch.Generator().manual_seed(seed)
        sizes = {"early": (3, 4, 6, 6), "late": (3, 8, 3, 3)}
        return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}

    @pytest.mark.parametrize("power", [2.0, 1.0])
    def test_it_is_cross_entropy_and_the_weighted_differences_of_two_layers(self, power):
        loss = DistillationLoss(torch.nn.CrossEntropyLoss(), (500.0, 1000.0), power)
        loss.student.update(self.maps(1)), loss.teacher.update(self.maps(2))
        logits, y = torch.tensor([[1.0, 2], [0, 3], [5, 1]]), torch.tensor([0, 1, 1])
        z = logits.double().numpy()
        expected = -np.mean(np.log(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))[np.arange(3), y])
        for beta, name in ((500, "early"), (1000, "late")):
            ours, theirs = (attention_by_hand(maps[name].numpy(), power) for maps in (loss.student, loss.teacher))
            expected += beta * np.mean((ours - theirs) ** 2)
        np.testing.assert_allclose(loss(logits, y).item(), expected, rtol=1e-5)

    def test_one_layer_by_hand(self):
        loss = DistillationLoss(torch.nn.CrossEntropyLoss(), (10.0,), 2.0)
        # Attention (1, 0) and (0.6, 0.8): squares 0.16 and 0.64, their mean 0.4.
        loss.student["conv"] = torch.tensor([[[[7.0, 0.0]]]])
        loss.teacher["conv"] = torch.tensor([[[[3.0**0.5, 2.0]]]])
        logits, y = torch.zeros(1, 2), torch.tensor([0])
        np.testing.assert_allclose(loss(logits, y).item(), np.log(2) + 4, rtol=1e-5)

    def test_equal_maps_cost_nothing(self):
        loss = DistillationLoss(torch.nn.CrossEntropyLoss(), (500.0, 1000.0), 2.0)
        loss.student.update(self.maps(1)), loss.teacher.update(self.maps(1))
        logits, y = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1])
        assert loss(logits, y) == torch.nn.functional.cross_entropy(logits, y)

    def test_the_classifiers_own_loss_is_kept(self):
        loss = DistillationLoss(torch.nn.NLLLoss(), (0.0, 0.0), 2.0)
        loss.student.update(self.maps(1)), loss.teacher.update(self.maps(2))
        logits, y = torch.log_softmax(torch.eye(3), dim=1), torch.tensor([0, 1, 1])
        torch.testing.assert_close(loss(logits, y), torch.nn.functional.nll_loss(logits, y))


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


class TestLayers:
    @pytest.mark.parametrize(
        ("model", "side", "expected"),
        [
            ("wrn-10-1", 12, ["group1", "group2", "group3"]),
            ("wrn-16-1", 8, ["group1", "group2", "group3"]),
            ("preactresnet-18", 16, ["group2", "group3", "group4"]),
            # Group 4's maps have one position here, and tell nothing.
            ("preactresnet-18", 8, ["group1", "group2", "group3"]),
            ("resnet-18", 64, ["layer2", "layer3", "layer4"]),
            ("resnet-18", 32, ["layer1", "layer2", "layer3"]),
        ],
    )
    def test_the_last_block_of_each_of_the_last_three_sizes_is_found(self, model, side, expected):
        assert attention_layers(named(model, (3, side, side)), images((3, side, side))) == expected

    @pytest.mark.parametrize(("count", "expected"), [(1, ["group4"]), (2, ["group3", "group4"])])
    def test_fewer_are_the_last_ones(self, count, expected):
        assert attention_layers(named("preactresnet-18", (3, 16, 16)), images((3, 16, 16)), count=count) == expected

    def test_more_than_there_are_is_all_there_are(self):
        assert attention_layers(tiny_classifier(), images(), count=5) == ["conv"]

    def test_in_a_nested_model_the_block_and_not_its_wrapping(self):
        inner = named("wrn-10-1").model
        wrapped = torch.nn.Sequential(Adapter(torch.nn.Sequential(inner), same))
        expected = [f"0.inner.0.group{group}" for group in (1, 2, 3)]
        assert attention_layers(named(wrapped), images()) == expected

    def test_without_blocks_the_convolutions_themselves(self):
        # The last one at 12, 6 and 3 positions a side; what the pooling layers make of them is no convolution's.
        expected = ["features.0", "features.5", "features.8"]
        assert attention_layers(named(Vgg()), images()) == expected

    def test_a_part_that_runs_twice_counts_as_late_as_it_ends(self):
        class Twice(TinyNet):
            def __init__(self):
                super().__init__()
                self.first, self.second = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

            def forward(self, x):
                return x.mean(dim=(2, 3)) @ torch.ones(3, NB_CLASSES) + self.first(self.second(self.first(x))).mean()

        assert attention_layers(named(Twice()), images()) == ["first"]

    def test_given_ones_come_back_in_their_order(self):
        classifier = named("wrn-10-1")
        chosen = ("group3", "conv1", "group2.0.conv1")
        assert attention_layers(classifier, images(), chosen) == list(chosen)

    @pytest.mark.parametrize(
        ("layer", "side", "puts_out"), [("fc", 12, r"\(\)"), ("group4", 8, r"\(1, 1\)"), ("group4.1.conv2", 8, "")]
    )
    def test_what_has_no_positions_is_refused(self, layer, side, puts_out):
        classifier = named("preactresnet-18", (3, side, side))
        with pytest.raises(ValueError, match=f"^layers: '{layer}' puts out {puts_out}.*, expected maps of several"):
            attention_layers(classifier, images((3, side, side)), ("group1", layer))

    def test_a_layer_that_does_not_run_is_refused(self):
        model = TinyNet()
        model.spare = torch.nn.Conv2d(3, 3, 1)
        with pytest.raises(ValueError, match=r"^layers: 'spare' puts out None, expected maps"):
            attention_layers(named(model), images(), ("spare",))

    def test_a_model_without_maps_is_refused(self):
        classifier = linear_classifier(np.ones((NB_CLASSES, *SHAPE), dtype=np.float32))
        with pytest.raises(ValueError, match=r"^layers: found no feature maps of more than one position"):
            attention_layers(classifier, images())

    def test_looking_changes_nothing_and_leaves_no_hook(self):
        classifier = tiny_classifier(momentum=0.9, dropout=0.5)
        classifier._model.train()
        classifier.model.bn.eval()
        for layers in (None, ("conv", "bn")):
            with untouched(classifier):
                attention_layers(classifier, images(), layers)
            assert hooks_of(classifier) == 0
        with untouched(classifier), pytest.raises(ValueError, match=r"^layers: 'fc'"):
            attention_layers(classifier, images(), ("fc",))
        assert hooks_of(classifier) == 0


def hooks_of(classifier):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in classifier._model.modules())


@pytest.fixture
def trainings(monkeypatch):
    """What each of the two trainings is given, and how the teacher is during the student's and after it."""
    seen = []

    def watching_fit(classifier, x, y, recipe, *, loss=None, **settings):
        entry = {"classifier": classifier, "start": weights(classifier), "recipe": recipe, "x": x, "y": y, "loss": loss}
        seen.append(entry)
        if loss is None:
            fit(classifier, x, y, recipe, **settings)
        else:
            teacher = seen[0]["classifier"]
            entry["flags"] = gradient_flags(teacher)
            entry["modes"] = {module.training for module in teacher.model.modules()}
            with watched(teacher) as shown, watched(classifier) as learnt:
                fit(classifier, x, y, recipe, loss=loss, **settings)
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
        assert (teacher.batch_size, teacher.learning_rate, teacher.padding, teacher.mirror) == (8, 0.05, 2, True)
        assert trainings[0]["loss"] is None
        assert (trainings[1]["loss"].betas, trainings[1]["loss"].power) == ((300.0,), 2.0)

    def test_the_teacher_is_plainly_fine_tuned(self, trainings):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        distil(classifier)(x, y=y)
        alone = clone(classifier)
        fit(alone, x, y, trainings[0]["recipe"])
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
        versions = {key for image in x for key in shifted_versions(image, 2, 0.0, mirror=True)}
        plain = {image.tobytes() for image in x}
        seen = {image.tobytes() for batch in learnt for image in batch}
        assert seen <= versions
        assert not seen <= plain

    def test_the_maps_are_those_of_the_batch(self, trainings, monkeypatch):
        pairs = []

        class Watching(DistillationLoss):
            def forward(self, logits, y):
                pairs.append({who: getattr(self, who)["conv"].detach().clone() for who in ("student", "teacher")})
                assert self.student["conv"].requires_grad
                assert not self.teacher["conv"].requires_grad
                return super().forward(logits, y)

        monkeypatch.setattr(nad, "DistillationLoss", Watching)
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
        classifier, (x, y) = named("wrn-10-1"), tiny_data(16)
        purified = distil(classifier, layers=None, betas=(0.0, 0.0, 0.0), max_steps=3)(x, y=y)
        plain = clone(classifier)
        fit(plain, x, y, trainings[1]["recipe"])
        assert same_weights(purified, plain)
        assert not same_weights(plain, classifier)

    def test_a_teacher_that_learnt_nothing_teaches_nothing_in_one_step(self, trainings):
        # With batch normalisation as the teacher has it.
        classifier, (x, y) = tiny_classifier(), tiny_data()
        settings = {"teacher_epochs": 0, "freeze_bn": True, "max_steps": 1, "betas": (1e6,)}
        purified = distil(classifier, **settings)(x, y=y)
        plain = clone(classifier)
        fit(plain, x, y, trainings[1]["recipe"])
        assert same_weights(trainings[0]["end"], classifier)
        assert same_weights(purified, plain)
        assert not same_weights(plain, classifier)
        # A second step, and they differ.
        purified = distil(classifier, **{**settings, "max_steps": 2})(x, y=y)
        plain = clone(classifier)
        fit(plain, x, y, trainings[-1]["recipe"])
        assert not same_weights(purified, plain)

    def test_one_step_by_hand(self):
        classifier, (x, y) = tiny_classifier(), tiny_data(24)
        settings = {
            "batch_size": 24,
            "padding": 0,
            "mirror": False,
            "teacher_epochs": 4,
            "layers": ("conv", "bn"),
            "betas": (30.0, 70.0),
            "power": 1.0,
            "max_steps": 4,
        }
        recipe = Recipe(nb_epochs=4, batch_size=24, learning_rate=0.05, precision="float32")
        teacher = clone(classifier)
        fit(teacher, x, y, recipe)
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
            settings = {"teacher_epochs": 20, "nb_epochs": 20, "learning_rate": 0.2, "padding": 0, "mirror": False}
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
            lambda module, inputs, output: note(module, inputs, output) if type(module) is DistillationLoss else None
        )
        try:
            # Not in the order in which they run.
            distil(named("wrn-10-1"), layers=("group3", "group1"), betas=(1.0, 2.0), max_steps=1)(x, y=y)
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
        with untouched(classifier, given), pytest.raises(ValueError, match=r"^layers: 'fc' puts out \(\)"):
            distil(classifier, layers=("fc",))(x, transformed_classifier=given, y=y)


def test_distillation_removes_a_backdoor(infected):
    defence = NeuralAttentionDistillation(
        infected.classifier,
        teacher_epochs=10,
        nb_epochs=20,
        batch_size=32,
        learning_rate=0.05,
        padding=1,
        mirror=False,
        precision="float32",
    )
    before = infected.scores(infected.classifier)
    after = infected.scores(defence(infected.x, y=infected.y))
    assert before.asr > 0.95
    assert after.asr < 0.1
    assert after.acc > before.acc - 0.05
