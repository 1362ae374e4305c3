"""Build, run and score defences; the cells of a grid of experiments, and what they measure, one function a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from sklearn.metrics import confusion_matrix

from art_aft.adversarial.pgd import TorchAttacksPGD
from art_aft.attacks import stamp
from art_aft.attacks.labels import wanted_labels
from art_aft.checks import check_names
from art_aft.classifiers.classifier import clone, features, predict_labels
from art_aft.data.image_files import contents
from art_aft.data.pixels import to_float
from art_aft.defences import DEFENCES
from art_aft.defences.base import Defence
from art_aft.experiments.rows import Row, json_values
from art_aft.experiments.victims import Victim, VictimSettings, clean_subset, poisoned_data, train_victim
from art_aft.experiments.warming import warm_up
from art_aft.metrics import Scores, defence_effectiveness, evaluate
from art_aft.registry import Registry
from art_aft.runtime.callbacks import Callback
from art_aft.runtime.random_state import seed_for


def build_defence(
    name: str, classifier: PyTorchClassifier, settings: Mapping[str, Any] | None = None, **more: Any
) -> Defence:
    """
    Return a defence from its name and settings that JSON or a command line can hold.

    :param name: The name of the defence, of those in `DEFENCES`.
    :param classifier: The classifier that may be infected.
    :param settings: Settings of the defence; None is its defaults. A mapping for `attack` holds settings of
        `TorchAttacksPGD`, such as {"eps": 0.05}.
    :param more: Settings that replace those.
    :raises ValueError: If the name or a setting is unknown, or a setting is out of its range.
    :raises TypeError: If a setting is of another type.
    """
    kind, used = DEFENCES[name], {**(settings or {}), **more}
    check_names("settings", used, kind.params)
    if isinstance(used.get("attack"), Mapping):
        own = {
            "precision": used.get("precision", "auto"),
            "seed": seed_for(used.get("seed", 0), "attack", 0),
            "verbose": used.get("verbose", False),
        }
        used["attack"] = TorchAttacksPGD(classifier, **{**own, **used["attack"]})
    return kind(classifier, **used)


def run_defence(
    defence: Defence,
    x: Any,
    y: np.ndarray | None = None,
    *,
    classifier: PyTorchClassifier | None = None,
    callback: Callback | None = None,
) -> tuple[PyTorchClassifier, Row]:
    """
    Run a defence.

    :param defence: The defence.
    :param x: The defender's images, as the defence takes them.
    :param y: Their labels, as indices or one-hot. None with a loader or with `Images`.
    :param classifier: The classifier to purify in place. None is a copy of the defence's own.
    :param callback: Watches stages, steps and epochs.
    :return: The purified classifier, and a part of a row: the seconds, all settings, and what the defence chose.
    """
    purified = defence(x, classifier, y, callback=callback)
    report = defence.report
    assert report is not None
    settings = {name: value for name, value in report.settings.items() if name != "verbose"}
    facts = {"settings": settings, "chosen": report.chosen, "seconds": round(report.seconds, 3)}
    return purified, json_values(facts)


def score(classifier: PyTorchClassifier, test: tuple[Any, ...], before: Scores | None = None) -> Row:
    """
    Return how a classifier does on clean and on triggered test images, as a part of a row.

    :param classifier: The classifier.
    :param test: Test images, their labels, the attack and its label map, as for `evaluate`.
    :param before: The scores before the defence. None leaves DER out.
    :return: ACC, ASR, RA and DER as shares, and the numbers of images.
    """
    return scores_row(evaluate(classifier, *test), before)


def scores_row(after: Scores, before: Scores | None = None) -> Row:
    """Return scores as a part of a row, with DER where the scores before the defence are given."""
    return asdict(after) | ({} if before is None else {"der": defence_effectiveness(before, after)})


def scored_on(victim: Victim) -> tuple[Any, ...]:
    """Return what a victim is scored on: test images, their labels, the attack and its label map."""
    return victim.dataset.x_test, victim.dataset.y_test, victim.attack, victim.labels


@dataclass(frozen=True)
class Cell:
    """
    One measurement: a victim, perhaps a defence, and what is measured.

    :param victim: The settings of the victim.
    :param task: The name of what is measured, of those in `TASKS`.
    :param defence: The name of the defence, or "none".
    :param settings: The settings of the defence, as for `build_defence`, or of the task if there is no defence; JSON
        values.
    :param subset: The number of the defender's clean subset; see `clean_subset`.
    :param clean_data: Whether the defender has clean data. Otherwise it has the poisoned training set, with the labels
        given there.
    :param variant: What tables call these settings, if one defence runs with several.
    """

    victim: VictimSettings
    task: str = "scores"
    defence: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    subset: int = 0
    clean_data: bool = True
    variant: str = ""

    def facts(self) -> Row:
        """Return the cell as JSON values. The data set is given by its name, without its folder."""
        facts = asdict(self)
        facts["victim"]["data"] = Path(self.victim.data).name
        return json_values(facts)

    @property
    def key(self) -> str:
        """A readable name for files, different for different cells."""
        facts = json.dumps(self.facts(), sort_keys=True) + contents(self.victim.data)
        digest = hashlib.sha256(facts.encode()).hexdigest()[:12]
        victim = self.victim
        return f"{Path(victim.data).name}-{victim.attack}-{self.task}-{self.defence}-{self.subset}-{digest}"


#: What can be measured: functions from a victim and a cell to a part of a row.
TASKS: Registry[Callable[[Victim, Cell], Row]] = Registry("task")

#: Tasks that need the benign model of the same recipe, too.
COMPARED_WITH_BENIGN = ("feature_distance",)


def defender_data(victim: Victim, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels that the defender of a cell has."""
    if cell.clean_data:
        return clean_subset(victim, cell.subset)
    poisoned = poisoned_data(victim)
    return poisoned.x, poisoned.y


def _defence(victim: Victim, name: str, settings: Mapping[str, Any]) -> Defence:
    """Return a cell's defence; unless its settings say otherwise, it flips images if the data set allows that."""
    known = "horizontal_flip" in DEFENCES[name].params
    flip = {"horizontal_flip": victim.dataset.horizontal_flip} if known else {}
    return build_defence(name, victim.classifier, {**flip, **settings})


@TASKS.register("scores")
def scores(victim: Victim, cell: Cell) -> Row:
    """
    ACC, ASR, RA and DER of the victim, or of the classifier that a defence purified.

    For Adversarial Fine-Tuning also the scores after Stage 2 (Table IX).
    """
    test = scored_on(victim)
    before = victim.scores or evaluate(victim.classifier, *test)
    if cell.defence == "none":
        return {**scores_row(before, before), "seconds": victim.seconds}
    x, y = defender_data(victim, cell)
    defence = _defence(victim, cell.defence, cell.settings)
    warm_up(victim.classifier, x[:64], y[:64])
    purified, facts = run_defence(defence, x, y)
    row = {**score(purified, test, before), "seconds": facts["seconds"]}
    after_stage_2 = getattr(defence.report, "adversarial_classifier", None)
    if after_stage_2 is not None:
        row["stage_2"] = score(after_stage_2, test)
    return row | {"n_defender": len(x), "before": asdict(before)}


class _Curve(Callback):
    """Scores a classifier every so many steps of each stage."""

    def __init__(self, classifier: PyTorchClassifier, test: tuple[Any, ...], every: int) -> None:
        self.classifier, self.test, self.every = classifier, test, every
        #: The number of the stage, the number of steps in it, ACC and ASR.
        self.points: list[tuple[int, int, float, float]] = []
        self.stage = 1
        self.on_step(0)

    def on_stage(self, name: str) -> None:
        number = name.removeprefix("Stage ")
        if number.isdecimal():
            self.stage = int(number)

    def on_step(self, step: int) -> None:
        if step % self.every == 0:
            found = evaluate(self.classifier, *self.test)
            self.points.append((self.stage, step, found.acc, found.asr))


@TASKS.register("curve")
def curve(victim: Victim, cell: Cell) -> Row:
    """
    ACC and ASR during Adversarial Fine-Tuning, and where early stopping ended it (Fig. 3).

    Settings: `every`, the number of steps between points (20); `n_test`, the number of test images (2,000); and those
    of the defence. The row has points of stage, steps, ACC and ASR. The first is from before all steps.
    """
    settings = dict(cell.settings)
    every, n_test = settings.pop("every", 20), settings.pop("n_test", 2_000)
    chosen = np.random.default_rng(victim.settings.seed).permutation(len(victim.dataset.y_test))[:n_test]
    test = (victim.dataset.x_test[chosen], victim.dataset.y_test[chosen], victim.attack, victim.labels)
    purified = clone(victim.classifier)
    watch = _Curve(purified, test, every)
    x, y = defender_data(victim, cell)
    defence = _defence(victim, cell.defence, settings)
    run_defence(defence, x, y, classifier=purified, callback=watch)
    stopped_after = getattr(defence.report, "stopped_after", None)
    return {"points": watch.points, "stopped_after": stopped_after, "n_test": len(chosen), "n_defender": len(x)}


def _training_images(victim: Victim, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Return as many clean training images as the cell says, drawn at random as in the paper, and their labels."""
    rng = np.random.default_rng(victim.settings.seed)
    chosen = rng.permutation(len(victim.dataset.y_train))[: cell.settings.get("n_images", 10_000)]
    return victim.dataset.x_train[chosen], victim.dataset.y_train[chosen]


def _attack(victim: Victim, cell: Cell) -> TorchAttacksPGD:
    settings = {key: value for key, value in cell.settings.items() if key != "n_images"}
    return TorchAttacksPGD(victim.classifier, **settings)


@TASKS.register("label_matrix")
def adversarial_labels(victim: Victim, cell: Cell) -> Row:
    """
    The labels of the victim's untargeted adversarial examples (Figs. 1, 4, 5).

    Settings: `n_images` (10,000), and those of `TorchAttacksPGD`. The row has counts by true and predicted label.
    """
    x, y = _training_images(victim, cell)
    predicted = predict_labels(victim.classifier, _attack(victim, cell).generate(x, y))
    wanted = wanted_labels(victim.labels, y)
    others = wanted != y
    return {
        "counts": confusion_matrix(y, predicted, labels=range(victim.dataset.nb_classes)).tolist(),
        "target_share": float(np.mean(predicted == wanted)),
        "target_share_of_others": float(np.mean(predicted[others] == wanted[others])),
        "adversarial_success": float(np.mean(predicted != y)),
    }


@TASKS.register("feature_distance")
def feature_distance(victim: Victim, cell: Cell) -> Row:
    """
    The distance between triggered and adversarial images in the features of the last convolution (Table I, Fig. 2).

    Settings: `n_images` (10,000), and those of `TorchAttacksPGD`. Adversarial examples are made on the victim, and on a
    benign model of the same recipe. The victim's features measure both; the benign model's features also measure its
    own.
    """
    benign = train_victim(victim.settings.benign, dataset=victim.dataset, store=victim.store)
    x, y = _training_images(victim, cell)
    one_hot = np.eye(victim.dataset.nb_classes, dtype=np.float32)[wanted_labels(victim.labels, y)]
    triggered = stamp(victim.attack, to_float(x, victim.dataset.clip_values), one_hot)
    infected_examples, benign_examples = (_attack(each, cell).generate(x, y) for each in (victim, benign))

    def distance(extractor: Victim, examples: np.ndarray) -> float:
        one, other = (
            features(extractor.classifier, images).reshape(len(images), -1) for images in (triggered, examples)
        )
        return float(np.linalg.norm(one - other, axis=1).mean())

    return {
        "distance_infected": distance(victim, infected_examples),
        "distance_benign": distance(victim, benign_examples),
        "distance_benign_features": distance(benign, benign_examples),
    }
