"""Attention maps and the loss on them by hand; which layers are found."""

import numpy as np
import pytest
import torch
from attention import Vgg, attention_by_hand, hooks_of, images, named
from helpers import NB_CLASSES, SHAPE, Adapter, TinyNet, linear_classifier, same, tiny_classifier, untouched

from art_aft.defences.nad import AttentionLoss, attention_layers, attention_map
from art_aft.training.batches import Batch


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


def batch_of(y):
    return Batch(torch.zeros(len(y), *SHAPE), y)


class TestLoss:
    def maps(self, seed):
        generator = torch.Generator().manual_seed(seed)
        sizes = {"early": (3, 4, 6, 6), "late": (3, 8, 3, 3)}
        return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}

    @pytest.mark.parametrize("power", [2.0, 1.0])
    def test_it_is_cross_entropy_and_the_weighted_differences_of_two_layers(self, power):
        loss = AttentionLoss(torch.nn.CrossEntropyLoss(), (500.0, 1000.0), power)
        loss.student.update(self.maps(1)), loss.teacher.update(self.maps(2))
        logits, y = torch.tensor([[1.0, 2], [0, 3], [5, 1]]), torch.tensor([0, 1, 1])
        z = logits.double().numpy()
        expected = -np.mean(np.log(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))[np.arange(3), y])
        for beta, name in ((500, "early"), (1000, "late")):
            ours, theirs = (attention_by_hand(maps[name].numpy(), power) for maps in (loss.student, loss.teacher))
            expected += beta * np.mean((ours - theirs) ** 2)
        np.testing.assert_allclose(loss(logits, batch_of(y)).item(), expected, rtol=1e-5)

    def test_one_layer_by_hand(self):
        loss = AttentionLoss(torch.nn.CrossEntropyLoss(), (10.0,), 2.0)
        # Attention (1, 0) and (0.6, 0.8): squares 0.16 and 0.64, their mean 0.4.
        loss.student["conv"] = torch.tensor([[[[7.0, 0.0]]]])
        loss.teacher["conv"] = torch.tensor([[[[3.0**0.5, 2.0]]]])
        logits, y = torch.zeros(1, 2), torch.tensor([0])
        np.testing.assert_allclose(loss(logits, batch_of(y)).item(), np.log(2) + 4, rtol=1e-5)

    def test_equal_maps_cost_nothing(self):
        loss = AttentionLoss(torch.nn.CrossEntropyLoss(), (500.0, 1000.0), 2.0)
        loss.student.update(self.maps(1)), loss.teacher.update(self.maps(1))
        logits, y = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1])
        assert loss(logits, batch_of(y)) == torch.nn.functional.cross_entropy(logits, y)

    def test_the_classifiers_own_loss_is_kept(self):
        loss = AttentionLoss(torch.nn.NLLLoss(), (0.0, 0.0), 2.0)
        loss.student.update(self.maps(1)), loss.teacher.update(self.maps(2))
        logits, y = torch.log_softmax(torch.eye(3), dim=1), torch.tensor([0, 1, 1])
        torch.testing.assert_close(loss(logits, batch_of(y)), torch.nn.functional.nll_loss(logits, y))


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
        ("layer", "side", "size"), [("fc", 12, r"\(\)"), ("group4", 8, r"\(1, 1\)"), ("group4.1.conv2", 8, "")]
    )
    def test_what_has_no_positions_is_refused(self, layer, side, size):
        classifier = named("preactresnet-18", (3, side, side))
        with pytest.raises(ValueError, match=f"^layers: got '{layer}' with maps of size {size}.*, expected several"):
            attention_layers(classifier, images((3, side, side)), ("group1", layer))

    def test_a_layer_that_does_not_run_is_refused(self):
        model = TinyNet()
        model.spare = torch.nn.Conv2d(3, 3, 1)
        with pytest.raises(ValueError, match=r"^layers: got 'spare' with maps of size None, expected several"):
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
        with untouched(classifier), pytest.raises(ValueError, match=r"^layers: got 'fc'"):
            attention_layers(classifier, images(), ("fc",))
        assert hooks_of(classifier) == 0
