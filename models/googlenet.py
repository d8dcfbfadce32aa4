"""GoogLeNet: Szegedy et al. 2014, arXiv 1409.4842, table 1, with batch norm, as torchvision's: its
"5 x 5" branches are 3 x 3.

Two auxiliary heads, after 4a and 4d, train with it (weight 0.3, section 5) and are left out in
testing. Made for 224 x 224 pixels. Below 64 the first convolution is 5 x 5 of stride 2 and the
first pool is left out; with `--stem fine` it is 3 x 3 of stride 1 and the second pool is left out
as well, as in published CIFAR results.
"""

import torch
from torch import Tensor, nn

from models.layers import SMALL, AveragePool, initialise

# name: 1 x 1; 3 x 3 reduced, 3 x 3; "5 x 5" reduced, "5 x 5"; pool's projection. "M": a max-pool of
# this kernel.
TABLE: dict[str, int | tuple[int, ...]] = {
    "inception3a": (64, 96, 128, 16, 32, 32), "inception3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": 3,
    "inception4a": (192, 96, 208, 16, 48, 64), "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64), "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "maxpool4": 2,
    "inception5a": (256, 160, 320, 32, 128, 128), "inception5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
# Where the auxiliary heads sit.
HEADS = {"inception4a": "aux1", "inception4d": "aux2"}


class Unit(nn.Sequential):
    """A convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)


class Inception(nn.Module):
    """Four branches over the same input, their channels side by side."""

    def __init__(
        self, inputs: int, one: int, red3: int, three: int, red5: int, five: int, pool: int
    ) -> None:
        super().__init__()
        self.branch1 = Unit(inputs, one, 1)
        self.branch2 = nn.Sequential(Unit(inputs, red3, 1), Unit(red3, three, 3, padding=1))
        self.branch3 = nn.Sequential(Unit(inputs, red5, 1), Unit(red5, five, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Unit(inputs, pool, 1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(
            [branch(images) for branch in (self.branch1, self.branch2, self.branch3, self.branch4)],
            1,
        )


class Head(nn.Module):
    """An auxiliary classifier."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.avgpool = AveragePool(4)
        self.conv = Unit(inputs, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled = torch.flatten(self.conv(self.avgpool(images)), 1)
        return self.fc2(self.dropout(torch.relu(self.fc1(pooled))))


class GoogLeNet(nn.Module):
    """In training, logits of the main head and of the auxiliary ones; in testing, those of the main
    head alone.
    """

    def __init__(self, classes: int, size: int, stem: str) -> None:
        super().__init__()
        small, fine = size < SMALL, stem == "fine"
        first = ((3, 1, 1) if fine else (5, 2, 2)) if small else (7, 2, 3)
        self.conv1 = Unit(3, 64, *first)
        self.maxpool1 = nn.Identity() if small else nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = Unit(64, 64, 1)
        self.conv3 = Unit(64, 192, 3, padding=1)
        self.maxpool2 = nn.Identity() if small and fine else nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = 192

        for name, row in TABLE.items():
            if isinstance(row, int):
                self.add_module(name, nn.MaxPool2d(row, 2, ceil_mode=True))
                continue
            self.add_module(name, Inception(channels, *row))
            channels = row[0] + row[2] + row[4] + row[5]
            if name in HEADS:
                self.add_module(HEADS[name], Head(channels, classes))

        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(images)))))
        heads = []
        for name in TABLE:
            x = self.get_submodule(name)(x)
            if self.training and name in HEADS:
                heads.append(self.get_submodule(HEADS[name])(x))
        logits = self.fc(self.dropout(x.mean((2, 3))))
        return (logits, *heads) if heads else logits


def googlenet(classes: int, size: int, stem: str) -> nn.Module:
    return GoogLeNet(classes, size, stem)
