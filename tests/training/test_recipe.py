"""A recipe is checked when it is made."""

import pytest

from art_aft.training.recipe import Recipe


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"nb_epochs": -1}, ValueError, r"^nb_epochs: got -1, expected an integer >= 0"),
        ({"nb_epochs": 1.5}, TypeError, r"^nb_epochs: got 1\.5 \(float\), expected an integer"),
        ({"batch_size": 0}, ValueError, r"^batch_size: got 0, expected an integer >= 1"),
        ({"learning_rate": 0.0}, ValueError, r"^learning_rate: got 0\.0, expected a number > 0"),
        ({"learning_rate": float("nan")}, ValueError, r"^learning_rate: got nan"),
        ({"momentum": 1.5}, ValueError, r"^momentum: got 1\.5, expected a number >= 0 and <= 1"),
        ({"weight_decay": -1e-4}, ValueError, r"^weight_decay: got -0\.0001"),
        ({"nesterov": True, "momentum": 0}, ValueError, r"^nesterov: got True with momentum 0"),
        ({"nesterov": "yes"}, TypeError, r"^nesterov: got 'yes' \(str\), expected True or False"),
        ({"schedule": "linear"}, ValueError, r"^schedule: got 'linear', expected one of 'constant'"),
        (
            {"schedule": "cosine", "milestones": ((1, 0.1),)},
            ValueError,
            r"^milestones: got some with schedule 'cosine'",
        ),
        ({"milestones": ((-1, 0.1),)}, ValueError, r"^milestones: got -1"),
        ({"milestones": ((1, -0.1),)}, ValueError, r"^milestones: got -0\.1"),
        ({"padding": -1}, ValueError, r"^padding: got -1"),
        ({"horizontal_flip": 1}, TypeError, r"^horizontal_flip: got 1 \(int\), expected True or False"),
        ({"max_steps": -1}, ValueError, r"^max_steps: got -1"),
        ({"precision": "float8"}, ValueError, r"^precision: got 'float8'.*expected one of 'auto'"),
        ({"seed": -1}, ValueError, r"^seed: got -1"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Recipe(**settings)


def test_milestones_replace_the_rate_from_their_epoch_on():
    recipe = Recipe(learning_rate=0.5, milestones=((4, 0.1), (2, 0.2)))
    assert [recipe.rate_at(epoch) for epoch in range(6)] == [0.5, 0.5, 0.2, 0.2, 0.1, 0.1]
