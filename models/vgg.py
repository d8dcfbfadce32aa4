"""VGG: Simonyan & Zisserman 2014, arXiv 1409.1556, table 1, columns A, B, D, E (11, 13, 16, 19
layers).

vgg is column A; vggbn has batch norm after its hidden linear layers, vggbnv2 average pooling, batch
norm and one linear layer; vgg11bn to vgg19bn have batch norm after each convolution, as
torchvision's vgg*_bn.

Made for 224 x 224 pixels. Below 64 the first convolution has stride 2 (1 with `--stem fine`, the
form of published CIFAR results), pools keep an odd border, and the hidden layers have 512 units
over one position.
"""

from torch import nn

from models.layers import SMALL, Classifier, conv, initialise

# A number: a 3 x 3 convolution of that width; "M": a 2 x 2 max-pool.
COLUMNS: dict[str, tuple[int | str, ...]] = {
    "A": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "B": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "D": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    "E": (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"),
}


def features(column: str, size: int, stem: str, *, bn: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs, stride = 3, 2 if size < SMALL and stem == "fast" else 1
    for row in COLUMNS[column]:
        if isinstance(row, str):
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=size < SMALL))
        else:
            layers += conv(inputs, row, 3, stride, 1, bn=bn)
            inputs, stride = row, 1
    return nn.Sequential(*layers)


def build(
    column: str, classes: int, size: int, stem: str, *, bn: bool = False, hidden_bn: bool = False
) -> nn.Module:
    grid, hidden = (7, 4096) if size >= SMALL else (1, 512)
    layers: list[nn.Module] = []
    inputs = 512 * grid * grid

    for _ in range(2):
        layers += [nn.Linear(inputs, hidden)]
        layers += [nn.BatchNorm1d(hidden)] if hidden_bn else []
        layers += [nn.ReLU(inplace=True), nn.Dropout()]
        inputs = hidden

    network = Classifier(
        features(column, size, stem, bn=bn),
        grid,
        nn.Sequential(*layers, nn.Linear(hidden, classes)),
    )
    initialise(network, "fan_out" if bn else "fan_in")
    return network


def vgg11(classes: int, size: int, stem: str) -> nn.Module:
    return build("A", classes, size, stem)


def vgg13(classes: int, size: int, stem: str) -> nn.Module:
    return build("B", classes, size, stem)


def vgg16(classes: int, size: int, stem: str) -> nn.Module:
    return build("D", classes, size, stem)


def vgg19(classes: int, size: int, stem: str) -> nn.Module:
    return build("E", classes, size, stem)


def vgg11bn(classes: int, size: int, stem: str) -> nn.Module:
    return build("A", classes, size, stem, bn=True)


def vgg13bn(classes: int, size: int, stem: str) -> nn.Module:
    return build("B", classes, size, stem, bn=True)


def vgg16bn(classes: int, size: int, stem: str) -> nn.Module:
    return build("D", classes, size, stem, bn=True)


def vgg19bn(classes: int, size: int, stem: str) -> nn.Module:
    return build("E", classes, size, stem, bn=True)


def vggbn(classes: int, size: int, stem: str) -> nn.Module:
    return build("A", classes, size, stem, hidden_bn=True)


def vggbnv2(classes: int, size: int, stem: str) -> nn.Module:
    network = Classifier(
        features("A", size, stem), 1, nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, classes))
    )
    initialise(network, "fan_in")
    return network
