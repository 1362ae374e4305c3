"""Is this classifier infected? A network of plain torch, and 120 clean images that are known to be right."""

import torch
from art.estimators.classification import PyTorchClassifier

from art_aft import AllToOne, BackdoorScan, poison
from art_aft.attacks import BadNets
from art_aft.data.datasets import digits, split_clean

# Somebody trained it on data of which a tenth have a small patch and the label 7.
torch.manual_seed(0)
data = digits(seed=0)
clean, rest = split_clean(data.y_train, 0.1, seed=0)
poisoned = poison(data.x_train[rest], data.y_train[rest], BadNets(), AllToOne(7), rate=0.1, seed=0)
model = torch.nn.Sequential(
    *(torch.nn.Conv2d(1, 16, 3, stride=2, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU()),
    *(torch.nn.Conv2d(16, 32, 3, stride=2, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU()),
    *(torch.nn.Flatten(), torch.nn.Linear(32 * 4 * 4, 10)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
settings = {"input_shape": (1, 16, 16), "nb_classes": 10, "clip_values": (0.0, 1.0)}
classifier = PyTorchClassifier(model, loss=torch.nn.CrossEntropyLoss(), optimizer=optimizer, **settings)
classifier.fit(poisoned.x, poisoned.y, batch_size=64, nb_epochs=15)

# The scan knows neither the patch nor the label.
report = BackdoorScan(classifier)(data.x_train[clean], data.y_train[clean])
print(report.verdict, report.targets)
for evidence in report.evidence:
    print(f"{evidence.detector:<17} label {evidence.label}   {evidence.score:5.2f} of its threshold")
print("did not run:", ", ".join(report.omitted))
