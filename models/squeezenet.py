"""SqueezeNet 1.0 with simple bypass: Iandola et al. 2016, arXiv 1602.07360, table 1 and figure 2,
middle.

The bypass (fire 3, 5, 7, 9) makes it another function than torchvision's squeezenet1_0, although
the shapes are the same. Made for 224 x 224 pixels; below 64 the first convolution is 3 x 3 of
stride 2 (1 with `--stem fine`) and the first pool is left out. The logits have no ReLU: with it, as
in the authors' Caffe files, none of them can fall below zero, and on 2,000 digits all of them died.
"""

import torch
from torch import Tensor, nn

from models.layers import SMALL, conv, initialise

# (squeeze, expand) of fire 2 to 9; "M": a 3 x 3 max-pool of stride 2.
TABLE: tuple[str | tuple[int, int], ...] = (
    "M",
    (16, 64),
    (16, 64),
    (32, 128),
    "M",
    (32, 128),
    (48, 192),
    (48, 192),
    (64, 256),
    "M",
    (64, 256),
)


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1 x 1 and 3 x 3 convolutions, and add the input where it
    has the same shape.
    """

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(*conv(inputs, squeeze, 1))
        self.expand1 = nn.Sequential(*conv(squeeze, expand, 1))
        self.expand3 = nn.Sequential(*conv(squeeze, expand, 3, 1, 1))
        self.bypass = inputs == 2 * expand

    def forward(self, images: Tensor) -> Tensor:
        squeezed = self.squeeze(images)
        expanded = torch.cat([self.expand1(squeezed), self.expand3(squeezed)], 1)
        return expanded + images if self.bypass else expanded


class SqueezeNet(nn.Module):
    def __init__(self, classes: int, size: int, stem: str) -> None:
        super().__init__()
        small = size < SMALL
        first = (3, 1 if stem == "fine" else 2, 1) if small else (7, 2, 0)
        layers: list[nn.Module] = conv(3, 96, *first)
        inputs = 96

        for row in TABLE[1:] if small else TABLE:
            if isinstance(row, str):
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            else:
                layers.append(Fire(inputs, *row))
                inputs = 2 * row[1]

        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(inputs, classes, 1))
        initialise(self, "fan_in")

        # As in the authors' files, of half of He's variance: the bypasses add up, by He's the first
        # loss was 6 and all died.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                last = module

        nn.init.normal_(last.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images)).mean((2, 3))


def squeezenet(classes: int, size: int, stem: str) -> nn.Module:
    return SqueezeNet(classes, size, stem)
