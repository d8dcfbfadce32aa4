"""RandAugment and TrivialAugment for a GPU: the same few launches for a batch, whatever operations
its images drew.

`augmentation.policy` groups images by operation, which is the fastest way on a CPU; on a GPU a
thousand small launches would cost more than the network. Here each image of a layer goes through
three steps, whose parameters are worked out on the host and sent along with the batch:

- a nearest-neighbour lookup: shear, translate, rotate;
- a table of 256 values for each channel: brightness, contrast, posterize, solarize, autocontrast,
  equalize;
- a 3 x 3 convolution over the channels: saturation and sharpness.

What an image did not draw is the identity in the other two steps. Results are the CPU's to a level
of grey.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from augmentation.colour import GREY
from augmentation.policy import MAX_MAGNITUDE, OPERATIONS, amounts_of
from augmentation.resize import to_uint8

# Columns of one layer's parameters of an image: a 2 x 3 matrix, a table, its factor, the
# coefficients that make offset and divisor of the table from four statistics and a constant, the
# filter, two flags.
WIDTHS = {
    "place": 6,
    "table": 256,
    "factor": 1,
    "offset": 8,
    "filter": 81,
    "constant": 2,
    "equalize": 1,
    "edge": 1,
}
COLUMNS = sum(WIDTHS.values())
# The statistics of a channel: Pillow's step of equalize, lowest and highest level, the
# image's mean grey.
STEP, LOW, HIGH, MEAN = range(4)
_MIDDLE = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)


def prepare_rand(u: np.ndarray, side: int, layers: float = 2, magnitude: float = 9) -> np.ndarray:
    """Return RandAugment's parameters, (N, layers COLUMNS) float32. u: (N, 8); side: pixels."""
    share = np.full(len(u), magnitude / MAX_MAGNITUDE)
    parts = [
        _layer(u[:, 2 * layer], share, u[:, 2 * layer + 1], side, wide=False)
        for layer in range(int(layers))
    ]
    return np.concatenate(parts, 1)


def prepare_trivial(u: np.ndarray, side: int) -> np.ndarray:
    """Return the parameters of TrivialAugment, (N, COLUMNS) float32. u: (N, 3)."""
    share = np.floor(u[:, 1] * (MAX_MAGNITUDE + 1)) / MAX_MAGNITUDE
    return _layer(u[:, 0], share, u[:, 2], side, wide=True)


def _layer(
    pick: np.ndarray, share: np.ndarray, sign: np.ndarray, side: int, *, wide: bool
) -> np.ndarray:
    """Return one layer's parameters, (N, COLUMNS) float32."""
    numbers = (torch.from_numpy(pick) * len(OPERATIONS)).long().numpy()
    rows = np.zeros((len(pick), COLUMNS), np.float32)
    starts = np.cumsum([0, *WIDTHS.values()])
    names = zip(WIDTHS, starts[:-1], starts[1:], strict=True)
    part = {name: rows[:, start:end] for name, start, end in names}
    levels = np.arange(256, dtype=np.float32)
    part["place"][:] = (1, 0, 0, 0, 1, 0)
    part["table"][:] = levels
    part["factor"][:] = 1
    part["filter"][:] = np.einsum("oi,yx->oiyx", np.eye(3), _MIDDLE).reshape(-1)

    # Of offset, so that cutting rounds, and divisor.
    part["constant"][:] = (0.5, 1)

    for number, operation in enumerate(OPERATIONS):
        chosen = numbers == number
        if chosen.any():
            drawn = torch.from_numpy(share[chosen]), torch.from_numpy(sign[chosen])
            amount = amounts_of(number, *drawn, side, wide=wide).numpy().astype(np.float32)
            own = {name: values[chosen] for name, values in part.items()}
            _fill(operation[0].__name__, amount, own, side)
            for name, values in part.items():
                values[chosen] = own[name]

    return rows


def _fill(name: str, amount: np.ndarray, own: dict[str, np.ndarray], side: int) -> None:
    """Write the parameters of the images that drew one operation. amount: (n,)."""
    levels = np.arange(256, dtype=np.float32)
    if name in PLACES:
        own["place"][:] = PLACES[name](amount, side)
    elif name == "brightness":
        own["table"][:] = (1 + amount[:, None]) * levels
    elif name == "contrast":
        own["factor"][:] = 1 + amount[:, None]
        own["offset"][:, 2 * MEAN] = -amount
    elif name == "posterize":
        step = 2.0 ** (8 - np.round(amount))[:, None]
        own["table"][:] = np.floor(levels / step) * step
    elif name == "solarize":
        own["table"][:] = np.where(levels >= amount[:, None], 255 - levels, levels)
    elif name == "autocontrast":
        # (255 (level - low) + (high - low) / 2) / (high - low)
        own["factor"][:] = 255
        own["offset"][:, 2 * LOW] = -255.5
        own["offset"][:, 2 * HIGH] = 0.5
        own["offset"][:, 2 * LOW + 1] = -1
        own["offset"][:, 2 * HIGH + 1] = 1
        own["constant"][:] = 0
    elif name == "equalize":
        # Pillow adds half of the step rounded down: the same, below is whole.
        own["offset"][:, 2 * STEP] = 0.5
        own["offset"][:, 2 * STEP + 1] = 1
        own["equalize"][:] = 1
        own["constant"][:] = 0
    elif name == "saturation":
        mixed = np.eye(3) * (1 + amount[:, None, None]) - amount[:, None, None] * np.array(GREY)
        own["filter"][:] = np.einsum("noi,yx->noiyx", mixed, _MIDDLE).reshape(len(amount), -1)
    elif name == "sharpness":
        change = amount[:, None, None]
        one = _MIDDLE * (1 + change) - change * (np.ones((3, 3)) + 4 * _MIDDLE) / 13
        own["filter"][:] = np.einsum("oi,nyx->noiyx", np.eye(3), one).reshape(len(amount), -1)
        own["edge"][:] = 1


def _matrix(*cells: np.ndarray | float, count: int) -> np.ndarray:
    """Return 2 x 3 matrices, (count, 6), from output to input, both in [-1, 1]."""
    return np.stack([np.broadcast_to(np.asarray(cell, np.float32), count) for cell in cells], 1)


def _rotate(degrees: np.ndarray, side: int) -> np.ndarray:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return _matrix(cosine, -sine, 0, sine, cosine, 0, count=len(degrees))


def _shear_x(tangent: np.ndarray, side: int) -> np.ndarray:
    # About the top left corner, as torchvision's.
    return _matrix(1, tangent, tangent, 0, 1, 0, count=len(tangent))


def _shear_y(tangent: np.ndarray, side: int) -> np.ndarray:
    return _matrix(1, 0, 0, tangent, 1, tangent, count=len(tangent))


def _translate_x(pixels: np.ndarray, side: int) -> np.ndarray:
    return _matrix(1, 0, -2 * pixels / side, 0, 1, 0, count=len(pixels))


def _translate_y(pixels: np.ndarray, side: int) -> np.ndarray:
    return _matrix(1, 0, 0, 0, 1, -2 * pixels / side, count=len(pixels))


PLACES = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


def apply_layers(images: Tensor, parameters: Tensor) -> Tensor:
    """Run all layers. images: (N, 3, S, S) uint8; parameters: (N, layers COLUMNS) float32."""
    values = images.float()
    for layer in parameters.split(COLUMNS, 1):
        own = dict(zip(WIDTHS, layer.split(list(WIDTHS.values()), 1), strict=True))
        values = _looked_up(values, own["place"])
        values = _by_table(values, own)
        values = _filtered(values, own["filter"], own["edge"])
    return to_uint8(values)


def _looked_up(values: Tensor, place: Tensor) -> Tensor:
    """Take each pixel from another place, the nearest one; black beyond the border."""
    count, _, height, width = values.shape
    grid = torch.matmul(_base_grid(height, width, values.device), place.view(count, 2, 3).mT)
    grid = grid.view(count, height, width, 2)
    return F.grid_sample(values, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _by_table(values: Tensor, own: dict[str, Tensor]) -> Tensor:
    """Send each level of a channel through a table that is made from the channel's histogram."""
    count, _, height, width = values.shape
    levels = values.flatten(2).long()  # (N, C, H W)
    histogram = _histogram(levels)

    # The pixels below each level, and the sum of all levels.
    sums = torch.matmul(histogram, _summing(values.device))
    below, total = sums[:, :, :256], sums[:, :, 256:]

    # Pillow's step: the pixels below the highest level that is there, over 255.
    step = (below * (histogram > 0)).amax(2, keepdim=True).div_(255, rounding_mode="floor")
    low, high = torch.aminmax(values.flatten(2), dim=2, keepdim=True)
    mean = torch.matmul(_grey_means(height * width, values.device), total)
    statistics = torch.cat([step, low, high, mean], 2)  # (N, C, 4)
    made = torch.baddbmm(own["constant"][:, None], statistics, own["offset"].view(count, 4, 2))
    offset, divisor = made[:, :, :1], made[:, :, 1:]

    table = torch.lerp(own["table"][:, None], below, own["equalize"][:, None])
    raw = torch.addcmul(offset, table, own["factor"][:, None])
    result = raw.div_(divisor, rounding_mode="floor").clamp_(0, 255)

    # A channel of one level only stays as it is.
    result = torch.where(divisor > 0, result, _levels(values.device))
    return result.gather(2, levels).view(values.shape)


def _histogram(levels: Tensor) -> Tensor:
    """Count the pixels of each level, (N, C, 256) float32. levels: (N, C, H W) int64."""
    count, channels, _ = levels.shape
    counts = torch.zeros(count, channels, 256, device=levels.device)
    one = _one(levels.device)
    if not torch.are_deterministic_algorithms_enabled():
        return counts.scatter_add_(2, levels, one.expand(levels.shape))
    # In one dimension, for which a GPU has a deterministic way.
    starts = 256 * torch.arange(count * channels, device=levels.device)
    places = (levels.view(count * channels, -1) + starts[:, None]).view(-1)
    counts.view(-1).scatter_add_(0, places, one.expand(places.shape))
    return counts


def _filtered(values: Tensor, filters: Tensor, edge: Tensor) -> Tensor:
    """Convolve each image with its own filter; images of `edge` keep their outermost pixels."""
    count, channels, height, width = values.shape
    weights = filters.reshape(count * channels, channels, 3, 3)
    joined = values.view(1, count * channels, height, width)
    result = F.conv2d(joined, weights, padding=1, groups=count).clamp_(0, 255).round_()
    kept = edge.view(count, 1, 1, 1) * _border(height, width, values.device)
    return result.view(values.shape).lerp_(values, kept)


@functools.lru_cache(maxsize=8)
def _base_grid(height: int, width: int, device: torch.device) -> Tensor:
    """Return x, y, 1 of each pixel's middle, (H W, 3), both in [-1, 1]."""
    y = (torch.arange(height, dtype=torch.float32) * 2 + 1) / height - 1
    x = (torch.arange(width, dtype=torch.float32) * 2 + 1) / width - 1
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], 2)
    return torch.cat([grid, torch.ones(height, width, 1)], 2).view(-1, 3).to(device)


@functools.lru_cache(maxsize=2)
def _summing(device: torch.device) -> Tensor:
    """Return (256, 257): what sums a histogram below each level, and its levels."""
    below = torch.ones(256, 256).triu(1)
    return torch.cat([below, torch.arange(256.0)[:, None]], 1).to(device)


@functools.lru_cache(maxsize=8)
def _grey_means(pixels: int, device: torch.device) -> Tensor:
    """Return (3, 3): what makes the image's mean grey, for each channel, of its channels' sums."""
    return (torch.tensor(GREY) / pixels).expand(3, 3).contiguous().to(device)


@functools.lru_cache(maxsize=2)
def _levels(device: torch.device) -> Tensor:
    return torch.arange(256.0).to(device)


@functools.lru_cache(maxsize=2)
def _one(device: torch.device) -> Tensor:
    return torch.ones(1).to(device)


@functools.lru_cache(maxsize=8)
def _border(height: int, width: int, device: torch.device) -> Tensor:
    border = torch.ones(height, width)
    border[1:-1, 1:-1] = 0
    return border.to(device)
