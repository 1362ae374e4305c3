"""Found triggers are unlearned, and the channels that they excite are pruned."""

import dataclasses

import numpy as np
import pytest
import torch
from cleansing import TUNING, cleanse, made_up, pooled, unlabelled
from helpers import SHAPE, same_weights, tiny_classifier, tiny_data, train, untouched, weights

from art_aft.classifiers.classifier import clone
from art_aft.classifiers.layers import Head
from art_aft.data.images import Images
from art_aft.defences.found_triggers import Detection, excited_channels, prune, unlearn
from art_aft.training.recipe import Recipe


class TestUnlearning:
    def test_it_removes_the_backdoor_and_keeps_the_accuracy(self, searches, infected):
        before = infected.scores(infected.classifier)
        with untouched(infected.classifier):
            purified = cleanse(infected.classifier)(infected.x, y=infected.y)
        after = infected.scores(purified)
        assert before.asr > 0.95
        assert after.asr <= 0.1
        assert after.acc >= before.acc - 0.05
        assert len(searches) == 1

    @pytest.mark.parametrize(("share", "count"), [(0.2, 24), (1.0, 120), (0.001, 1)])
    def test_a_share_of_the_images_is_stamped_and_keeps_its_true_labels(
        self, share, count, searches, fits, detection, infected
    ):
        x = infected.x.copy()
        cleanse(infected.classifier, stamped_share=share)(x, y=infected.y)
        ((given, labels),) = [(call["x"], call["y"]) for call in fits]
        np.testing.assert_array_equal(x, infected.x)
        np.testing.assert_array_equal(labels, infected.y)
        stamped = (given != x).any(axis=(1, 2, 3))
        assert stamped.sum() == count
        np.testing.assert_array_equal(given[stamped], detection.triggers.stamp(x[stamped], 0))
        assert given.min() >= 0
        assert given.max() <= 1 + 1e-6

    def test_stamped_are_images_of_all_classes_in_no_order(self, searches, fits, infected):
        for seed in (0, 1):
            cleanse(infected.classifier, stamped_share=0.5, seed=seed)(infected.x, y=infected.y)
        chosen = [(call["x"] != infected.x).any(axis=(1, 2, 3)) for call in fits]
        assert (chosen[0] != chosen[1]).any()
        assert set(infected.y[chosen[0]]) == set(range(10))
        assert 5 < chosen[0][:60].sum() < 55

    def test_the_training_is_that_of_the_settings(self, searches, fits, infected):
        defence = cleanse(infected.classifier, weight_decay=0.1, seed=4)
        purified = defence(infected.x, y=infected.y)
        assert fits[0]["classifier"] is purified
        expected = Recipe(**TUNING, weight_decay=0.1, precision="float32")
        assert dataclasses.replace(fits[0]["recipe"], seed=0) == expected
        defence.set_params(seed=5)
        defence(infected.x, y=infected.y)
        assert fits[1]["recipe"].seed != fits[0]["recipe"].seed

    def test_several_suspected_labels_share_the_stamped_images_evenly(self, fits):
        classifier, (x, y) = tiny_classifier(), tiny_data(40)
        found = made_up([1.0, 9, 2, 3])
        unlearn(classifier, Images(x, y), Detection(found, [0, 2, 3]), Recipe(), share=0.75)
        given = fits[0]["x"]
        counts = [np.isclose(given, found.stamp(x, label)).all(axis=(1, 2, 3)).sum() for label in range(4)]
        assert counts == [10, 0, 10, 10]
        assert (given == x).all(axis=(1, 2, 3)).sum() == 10
        np.testing.assert_array_equal(fits[0]["y"], y)

    def test_8_bit_images_are_stamped_as_floats(self, fits):
        classifier = tiny_classifier()
        images = np.random.default_rng(0).integers(0, 256, (10, *SHAPE), dtype=np.uint8)
        before, found = images.copy(), made_up([1.0, 9, 2, 3])
        unlearn(classifier, Images(images, np.zeros(10, dtype=int)), Detection(found, [1]), Recipe(), share=1.0)
        np.testing.assert_array_equal(images, before)
        np.testing.assert_allclose(fits[0]["x"], found.stamp(images.astype(np.float32) / 255, 1), atol=1e-6)

    def test_it_trains_in_place(self):
        classifier, (x, y) = tiny_classifier(), tiny_data()
        expected, found = clone(classifier), made_up([1.0, 9, 2, 3])
        recipe = Recipe(nb_epochs=2, batch_size=8, precision="float32")
        unlearn(classifier, Images(x, y), Detection(found, [1]), recipe, share=1.0)
        train(expected, found.stamp(x, 1), y, recipe)
        assert same_weights(classifier, expected)


class TestPruning:
    def cut_by_hand(self, classifier, channels):
        """What the classifier predicts where these channels of its last map are zero."""
        model = clone(classifier).model.eval()

        def predict(x):
            with torch.no_grad():
                maps = model.features(torch.from_numpy(x))
                maps[:, list(channels)] = 0
                return model.fc(maps.mean(dim=(2, 3))).argmax(dim=1).numpy()

        return predict

    def ranked(self, classifier, x, stamped):
        rise = pooled(classifier, stamped).mean(axis=0) - pooled(classifier, x).mean(axis=0)
        return np.argsort(-rise, kind="stable")

    @pytest.mark.parametrize("until", [0.05, 0.4, 0.8, 1.1])
    def test_the_channels_that_the_trigger_raises_most_go_until_it_no_longer_works(self, until, detection, infected):
        classifier = clone(infected.classifier)
        stamped = detection.triggers.stamp(infected.x, 0)
        ranked = self.ranked(classifier, infected.x, stamped)
        telling = infected.classifier.predict(infected.x).argmax(axis=1) != 0
        pruned = prune(classifier, unlabelled(classifier, infected.x), detection, until=until, max_pruned=1.0)
        assert pruned == ranked[: len(pruned)].tolist()
        shares = [
            np.mean(self.cut_by_hand(infected.classifier, ranked[:n])(stamped[telling]) == 0)
            for n in range(len(pruned) + 1)
        ]
        assert shares[-1] < until
        assert min(shares[:-1], default=np.inf) >= until

    @pytest.mark.parametrize(("share", "count"), [(0.3, 19), (0.1, 6), (0.0, 0)])
    def test_never_more_than_a_share_of_them_goes(self, share, count, detection, infected):
        classifier = clone(infected.classifier)
        pruned = prune(classifier, unlabelled(classifier, infected.x), detection, until=0.0, max_pruned=share)
        assert len(pruned) == count
        cut = (classifier.model.fc.weight == 0).all(dim=0).nonzero().flatten().tolist()
        assert cut == sorted(pruned)

    def test_the_default_is_30_percent(self, detection, infected):
        classifier = clone(infected.classifier)
        assert len(prune(classifier, unlabelled(classifier, infected.x), detection, until=0.0)) == 19

    def test_only_those_columns_of_the_head_change(self, detection, infected):
        classifier = clone(infected.classifier)
        before = weights(classifier)
        pruned = prune(classifier, unlabelled(classifier, infected.x), detection)
        after = weights(classifier)
        assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.weight"]
        kept = np.setdiff1d(np.arange(64), pruned)
        assert torch.equal(before["fc.weight"][:, kept], after["fc.weight"][:, kept])

    def test_the_defence_does_that_and_the_backdoor_hardly_works(self, searches, fits, detection, infected):
        expected = clone(infected.classifier)
        prune(expected, unlabelled(expected, infected.x), detection)
        with untouched(infected.classifier):
            purified = cleanse(infected.classifier, mitigation="pruning")(infected.x, y=infected.y)
        assert same_weights(purified, expected)
        assert fits == []
        assert infected.scores(purified).asr < 0.5
        assert infected.scores(purified).acc > 0.7

    def test_images_that_are_taken_for_the_label_anyway_do_not_count(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        with torch.no_grad():
            classifier.model.fc.bias[1] += 100
        assert prune(classifier, unlabelled(classifier, x), Detection(made_up([1.0, 9, 2, 3]), [1])) == []

    def test_of_several_labels_each_image_tells_of_each(self):
        classifier, (x, _) = tiny_classifier(), tiny_data(24)
        head, found = Head(classifier, x), made_up([1.0, 9, 2, 3])
        order, stamped = excited_channels(head, unlabelled(classifier, x), Detection(found, [2, 0]))
        assert len(stamped) == 48
        np.testing.assert_array_equal(stamped[:24], found.stamp(x, 2))
        np.testing.assert_array_equal(stamped[24:], found.stamp(x, 0))
        np.testing.assert_array_equal(order, self.ranked(classifier, x, stamped))
        # A trigger that works on all, for one label of two: half of all stamped images.
        with torch.no_grad():
            classifier.model.fc.weight[2] = 0
            classifier.model.fc.weight[:2] = 0
            classifier.model.fc.weight[3] = -1
            classifier.model.fc.bias.copy_(torch.tensor([0.0, 0.0, 0.1, 100]))
        assert prune(clone(classifier), unlabelled(classifier, x), Detection(found, [2, 0]), until=0.05) == []
