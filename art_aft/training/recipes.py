"""How victims are trained: named recipes."""

from __future__ import annotations

from typing import Any

from art_aft.training.recipe import Recipe

# WRN-16-1 as in the release of Neural Attention Distillation: 20 epochs without augmentation. These victims are
# unusually easy to purify. The paper's own victims reach the same accuracy.
NAD = Recipe(
    nb_epochs=20,
    batch_size=64,
    learning_rate=0.1,
    weight_decay=1e-4,
    nesterov=True,
    milestones=((14, 0.01), (18, 0.001)),
)

_RELEASES: dict[str, Any] = {
    "batch_size": 128,
    "learning_rate": 0.01,
    "milestones": ((100, 1e-3), (200, 1e-4), (300, 1e-5), (400, 1e-6)),
    "padding": 5,
    "rotation": 10.0,
    "horizontal_flip": True,
}

RECIPES: dict[str, Recipe] = {
    "paper": NAD,
    # A victim that is harder to purify. Traffic signs and digits are not flipped: the data set decides.
    "augmented": Recipe(**{**NAD.__dict__, "padding": 4, "horizontal_flip": True}),
    # WRN-16-1 in a quarter of the steps, where many victims are needed on two cores.
    "brief": Recipe(**{**NAD.__dict__, "nb_epochs": 5, "milestones": (), "schedule": "one_cycle"}),
    # PreActResNet-18 as in the releases of WaNet and Input-aware. (They crop only 80 % of the batches and rotate 50 %.)
    "wanet": Recipe(nb_epochs=1000, **_RELEASES),
    "input_aware": Recipe(nb_epochs=575, **_RELEASES),
    # PreActResNet-18 in 100 epochs (for a GPU) and in 20 (one and a half hours on two cores with bfloat16 units). Its
    # last group has no normalisation after it, so high learning rates fail. Accuracy after 4 epochs on 12,800 images:
    # in batches of 128, 68 % with a peak of 0.02, 37 % with 0.1; in batches of 64, 70 % with 0.02.
    "long": Recipe(
        nb_epochs=100, batch_size=128, learning_rate=0.01, schedule="cosine", padding=4, horizontal_flip=True
    ),
    "short": Recipe(
        nb_epochs=20,
        batch_size=64,
        learning_rate=0.02,
        nesterov=True,
        schedule="one_cycle",
        padding=4,
        horizontal_flip=True,
    ),
    # ResNet-18 at 224 pixels, from the user's weights or from scratch.
    "resnet": Recipe(
        nb_epochs=90,
        batch_size=128,
        learning_rate=0.01,
        milestones=((30, 1e-3), (60, 1e-4)),
        padding=16,
        horizontal_flip=True,
    ),
    # Digits of 16x16 pixels: seconds.
    "digits": Recipe(
        nb_epochs=25, batch_size=64, learning_rate=0.1, weight_decay=1e-4, nesterov=True, schedule="one_cycle"
    ),
}
