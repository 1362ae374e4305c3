"""Several GPUs or processors share the work: `torchrun --nproc-per-node 2 examples/several_processes.py`."""

from art_aft import AdversarialFineTuning, AllToOne, TorchAttacksPGD, build_classifier, evaluate, poison
from art_aft.attacks import Blend
from art_aft.classifiers.classifier import images_for
from art_aft.data.datasets import digits, split_clean
from art_aft.runtime.processes import across_processes
from art_aft.training.batches import Batches
from art_aft.training.loop import fit
from art_aft.training.recipe import Recipe

# Every process runs all of this file, with the same data and the same seeds.
data = digits(seed=0)
clean, rest = split_clean(data.y_train, 0.1, seed=0)
attack, labels = Blend(), AllToOne(0)
poisoned = poison(data.x_train[rest], data.y_train[rest], attack, labels, rate=0.1, seed=0)

with across_processes() as here:
    # Inside the block, so that each process's classifier is on a GPU of its own, where there are some.
    classifier = build_classifier("wrn-10-1", input_shape=data.input_shape, nb_classes=10)
    recipe = Recipe(nb_epochs=5, batch_size=64, learning_rate=0.1, schedule="one_cycle", weight_decay=1e-4)
    images = images_for(classifier, poisoned.x, poisoned.y)
    fit(classifier, Batches(images, recipe, classifier.device), recipe)

    tuning = {"batch_size": 32, "learning_rate": 0.02, "padding": 0, "horizontal_flip": False}
    defence = AdversarialFineTuning(classifier, attack=TorchAttacksPGD(classifier, eps=0.1), **tuning)
    purified = defence(data.x_train[clean], y=data.y_train[clean])

if here.rank == 0:  # all have the same two classifiers
    print("before:", evaluate(classifier, data.x_test, data.y_test, attack, labels))
    print("after: ", evaluate(purified, data.x_test, data.y_test, attack, labels))
