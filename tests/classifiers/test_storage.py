"""Classifiers on disk: what comes back, and what is refused."""

import hashlib
import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from helpers import same_weights
from safetensors.torch import load_file, save_file

from art_aft.attacks import TRIGGERS, BadNets, Blend, InputAware, Trigger, WaNet
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier
from art_aft.runtime import files


def classifier(**settings):
    return build_classifier("wrn-10-1", input_shape=(3, 16, 16), nb_classes=4, device_type="cpu", seed=3, **settings)


X = np.random.default_rng(0).random((6, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("settings", [{}, {"preprocessing": ([0.4, 0.5, 0.6], [0.2, 0.3, 0.2]), "clip_values": (0, 1)}])
def test_a_classifier_comes_back_bit_for_bit(tmp_path, settings):
    given = classifier(**settings)
    for buffer in given.model.buffers():
        buffer.add_(1)  # running statistics that are not those of a fresh model
    storage.save(tmp_path / "deep" / "model", given, "wrn-10-1", facts={"acc": 0.5, "note": "ä"})
    stored = storage.load(tmp_path / "deep" / "model", device_type="cpu")
    np.testing.assert_array_equal(stored.classifier.predict(X), given.predict(X))
    assert stored.facts == {"acc": 0.5, "note": "ä"}
    assert stored.trigger is None
    assert not stored.classifier.model.training
    assert [file.name for file in sorted((tmp_path / "deep").iterdir())] == ["model.json", "model.safetensors"]


@pytest.mark.parametrize(
    "trigger",
    [
        *[make() for make in TRIGGERS.values()],
        BadNets(np.ones((2, 2)), margin=3, clip_values=(0, 1)),
        Blend(seed=9, ratio=0.1, grid_size=None),
        WaNet(seed=9, strength=0.7),
        InputAware(seed=4, base_width=8, levels=2),
    ],
    ids=lambda trigger: type(trigger).__name__,
)
def test_a_trigger_comes_back_with_all_its_settings(tmp_path, trigger):
    if isinstance(trigger, InputAware):
        for parameter in trigger.pattern_generator.parameters():
            parameter.mul_(1.5)  # as if it had been trained
    storage.save(tmp_path / "m", classifier(), "wrn-10-1", trigger=trigger)
    again = storage.load(tmp_path / "m", device_type="cpu").trigger
    assert type(again) is type(trigger)
    np.testing.assert_array_equal(again(X), trigger(X))


def test_a_trigger_of_an_unregistered_class_is_refused_before_anything_is_written(tmp_path):
    class Own(Trigger):
        def _stamp(self, x, out):
            out[...] = 1

    with pytest.raises(ValueError, match="trigger: got Own, expected one of a registered class"):
        storage.save(tmp_path / "m", classifier(), "wrn-10-1", trigger=Own())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_ever_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    for name in ("trap.pt", "trap.pth"):
        torch.save({"weight": Trap()}, tmp_path / name)
        with pytest.raises(ValueError, match=r"path: got .*trap.*, expected a file of tensors alone"):
            storage.load_state_dict(classifier(), tmp_path / name)
    (tmp_path / "m.json").write_text("{}")
    (tmp_path / "m.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"path: got .*m, expected a stored classifier"):
        storage.load(tmp_path / "m")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_foreign_state_dicts_load(tmp_path, wrap):
    source, target = classifier(), build_classifier("wrn-10-1", input_shape=(3, 16, 16), nb_classes=4, seed=8)
    state = {f"module.{key}": value for key, value in source.model.state_dict().items()}
    torch.save(wrap(state), tmp_path / "weights.pth")
    assert np.abs(source.predict(X) - target.predict(X)).max() > 0
    storage.load_state_dict(target, tmp_path / "weights.pth")
    np.testing.assert_array_equal(target.predict(X), source.predict(X))


def test_weights_for_other_classes_load_without_their_head(tmp_path):
    source = build_classifier("wrn-10-1", input_shape=(3, 16, 16), nb_classes=9, device_type="cpu", seed=1)
    torch.save(source.model.state_dict(), tmp_path / "weights.pth")
    target = classifier()
    head = target.model.fc.weight.clone()
    with pytest.raises(ValueError, match="path: got tensors that do not fit"):
        storage.load_state_dict(target, tmp_path / "weights.pth")
    storage.load_state_dict(target, tmp_path / "weights.pth", head=False)
    assert torch.equal(target.model.fc.weight, head)
    assert torch.equal(target.model.conv1.weight, source.model.conv1.weight)


def test_tensors_of_another_model_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="path: got tensors that do not fit the model"):
        storage.load_state_dict(classifier(), tmp_path / "weights.pt")


def test_a_wrong_model_name_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="model: got 'wrn-16-1', expected the name of the classifier's own"):
        storage.save(tmp_path / "m", classifier(), "wrn-16-1")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_another_format_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"path: got .*nowhere, expected a stored classifier"):
        storage.load(tmp_path / "nowhere")
    storage.save(tmp_path / "m", classifier(), "wrn-10-1")
    description = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(ValueError, match="another format"):
        storage.load(tmp_path / "m")


def test_loading_gives_arts_own_classifier(tmp_path):
    storage.save(tmp_path / "m", classifier(), "wrn-10-1")
    assert type(storage.load(tmp_path / "m").classifier) is PyTorchClassifier


class TestBothFilesBelongToEachOther:
    @pytest.fixture
    def place(self, tmp_path):
        storage.save(tmp_path / "m", classifier(), "wrn-10-1", trigger=BadNets(), facts={"acc": 0.5})
        return tmp_path / "m"

    def test_the_digest_is_that_of_the_file(self, place):
        weights, described = storage.both_files(place)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        assert json.loads(described.read_text())["sha256"] == digest

    def test_a_flipped_bit_is_found_wherever_it_is(self, place):
        weights, _ = storage.both_files(place)
        data = weights.read_bytes()
        for position in (0, 9, len(data) // 3, len(data) // 2, len(data) - 1):
            weights.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises(ValueError, match=r"m\.safetensors is not the file that m\.json describes"):
                storage.load(place)
        weights.write_bytes(data)
        assert storage.load(place).facts == {"acc": 0.5}

    def test_tensors_without_a_description_are_refused_plainly(self, place):
        place.with_name("m.json").unlink()
        with pytest.raises(ValueError, match=r"m\.safetensors lies there without m\.json"):
            storage.load(place)

    @pytest.mark.parametrize("moves", [0, 1])
    def test_a_save_that_stops_between_the_files_is_found(self, place, monkeypatch, moves):
        """With 0 moves the old model is there; with 1 it is gone, which must not pass for the new one."""
        left, move = moves, os.replace

        def stop(source, target):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            move(source, target)

        other = classifier()
        other.model.fc.weight.data.add_(1)
        monkeypatch.setattr(files.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            storage.save(place, other, "wrn-10-1", facts={"acc": 0.9})
        monkeypatch.undo()
        assert sorted(file.name for file in place.parent.iterdir()) == ["m.json", "m.safetensors"]
        if moves == 0:
            assert storage.load(place).facts == {"acc": 0.5}
        else:
            with pytest.raises(ValueError, match="is not the file that"):
                storage.load(place)

    def test_a_full_disk_leaves_neither_file(self, tmp_path, monkeypatch):
        def full(self, *_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pathlib.Path.write_text", full)  # the description, after the tensors
        with pytest.raises(OSError, match="No space left"):
            storage.save(tmp_path / "new", classifier(), "wrn-10-1")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(os.name != "posix", reason="modes of files")
    @pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
    def test_the_files_have_the_mode_of_any_new_file(self, tmp_path, mask):
        before = os.umask(mask)
        try:
            storage.save(tmp_path / "m", classifier(), "wrn-10-1")
        finally:
            os.umask(before)
        modes = {stat.S_IMODE(file.stat().st_mode) for file in storage.both_files(tmp_path / "m")}
        assert modes == {0o666 & ~mask}

    @pytest.mark.parametrize("given", ["m", "m.json", "m.safetensors"])
    @pytest.mark.parametrize("asked", ["m", "m.json", "m.safetensors"])
    def test_the_path_may_have_either_ending(self, tmp_path, given, asked):
        storage.save(tmp_path / given, classifier(), "wrn-10-1")
        assert sorted(file.name for file in tmp_path.iterdir()) == ["m.json", "m.safetensors"]
        assert same_weights(storage.load(tmp_path / asked).classifier, classifier())

    def test_a_point_in_the_name_is_no_ending(self, tmp_path):
        storage.save(tmp_path / "badnets-0.1", classifier(), "wrn-10-1")
        assert (tmp_path / "badnets-0.1.json").exists()
        assert same_weights(storage.load(tmp_path / "badnets-0.1").classifier, classifier())

    def test_models_of_the_first_format_load_without_a_digest(self, place):
        change(place, lambda d: d.update(format=1) or d.pop("sha256"))
        assert storage.load(place).facts == {"acc": 0.5}
        change(place, lambda d: d.update(format=2))
        with pytest.raises(ValueError, match="got no digest"):
            storage.load(place)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.float16, torch.bfloat16])
    def test_tensors_of_another_type_are_refused(self, place, dtype):
        weights, _ = storage.both_files(place)
        tensors = load_file(weights)
        tensors["model.fc.weight"] = tensors["model.fc.weight"].to(dtype)
        replace_tensors(place, tensors)
        with pytest.raises(ValueError, match=f"'fc.weight' of .* {dtype}, expected .* torch.float32"):
            storage.load(place)


def change(place, edit):
    """Edit the description of a stored model."""
    file = place.with_name(place.name + ".json")
    description = json.loads(file.read_text())
    edit(description)
    file.write_text(json.dumps(description))


def replace_tensors(place, tensors):
    """Replace the tensors of a stored model as a stranger could, with the right digest."""
    weights, _ = storage.both_files(place)
    save_file(tensors, weights)
    change(place, lambda d: d.update(sha256=hashlib.sha256(weights.read_bytes()).hexdigest()))


HOSTILE = {
    "depth": {"model": "wrn-600004-1"},
    "width": {"model": "wrn-16-100000"},
    "both at their limit": {"model": "wrn-1000-1000"},
    "a number of many digits": {"model": "wrn-" + "9" * 5000 + "-1"},
    "another model": {"model": "preactresnet-18"},
    "no such model": {"model": "alexnet"},
    "a factory": {"model": "os:getcwd"},
    "no name": {"model": None},
    "classes": {"nb_classes": 10**9},
    "classes at their limit": {"nb_classes": 100_000},
    "no classes": {"nb_classes": "many"},
    "channels": {"input_shape": [10**9, 16, 16]},
    "a side": {"input_shape": [3, 10**12, 16]},
    "two numbers": {"input_shape": [3, 16]},
    "fractions": {"input_shape": [3.5, 16, 16]},
    "clip values": {"clip_values": [1, 0]},
    "one clip value": {"clip_values": [1]},
    "text as clip values": {"clip_values": "01"},
    "a deviation of 0": {"preprocessing": [[0.5] * 3, [0.0] * 3]},
    "a deviation that is none": {"preprocessing": [[0.5] * 3, [float("nan")] * 3]},
    "a mean of another length": {"preprocessing": [[0.5] * 2, [1.0] * 3]},
    "a mean alone": {"preprocessing": [[0.5] * 3]},
    "facts": {"facts": [1]},
    "a list as trigger": {"trigger": []},
    "an unknown trigger": {"trigger": {"attack": "magic", "settings": {}}},
    "a trigger's unknown setting": {"trigger": {"attack": "badnets", "settings": {"magic": 1}}},
    "levels": {"trigger": {"attack": "input_aware", "settings": {"in_channels": 3, "base_width": 32, "levels": 30}}},
    "a million levels": {
        "trigger": {"attack": "input_aware", "settings": {"in_channels": 3, "base_width": 1, "levels": 10**6}}
    },
    "levels at their limit": {
        "trigger": {"attack": "input_aware", "settings": {"in_channels": 3, "base_width": 1024, "levels": 12}}
    },
    "no levels": {"trigger": {"attack": "input_aware", "settings": {}}},
    "a grid": {"trigger": {"attack": "wanet", "settings": {"grid_size": 10**6}}},
}


class TestStrangersDescriptions:
    @pytest.fixture
    def place(self, tmp_path):
        storage.save(tmp_path / "m", classifier(), "wrn-10-1")
        return tmp_path / "m"

    @pytest.fixture(autouse=True)
    def nothing_large(self, monkeypatch):
        """Refuse to draw large weights, which is what takes the time and the memory."""
        draw = torch.Tensor.normal_

        def small(tensor, *arguments, **settings):
            assert tensor.is_meta or tensor.numel() < 10**6
            return draw(tensor, *arguments, **settings)

        monkeypatch.setattr(torch.Tensor, "normal_", small)

    @pytest.mark.parametrize("case", HOSTILE)
    def test_a_hostile_one_is_refused_before_anything_is_built(self, place, monkeypatch, case):
        change(place, lambda d: d.update(HOSTILE[case]))
        built = []
        monkeypatch.setattr(storage, "build_classifier", lambda *_, **__: built.append(1))
        with pytest.raises(ValueError, match=r"^(path|clip_values): got "):
            storage.load(place)
        assert built == []

    @pytest.mark.parametrize("key", ["model", "input_shape", "nb_classes", "clip_values", "facts"])
    def test_a_missing_entry_is_named(self, place, key):
        change(place, lambda d: d.pop(key))
        with pytest.raises(ValueError, match=f"path: got .*{key}: got nothing"):
            storage.load(place)

    @pytest.mark.parametrize("text", ["", "[]", "null", "{", "\x00", "[" * 100_000])
    def test_text_that_is_no_description(self, place, text):
        place.with_name("m.json").write_text(text)
        with pytest.raises(ValueError, match="path: got "):
            storage.load(place)

    def test_names_are_escaped(self, place):
        tensors = load_file(storage.both_files(place)[0])
        replace_tensors(place, {**tensors, "model.\x1b[2J": torch.zeros(1)})
        with pytest.raises(ValueError, match=r"0 too few and 1 too many, first '\\x1b\[2J'"):
            storage.load(place)
