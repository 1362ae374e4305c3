"""Every crop and flip comes with the same probability, in either channel order, and in training."""

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES, SHAPE, TinyNet, shifted_versions, tiny_data, train, watched
from scipy.stats import binomtest, chisquare

from art_aft.classifiers.classifier import build_classifier
from art_aft.data.images import Images
from art_aft.training.augmentation import Augmentation, augmented
from art_aft.training.recipe import Recipe


class TestAugmentation:
    IMAGE = np.arange(1, 1 + 2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6)

    def copies(self, n):
        return torch.from_numpy(np.repeat(self.IMAGE[np.newaxis], n, axis=0))

    @pytest.mark.parametrize("padding", [1, 2])
    @pytest.mark.parametrize("flip", [False, True])
    def test_each_shift_and_side_comes_with_the_same_probability(self, padding, flip):
        n = 3000
        versions = shifted_versions(self.IMAGE, padding, -7.0, horizontal_flip=flip)
        assert len(versions) == (2 * padding + 1) ** 2 * (1 + flip)
        augmented = Augmentation(padding, flip, -7.0)(self.copies(n), torch.Generator().manual_seed(0)).numpy()
        found = np.array([versions[image.tobytes()] for image in np.ascontiguousarray(augmented)])
        counts = np.bincount(found, minlength=len(versions))
        assert chisquare(counts).pvalue > 1e-3

    def test_a_flip_alone_comes_to_about_half(self):
        n = 2000
        augmented = Augmentation(horizontal_flip=True)(self.copies(n), torch.Generator().manual_seed(0)).numpy()
        flipped = (augmented == self.IMAGE[:, :, ::-1]).all(axis=(1, 2, 3))
        kept = (augmented == self.IMAGE).all(axis=(1, 2, 3))
        assert (flipped ^ kept).all()
        assert binomtest(int(flipped.sum()), n).pvalue > 1e-3

    def test_channels_last_images_are_augmented_the_same(self):
        x = torch.rand(50, 3, 6, 7, generator=torch.Generator().manual_seed(1))
        first = Augmentation(2, True, 0.5)(x, torch.Generator().manual_seed(2))
        last = Augmentation(2, True, 0.5, channels_first=False)(x.permute(0, 2, 3, 1), torch.Generator().manual_seed(2))
        assert torch.equal(last.permute(0, 3, 1, 2), first)
        assert not torch.equal(first, x)

    def test_without_any_nothing_happens_and_nothing_is_drawn(self):
        x, rng = self.copies(4), torch.Generator().manual_seed(3)
        before = rng.get_state()
        assert torch.equal(Augmentation()(x, rng), x)
        assert torch.equal(rng.get_state(), before)

    def test_in_training_the_border_has_the_lowest_pixel_value_and_epochs_differ(self):
        n, low = 12, -3.0
        classifier = build_classifier(TinyNet(), input_shape=SHAPE, nb_classes=NB_CLASSES, clip_values=(low, 2.0))
        x, y = tiny_data(n)
        with watched(classifier) as seen:
            train(
                classifier,
                x,
                y,
                Recipe(nb_epochs=2, batch_size=n, padding=3, horizontal_flip=True, precision="float32"),
            )
        versions = [shifted_versions(image, 3, low, horizontal_flip=True) for image in x]
        shifts = []
        for batch, _ in seen:
            found = {}
            for image in np.ascontiguousarray(batch):
                (number,) = (i for i, version in enumerate(versions) if image.tobytes() in version)
                found[number] = versions[number][image.tobytes()]
            assert sorted(found) == list(range(n))
            shifts.append([found[number] for number in range(n)])
        assert shifts[0] != shifts[1]

    @pytest.mark.parametrize("dtype", [np.float32, np.uint8])
    def test_a_whole_set_is_augmented_once_by_the_seed(self, dtype):
        pixels = (255 * tiny_data(12)[0]).astype(np.uint8)
        floats = pixels.astype(np.float32) * np.float32(1 / 255)
        images = Images(pixels if dtype == np.uint8 else floats, np.arange(12))
        first, second, other = (augmented(images, Augmentation(2, True), seed).pixels for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()
        for image, original in zip(first, floats, strict=True):
            assert image.tobytes() in shifted_versions(original, 2, 0.0, horizontal_flip=True)
