"""How the victims are trained: each recipe is data, and stands here once."""

from __future__ import annotations

from typing import Any

from art_aft.training.loop import Recipe

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

_RELEASES: dict[str, Any] = {
    "batch_size": 128,
    "learning_rate": 0.01,
    "milestones": ((100, 1e-3), (200, 1e-4), (300, 1e-5), (400, 1e-6)),
    "padding": 5,
    "rotation": 10.0,
    "mirror": True,
}

RECIPES: dict[str, Recipe] = {
    "paper": NAD,
    # The harder victim. Mirroring is up to the data set: traffic signs and digits are never mirrored.
    "augmented": Recipe(**{**NAD.__dict__, "padding": 4, "mirror": True}),
    # WRN-16-1 in a quarter of the steps, where many are needed on two cores.
    "brief": Recipe(**{**NAD.__dict__, "nb_epochs": 5, "milestones": (), "schedule": "one_cycle"}),
    # PreActResNet-18 as the releases of WaNet and of Input-aware train it, but for the few batches that they spare.
    "wanet": Recipe(nb_epochs=1000, **_RELEASES),
    "input_aware": Recipe(nb_epochs=575, **_RELEASES),
    # PreActResNet-18 in 100 epochs (a GPU) and in 20 (one and a half hours on two cores with bfloat16 units). Without
    # normalisation after its last group it does not bear high rates: 12,800 images, 4 epochs, batches of 128: 68 %
    # accuracy with a peak of 0.02, 37 % with 0.1; in batches of 64, 70 % with 0.02.
    "long": Recipe(nb_epochs=100, batch_size=128, learning_rate=0.01, schedule="cosine", padding=4, mirror=True),
    "short": Recipe(
        nb_epochs=20, batch_size=64, learning_rate=0.02, nesterov=True, schedule="one_cycle", padding=4, mirror=True
    ),
    # ResNet-18 at 224 pixels, from weights of the user's own or from scratch.
    "resnet": Recipe(
        nb_epochs=90, batch_size=128, learning_rate=0.01, milestones=((30, 1e-3), (60, 1e-4)), padding=16, mirror=True
    ),
    # Digits of 16x16 pixels, in seconds.
    "digits": Recipe(
        nb_epochs=25, batch_size=64, learning_rate=0.1, weight_decay=1e-4, nesterov=True, schedule="one_cycle"
    ),
}
