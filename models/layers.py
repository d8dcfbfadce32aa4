"""The parts that the networks' tables are made of."""

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn

# Pixels a side below which a network takes its small-image form.
SMALL = 64
# Rows of ("conv", ...) and ("pool", ...)
Table = tuple[tuple[Any, ...], ...]
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


class AveragePool(nn.AdaptiveAvgPool2d):
    """torch's adaptive average pooling, which has no deterministic gradient on a GPU.

    Where one is asked for it is two matrix products there: each row of weights averages the
    positions of one cell, as torch's own does.
    """

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, C, H, W) -> (N, C, grid, grid)."""
        size = self.output_size
        rows, columns = size if isinstance(size, tuple) else (size, size)
        if not (images.is_cuda and torch.are_deterministic_algorithms_enabled()):
            return super().forward(images)
        # One cell is a plain mean to torch, which is deterministic.
        if rows is None or columns is None or (rows, columns) == (1, 1):
            return super().forward(images)
        images = _pool_rows(images, rows)
        return _pool_rows(images.transpose(2, 3), columns).transpose(2, 3)


def _pool_rows(images: Tensor, cells: int) -> Tensor:
    """Average the rows to `cells` rows. images: (N, C, H, W)."""
    height = images.shape[2]
    if height == cells:
        return images
    if height == 1:
        return images.expand(-1, -1, cells, -1)
    weights = _cell_weights(height, cells, images.device).to(images.dtype)
    return torch.matmul(weights, images)


@functools.lru_cache(maxsize=32)
def _cell_weights(length: int, cells: int, device: torch.device) -> Tensor:
    """Return what averages `length` positions to `cells`, (cells, length). Cells may overlap."""
    weights = torch.zeros(cells, length)
    for cell in range(cells):
        start, end = cell * length // cells, -(-(cell + 1) * length // cells)
        weights[cell, start:end] = 1 / (end - start)
    return weights.to(device)


def use_average_pools(network: nn.Module) -> nn.Module:
    """Turn every adaptive average pooling of a network into ours. Nothing else changes."""
    for module in network.modules():
        if type(module) is nn.AdaptiveAvgPool2d:
            module.__class__ = AveragePool
    return network


class Classifier(nn.Module):
    """features -> average pool to grid x grid -> classifier.

    The names of the three are torchvision's.
    """

    def __init__(self, features: nn.Module, grid: int, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = AveragePool(grid)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) float, normalised -> logits (N, K)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))
