"""Inception of Ioffe & Szegedy 2015, arXiv 1502.03167, figure 5, without its batch norm: the Torch7
suite's `googlenet`.

Modules of 1 x 1, 3 x 3, double 3 x 3 and pool branches at stride 1; in front of stages 4 and 5 a 2
x 2 convolution of stride 2 without ReLU. An auxiliary head after 4d trains with it (weight 0.3) and
is left out in testing. Made for 224 x 224 pixels. Below 64 the first convolution is 5 x 5 of stride
2 (3 x 3 of stride 1 with `--stem fine`) and the first pool is left out.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.layers import SMALL, AveragePool, conv, initialise

# name: 1 x 1; 3 x 3 reduced, 3 x 3; double 3 x 3 reduced, double 3 x 3; pool, its projection (0:
# passed through). A number: channels of a 2 x 2 convolution of stride 2.
TABLE: dict[str, Any] = {
    "3a": (64, 64, 64, 64, 96, "avg", 32), "3b": (64, 64, 96, 64, 96, "avg", 64),
    "3c": (0, 128, 160, 64, 96, "max", 0),
    "3d": 576,
    "4a": (224, 64, 96, 96, 128, "avg", 128), "4b": (192, 96, 128, 96, 128, "avg", 128),
    "4c": (160, 128, 160, 128, 160, "avg", 96), "4d": (96, 128, 192, 160, 192, "avg", 96),
    "4e": (0, 128, 192, 192, 256, "max", 0),
    "4f": 1024,
    "5a": (352, 192, 320, 160, 224, "avg", 128), "5b": (352, 192, 320, 192, 224, "max", 128),
}  # fmt: skip
HEAD_AFTER = "4d"


class Module(nn.Module):
    """Branches over the same input, their channels side by side."""

    def __init__(
        self,
        inputs: int,
        one: int,
        red3: int,
        three: int,
        red33: int,
        double: int,
        pool: str,
        projected: int,
    ) -> None:
        super().__init__()
        branches = [nn.Sequential(*conv(inputs, one, 1))] if one else []
        branches.append(nn.Sequential(*conv(inputs, red3, 1), *conv(red3, three, 3, 1, 1)))
        branches.append(
            nn.Sequential(
                *conv(inputs, red33, 1),
                *conv(red33, double, 3, 1, 1),
                *conv(double, double, 3, 1, 1),
            )
        )
        pooling = nn.MaxPool2d(3, 1, 1) if pool == "max" else nn.AvgPool2d(3, 1, 1)
        branches.append(nn.Sequential(pooling, *(conv(inputs, projected, 1) if projected else [])))
        self.branches = nn.ModuleList(branches)
        self.channels = one + three + double + (projected or inputs)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([branch(images) for branch in self.branches], 1)


class Inception2(nn.Module):
    """In training, logits of the main and of the auxiliary head; in testing, those of the main head
    alone.
    """

    def __init__(self, classes: int, size: int, stem: str) -> None:
        super().__init__()
        small = size < SMALL
        first = ((3, 1, 1) if stem == "fine" else (5, 2, 2)) if small else (7, 2, 3)
        pools = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(2)]
        self.stem = nn.Sequential(
            *conv(3, 64, *first),
            *([] if small else pools[:1]),
            *conv(64, 64, 1),
            *conv(64, 192, 3, 1, 1),
            pools[1],
        )
        stages: dict[str, nn.Module] = {}
        channels = 192

        for name, row in TABLE.items():
            if isinstance(row, int):
                stages[name] = nn.Conv2d(channels, row, 2, 2)
            else:
                module = stages[name] = Module(channels, *row)
                channels = module.channels

        self.stages = nn.ModuleDict(stages)

        # 14 x 14 positions become 4 x 4; a small map is pooled to that directly.
        pool = (
            AveragePool(4)
            if size < 224
            else nn.Sequential(nn.AvgPool2d(5, 3, ceil_mode=True), AveragePool(4))
        )
        self.head = nn.Sequential(
            pool,
            *conv(576, 128, 1),
            nn.Flatten(),
            nn.Linear(2048, 768),
            nn.ReLU(inplace=True),
            nn.Linear(768, classes),
        )
        self.fc = nn.Linear(channels, classes)
        initialise(self, "fan_in")

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.stem(images)
        heads = []
        for name, stage in self.stages.items():
            x = stage(x)
            if self.training and name == HEAD_AFTER:
                heads.append(self.head(x))
        logits = self.fc(x.mean((2, 3)))
        return (logits, *heads) if heads else logits


def inception2(classes: int, size: int, stem: str) -> nn.Module:
    return Inception2(classes, size, stem)
