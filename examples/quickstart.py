"""An existing ART pipeline, and the three lines that remove the backdoor of its poisoned data."""

import torch
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.estimators.classification import PyTorchClassifier

from art_aft import AdversarialFineTuning, AllToOne, TorchAttacksPGD, evaluate, poison
from art_aft.attacks import Blend
from art_aft.data.datasets import digits, split_clean
from art_aft.models import WideResNet

# The pipeline: somebody poisoned a tenth of the training data, and nobody noticed.
torch.manual_seed(0)
data = digits(seed=0)
clean, rest = split_clean(data.y_train, 0.1, seed=0)
attack, labels = PoisoningAttackBackdoor(Blend()), AllToOne(0)
poisoned = poison(data.x_train[rest], data.y_train[rest], attack, labels, rate=0.1, seed=0)
model = WideResNet(10, 1, nb_classes=10, in_channels=1)
classifier = PyTorchClassifier(
    model,
    loss=torch.nn.CrossEntropyLoss(),
    optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
    input_shape=(1, 16, 16),
    nb_classes=10,
    clip_values=(0.0, 1.0),
)
classifier.fit(poisoned.x, poisoned.y, batch_size=64, nb_epochs=15)
print("before:", evaluate(classifier, data.x_test, data.y_test, attack, labels))

# The three lines, with 120 clean digits. A flipped digit is no digit, and small images bear no wide crops.
tuning = {"batch_size": 32, "learning_rate": 0.02, "padding": 0, "horizontal_flip": False}
defence = AdversarialFineTuning(classifier, attack=TorchAttacksPGD(classifier, eps=0.1), **tuning)
purified = defence(data.x_train[clean], y=data.y_train[clean])
print("after: ", evaluate(purified, data.x_test, data.y_test, attack, labels))
