"""
Automatic settings on architectures that the package does not know: a VGG with dropout that flattens with `.view`, and a
small vision transformer. Digits, patch and blend backdoors, the same settings for all.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch

from art_aft.attacks import BadNets, Blend
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison
from art_aft.classifiers.classifier import build_classifier
from art_aft.cli.options import command_line
from art_aft.data.datasets import digits, split_clean
from art_aft.defences import AutomaticFineTuning, FineTuning
from art_aft.experiments.report import write_record
from art_aft.metrics import evaluate
from art_aft.training.loop import Recipe, fit


class VGG(torch.nn.Module):
    """Two groups of convolutions and a head with dropout, for images of 16x16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for before, after in ((1, 16), (16, 32)):
            layers += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
            layers += [torch.nn.Conv2d(after, after, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        self.features = torch.nn.Sequential(*layers)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(512, 64), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.features(x)
        return self.head(maps.view(len(maps), -1))


class VisionTransformer(torch.nn.Module):
    """Patches of 4x4 pixels, two layers of attention."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(1, width, 4, stride=4)
        self.places = torch.nn.Parameter(0.02 * torch.randn(1, 16, width))
        layer = torch.nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.layers(tokens).mean(dim=1))


ARCHITECTURES = {"vgg": (VGG, 25), "vision transformer": (VisionTransformer, 60)}
ATTACKS = {"badnets": BadNets, "blend": Blend}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="other than enough")
    parser.add_argument("--steps", type=int, default=400, help="of each defence, at least")
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        data = digits(seed=seed)
        clean, rest = split_clean(data.y_train, 0.1, seed=seed)
        for name, (architecture, epochs) in ARCHITECTURES.items():
            for attack_name, attack in ((name, kind()) for name, kind in ATTACKS.items()):
                planted = poison(data.x_train[rest], data.y_train[rest], attack, AllToOne(0), rate=0.1, seed=seed)
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    model = architecture()
                classifier = build_classifier(model, input_shape=data.input_shape, nb_classes=10)
                recipe = Recipe(
                    nb_epochs=options.epochs or epochs,
                    batch_size=64,
                    learning_rate=0.05,
                    schedule="one_cycle",
                    nesterov=True,
                    seed=seed,
                )
                fit(classifier, planted.x, planted.y, recipe)
                own = {"mirror": False, "padding": 1, "seed": seed}
                automatic = AutomaticFineTuning(classifier, min_steps=options.steps, **own)
                # The rival with as many steps, and the rate at which it forgets most.
                rate = {"learning_rate": 0.1, "schedule": "one_cycle", "batch_size": 64}
                tuning = FineTuning(classifier, nb_epochs=options.steps // 2, **rate, **own)
                for defence in (None, tuning, automatic):
                    start = time.perf_counter()
                    purified = defence(data.x_train[clean], y=data.y_train[clean]) if defence else classifier
                    seconds = time.perf_counter() - start
                    scores = evaluate(purified, data.x_test, data.y_test, attack, AllToOne(0))
                    title = {None: "before", tuning: "fine-tuning", automatic: "automatic"}[defence]
                    chosen = automatic.report.chosen if defence is automatic and automatic.report else None
                    rows.append(
                        {
                            "model": name,
                            "attack": attack_name,
                            "seed": seed,
                            "defence": title,
                            **asdict(scores),
                            "seconds": seconds,
                            "chosen": chosen,
                        }
                    )
                    print(
                        f"{name:<20} {attack_name:<8} {title:<12} ACC {100 * scores.acc:5.1f}  "
                        f"ASR {100 * scores.asr:5.1f}  RA {100 * scores.ra:5.1f}  {seconds:5.1f} s",
                        flush=True,
                    )
                    if options.output:
                        write_record(options.output, rows, command=command_line(__file__, options))


if __name__ == "__main__":
    main()
