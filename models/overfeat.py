"""OverFeat, the fast model: Sermanet et al. 2013, arXiv 1312.6229, table 1.

Made for 231 x 231 pixels, where its last map is 6 x 6; at 224 x 224 it is 5 x 5, as in the Torch7
suite. Below 71 pixels, where its unpadded convolutions would leave nothing, the stem is a 5 x 5
convolution (stride 2; 1 with `--stem fine`), pools are 3 x 3 with padding and the hidden layers
have 512 units over a 2 x 2 grid.
"""

from torch import nn

from models.layers import Classifier, adapt, initialise, stack

# Pixels a side.
SMALL = 71

FAST = (
    ("conv", 96, 11, 4, 0), ("pool", 2, 2), ("conv", 256, 5, 1, 0), ("pool", 2, 2),
    ("conv", 512, 3, 1, 1), ("conv", 1024, 3, 1, 1), ("conv", 1024, 3, 1, 1), ("pool", 2, 2),
)  # fmt: skip


def overfeat(classes: int, size: int, stem: str) -> nn.Module:
    grid, first, second = (5, 3072, 4096) if size >= SMALL else (2, 512, 512)
    classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(1024 * grid * grid, first),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(first, second),
        nn.ReLU(inplace=True),
        nn.Linear(second, classes),
    )
    network = Classifier(stack(adapt(FAST, size, stem, SMALL)), grid, classifier)
    initialise(network)
    return network
