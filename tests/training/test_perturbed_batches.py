"""Which images of a batch are clean, which perturbation the others get, and what the teacher is asked about."""

import numpy as np
import pytest
import torch
from helpers import NB_CLASSES, SHAPE, shifted_versions, tiny_data

from art_aft.data.images import Images
from art_aft.training.perturbed_batches import Directions, PerturbedBatches
from art_aft.training.recipe import Recipe

N = 24


def numbered():
    """Images with their own number in one pixel."""
    x = np.full((N, *SHAPE), 0.5, dtype=np.float32)
    x[:, 0, 0, 0] = np.arange(N) / 100
    return Images(x, np.arange(N) % NB_CLASSES)


def marks():
    """Perturbations that write the number of their label into the last pixel, whose value is 0.5 without it."""
    r = np.zeros((NB_CLASSES, *SHAPE), dtype=np.float32)
    r[:, 2, 11, 11] = (1 + np.arange(NB_CLASSES)) / 10
    return r


def batches(images, *, clean_share=0.5, directions=None, perturbations=None, teacher=None, **settings):
    return PerturbedBatches(
        images,
        Recipe(batch_size=8, seed=3, **settings),
        torch.device("cpu"),
        marks() if perturbations is None else perturbations,
        directions or Directions(NB_CLASSES, None, 0.0, 0.0, seed=0),
        clean_share=clean_share,
        teacher=teacher,
    )


class TestBatches:
    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
    def test_the_first_images_are_clean_and_the_others_perturbed_towards_another_label(self, share):
        found = batches(numbered(), clean_share=share)
        for _ in range(2):
            numbers = []
            for batch in found:
                marked = torch.round(10 * (batch.x[:, 2, 11, 11] - 0.5)).long()
                count = int(share * 8)
                assert (marked[:count] == 0).all()
                assert ((marked[count:] >= 1) & (marked[count:] - 1 != batch.y[count:])).all()
                number = torch.round(100 * batch.x[:, 0, 0, 0]).long()
                assert torch.equal(batch.y, number % NB_CLASSES)
                assert batch.teacher_logits is None
                numbers += number.tolist()
            assert sorted(numbers) == list(range(N))

    def test_perturbations_are_added_after_augmentation_and_stay_in_range(self):
        x, y = tiny_data(N)
        r = np.full((NB_CLASSES, *SHAPE), 0.7, dtype=np.float32)
        versions = [key for image in x for key in shifted_versions(image, 2, 0.0, horizontal_flip=True)]
        shifted = {np.minimum(np.frombuffer(key, np.float32) + np.float32(0.7), 1).tobytes() for key in versions}
        for batch in batches(Images(x, y), perturbations=r, padding=2, horizontal_flip=True):
            for place, image in enumerate(batch.x.numpy()):
                assert image.tobytes() in (versions if place < 4 else shifted)
            assert float(batch.x.max()) <= 1

    @pytest.mark.parametrize(("share", "count"), [(0.25, 2), (1.0, 8)])
    def test_the_teacher_is_asked_about_the_clean_images(self, share, count):
        asked = []

        def teacher(shown):
            asked.append(shown)
            return shown.flatten(1)[:, :NB_CLASSES]

        for batch in batches(numbered(), clean_share=share, teacher=teacher, padding=2):
            assert torch.equal(asked[-1], batch.x[:count])
            assert torch.equal(batch.teacher_logits, teacher(batch.x[:count]))

    def test_without_clean_images_it_is_not_asked(self):
        assert all(batch.teacher_logits is None for batch in batches(numbered(), clean_share=0.0, teacher=pytest.fail))

    def test_8_bit_images_become_floats_in_range(self):
        x = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), dtype=np.uint8)
        images = Images(x, np.arange(N) % NB_CLASSES, clip_values=(-1.0, 1.0))
        for batch in batches(images, perturbations=np.full((NB_CLASSES, *SHAPE), 9, dtype=np.float32)):
            assert -1 <= float(batch.x.min()) < float(batch.x.max()) == 1
            assert (batch.x[4:] == 1).all()


class TestDirections:
    LABELS = torch.from_numpy(np.arange(4000) % NB_CLASSES)

    def test_they_lead_to_all_other_labels_alike_and_differ_from_call_to_call(self):
        directions = Directions(NB_CLASSES, None, 0.6, 0.0, seed=0)
        first, second = directions(self.LABELS), directions(self.LABELS)
        assert (first != second).any()
        shares = np.bincount((first - self.LABELS) % NB_CLASSES, minlength=NB_CLASSES) / 4000
        np.testing.assert_allclose(shares, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.03)

    def test_the_seed_decides(self):
        one, same, other = (Directions(NB_CLASSES, 1, 0.5, 0.5, seed=seed)(self.LABELS) for seed in (4, 4, 5))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize("target", [0, 2])
    def test_a_share_leads_to_the_target(self, target):
        towards = Directions(NB_CLASSES, target, 0.6, 0.0, seed=0)(self.LABELS).numpy()
        labels = self.LABELS.numpy()
        assert (towards != labels).all()
        # Of those that are not led there on purpose, one in three comes there by chance.
        assert np.mean(towards[labels != target] == target) == pytest.approx(0.6 + 0.4 / 3, abs=0.03)

    @pytest.mark.parametrize("kinds", [1, 2])
    def test_a_share_is_sparse_and_each_kind_gets_the_same_part(self, kinds):
        towards = Directions(NB_CLASSES, None, 0.0, 0.25, seed=0, sparse_kinds=kinds)(self.LABELS).numpy()
        for kind in range(1, 1 + kinds):
            assert np.mean(towards // NB_CLASSES == kind) == pytest.approx(0.25 / kinds, abs=0.03)
        assert towards.max() < (1 + kinds) * NB_CLASSES
        assert (towards % NB_CLASSES != self.LABELS.numpy()).all()
