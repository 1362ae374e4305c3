"""A model of your own: channels last, pixels from 0 to 255, mean and deviation in ART, a `.view` on activations."""

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_aft import AdversarialFineTuningTrainer, AllToOne, TorchAttacksPGD, evaluate, poison
from art_aft.attacks import BadNets
from art_aft.data.datasets import digits, split_clean


class OwnModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.last = torch.nn.Linear(32 * 8 * 8, 10)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x.permute(0, 3, 1, 2)))))
        return self.last(x.contiguous().view(len(x), -1))


torch.manual_seed(0)
data = digits(seed=0)
x_train, x_test = (255 * np.moveaxis(x, 1, -1) for x in (data.x_train, data.x_test))  # (N, 16, 16, 1), 0 to 255
clean, rest = split_clean(data.y_train, 0.1, seed=0)
trigger = BadNets(channels_first=False, clip_values=(0, 255))
poisoned = poison(x_train[rest], data.y_train[rest], trigger, AllToOne(0), rate=0.1, seed=0)
settings = {"channels_first": False, "clip_values": (0, 255), "preprocessing": ([78.0], [96.0])}
model = OwnModel()
optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
classifier = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (16, 16, 1), 10, optimizer=optimizer, **settings)
classifier.fit(poisoned.x, poisoned.y, batch_size=64, nb_epochs=15)
print("before:", evaluate(classifier, x_test, data.y_test, trigger, AllToOne(0)))

tuning = {"learning_rate": 0.02, "clean_epochs": 30, "batch_size": 32, "padding": 0, "horizontal_flip": False}
trainer = AdversarialFineTuningTrainer(classifier, attack=TorchAttacksPGD(classifier, eps=25), **tuning)
trainer.fit(x_train[clean], data.y_train[clean])
print("after: ", evaluate(classifier, x_test, data.y_test, trigger, AllToOne(0)))
