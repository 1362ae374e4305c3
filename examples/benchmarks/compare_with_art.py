"""Compare ART's own Neural Cleanse, which is for Keras models only, with this package's: same weights, same digits."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.defences.transformer.poisoning import NeuralCleanse
from art.estimators.classification import KerasClassifier, PyTorchClassifier

from art_aft.attacks import BadNets
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison
from art_aft.classifiers.classifier import build_classifier, images_for
from art_aft.data.datasets import Dataset, digits, split_clean
from art_aft.defences import PyTorchNeuralCleanse
from art_aft.experiments.rows import Row, environment, json_values
from art_aft.metrics import evaluate
from art_aft.runtime.files import write_json
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

TARGET = 0
VICTIM: Row = {"nb_epochs": 25, "batch_size": 64, "learning_rate": 0.05, "schedule": "one_cycle"}
OPTIMIZER = {"learning_rate": 0.01, "momentum": 0.9}  # of the Keras model, with which ART unlearns; as in `Recipe`

Trigger = tuple[int, np.ndarray, np.ndarray]  # label, mask, pattern
Fresh = Callable[[], Any]  # makes a defence of an untouched copy
Contender = tuple[str, Fresh, np.ndarray]  # title, defence, and the images as it takes them


@dataclass
class Judged:
    """A defended classifier as `evaluate` needs it: channels first, and abstention as a class that is never right."""

    classifier: Any
    input_shape: tuple[int, ...]
    nb_classes: int  # with abstention
    clip_values: tuple[float, float] = (0.0, 1.0)

    def predict(self, x: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """Return predictions with one more column, the largest where the classifier abstains (all zeros)."""
        x = x if isinstance(self.classifier, PyTorchClassifier) else np.moveaxis(x, 1, -1)
        predictions = self.classifier.predict(x, batch_size=batch_size)
        return np.column_stack([predictions, np.where(predictions.any(axis=1), -np.inf, np.inf)])


def train_victim(data: Dataset, rest: np.ndarray, seed: int) -> PyTorchClassifier:
    """Return a small network that has learned a BadNets backdoor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        convolutions = [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 32, 3, padding=1)]
        blocks = [layer for part in convolutions for layer in (part, torch.nn.ReLU(), torch.nn.MaxPool2d(2))]
        head = [torch.nn.Flatten(), torch.nn.Linear(32 * 4 * 4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)]
    classifier = build_classifier(torch.nn.Sequential(*blocks, *head), input_shape=(1, 16, 16), nb_classes=10)
    poisoned = poison(data.x_train[rest], data.y_train[rest], BadNets(), AllToOne(TARGET), rate=0.1, seed=seed)
    recipe = Recipe(**VICTIM, seed=seed)
    images = images_for(classifier, poisoned.x, poisoned.y)
    fit(classifier, Batches(images, recipe, classifier.device), recipe)
    return classifier


def to_keras(classifier: PyTorchClassifier, x: np.ndarray) -> Any:
    """Return the same network in Keras, compared on some images."""
    import keras
    from keras import layers

    convolution = partial(layers.Conv2D, kernel_size=3, padding="same", activation="relu")
    blocks = [convolution(16), layers.MaxPooling2D(), convolution(32), layers.MaxPooling2D(), layers.Flatten()]
    # Softmax as a layer of its own: ART counts the output layer out twice, and so takes the last layer but two for
    # the penultimate one. With Dense(10, "softmax") that is Flatten, and pruning raises ValueError.
    head = [layers.Dense(64, activation="relu"), layers.Dense(10), layers.Softmax()]
    model = keras.Sequential([layers.Input((16, 16, 1)), *blocks, *head])
    weights = [parameter.detach().cpu().numpy() for parameter in classifier.model.parameters()]
    weights[4] = weights[4].reshape(64, 32, 4, 4).transpose(0, 2, 3, 1).reshape(64, -1)  # Keras flattens (H, W, C)
    model.set_weights([w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T for w in weights])
    model.compile(optimizer=keras.optimizers.SGD(**OPTIMIZER), loss="categorical_crossentropy")
    logits = keras.Model(model.inputs, model.layers[-2].output)(np.moveaxis(x, 1, -1)).numpy()
    np.testing.assert_allclose(logits, classifier.predict(x), rtol=0, atol=1e-4)
    return model


def art_defence(infected: PyTorchClassifier, x: np.ndarray, seed: int, settings: Row, keep_rate: bool) -> Any:
    """
    Return ART's defence of a Keras copy.

    :param keep_rate: ART's `reset` sets all of Adam's variables to zero before each search, and Keras 3 counts the
        learning rate among them: nothing moves. A schedule is no variable, and so a way around without a patch.
    """
    import keras

    keras.utils.set_random_seed(seed)
    if keep_rate:
        settings = {**settings, "learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 1, 1.0)}
    classifier = KerasClassifier(to_keras(infected, x), clip_values=(0.0, 1.0))
    return NeuralCleanse(classifier)(classifier, **settings)


def search(defence: Any, x: np.ndarray, y: np.ndarray, assume: bool) -> tuple[list[Trigger], list[float]]:
    """
    Return what a defence suspects, and the L1 norms of all labels' masks.

    :param assume: Whether to take the target label for suspected if the search suspects none.
    """
    triggers: list[Trigger] = []
    generate = defence.generate_backdoor

    def watched(*arguments: Any) -> Any:
        triggers.append((len(triggers), *generate(*arguments)))
        return triggers[-1][1:]

    defence.generate_backdoor = watched  # ART does not return the masks of unsuspected labels
    found = defence.outlier_detection(x, y)
    if isinstance(defence, PyTorchNeuralCleanse):  # which searches all labels at once
        every = defence.detection.triggers
        triggers = list(zip(every.labels.tolist(), every.masks, every.patterns, strict=True))
    if assume and not found:
        found = [triggers[TARGET]]
        if isinstance(defence, PyTorchNeuralCleanse):
            defence.detection = replace(defence.detection, flagged=[TARGET])
    return found, [float(np.abs(mask).sum()) for _, mask, _ in triggers]


def trials(
    who: str, fresh: Fresh, x: np.ndarray, y: np.ndarray, judge: Callable[[Any], Row], assume: bool
) -> Iterator[Row]:
    """Yield the row of a search, and one for each mitigation of a fresh copy. A failure is a result, too."""
    seen: Row = {}
    for mitigation in ("none", "unlearning", "pruning", "filtering"):
        row: Row = {"who": who, "mitigation": mitigation}
        # ART prints a tensor at each step and shows progress bars, and has no setting for either.
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            try:
                defence = fresh()
                start = time.perf_counter()
                if mitigation == "none":
                    found, seen["norms"] = search(defence, x, y, assume)
                    seen["flagged"] = [int(label) for label, *_ in found]
                    detection = getattr(defence, "detection", None)
                else:  # the same seed would find the same again
                    defence.outlier_detection = lambda *_, found=found: found
                    defence._detect = lambda *_, detection=detection: detection  # which ours asks instead
                    defence.mitigate(x, y, [mitigation])
                row["seconds"] = round(time.perf_counter() - start, 2)
                row["settings"] = {name: getattr(defence, name) for name in ("steps", "batch_size", "norm")}
                row.update(seen, **judge(defence))
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
        yield row
        if mitigation == "none" and "error" in row:
            return  # there is nothing to mitigate


def as_line(row: Row) -> str:
    """Return a row as text: seconds, suspected labels, the norm of the target's mask, the median norm, percentages."""
    start = f"{row['who']:<14} {row['mitigation'].replace('none', 'search'):<11}"
    if "error" in row:
        return f"{start} {row['error']}"
    flagged = ",".join(map(str, row["flagged"])) or "none"
    shares = " ".join(f"{100 * row[key]:6.1f}" for key in ("acc", "asr", "ra"))
    norms = f"{row['norms'][TARGET]:7.1f} {np.median(row['norms']):7.1f}"
    return f"{start} {row['seconds']:8.1f} {flagged:>8} {norms} {shares}"


def contenders(infected: PyTorchClassifier, x: np.ndarray, seed: int, settings: Row, versions: Row) -> list[Contender]:
    """Return this package's Neural Cleanse, and ART's where TensorFlow is installed, whose versions are added."""
    found: list[Contender] = [
        ("art_aft", partial(PyTorchNeuralCleanse.from_classifier, infected, seed=seed, **settings), x)
    ]
    if not importlib.util.find_spec("tensorflow"):
        print("ART's own needs TensorFlow: pip install 'art-aft[keras]'")
        return found
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow

    tensorflow.get_logger().setLevel("ERROR")
    versions.update(tensorflow=tensorflow.__version__, keras=keras.__version__)
    for who, keep_rate in (("ART", False), ("ART, rate kept", True)):
        found.append((who, partial(art_defence, infected, x, seed, settings, keep_rate), np.moveaxis(x, 1, -1)))
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="the most steps of a search, for both (default: each one's own)")
    parser.add_argument("--smoke", action="store_true", help="only 2 steps, whether a label is suspected or not")
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    steps = 2 if options.smoke else options.steps
    settings: Row = {} if steps is None else {"steps": steps}
    logging.getLogger("art").setLevel(logging.ERROR)  # ART warns at each prediction without filtering

    data, facts = digits(seed=options.seed), environment()
    clean, rest = split_clean(data.y_train, 0.1, seed=options.seed)
    x, y = data.x_train[clean], np.eye(10, dtype=np.float32)[data.y_train[clean]]
    infected = train_victim(data, rest, options.seed)

    def judge(classifier: Any) -> Row:
        judged = Judged(classifier, data.input_shape, data.nb_classes + 1)
        return asdict(evaluate(judged, data.x_test, data.y_test, BadNets(), AllToOne(TARGET)))

    rows, all_contenders = [], contenders(infected, x, options.seed, settings, facts["versions"])
    if options.smoke:
        print(f"These numbers mean nothing: 2 steps, and label {TARGET} is taken for suspected if none is.")
    print(f"{len(x)} clean digits; label {TARGET} is the target label; settings: {settings or 'the defaults'}")
    print("who            what         seconds  flagged    norm  median    ACC    ASR     RA")
    for who, fresh, images in all_contenders:
        for row in trials(who, fresh, images, y, judge, options.smoke):
            rows.append(row)
            print(as_line(row), flush=True)
    print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    if options.output:
        facts.update(seed=options.seed, smoke=options.smoke, set=settings, victim=VICTIM, keras_optimizer=OPTIMIZER)
        write_json(options.output, json_values({"environment": facts, "rows": rows}))


if __name__ == "__main__":
    main()
