"""AlexNet in four forms.

alexnet: Krizhevsky, Sutskever, Hinton 2012 (doi 10.1145/3065386), two columns that both see the
whole input. alexnetowt: Krizhevsky 2014, "One weird trick", arXiv 1404.5997, one column;
torchvision's alexnet. alexnetowtbn: batch norm after each convolution and hidden layer. alexnetbn:
that, with average pooling and one layer.

Made for 224 x 224 pixels. Below 64 the stem is a small one: a 5 x 5 convolution and max-pools of 3
x 3 with padding, each of stride 2, and the hidden layers have 512 units over a 2 x 2 grid. `--stem
fine` starts at stride 1 instead.
"""

import torch
from torch import Tensor, nn

from models.layers import SMALL, Classifier, adapt, initialise, stack, width

COLUMN = (
    ("conv", 48, 11, 4, 2), ("pool", 3, 2), ("conv", 128, 5, 1, 2), ("pool", 3, 2),
    ("conv", 192, 3, 1, 1), ("conv", 192, 3, 1, 1), ("conv", 128, 3, 1, 1), ("pool", 3, 2),
)  # fmt: skip
OWT = (
    ("conv", 64, 11, 4, 2), ("pool", 3, 2), ("conv", 192, 5, 1, 2), ("pool", 3, 2),
    ("conv", 384, 3, 1, 1), ("conv", 256, 3, 1, 1), ("conv", 256, 3, 1, 1), ("pool", 3, 2),
)  # fmt: skip


class Columns(nn.Module):
    """Two columns over the same input, their channels side by side."""

    def __init__(self, *columns: nn.Sequential) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([column(images) for column in self.columns], 1)


def alexnet(classes: int, size: int, stem: str) -> nn.Module:
    table = adapt(COLUMN, size, stem)
    columns = Columns(stack(table), stack(table))
    return build(columns, 256, classes, size)


def alexnetowt(classes: int, size: int, stem: str) -> nn.Module:
    return build(stack(adapt(OWT, size, stem)), 256, classes, size)


def alexnetowtbn(classes: int, size: int, stem: str) -> nn.Module:
    return build(stack(adapt(OWT, size, stem), bn=True), 256, classes, size, bn=True)


def alexnetbn(classes: int, size: int, stem: str) -> nn.Module:
    table = adapt(OWT, size, stem)
    if size < SMALL:
        table = table[:-1]
    features = stack(table, bn=True)
    channels = width(features)
    network = Classifier(
        features, 1, nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, classes))
    )
    initialise(network)
    return network


def build(
    features: nn.Module, channels: int, classes: int, size: int, *, bn: bool = False
) -> nn.Module:
    """Add the three linear layers and initialise."""
    grid, hidden = (6, 4096) if size >= SMALL else (2, 512)
    layers: list[nn.Module] = []
    inputs = channels * grid * grid

    for _ in range(2):
        layers += [nn.Dropout(), nn.Linear(inputs, hidden)]
        layers += [nn.BatchNorm1d(hidden)] if bn else []
        layers += [nn.ReLU(inplace=True)]
        inputs = hidden

    network = Classifier(features, grid, nn.Sequential(*layers, nn.Linear(hidden, classes)))
    initialise(network)
    return network
