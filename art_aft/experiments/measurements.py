"""A cell of a grid of experiments, and what it can measure: one function a task."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.attacks import stamp
from art_aft.attacks.labels import wanted_labels
from art_aft.classifiers.classifier import clone, features, predict_labels
from art_aft.data.pixels import to_float
from art_aft.defences import DEFENCES, AdversarialFineTuning
from art_aft.experiments.victims import Infection, Row, Scene, clean_subset, plant, poisoned_data
from art_aft.metrics import defence_effectiveness, evaluate
from art_aft.registry import Registry


@dataclass(frozen=True)
class Cell:
    """
    One measurement: an infected model, perhaps a defence, and what is measured.

    :param infection: What the infected model is.
    :param task: What is measured, by name; see `TASKS`.
    :param defence: The defence's name, or "none".
    :param settings: The settings of the defence, or of the task where there is no defence; JSON values.
    :param subset: Which clean subset the defender has; see `clean_subset`.
    :param clean_data: Whether the defender has clean data; else the poisoned training set, with the labels given there.
    """

    infection: Infection
    task: str = "scores"
    defence: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    subset: int = 0
    clean_data: bool = True

    def facts(self) -> Row:
        """Return the cell as JSON values; of the data only the name, not the place."""
        facts = asdict(self)
        facts["infection"]["data"] = Path(self.infection.data).name
        return facts

    @property
    def key(self) -> str:
        """A name for files: readable, and different for different cells."""
        digest = hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:12]
        infection = self.infection
        return f"{Path(infection.data).name}-{infection.attack}-{self.task}-{self.defence}-{self.subset}-{digest}"


#: What can be measured: functions from a scene and a cell to a part of a row.
TASKS: Registry[Callable[[Scene, Cell], Row]] = Registry("task")

#: Those that need the model without a backdoor, too.
COMPARED_WITH_BENIGN = ("feature_distance",)


def defender_data(scene: Scene, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels that the defender of a cell has."""
    if cell.clean_data:
        return clean_subset(scene, cell.subset)
    planted = poisoned_data(scene)
    return planted.x, planted.y


@TASKS.register("scores")
def scores(scene: Scene, cell: Cell) -> Row:
    """
    ACC, ASR, RA and DER of the infected model, or of what a defence made of it.

    For Adversarial Fine-Tuning also those after Stage 2 (Table IX).
    """
    test = (scene.dataset.x_test, scene.dataset.y_test, scene.attack, scene.labels)
    before = scene.scores or evaluate(scene.classifier, *test)
    if cell.defence == "none":
        return {**asdict(before), "der": defence_effectiveness(before, before), "seconds": scene.seconds}
    x, y = defender_data(scene, cell)
    settings = {"mirror": scene.dataset.mirror, **cell.settings}
    defence = DEFENCES[cell.defence](scene.classifier, **settings)
    start = time.perf_counter()
    purified = defence(x, y=y)
    seconds = time.perf_counter() - start
    after = evaluate(purified, *test)
    row: Row = {**asdict(after), "der": defence_effectiveness(before, after), "seconds": round(seconds, 3)}
    if isinstance(defence, AdversarialFineTuning):
        row["stage_2"] = asdict(evaluate(defence.adversarial_classifier, *test))
    return row | {"n_defender": len(x), "before": asdict(before)}


@TASKS.register("curve")
def curve(scene: Scene, cell: Cell) -> Row:
    """
    ACC and ASR while Adversarial Fine-Tuning goes on, and where it stopped by itself (Fig. 3).

    Settings: `every` so many steps (20), on `n_test` test images (2,000), and those of the defence. The row has points
    of stage, steps, ACC and ASR, the first from before all of them.
    """
    settings = {"mirror": scene.dataset.mirror, **cell.settings}
    every, n_test = settings.pop("every", 20), settings.pop("n_test", 2_000)
    chosen = np.random.default_rng(scene.infection.seed).permutation(len(scene.dataset.y_test))[:n_test]
    test = (scene.dataset.x_test[chosen], scene.dataset.y_test[chosen], scene.attack, scene.labels)
    purified, points = clone(scene.classifier), []

    def look(stage: int, step: int) -> None:
        if step % every == 0:
            scores = evaluate(purified, *test)
            points.append([stage, step, scores.acc, scores.asr])

    look(1, 0)
    defence = AdversarialFineTuning(scene.classifier, **settings)
    defence.on_step = look
    x, y = defender_data(scene, cell)
    defence(x, purified, y)
    return {"points": points, "stopped_after": defence.stopped_after, "n_test": len(chosen), "n_defender": len(x)}


def _training_images(scene: Scene, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return clean training images, drawn at random as in the paper, and their labels."""
    rng = np.random.default_rng(scene.infection.seed)
    chosen = rng.permutation(len(scene.dataset.y_train))[:count]
    return scene.dataset.x_train[chosen], scene.dataset.y_train[chosen]


def _attack_settings(cell: Cell) -> dict[str, Any]:
    return {key: value for key, value in cell.settings.items() if key != "n_images"}


@TASKS.register("label_matrix")
def adversarial_labels(scene: Scene, cell: Cell) -> Row:
    """
    On which labels untargeted adversarial examples of the infected model fall (Figs. 1, 4, 5).

    Settings: `n_images` (10,000), and those of the attack. The row has the counts, by true and predicted label.
    """
    x, y = _training_images(scene, cell.settings.get("n_images", 10_000))
    fallen = predict_labels(
        scene.classifier, TorchAttacksPGD(scene.classifier, **_attack_settings(cell)).generate(x, y)
    )
    nb_classes = scene.dataset.nb_classes
    counts = np.zeros((nb_classes, nb_classes), dtype=int)
    np.add.at(counts, (y, fallen), 1)
    wanted = wanted_labels(scene.labels, y)
    others = wanted != y
    return {
        "counts": counts.tolist(),
        "target_share": float(np.mean(fallen == wanted)),
        "target_share_of_others": float(np.mean(fallen[others] == wanted[others])),
        "adversarial_success": float(np.mean(fallen != y)),
    }


@TASKS.register("feature_distance")
def feature_distance(scene: Scene, cell: Cell) -> Row:
    """
    How far triggered images are from adversarial ones in the last convolution's features (Table I, Fig. 2).

    Settings: `n_images` (10,000), and those of the attack. Adversarial examples are made on the infected model, or on a
    benign one of the same recipe; the infected model's features measure both. As a second number, the benign model's
    features measure its own.
    """
    benign = plant(scene.infection.benign, dataset=scene.dataset, store=scene.store)
    x, y = _training_images(scene, cell.settings.get("n_images", 10_000))
    wanted = wanted_labels(scene.labels, y)
    one_hot = np.eye(scene.dataset.nb_classes, dtype=np.float32)[wanted]
    triggered = stamp(scene.attack, to_float(x, scene.dataset.clip_values), one_hot)
    adversarial = {
        name: TorchAttacksPGD(each.classifier, **_attack_settings(cell)).generate(x, y)
        for name, each in (("infected", scene), ("benign", benign))
    }

    def distance(extractor: Scene, examples: np.ndarray) -> float:
        one, other = (
            features(extractor.classifier, images).reshape(len(images), -1) for images in (triggered, examples)
        )
        return float(np.linalg.norm(one - other, axis=1).mean())

    return {
        "distance_infected": distance(scene, adversarial["infected"]),
        "distance_benign": distance(scene, adversarial["benign"]),
        "distance_benign_features": distance(benign, adversarial["benign"]),
    }
