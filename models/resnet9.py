"""ResNet of 9 layers for small images: Page 2018, "How to train your ResNet" (DAWNBench, CIFAR-10).

A convolution, then 128, 256 and 512 channels, a max-pool after each and a block of two
convolutions beside an identity (He 2015, arXiv 1512.03385) after the first and the last; the
greatest value of each channel goes to the linear layer, whose logits are scaled by 1/8. Batch norm
after each convolution. resnet9s has half as many channels, resnet9xs a quarter.

Made for 32 x 32 pixels. Below 64 the first convolution has stride 2 (1 with `--stem fine`, Page's
form); from 64 on it is ResNet's, 7 x 7 of stride 2 with a max-pool.
"""

from torch import Tensor, nn

from models.layers import SMALL, initialise

SCALE = 0.125


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """The input and what two convolutions make of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = convolution(channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.second(self.first(images))


class ResNet9(nn.Module):
    """width: channels of the first convolution, an eighth of the last one's."""

    def __init__(self, classes: int, size: int, stem: str, width: int) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2, ceil_mode=True)
        if size < SMALL:
            first: list[nn.Module] = [convolution(3, width, 3, 1 if stem == "fine" else 2)]
        else:
            first = [convolution(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
        self.features = nn.Sequential(
            *first,
            *(convolution(width, 2 * width), pool, Residual(2 * width)),
            *(convolution(2 * width, 4 * width), pool),
            *(convolution(4 * width, 8 * width), pool, Residual(8 * width)),
        )
        self.classifier = nn.Linear(8 * width, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) float, normalised -> logits (N, K)."""
        return SCALE * self.classifier(self.features(images).amax((2, 3)))


def resnet9(classes: int, size: int, stem: str) -> nn.Module:
    return ResNet9(classes, size, stem, 64)


def resnet9s(classes: int, size: int, stem: str) -> nn.Module:
    return ResNet9(classes, size, stem, 32)


def resnet9xs(classes: int, size: int, stem: str) -> nn.Module:
    return ResNet9(classes, size, stem, 16)
