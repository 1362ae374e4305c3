"""Presets are sets of settings by name, and the numbers are those of the papers."""

import inspect

import pytest
from helpers import tiny_classifier

from art_aft.defences import DEFENCES

PRESETS = [(name, preset) for name in sorted(DEFENCES) for preset in sorted(DEFENCES[name].presets)]
every_preset = pytest.mark.parametrize(("name", "preset"), PRESETS)


def defaults(name):
    parameters = inspect.signature(DEFENCES[name].__init__).parameters
    return {key: parameters[key].default for key in DEFENCES[name].params}


@every_preset
def test_it_is_a_set_of_settings(name, preset):
    chosen = DEFENCES[name].presets[preset]
    assert set(chosen) <= set(defaults(name))
    assert DEFENCES[name](tiny_classifier(), **chosen).get_params() == {**defaults(name), **chosen}


@every_preset
def test_it_may_be_set_later_and_what_is_set_after_it_stays(name, preset):
    chosen = DEFENCES[name].presets[preset]
    defence = DEFENCES[name](tiny_classifier(), seed=7)
    defence.set_params(**chosen)
    assert defence.get_params() == {**defaults(name), **chosen, "seed": 7}
    defence.set_params(batch_size=3)
    assert defence.get_params() == {**defaults(name), **chosen, "seed": 7, "batch_size": 3}


@every_preset
def test_a_bad_value_beside_it_changes_nothing(name, preset):
    defence = DEFENCES[name](tiny_classifier())
    with pytest.raises(ValueError, match=r"^batch_size: got 0"):
        defence.set_params(**{**DEFENCES[name].presets[preset], "batch_size": 0})
    assert defence.get_params() == defaults(name)


@pytest.mark.parametrize(
    ("name", "preset", "expected"),
    [
        ("fine_tuning", "paper", {"nb_epochs": 10}),
        ("nad", "paper", {"nb_epochs": 20, "teacher_epochs": 10, "betas": (500.0, 1000.0, 1000.0), "power": 2.0}),
        ("fine_pruning", "paper_tuned", {"nb_epochs": 10, "max_drop": 0.04}),
    ],
)
def test_the_release_of_neural_attention_distillation(name, preset, expected):
    settings = {**defaults(name), **DEFENCES[name].presets[preset]}
    expected = {
        **expected,
        "batch_size": 64,
        "learning_rate": 0.1,
        "milestones": ((2, 0.01),),
        "momentum": 0.9,
        "nesterov": True,
        "schedule": "constant",
        "weight_decay": 1e-4,
    }
    assert {key: settings[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "preset", "expected"),
    [
        ("fine_tuning", "paper_preact", {"nb_epochs": 10, "learning_rate": 0.01, "weight_decay": 5e-4}),
        ("fine_pruning", "paper", {"nb_epochs": 0, "max_drop": 0.04}),
        ("neural_cleanse", "paper", {"steps": 1000, "images_per_step": 1000, "largest_suspect": 1.0}),
        ("aft", "paper", {"regenerate": "once", "batch_size": 64, "weight_decay": 1e-4}),
    ],
)
def test_what_the_papers_say(name, preset, expected):
    settings = {**defaults(name), **DEFENCES[name].presets[preset]}
    assert {key: settings[key] for key in expected} == expected
