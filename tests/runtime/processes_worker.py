"""What test_processes.py runs twice: in one process, and in two under torchrun."""

import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from helpers import Calls, train

from art_aft import AdversarialFineTuning, TorchAttacksPGD, build_classifier
from art_aft.defences import (
    AdversarialFineTuningWithoutCleanData,
    FinePruning,
    NeuralAttentionDistillation,
    UniversalAdversarialFineTuning,
)
from art_aft.runtime.processes import across_processes, world
from art_aft.training.recipe import Recipe

SHAPE, NB_CLASSES, N = (2, 8, 8), 3, 23


class Net(torch.nn.Module):
    """Two convolutions, batch normalisation of maps and of vectors, dropout of both, and a layer that nobody uses."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.Conv2d(6, 5, 1)
            self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(6), torch.nn.BatchNorm1d(5, momentum=None)])
            self.norms[0].weight.data.uniform_(0.5, 1.5)
            self.fc, self.unused = torch.nn.Linear(5, NB_CLASSES), torch.nn.Linear(2, 2)
        self.maps, self.vectors = torch.nn.Dropout2d(dropout), torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maps(torch.relu(self.norms[0](self.first(x))))
        # Moved first: else that batch normalisation would be blind to an error of the mean in this one.
        return self.fc(self.vectors(self.norms[1](torch.tanh(self.second(x)).mean(dim=(2, 3)))))


def classifier(loss=None, optimizer=False, **settings):
    model = Net(**settings)
    given = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)} if optimizer else {}
    built = build_classifier(model, input_shape=SHAPE, nb_classes=NB_CLASSES, device_type="cpu", **given)
    if loss is not None:
        built._loss = loss
    return built


def data(n=N):
    rng = np.random.default_rng(0)
    return rng.random((n, *SHAPE), dtype=np.float32), rng.integers(0, NB_CLASSES, n)


def recipe(**settings):
    chosen = {"nb_epochs": 2, "batch_size": 8, "learning_rate": 0.1, "precision": "float32", "padding": 1, "seed": 3}
    return Recipe(**{**chosen, **settings})


def state(of):
    return {name: value.numpy().copy() for name, value in of.model.state_dict().items()}


def trained(settings=None, given=None, n=N, **hooks):
    victim = classifier(**(given or {}))
    train(victim, *data(n), recipe(**(settings or {})), **hooks)
    return state(victim)


def fine_tuned(defence=AdversarialFineTuning, **settings):
    chosen = {"nb_epochs": 2, "batch_size": 8, "padding": 1, "precision": "float32", "learning_rate": 0.05}
    x, y = data()
    return state(defence(classifier(), **{**chosen, **settings})(x, y=y))


def interrupted(folder):
    """A run that ends in its third epoch and is started again, and whether there is one file, of that run."""

    def on_step(step):
        if step == 7:
            raise KeyboardInterrupt

    victim, file = classifier(), Path(folder) / "run.pt"
    try:
        train(victim, *data(), recipe(nb_epochs=3), callbacks=[Calls(step=on_step)], checkpoint=file)
    except KeyboardInterrupt:
        victim = classifier()
        train(victim, *data(), recipe(nb_epochs=3), checkpoint=file)
    return state(victim)


def attacked(n=13, labels=True, **settings):
    x, y = data(n)
    attack = TorchAttacksPGD(classifier(), eps=0.05, max_iter=4, batch_size=4, precision="float32", **settings)
    return {"x": attack.generate(x, y if labels else None)}


CASES = {
    "attack linf": lambda folder: attacked(),
    "attack l2 predicted": lambda folder: attacked(labels=False, norm=2),
    "attack one image": lambda folder: attacked(1),
    "fit": lambda folder: trained(),
    "fit smallest batches": lambda folder: trained({"batch_size": 2, "learning_rate": 0.01}, n=6),
    "fit one step": lambda folder: trained({"max_steps": 1}),
    "fit flipped": lambda folder: trained({"horizontal_flip": True}),
    "fit own optimizer": lambda folder: trained({"learning_rate": None}, {"optimizer": True}),
    "fit weighted": lambda folder: trained(
        given={"loss": torch.nn.CrossEntropyLoss(torch.tensor([0.1, 1.0, 3.0]), label_smoothing=0.1)}
    ),
    "fit sum": lambda folder: trained(
        {"learning_rate": 0.005}, {"loss": torch.nn.CrossEntropyLoss(reduction="sum", ignore_index=1)}
    ),
    "fit interrupted": interrupted,
    "bfloat16": lambda folder: trained({"precision": "bfloat16"}),
    "aft": lambda folder: fine_tuned(clean_epochs=1),
    "aft batch": lambda folder: fine_tuned(regenerate="batch", clean_epochs=0),
    "no clean data": lambda folder: fine_tuned(AdversarialFineTuningWithoutCleanData, early_stopping_checks=3),
    "universal": lambda folder: fine_tuned(UniversalAdversarialFineTuning, temperature=0.0, max_iter=3),
    "distilled": lambda folder: fine_tuned(UniversalAdversarialFineTuning, label_epochs=1, max_iter=3, clean_share=0.3),
    "fine-pruning": lambda folder: fine_tuned(FinePruning, max_drop=0.5),
    "nad": lambda folder: fine_tuned(
        NeuralAttentionDistillation, layers=("first",), betas=(10.0,), teacher_epochs=1, nb_epochs=1
    ),
}


def results(folder):
    found = {f"{case}/{name}": value for case, run in CASES.items() for name, value in run(folder).items()}
    found["images"] = np.array(trained_on())
    return found


def trained_on():
    """The numbers of the images of each step of two epochs that enter the model here, filled up with -1."""
    victim, steps = classifier(), []
    x = np.zeros((N, *SHAPE), dtype=np.float32)
    x[:, 0, 0, 0] = np.arange(N) / 100

    def note(module, args):
        numbers = np.rint(args[0][:, 0, 0, 0].numpy() * 100).astype(int)
        steps.append([*numbers, *[-1] * (8 - len(numbers))])

    handle = victim.model.register_forward_pre_hook(note)
    train(victim, x, data()[1], recipe(padding=0))
    handle.remove()
    return steps


def different_data(folder):
    """Messages of the errors that come where one process has other data than another."""
    x, y = data()
    y = (y + world().rank) % NB_CLASSES
    for run in (
        lambda: train(classifier(), x, y, recipe()),
        lambda: TorchAttacksPGD(classifier()).generate(np.clip(x + np.float32(world().rank) / 1e6, 0, 1)),
        lambda: AdversarialFineTuning(classifier(), seed=world().rank)(*data()[:1], y=data()[1]),
        lambda: train(classifier(), x[:1], data()[1][:1], recipe()),
        lambda: train(classifier(), *data(), recipe(nb_epochs=1), checkpoint=Path(folder) / f"run{world().rank}.pt"),
    ):
        try:
            run()
            yield ""
        except ValueError as error:
            yield str(error)


def main(folder):
    warnings.simplefilter("error")
    rank = os.environ["RANK"]
    if rank == "0":  # for "checkpoint" in different_data: this process has a file to go on from, the other has none
        train(classifier(), *data(), recipe(nb_epochs=1), checkpoint=Path(folder) / "run0.pt")
    with across_processes(timeout=300) as here:
        found = results(folder)
        same_image = np.repeat(data(1)[0], 2, axis=0)
        attack = TorchAttacksPGD(classifier(), eps=0.05, max_iter=1, num_random_init=1, precision="float32")
        found["random starts"] = attack.generate(same_image, np.zeros(2))
        found["errors"] = np.array(list(different_data(folder)))
        victim = classifier()
        classes = [type(module) for module in victim.model.modules()]
        train(victim, *data(), recipe())
        assert classes == [type(module) for module in victim.model.modules()]
        assert not victim.model.training
    assert (here.rank, here.size) == (int(rank), 2)
    assert not torch.distributed.is_initialized()
    assert not [name for name in threads() if "gloo" in name]  # one that is left may crash the exit
    # Once the block has ended, each process trains for itself again, and what it has trained is an ordinary model.
    alone = trained()
    found |= {f"alone/{name}": value for name, value in alone.items()}
    train(victim, *data(), recipe())
    np.savez(Path(folder) / f"rank{rank}.npz", **found)


def threads():
    """The names of this process's threads, those of C++ too, where the system tells."""
    return [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]


def die(folder):
    """The second process leaves in the fourth step; the first one writes the error that it then gets."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # else torchrun may be quicker than the error
    steps = []

    def transform(images, labels):
        steps.append(len(images))
        if len(steps) == 4 and os.environ["RANK"] == "1":
            os._exit(1)
        return images, labels

    try:
        with across_processes():
            train(classifier(), *data(), recipe(nb_epochs=50), transform=transform)
    except RuntimeError as error:
        (Path(folder) / "error.txt").write_text(f"{len(steps)} {error}")
        raise


if __name__ == "__main__":
    {"main": main, "die": die}[sys.argv[1]](sys.argv[2])
