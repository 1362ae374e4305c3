"""Checkpoints as people have them: found under any key, loaded or refused in plain words."""

import argparse

import numpy as np
import pytest
import torch
from helpers import TinyNet, same_weights, untouched
from safetensors.torch import save_file

from art_aft.attacks import InputAware
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier


def classifier(**settings):
    return build_classifier("wrn-10-1", input_shape=(3, 16, 16), nb_classes=4, device_type="cpu", seed=3, **settings)


X = np.random.default_rng(0).random((6, 3, 16, 16)).astype(np.float32)


def state(**settings):
    return classifier(**settings).model.state_dict()


def prefixed(prefix):
    return {prefix + key: value for key, value in state().items()}


def other():
    """A second network of other shapes, as the mask of Input-aware beside its victim."""
    return TinyNet().state_dict()


def optimizer():
    model = classifier().model
    adam = torch.optim.Adam(model.parameters())
    model(torch.from_numpy(X)).sum().backward()
    adam.step()
    return adam.state_dict()


CHECKPOINTS = {
    **{
        key: (lambda key=key: {key: state(), "epoch": 3}, key)
        for key in ("net", "netC", "state_dict", "model_state", "model_state_dict", "model", "their_own")
    },
    **{f"prefix {prefix}": (lambda prefix=prefix: prefixed(prefix), "") for prefix in ("module.", "model.")},
    "compiled": (lambda: {"model": prefixed("_orig_mod.")}, "model"),
    "parallel and compiled": (lambda: prefixed("module._orig_mod."), ""),
    "compiled in part": (lambda: {k.replace("group1.", "group1._orig_mod."): v for k, v in state().items()}, ""),
    "averaged": (lambda: {"n_averaged": torch.tensor(7), **prefixed("module.")}, ""),
    "beside an optimizer": (lambda: {"optimizer": optimizer(), "model": state(), "epoch": 1, "acc": 0.9}, "model"),
    "deep": (lambda: {"run": {"best": {"weights": state()}, "args": {"lr": 0.1}}}, "run.best.weights"),
    "beside other networks": (lambda: {"netM": other(), "netC": state(), "netP": other()}, "netC"),
    "beside an average": (lambda: {"ema": prefixed("module."), "model": state()}, "model"),
    "beside a number": (lambda: {**state(), "epoch": 3}, ""),
    "an old one": (lambda: {k: v for k, v in state().items() if not k.endswith("num_batches_tracked")}, ""),
}


class TestCheckpointsAsPeopleHaveThem:
    @pytest.mark.parametrize("case", CHECKPOINTS)
    def test_the_tensors_are_found(self, tmp_path, case):
        make, entry = CHECKPOINTS[case]
        torch.save(make(), tmp_path / "weights.pth")
        target = build_classifier("wrn-10-1", input_shape=(3, 16, 16), nb_classes=4, seed=8)
        taken = storage.load_state_dict(target, tmp_path / "weights.pth")
        assert same_weights(target, classifier())
        assert taken.startswith("weights: ")
        assert (f"of the entry {entry!r}" in taken) == bool(entry)

    def test_a_model_with_a_prefix_takes_weights_without(self, tmp_path):
        target = classifier()
        wrapped = build_classifier(torch.nn.DataParallel(target.model), input_shape=(3, 16, 16), nb_classes=4)
        torch.save(state(), tmp_path / "weights.pth")
        wrapped.model.module.fc.weight.data.zero_()
        storage.load_state_dict(wrapped, tmp_path / "weights.pth")
        assert torch.equal(wrapped.model.module.fc.weight, state()["fc.weight"])

    def test_half_precision_is_widened_and_integers_are_not(self, tmp_path):
        target = classifier()
        torch.save({key: v.half() if v.is_floating_point() else v for key, v in state().items()}, tmp_path / "w.pth")
        storage.load_state_dict(target, tmp_path / "w.pth")
        assert target.model.fc.weight.dtype == torch.float32
        torch.save({**state(), "fc.weight": state()["fc.weight"].int()}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"1 of another shape or type, first 'fc\.weight' torch\.int32"):
            storage.load_state_dict(target, tmp_path / "w.pth")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"model": 1, "args": argparse.Namespace(lr=0.1)}, r"Python objects, such as argparse\.Namespace,"),
            ({"model": 1, "acc": np.float64(0.9)}, "Python objects, such as numpy"),
            ({"model": TinyNet()}, "Python objects, such as helpers.TinyNet,"),
            ({"epoch": 3}, "without a mapping of tensors"),
            ([torch.zeros(1)], "without a mapping of tensors"),
            ({}, "without a mapping of tensors"),
        ],
    )
    def test_what_has_to_be_unpickled_is_refused_in_our_own_words(self, tmp_path, content, message):
        torch.save(content, tmp_path / "weights.pth")
        self.refused(tmp_path / "weights.pth", message)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
            (b"\n <html>", "a web page"),
            (b"", "broken or no file of PyTorch"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (b"PK\x03\x04" + b"\x00" * 40, "broken or no file of PyTorch"),
            (b"\x80\x02", "broken or no file of PyTorch"),
        ],
    )
    @pytest.mark.parametrize("ending", ["pth", "pt"])
    def test_what_is_no_checkpoint_is_refused_in_our_own_words(self, tmp_path, content, message, ending):
        (tmp_path / f"weights.{ending}").write_bytes(content)
        self.refused(tmp_path / f"weights.{ending}", message)

    def test_a_cut_checkpoint_is_refused_in_our_own_words(self, tmp_path):
        torch.save(state(), tmp_path / "weights.pth")
        data = (tmp_path / "weights.pth").read_bytes()
        for length in (*(len(data) * part // 4 for part in (1, 2, 3)), len(data) - 1):
            (tmp_path / "weights.pth").write_bytes(data[:length])
            self.refused(tmp_path / "weights.pth", "broken or no file of PyTorch")

    def refused(self, path, message):
        target = classifier()
        with untouched(target), pytest.raises(ValueError, match=message) as caught:
            storage.load_state_dict(target, path)
        assert str(path) in str(caught.value)
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_mismatch_is_three_lines(self, tmp_path):
        wrong = {**state(), "fc.weight": torch.zeros(9, 64), "\x1b[31mred\n": torch.zeros(1), "x" * 500: torch.zeros(1)}
        del wrong["conv1.weight"], wrong["bn.bias"]
        torch.save(wrong, tmp_path / "weights.pth")
        target = classifier()
        with untouched(target), pytest.raises(ValueError, match="do not fit the model") as caught:
            storage.load_state_dict(target, tmp_path / "weights.pth")
        lines = str(caught.value).split("\n")
        assert len(lines) == 3
        assert lines[1] == (
            r"  2 missing, first 'conv1.weight'; 2 unexpected, first '\x1b[31mred\n'; "
            "1 of another shape or type, first 'fc.weight' (9, 64), expected (4, 64)"
        )

    def test_the_trigger_of_a_stored_victim_is_no_part_of_its_model(self, tmp_path):
        storage.save(tmp_path / "victim", classifier(), "wrn-10-1", trigger=InputAware(base_width=4, levels=1))
        target = build_classifier("wrn-10-1", input_shape=(3, 16, 16), nb_classes=4, seed=8)
        storage.load_state_dict(target, tmp_path / "victim.safetensors")
        assert same_weights(target, classifier())

    @pytest.mark.parametrize("roles", [True, False])
    def test_the_order_of_the_shapes_is_a_match_on_request(self, tmp_path, roles):
        renamed = {
            f"layer{number}" + f".{key.rpartition('.')[2]}" * roles: value
            for number, (key, value) in enumerate(state().items())
        }
        torch.save({"n_averaged": torch.tensor(1), **renamed}, tmp_path / "weights.pth")
        target = build_classifier("wrn-10-1", input_shape=(3, 16, 16), nb_classes=4, seed=8)
        with untouched(target), pytest.raises(ValueError, match="--match shapes"):
            storage.load_state_dict(target, tmp_path / "weights.pth")
        taken = storage.load_state_dict(target, tmp_path / "weights.pth", match="shapes")
        assert same_weights(target, classifier())
        assert "matched by their order and shapes: check the accuracy" in taken

    def test_equal_shapes_with_other_roles_are_no_match(self, tmp_path):
        """A scale and a shift of batch normalisation have one shape, and are not each other."""
        swap = {"weight": "bias", "bias": "weight"}
        renamed = {}
        for number, (key, value) in enumerate(state().items()):
            role = key.rpartition(".")[2]
            renamed[f"layer{number}.{swap.get(role, role)}"] = value
        torch.save(renamed, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="do not fit the model") as caught:
            storage.load_state_dict(classifier(), tmp_path / "weights.pth", match="shapes")
        assert "--match" not in str(caught.value)

    def test_safetensors_have_no_order(self, tmp_path):
        save_file(state(), tmp_path / "weights.safetensors")
        with pytest.raises(ValueError, match="keeps no order"):
            storage.load_state_dict(classifier(), tmp_path / "weights.safetensors", match="shapes")
        with pytest.raises(ValueError, match="match: got 'magic', expected one of 'names', 'shapes'"):
            storage.load_state_dict(classifier(), tmp_path / "weights.safetensors", match="magic")
