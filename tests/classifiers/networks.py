"""Networks whose last convolution is read in different ways."""

import torch
from helpers import NB_CLASSES


class FlatNet(torch.nn.Module):
    """Like VGG: maps of 6 channels and 3x3 positions, flattened, into two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(4, 6, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        )
        self.classifier = torch.nn.Sequential(
            torch.nn.Linear(54, 16), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(16, NB_CLASSES)
        )

    def features(self, x):
        return self.convolutions(x)

    def head(self, maps):
        return self.classifier(maps.flatten(1))

    def forward(self, x):
        return self.head(self.features(x))


class ConvolutionalNet(torch.nn.Module):
    """A 1x1 convolution gives a score for each position, and their mean is the logit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 5, 3)
        self.conv2 = torch.nn.Conv2d(5, 7, 3)
        self.score = torch.nn.Conv2d(7, NB_CLASSES, 1)

    def features(self, x):
        return torch.relu(self.conv2(torch.relu(self.conv1(x))))

    def head(self, maps):
        return self.score(maps).mean(dim=(2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class TokenNet(torch.nn.Module):
    """The linear layer runs on every position, and the mean comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, stride=2)
        self.score = torch.nn.Linear(6, NB_CLASSES)

    def features(self, x):
        return torch.relu(self.conv(x))

    def head(self, maps):
        return self.score(maps.flatten(2).transpose(1, 2)).mean(dim=1)

    def forward(self, x):
        return self.head(self.features(x))


class UpsideDownNet(torch.nn.Module):
    """Parts are listed in another order than that in which they run, and two do not run at all."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, NB_CLASSES)
        self.second = torch.nn.Conv2d(4, 6, 3)
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.spare_conv = torch.nn.Conv2d(6, 9, 3)
        self.spare = torch.nn.Linear(6, NB_CLASSES)

    def features(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))))

    def head(self, maps):
        return self.fc(maps.mean(dim=(2, 3)))

    def forward(self, x):
        return self.head(self.features(x))


class TwoSources(torch.nn.Module):
    """The linear layer reads the maps' means and three numbers more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.fc = torch.nn.Linear(11, NB_CLASSES)

    def forward(self, x):
        return self.fc(torch.cat([self.conv(x).mean(dim=(2, 3)), x.mean(dim=(2, 3))], dim=1))


class Dense(torch.nn.Module):
    """As in DenseNet, the last convolution adds 4 channels to 8, and the linear layer reads the means of all 12."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3, padding=1)
        self.fc = torch.nn.Linear(12, NB_CLASSES)

    def forward(self, x):
        maps = torch.relu(self.first(x))
        return self.fc(torch.cat([maps, torch.relu(self.second(maps))], dim=1).mean(dim=(2, 3)))


class Hidden(torch.nn.Sequential):
    """A second linear layer, which reads hidden units and no channels."""

    def __init__(self) -> None:
        pool = [torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
        super().__init__(*pool, torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, NB_CLASSES))


def logits_of(model, maps):
    """What the model makes of its last feature maps: the package's models pool them and have one linear layer."""
    return model.head(maps) if hasattr(model, "head") else model.fc(maps.mean(dim=(2, 3)))
