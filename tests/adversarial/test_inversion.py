"""The smallest trigger of a label is found, whatever the pixels, the batches and the other labels."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES, SHAPE, TinyNet, encoded, tiny_classifier, tiny_data, untouched

from art_aft.adversarial.inversion import Triggers, _squash, _start, invert_triggers
from art_aft.adversarial.inversion_recipe import CostController, InversionRecipe
from art_aft.classifiers.classifier import build_classifier


class PixelNet(torch.nn.Module):
    """
    The class of a 6x6 image is the brightest of its thirds, 0, 2 or 3, but a white pixel in the corner makes it 1.

    A linear model: its smallest trigger for class 1 is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(36, 4)
        weight = torch.zeros(4, 6, 6)
        for third, label in enumerate((0, 2, 3)):
            weight[label, 2 * third : 2 * third + 2] = 40 / 12
        weight[:, 0, 5] = torch.tensor([0, 60, 0, 0])
        with torch.no_grad():
            self.fc.weight.copy_(weight.flatten(1))
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(x.flatten(1))


def pixel_classifier(**settings):
    return build_classifier(PixelNet(), input_shape=(1, 6, 6), nb_classes=4, **settings)


def pixel_images(n=60):
    """Images with one bright third and a black corner."""
    rng = np.random.default_rng(0)
    x = 0.2 * rng.random((n, 1, 6, 6), dtype=np.float32)
    for i in range(n):
        third = i % 3
        x[i, :, 2 * third : 2 * third + 2] += 0.7
    x[:, :, 0, 5] = 0
    return x


SHORT = InversionRecipe(steps=12, images_per_step=20, batch_size=10, patience=2, precision="float32", seed=5)
LONG = dataclasses.replace(SHORT, steps=120, images_per_step=60, batch_size=30)


@pytest.fixture(scope="module")
def found():
    return invert_triggers(pixel_classifier(), pixel_images(), LONG)


class TestKnownTrigger:
    def test_it_is_the_one_white_pixel(self, found):
        mask, pattern = found.masks[1, 0], found.patterns[1, 0]
        assert np.unravel_index(mask.argmax(), mask.shape) == (0, 5)
        assert mask[0, 5] > 0.5
        assert pattern[0, 5] > 0.9
        assert mask.sum() - mask[0, 5] < 0.2
        assert 0.5 < found.norms[1] < 1.2

    def test_the_others_are_many_times_larger_and_it_alone_is_suspected(self, found):
        others = np.delete(found.norms, 1)
        assert others.min() > 5 * found.norms[1]
        assert found.flagged(1.5) == [1]

    def test_all_of_them_work(self, found):
        classifier, x = pixel_classifier(), pixel_images()
        np.testing.assert_array_equal(np.unique(classifier.predict(x).argmax(axis=1)), [0, 2, 3])
        for row, label in enumerate(found.labels):
            led = np.mean(classifier.predict(found.stamp(x, label)).argmax(axis=1) == label)
            assert found.success[row] == pytest.approx(led, abs=0.02)
            # The mask is noted as the step has left it, which may have made it a little too small.
            assert led > 0.6

    def test_norms_are_the_sums_of_the_masks(self, found):
        np.testing.assert_allclose(found.norms, found.masks.sum(axis=(1, 2, 3)), rtol=1e-5)

    def test_with_norm_2_they_are_the_roots_of_the_sums_of_squares(self):
        recipe = dataclasses.replace(SHORT, norm=2)
        found = invert_triggers(pixel_classifier(), pixel_images(), recipe)
        np.testing.assert_allclose(found.norms, np.sqrt((found.masks**2).sum(axis=(1, 2, 3))), rtol=1e-5)

    @pytest.mark.parametrize("clip_values", [(0.0, 255.0), (-1.0, 3.0)])
    def test_in_another_pixel_range_it_is_the_same(self, clip_values, found):
        low, high = clip_values

        class Scaled(PixelNet):
            def forward(self, x):
                return super().forward((x - low) / (high - low))

        classifier = build_classifier(Scaled(), input_shape=(1, 6, 6), nb_classes=4, clip_values=clip_values)
        x = np.float32(low) + np.float32(high - low) * pixel_images()
        # A few steps, which do not amplify the rounding of the pixels.
        brief = dataclasses.replace(LONG, steps=15)
        plain = invert_triggers(pixel_classifier(), pixel_images(), brief, labels=[1])
        np.testing.assert_allclose(invert_triggers(classifier, x, brief, labels=[1]).masks, plain.masks, atol=1e-3)
        scaled = invert_triggers(classifier, x, LONG, labels=[1])
        assert scaled.patterns[0, 0, 0, 5] > low + 0.9 * (high - low)
        np.testing.assert_allclose(scaled.norms[0], found.norms[1], rtol=0.1)


class TestResult:
    def test_shapes_types_and_ranges(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        found = invert_triggers(classifier, x, SHORT)
        assert found.labels.tolist() == [0, 1, 2, 3]
        assert (found.masks.shape, found.patterns.shape) == ((4, 1, 12, 12), (4, *SHAPE))
        assert found.masks.dtype == found.patterns.dtype == np.float32
        for part in (found.masks, found.patterns):
            assert part.min() > 0
            assert part.max() < 1
        assert found.norms.shape == found.success.shape == found.steps.shape == (4,)
        assert (found.success >= 0).all()
        assert (found.success <= 1).all()

    @pytest.mark.parametrize("encoding", ["nhwc", "range255", "normalised"])
    def test_the_same_network_on_other_pixels_has_the_same_triggers(self, encoding):
        x, _ = tiny_data(24)
        expected = invert_triggers(tiny_classifier(), x, SHORT)
        given = encoded(encoding, TinyNet(), SHAPE, NB_CLASSES)
        found = invert_triggers(given.classifier, given.encode(x), SHORT)
        masks = found.masks.transpose(0, 3, 1, 2) if encoding == "nhwc" else found.masks
        np.testing.assert_allclose(masks, expected.masks, atol=1e-3)
        np.testing.assert_allclose(given.decode(found.patterns), expected.patterns, atol=1e-3)
        low, high = given.classifier.clip_values
        assert found.patterns.min() >= low
        assert found.patterns.max() <= high
        assert found.patterns.max() > (low + high) / 2
        assert found.stamp(given.encode(x), 2).shape == given.encode(x).shape
        np.testing.assert_allclose(given.decode(found.stamp(given.encode(x), 2)), expected.stamp(x, 2), atol=2e-3)

    def test_8_bit_images_stand_for_the_pixel_range(self):
        classifier = tiny_classifier()
        images = np.random.default_rng(0).integers(0, 256, (24, *SHAPE), dtype=np.uint8)
        expected = invert_triggers(classifier, images.astype(np.float32) / 255, SHORT)
        np.testing.assert_allclose(invert_triggers(classifier, images, SHORT).masks, expected.masks, atol=1e-3)

    def test_the_images_stay_as_they_are(self):
        x, _ = tiny_data(24)
        before = x.copy()
        invert_triggers(tiny_classifier(), x, SHORT)
        np.testing.assert_array_equal(x, before)

    def test_the_classifier_stays_as_it_is(self):
        classifier = tiny_classifier(momentum=0.9, dropout=0.5)
        classifier._model.train()
        classifier.model.bn.eval()
        classifier.model.fc.bias.requires_grad_(False)
        with untouched(classifier):
            invert_triggers(classifier, tiny_data(24)[0], SHORT)

    def test_the_search_is_in_evaluation_mode(self):
        x, _ = tiny_data(24)
        expected = invert_triggers(tiny_classifier(), x, SHORT)
        classifier = tiny_classifier(dropout=0.5)
        classifier._model.train()
        np.testing.assert_array_equal(invert_triggers(classifier, x, SHORT).masks, expected.masks)

    def test_nothing_is_printed_unless_asked_for(self, capsys):
        invert_triggers(tiny_classifier(), tiny_data(24)[0], SHORT)
        assert capsys.readouterr() == ("", "")


def assert_same_triggers(found, expected):
    """Batches of other sizes round differently, which is all that may differ: float32's 1e-7, many times over."""
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.steps, expected.steps)
    np.testing.assert_allclose(found.masks, expected.masks, atol=1e-3)
    np.testing.assert_allclose(found.patterns, expected.patterns, atol=1e-3)
    np.testing.assert_allclose(found.success, expected.success, atol=0.05)


def rows(found, chosen):
    return Triggers(*(getattr(found, part.name)[chosen] for part in dataclasses.fields(found)))


class TestLabels:
    @pytest.mark.parametrize("at_once", [1, 3])
    def test_how_many_share_a_batch_does_not_matter(self, at_once):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        together = invert_triggers(classifier, x, SHORT)
        assert_same_triggers(
            invert_triggers(classifier, x, dataclasses.replace(SHORT, classes_at_once=at_once)), together
        )

    @pytest.mark.parametrize("chosen", [[2], [3, 0]])
    def test_which_others_are_searched_does_not_matter(self, chosen):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        found = invert_triggers(classifier, x, SHORT, labels=chosen)
        assert_same_triggers(found, rows(invert_triggers(classifier, x, SHORT), chosen))

    def test_nor_when_some_stop_before_others(self):
        recipe = dataclasses.replace(SHORT, steps=60, early_stop_patience=3)
        together = invert_triggers(pixel_classifier(), pixel_images(), recipe)
        assert len(set(together.steps)) > 1
        assert together.steps.min() < 60
        for label in range(4):
            alone = invert_triggers(pixel_classifier(), pixel_images(), recipe, labels=[label])
            assert_same_triggers(alone, rows(together, [label]))

    def test_each_has_a_start_of_its_own(self):
        recipe = dataclasses.replace(SHORT, steps=1, learning_rate=1e-6)
        found = invert_triggers(tiny_classifier(), tiny_data(24)[0], recipe)
        for one in range(4):
            for other in range(one):
                assert np.abs(found.masks[one] - found.masks[other]).max() > 0.5
        # All over (0, 1), as uniform numbers are.
        np.testing.assert_allclose(np.quantile(found.masks, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.07)
        np.testing.assert_allclose(np.quantile(found.patterns, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.07)


class TestSeeds:
    def test_the_same_seed_gives_the_same_whatever_the_global_seeds(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        first = invert_triggers(classifier, x, SHORT)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            second = invert_triggers(classifier, x, SHORT)
        for part in dataclasses.fields(first):
            np.testing.assert_array_equal(getattr(first, part.name), getattr(second, part.name))

    def test_another_seed_gives_another(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        first, other = (invert_triggers(classifier, x, dataclasses.replace(SHORT, seed=seed)) for seed in (5, 6))
        assert np.abs(first.masks - other.masks).max() > 0.1


class TestSteps:
    def by_hand(self, model, x, label, recipe):
        """One label, all images in each step: Adam on the mean cross entropy plus cost times norm."""
        raw_mask, raw_pattern = (part.requires_grad_() for part in _start(label, SHAPE, True, recipe.seed))
        optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=recipe.learning_rate, betas=(0.5, 0.9))
        controller, kept = CostController(recipe), None
        for _ in range(recipe.steps):
            mask, pattern = (torch.tanh(raw) * (0.5 - 1e-6) + 0.5 for raw in (raw_mask, raw_pattern))
            logits = model((1 - mask) * x + mask * pattern)
            target = torch.full((len(x),), label)
            norm = mask.sum() if recipe.norm == 1 else mask.square().sum().sqrt()
            loss = torch.nn.functional.cross_entropy(logits, target) + controller.cost * norm
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            success = (logits.argmax(dim=1) == target).float().mean().item()
            mask, pattern = (torch.tanh(raw.detach()) * (0.5 - 1e-6) + 0.5 for raw in (raw_mask, raw_pattern))
            norm = mask.sum() if recipe.norm == 1 else mask.square().sum().sqrt()
            if controller.update(success, norm.item()) or controller.best == float("inf"):
                kept = mask, pattern
        led = model((1 - kept[0]) * x + kept[0] * kept[1]).argmax(dim=1) == label
        return *kept, led.float().mean().item()

    @pytest.mark.parametrize("norm", [1, 2])
    @pytest.mark.parametrize("success", [0.2, 1.0])
    def test_each_is_adam_on_cross_entropy_plus_cost_times_norm(self, norm, success):
        # With a low bar the cost rises soon; with a high one it stays 0, as long as no trigger works.
        recipe = InversionRecipe(
            steps=15,
            batch_size=24,
            learning_rate=0.2,
            norm=norm,
            init_cost=0.05,
            success=success,
            patience=2,
            precision="float32",
        )
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        found = invert_triggers(classifier, x, recipe)
        for label in range(NB_CLASSES):
            mask, pattern, share = self.by_hand(classifier.model, torch.from_numpy(x), label, recipe)
            np.testing.assert_allclose(found.masks[label], mask, atol=1e-3)
            np.testing.assert_allclose(found.patterns[label], pattern, atol=1e-3)
            np.testing.assert_allclose(found.success[label], share, atol=0.05)
        classifier.model.zero_grad(set_to_none=True)

    def test_a_trigger_that_never_works_is_the_last_one(self):
        class Never(TinyNet):
            def forward(self, x):
                return super().forward(x) - torch.tensor([0.0, 0, 0, 1000])

        classifier = build_classifier(Never(), input_shape=SHAPE, nb_classes=NB_CLASSES)
        x, _ = tiny_data(24)
        short, long = (
            invert_triggers(classifier, x, dataclasses.replace(SHORT, steps=steps), labels=[3]) for steps in (2, 9)
        )
        assert (short.success[0], long.success[0]) == (0, 0)
        assert (short.steps[0], long.steps[0]) == (2, 9)
        assert np.abs(short.masks - long.masks).max() > 0.05

    def test_a_step_is_so_many_images_drawn_anew(self):
        x = pixel_images(50)
        seen = []

        class Watching(PixelNet):
            def forward(self, inputs):
                seen.append(len(inputs))
                return super().forward(inputs)

        classifier = build_classifier(Watching(), input_shape=(1, 6, 6), nb_classes=4)
        recipe = dataclasses.replace(SHORT, steps=2, images_per_step=20, batch_size=8)
        invert_triggers(classifier, x, recipe, labels=[1, 2])
        assert seen == 3 * [16, 16, 8]  # the last pass measures what was kept
        seen.clear()
        # All of them, where there are fewer.
        invert_triggers(classifier, x[:10], recipe, labels=[1, 2])
        assert seen == 3 * [16, 4]

    def test_memory_bounds_how_many_labels_share_a_batch(self, monkeypatch):
        monkeypatch.setattr("art_aft.adversarial.inversion._MEMORY", 2 * 10 * 36)
        sizes = []

        class Watching(PixelNet):
            def forward(self, inputs):
                sizes.append(len(inputs))
                return super().forward(inputs)

        classifier = build_classifier(Watching(), input_shape=(1, 6, 6), nb_classes=4)
        invert_triggers(classifier, pixel_images(10), dataclasses.replace(SHORT, steps=1), labels=[0, 1, 2])
        assert sizes == [20, 20, 10, 10]  # a step, and the measurement of what was kept


class TestErrors:
    @pytest.mark.parametrize(
        ("labels", "error"), [([4], ValueError), ([0, -1], ValueError), ([0.5], TypeError), ([], ValueError)]
    )
    def test_labels_out_of_range_are_refused(self, labels, error):
        classifier, (x, _) = tiny_classifier(), tiny_data(4)
        with untouched(classifier), pytest.raises(error, match=r"^labels: got "):
            invert_triggers(classifier, x, SHORT, labels=labels)

    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (np.zeros((4, 1, 12, 12), dtype=np.float32), ValueError, r"^x: got shape \(4, 1, 12, 12\)"),
            (np.zeros((0, *SHAPE), dtype=np.float32), ValueError, r"^x: got an empty set"),
            (np.full((4, *SHAPE), 2, dtype=np.float32), ValueError, r"^x: got pixels in \[2, 2\]"),
            ([[0.0]], TypeError, r"^x: got list"),
        ],
    )
    def test_images_that_do_not_fit_are_refused(self, images, error, message):
        classifier = tiny_classifier()
        with untouched(classifier), pytest.raises(error, match=message):
            invert_triggers(classifier, images, SHORT)


def test_the_numbers_behind_a_mask_are_squashed_into_0_to_1():
    raw = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(_squash(raw), torch.sigmoid(2 * raw), atol=2e-6, rtol=0)
    assert 0 < _squash(torch.tensor(-50.0)) < _squash(torch.tensor(50.0)) < 1
