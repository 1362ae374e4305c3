"""Classifiers on disk: what comes back, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.attacks import TRIGGERS, BadNets, Blend, InputAware, Trigger, WaNet
from art_aft.classifiers import storage
from art_aft.classifiers.classifier import build_classifier


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
