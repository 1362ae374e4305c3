"""Universal Adversarial Fine-Tuning: which perturbations are added to which images, and what the clean ones learn."""

import numpy as np
import pytest
import torch
from helpers import (
    NB_CLASSES,
    SHAPE,
    assert_close,
    linear_classifier,
    same_weights,
    shifted_versions,
    tiny_classifier,
    tiny_data,
    untouched,
    watched,
    weights,
)

from art_aft import UniversalAdversarialFineTuning, clone
from art_aft.adversarial import perturbation_sets
from art_aft.adversarial.patches import find_patches
from art_aft.adversarial.perturbation_sets import UniversalPerturbations
from art_aft.adversarial.universal import universal_perturbations
from art_aft.classifiers.classifier import images_for
from art_aft.defences import universal_aft
from art_aft.defences.universal_aft import DISTILLED
from art_aft.runtime.random_state import seed_for

N = 24
PLAIN = {
    "max_iter": 2,
    "temperature": 0.0,
    "nb_epochs": 3,
    "batch_size": N,
    "learning_rate": 0.05,
    "schedule": "constant",
    "weight_decay": 1e-3,
    "padding": 0,
    "horizontal_flip": False,
    "precision": "float32",
}


def universal(classifier, perturbations=None, **settings):
    """A run of full-batch steps on labels, unless other settings are given."""
    return UniversalAdversarialFineTuning(classifier, perturbations, **{**PLAIN, **settings})


def marked(sparse=False):
    """Perturbations that can be told apart: l + 1 thousandths of the range, scattered -(l + 1), patches -10 (l + 1)."""
    steps = np.arange(1, NB_CLASSES + 1, dtype=np.float32)[:, None, None, None] / 1000
    dense = np.broadcast_to(steps, (NB_CLASSES, *SHAPE)).copy()
    return UniversalPerturbations(dense, 1.0, *((-dense, -10 * dense) if sparse else ()))


@pytest.fixture
def victim():
    return tiny_classifier(), *grey_data()


def grey_data():
    """Images whose pixels are multiples of a tenth, away from the ends of the range, so that what is added shows."""
    x, y = tiny_data(N)
    return (np.round(0.1 + 0.8 * x, 1)).astype(np.float32), y


def batches_of(classifier, x, y, **settings):
    """The batches that enter the model in training mode."""
    with watched(classifier) as seen:
        universal(classifier, **settings)(x, y=y)
    return [batch for batch, training in seen if training]


def added(batch, x):
    """For each image of a batch: which image it is, and in thousandths what was added; -1 and 0 is none."""
    found = []
    for image in batch:
        difference = image - x
        flat = difference.reshape(len(x), -1)
        spread = flat.max(axis=1) - flat.min(axis=1)
        source = int(spread.argmin())
        assert spread[source] < 1e-5
        found.append((source, round(1000 * float(flat[source].mean()))))
    return found


class TestBatches:
    @pytest.mark.parametrize(("share", "clean"), [(0.0, 0), (0.25, 6), (0.5, 12), (1.0, 24)])
    def test_a_share_of_each_batch_is_clean_and_comes_first(self, share, clean, victim):
        classifier, x, y = victim
        for batch in batches_of(classifier, x, y, perturbations=marked(), clean_share=share, sparse_share=0.0):
            numbers = [number for _, number in added(batch, x)]
            assert numbers[:clean] == [0] * clean
            assert all(1 <= number <= NB_CLASSES for number in numbers[clean:])

    def test_each_perturbed_image_gets_one_towards_another_label_drawn_anew_in_every_batch(self, victim):
        classifier, x, y = victim
        drawn = []
        for batch in batches_of(classifier, x, y, perturbations=marked(), clean_share=0.0, sparse_share=0.0, focus=0.0):
            pairs = added(batch, x)
            assert sorted(source for source, _ in pairs) == list(range(N))
            assert all(number - 1 != y[source] for source, number in pairs)
            drawn.append(dict(pairs))
        assert len(drawn) == 3
        assert drawn[0] != drawn[1] != drawn[2]

    def test_the_focus_leads_its_share_of_the_images_to_the_target(self, victim):
        classifier, _, _ = victim
        x = np.tile(grey_data()[0], (50, 1, 1, 1))
        y = np.tile(grey_data()[1], 50)
        settings = {"clean_share": 0.0, "sparse_share": 0.0, "focus": 0.75, "target": 2, "nb_epochs": 1}
        (batch,) = batches_of(classifier, x, y, perturbations=marked(), batch_size=len(x), **settings)
        pairs = added(batch, grey_data()[0])
        own = grey_data()[1]
        others = [number - 1 for source, number in pairs if own[source] != 2]
        # Three in four, and a third of the others; four standard deviations of a share of some 900 images.
        assert np.mean(np.array(others) == 2) == pytest.approx(0.75 + 0.25 / 3, abs=0.05)
        assert all(number - 1 != 2 for source, number in pairs if own[source] == 2)

    def test_a_share_of_the_perturbations_is_sparse(self, victim):
        classifier, _, _ = victim
        x, y = np.tile(grey_data()[0], (50, 1, 1, 1)), np.tile(grey_data()[1], 50)
        settings = {"clean_share": 0.0, "sparse_share": 0.3, "focus": 0.0, "nb_epochs": 1}
        (batch,) = batches_of(classifier, x, y, perturbations=marked(sparse=True), batch_size=len(x), **settings)
        numbers = np.array([number for _, number in added(batch, grey_data()[0])])
        # Four standard deviations of shares of 1,200 images.
        assert np.mean(numbers < 0) == pytest.approx(0.3, abs=0.055)
        assert np.mean(numbers <= -10) == pytest.approx(0.15, abs=0.045)

    def test_perturbations_are_added_to_views_that_are_new_in_every_batch(self, victim):
        classifier, x, y = victim
        settings = {"clean_share": 0.0, "sparse_share": 0.0, "padding": 2, "horizontal_flip": True}
        found = marked()
        views = np.stack(
            [
                np.frombuffer(raw, np.float32)
                for image in x
                for raw in shifted_versions(image, 2, 0.0, horizontal_flip=True)
            ]
        )
        source = np.repeat(np.arange(N), len(views) // N)
        drawn = []
        for batch in batches_of(classifier, x, y, perturbations=found, **settings):
            pairs = []
            for label, r in enumerate(found.dense):
                left = np.abs((batch - r).reshape(N, 1, -1) - views).max(axis=2)
                pairs += [(source[view], view, label) for _, view in zip(*np.nonzero(left < 1e-5), strict=True)]
            assert {number for number, _, _ in pairs} == set(range(N))
            assert all(label != y[number] for number, _, label in pairs)
            drawn.append({view for _, view, _ in pairs})
        assert all(len(drawn[i] & drawn[j]) < N / 2 for i in range(3) for j in range(i))

    def test_perturbed_images_stay_in_the_pixel_range(self, victim):
        classifier, _, y = victim
        x = np.ones((N, *SHAPE), np.float32)
        for batch in batches_of(classifier, x, y, perturbations=marked(sparse=True), clean_share=0.0):
            assert batch.max() <= 1

    def test_a_clean_share_of_1_is_training_on_the_images(self, victim):
        classifier, x, y = victim
        purified = universal(classifier, marked(), clean_share=1.0, sparse_share=0.0)(x, y=y)
        model = clone(classifier).model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
            optimizer.step()
        assert_close(purified, model.state_dict(), 1e-4)


class TestStage1:
    def test_perturbations_are_those_of_the_infected_classifier(self, victim):
        classifier, x, y = victim
        defence = universal(classifier, eps=0.4, target=None)
        with untouched(classifier):
            defence(x, y=y)
        found, settings = defence.report.perturbations, {"precision": "float32", "seed": seed_for(0, "attack", 0)}
        dense = universal_perturbations(classifier, x, y, eps=0.4, max_iter=2, **settings)
        sparse = universal_perturbations(classifier, x, y, norm=0, max_iter=2, **settings)
        np.testing.assert_array_equal(found.dense, dense)
        np.testing.assert_array_equal(found.sparse, sparse)
        patches = find_patches(classifier, images_for(classifier, x, y), 2, **settings)  # 3 sixteenths of 12 pixels
        np.testing.assert_array_equal(found.patches, patches.as_perturbations(SHAPE, (0.0, 1.0)))
        assert (found.eps, defence.report.chosen) == (0.4, {"eps": 0.4})

    def test_a_later_run_can_be_given_them(self, victim, monkeypatch):
        classifier, x, y = victim
        first = universal(classifier)
        expected = first(x, y=y)
        found = first.report.perturbations
        monkeypatch.setattr(perturbation_sets, "universal_perturbations", None)  # nobody searches again
        monkeypatch.setattr(universal_aft, "find_patches", None)
        second = universal(classifier, found)
        assert same_weights(second(x, y=y), expected)
        assert second.report.perturbations is found

    def test_only_what_given_ones_lack_is_searched_for(self, victim):
        classifier, x, y = victim
        dense_alone = universal(classifier, sparse_share=0.0)
        dense_alone(x, y=y)
        assert dense_alone.report.perturbations.kinds == [dense_alone.report.perturbations.dense]
        both = universal(classifier, dense_alone.report.perturbations)
        both(x, y=y)
        assert both.report.perturbations.dense is dense_alone.report.perturbations.dense
        assert [kind.shape for kind in both.report.perturbations.kinds] == [(NB_CLASSES, *SHAPE)] * 3

    def test_auto_takes_the_smallest_bound_at_which_two_labels_succeed_on_a_third(self):
        x, y = tiny_data(60)
        classifier = linear_classifier(np.random.default_rng(0).normal(size=(NB_CLASSES, *SHAPE)).astype(np.float32))
        defence = universal(classifier, eps="auto", max_iter=20, nb_epochs=0)
        defence(x, y=y)
        rates = {}
        for multiple in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
            eps = multiple * (432 / 3072) ** 0.5
            found = universal_perturbations(
                classifier, x, y, eps=eps, precision="float32", seed=seed_for(0, "attack", 0)
            )
            rates[eps] = sorted(
                np.mean(classifier.predict(np.clip(x[y != label] + r, 0, 1)).argmax(1) == label)
                for label, r in enumerate(found)
            )[-2]
        expected = next(eps for eps in rates if rates[eps] >= 1 / 3)
        assert defence.report.perturbations.eps == pytest.approx(expected)
        assert min(rates) < expected

    def test_the_focus_is_on_the_label_that_the_purified_classifiers_last_layer_favours(self, victim):
        classifier, x, y = victim
        given = clone(classifier)
        with torch.no_grad():
            given.model.fc.weight[1] = 30.0
        defence = universal(classifier)
        defence(x, given, y)
        assert defence.report.target == 1
        for settings in ({"target": None}, {"focus": 0.0}):
            unfocused = universal(classifier, **settings)
            unfocused(x, y=y)
            assert unfocused.report.target is None


class TestDistillation:
    def test_stage_2_runs_twice_and_starts_from_the_infected_model_both_times(self, victim):
        classifier, x, y = victim
        settings = {"temperature": 3.0, "label_epochs": 2}
        defence = universal(classifier, **settings)
        with untouched(classifier):
            purified = defence(x, y=y)
        assert [stage.name for stage in defence.report.stages] == ["Stage 1", "Stage 2 on labels", "Stage 2"]
        # Without a second run nothing is learnt, whatever the first one did.
        assert same_weights(universal(classifier, nb_epochs=0, **settings)(x, y=y), classifier)
        assert not same_weights(purified, universal(classifier)(x, y=y))

    def test_clean_images_learn_what_the_infected_model_and_the_first_result_agree_on(self, victim):
        """One full-batch step, all images clean: its gradient by hand."""
        classifier, x, y = victim
        settings = {"clean_share": 1.0, "sparse_share": 0.0, "nb_epochs": 1, "weight_decay": 0.0}
        purified = universal(classifier, marked(), temperature=2.0, label_epochs=3, **settings)(x, y=y)
        labels_alone = universal(classifier, marked(), **{**settings, "nb_epochs": 3})(x, y=y)
        images = torch.from_numpy(x)
        with torch.no_grad():
            both = [(each.model.eval()(images) / 2).log_softmax(dim=1) for each in (classifier, labels_alone)]
        wanted = torch.minimum(*both).softmax(dim=1)
        model = clone(classifier).model.train()
        loss = -(wanted * (model(images) / 2).log_softmax(dim=1)).sum(dim=1).mean() * 4
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
        assert_close(purified, model.state_dict(), 1e-4)

    def test_both_runs_pull_parameters_to_those_of_the_infected_model(self, victim, monkeypatch):
        classifier, x, y = victim
        moved, recipes, fit = [], [], universal_aft.fit

        def watch(classifier, batches, recipe, **settings):
            recipes.append(recipe)
            fit(classifier, batches, recipe, **settings)

        monkeypatch.setattr(universal_aft, "fit", watch)
        for strength in (0.0, 2.0 * N):
            settings = {"l2_sp": strength, "temperature": 3.0, "label_epochs": 2, "nb_epochs": 20}
            purified = universal(classifier, marked(), sparse_share=0.0, **settings)(x, y=y)
            vectors = [torch.nn.utils.parameters_to_vector(each.model.parameters()) for each in (classifier, purified)]
            moved.append((vectors[0] - vectors[1]).norm().item())
        assert [recipe.l2_sp for recipe in recipes] == [0.0, 0.0, 2.0, 2.0]
        assert 0 < moved[1] < 0.7 * moved[0]

    def test_distillation_needs_clean_images(self):
        with pytest.raises(ValueError, match=r"^temperature: got 3 without clean images"):
            UniversalAdversarialFineTuning(tiny_classifier(), clean_share=0.0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, r"^eps: got 0\.0, expected a number > 0"),
        ({"eps": "large"}, ValueError, r"^eps: got 'large', expected one of 'auto'"),
        ({"max_iter": 0}, ValueError, r"^max_iter: got 0"),
        ({"sparse_share": 1.5}, ValueError, r"^sparse_share: got 1\.5"),
        ({"focus": -0.1}, ValueError, r"^focus: got -0\.1"),
        ({"target": 4}, ValueError, r"^target: got 4, expected a label below 4"),
        ({"target": "most"}, ValueError, r"^target: got 'most', expected one of 'auto'"),
        ({"clean_share": 1.1}, ValueError, r"^clean_share: got 1\.1"),
        ({"temperature": -1.0}, ValueError, r"^temperature: got -1\.0"),
        ({"label_epochs": -1}, ValueError, r"^label_epochs: got -1"),
        ({"l2_sp": -0.1}, ValueError, r"^l2_sp: got -0\.1"),
        ({"max_steps": -1}, ValueError, r"^max_steps: got -1"),
        ({"schedule": "step"}, ValueError, r"^schedule: got 'step'"),
        ({"perturbations": np.zeros((4, *SHAPE))}, TypeError, r"^perturbations: got ndarray"),
        (
            {"perturbations": UniversalPerturbations(np.zeros((3, *SHAPE)), 1.0)},
            ValueError,
            r"^perturbations: got shape \(3, 3, 12, 12\), expected \(4, 3, 12, 12\)",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        UniversalAdversarialFineTuning(tiny_classifier(), **settings)


def test_max_steps_bounds_both_runs_and_the_images_that_stage_1_sees(victim):
    classifier, x, y = victim
    settings = {"max_steps": 2, "batch_size": 4, "temperature": 3.0, "clean_share": 1.0}
    with watched(classifier) as seen:
        universal(classifier, marked(sparse=True), **settings)(x, y=y)
    trained = [image.tobytes() for batch, training in seen if training for image in batch]
    assert len(trained) == 2 * 2 * 4
    assert len(set(trained)) == 8


def test_the_distilled_preset_is_dense_and_without_focus(infected):
    defence = UniversalAdversarialFineTuning(
        infected.classifier,
        **DISTILLED,
        eps=1.0,
        max_iter=4,
        batch_size=32,
        learning_rate=0.05,
        padding=1,
        horizontal_flip=False,
        nb_epochs=20,
        label_epochs=15,
    )
    before = weights(infected.classifier)
    scores = infected.scores(defence(infected.x, y=infected.y))
    assert defence.report.perturbations.sparse is None
    assert defence.report.target is None
    assert scores.asr < 0.1
    assert scores.acc > infected.scores(infected.classifier).acc - 0.05
    assert same_weights(before, infected.classifier)
