"""Network in Network with batch norm: Lin, Chen, Yan 2013, arXiv 1312.4400, in Zagoruyko's form for
ImageNet.

Each block is a convolution and two 1 x 1 convolutions, batch norm (eps 1e-3) and ReLU after each.
Its own regime starts at a learning rate of 0.1. Made for 224 x 224 pixels; below 64 the first
convolution is 5 x 5 of stride 2 (1 with `--stem fine`).
"""

from torch import nn

from models.layers import SMALL, STEMS, Classifier, conv, initialise

BLOCKS = ((96, 11, 4, 5), (256, 5, 1, 2), (384, 3, 1, 1), (1024, 3, 1, 1))
EPS = 1e-3


def ninbn(classes: int, size: int, stem: str) -> nn.Module:
    first = BLOCKS[0] if size >= SMALL else (BLOCKS[0][0], *STEMS[stem])
    layers: list[nn.Module] = []
    inputs = 3

    for place, (outputs, kernel, stride, padding) in enumerate((first, *BLOCKS[1:])):
        layers += [nn.MaxPool2d(3, 2, 1)] if place else []
        layers += conv(inputs, outputs, kernel, stride, padding, bn=EPS)
        layers += [*conv(outputs, outputs, 1, bn=EPS), *conv(outputs, outputs, 1, bn=EPS)]
        inputs = outputs

    network = Classifier(nn.Sequential(*layers), 1, nn.Sequential(nn.Linear(inputs, classes)))
    initialise(network)
    return network
