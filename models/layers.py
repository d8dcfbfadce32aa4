"""The parts that the networks' tables are made of."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

SMALL = 64  # pixels a side below which a network takes its small-image form
Table = tuple[tuple[Any, ...], ...]  # rows of ("conv", ...) and ("pool", ...)
STEMS = {
    "fast": (5, 2, 2),
    "fine": (5, 1, 2),
}  # kernel, stride, padding of a first convolution below SMALL


def adapt(table: Table, size: int, stem: str, small: int = SMALL) -> Table:
    """Return the table for images of size x size pixels: below `small` a small first convolution,
    and pools and convolutions padded so that nothing is lost at the border.
    """
    if size >= small:
        return table
    rows = [("pool", 3, 2, 1) if row[0] == "pool" else (*row[:4], row[2] // 2) for row in table[1:]]
    return (("conv", table[0][1], *STEMS[stem]), *rows)


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    *,
    bn: float | bool = False,
) -> list[nn.Module]:
    """Return a convolution, batch norm if asked for (a float is its eps), and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, padding)]
    if bn:
        layers.append(nn.BatchNorm2d(outputs, eps=1e-5 if bn is True else bn))
    return [*layers, nn.ReLU(inplace=True)]


def stack(table: Table, inputs: int = 3, *, bn: float | bool = False) -> nn.Sequential:
    """Build features from a table of ("conv", outputs, kernel, stride, padding) and ("pool",
    kernel, stride, padding).
    """
    layers: list[nn.Module] = []
    for kind, *numbers in table:
        if kind == "pool":
            layers.append(nn.MaxPool2d(*numbers))
        else:
            layers += conv(inputs, *numbers, bn=bn)
            inputs = numbers[0]
    return nn.Sequential(*layers)


def width(features: nn.Sequential) -> int:
    """Return the channels that `features` gives."""
    return [layer.out_channels for layer in features.modules() if isinstance(layer, nn.Conv2d)][-1]


def initialise(network: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Draw convolutions by He (arXiv 1502.01852, fan-out) and hidden linear layers (fan-in); set
    all biases to zero.

    mode: fan_out, or fan_in for deep networks without batch norm, whose activations it keeps level:
    by fan-out VGG's fade and Inception's explode. The hidden layers matter too: drawn as torch
    does, plain VGG stood still for 500 steps.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for hidden in linear:
        if hidden.out_features != linear[-1].out_features:
            nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


class Classifier(nn.Module):
    """features -> average pool to grid x grid -> classifier.

    The names of the three are torchvision's.
    """

    def __init__(self, features: nn.Module, grid: int, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) float, normalised -> logits (N, K)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))
