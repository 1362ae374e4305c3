"""How the victims are trained: each recipe is data, and stands here once."""

from __future__ import annotations

from art_aft.training import Recipe

# WRN-16-1 as in the release of Neural Attention Distillation: 20 epochs without augmentation, which makes victims
# that are unusually easy to repair; the paper's own victims reach the same accuracy.
NAD = Recipe(
    nb_epochs=20,
    batch_size=64,
    learning_rate=0.1,
    weight_decay=1e-4,
    nesterov=True,
    milestones=((14, 0.01), (18, 0.001)),
)

RECIPES: dict[str, Recipe] = {
    "paper": NAD,
    # The harder victim. Mirroring is up to the data set: traffic signs and digits are never mirrored.
    "augmented": Recipe(**{**NAD.__dict__, "padding": 4, "mirror": True}),
    # PreActResNet-18 in 100 epochs (a GPU) and in 10 (about an hour on two cores with bfloat16 units).
    "long": Recipe(nb_epochs=100, batch_size=128, learning_rate=0.01, schedule="cosine", padding=4, mirror=True),
    "short": Recipe(nb_epochs=10, batch_size=128, learning_rate=0.05, schedule="one_cycle", padding=4, mirror=True),
    # Digits of 16x16 pixels, in seconds.
    "digits": Recipe(
        nb_epochs=25, batch_size=64, learning_rate=0.1, weight_decay=1e-4, nesterov=True, schedule="one_cycle"
    ),
}
