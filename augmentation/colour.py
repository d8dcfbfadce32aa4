"""Augmentations of colour.

images: (N, 3, H, W) uint8 in [0, 255] or float in [0, 1]; u: (N, draws) float32 in [0, 1).

Brightness, contrast and saturation are affine in the three channels, and stay so in a chain: one
pass measures the mean grey of each image, one applies a 3 x 3 matrix and a bias. So a chain clamps
once, at its end, where torchvision clamps after each operation.
"""

import functools
from itertools import permutations

import torch
from torch import Tensor

from augmentation.resize import like, to_uint8

# ITU-R BT.601 luma of red, green, blue.
GREY = (0.299, 0.587, 0.114)
ORDERS = tuple(permutations(range(3)))


@functools.lru_cache(maxsize=64)
def constant(values: tuple[object, ...], device: torch.device) -> Tensor:
    """Return values as a tensor on the device, made once: a copy from the host waits for the
    device.
    """
    return torch.tensor(values, device=device)


def jitter(images: Tensor, u: Tensor, strength: float = 0.4) -> Tensor:
    """Brightness, contrast and saturation, each by a factor in [1 - strength, 1 + strength], in a
    random order.

    4 draws: the three factors and the order. The source is fb.resnet.torch's ColorJitter, with
    contrast about the mean grey of the image as it stands at that point of the chain.
    """
    factors = 1 + strength * (2 * u[:, :3] - 1)
    order = constant(ORDERS, u.device)[(u[:, 3] * len(ORDERS)).long()]  # (N, 3)
    return chain(images, factors, order)


def brightness(images: Tensor, u: Tensor, strength: float = 0.4) -> Tensor:
    """Multiply by a factor in [1 - strength, 1 + strength]. 1 draw."""
    return _one(images, u, strength, 0)


def contrast(images: Tensor, u: Tensor, strength: float = 0.4) -> Tensor:
    """Move away from or toward the image's mean grey, by such a factor. 1 draw."""
    return _one(images, u, strength, 1)


def saturation(images: Tensor, u: Tensor, strength: float = 0.4) -> Tensor:
    """Move away from or toward each pixel's grey, by such a factor. 1 draw."""
    return _one(images, u, strength, 2)


def _one(images: Tensor, u: Tensor, strength: float, operation: int) -> Tensor:
    factors = (1 + strength * (2 * u[:, :1] - 1)).expand(-1, 3)
    return chain(images, factors, torch.full((len(images), 1), operation, device=images.device))


def lighting(images: Tensor, u: Tensor, deviation: float = 0.1) -> Tensor:
    """Add colour noise along the principal axes of ImageNet's colours (Krizhevsky 2012, section
    4.1). 4 draws.

    deviation: of the normal draw of each axis, in units of its eigenvalue.
    """
    values, vectors = constant(EIGENVALUES, images.device), constant(EIGENVECTORS, images.device)
    added = (normal(u)[:, :3] * deviation * values) @ vectors.T  # (N, 3), of colours in [0, 1]
    unit = 255 if images.dtype == torch.uint8 else 1
    identity = torch.eye(3, device=images.device).expand(len(images), 3, 3)
    return affine(images, identity, unit * added[:, :, None])


# Of ImageNet's colours in [0, 1], as fb.resnet.torch gives them.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def normal(u: Tensor) -> Tensor:
    """Turn uniforms (N, even) into as many standard normal numbers, by Box and Muller."""
    radius = torch.sqrt(-2 * torch.log1p(-u[:, 0::2]))
    angle = 2 * torch.pi * u[:, 1::2]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)


def hsv(
    images: Tensor, u: Tensor, hue: float = 0.05, saturation: float = 0.3, value: float = 0.3
) -> Tensor:
    """Turn the hue by up to `hue` of the circle, and multiply saturation and value by 1 +- theirs.

    3 draws.
    """
    turn = hue * (2 * u[:, 0] - 1)
    factors = 1 + constant((saturation, value), u.device) * (2 * u[:, 1:3] - 1)
    return shift_hsv(images, turn, factors[:, 0], factors[:, 1])


def shift_hsv(images: Tensor, turn: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Add `turn` (of the circle) to the hue and multiply saturation and value.

    turn, saturation, value: (N,).
    """
    colours = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    high, low = colours.amax(1), colours.amin(1)  # (N, H, W)
    spread = high - low
    red, green, blue = colours.unbind(1)
    divisor = torch.where(spread == 0, torch.ones_like(spread), spread)

    # The hue is measured from whichever channel is the highest.
    of_red, of_green = (green - blue) / divisor % 6, (blue - red) / divisor + 2
    of_blue = (red - green) / divisor + 4
    hue = torch.where(high == red, of_red, torch.where(high == green, of_green, of_blue)) / 6
    grey = torch.where(high == 0, torch.ones_like(high), high)
    amount = (spread / grey * saturation[:, None, None]).clamp_(0, 1)
    bright = (high * value[:, None, None]).clamp_(0, 1)
    angle = (hue + turn[:, None, None]) % 1 * 6

    # Each channel is the value less what the hue, seen from that channel, takes away (A. R. Smith's
    # hexcone in one line).
    sector = torch.stack([(angle + offset) % 6 for offset in (5, 3, 1)], 1)  # (N, 3, H, W)
    fall = torch.minimum(sector, 4 - sector).clamp_(0, 1)
    result = bright[:, None] * (1 - amount[:, None] * fall)
    return like(255 * result if images.dtype == torch.uint8 else result, images)


def grey(images: Tensor, u: Tensor, probability: float = 0.1) -> Tensor:
    """Turn an image grey with this probability. 1 draw."""
    factors = (u[:, :1] >= probability).float().expand(-1, 3)
    return chain(images, factors, torch.full((len(images), 1), 2, device=images.device))


def mul(images: Tensor, u: Tensor, factor: float = 1.0) -> Tensor:
    """Multiply all pixels by one factor. 0 draws."""
    return like(images.float() * factor, images)


def vignette(images: Tensor, u: Tensor, strength: float = 0.5) -> Tensor:
    """Darken toward the corners: by 1 - a r^2, r being 1 in a corner and a in [0, strength].

    1 draw.
    """
    height, width = images.shape[2:]
    y, x = _from_centre(height, u.device), _from_centre(width, u.device)
    radius = (y[:, None] ** 2 + x[None, :] ** 2) / 2
    return like(images.float() * (1 - strength * u[:, 0, None, None, None] * radius), images)


def _from_centre(length: int, device: torch.device) -> Tensor:
    """Return how far each pixel of an axis is from its centre, (length,) in [-1, 1]."""
    if length == 1:
        return torch.zeros(1, device=device)
    return torch.linspace(-1, 1, length, device=device)


def chain(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Apply brightness (0), contrast (1) and saturation (2) with factors (N, 3) in the order (N,
    any) of each image.

    Whatever the order, the result is a x + b grey(x) + c with three numbers an image, for
    grey(grey(x)) = grey(x).
    """
    grey = constant(GREY, images.device)
    mean = channel_means(images) @ grey  # (N,), the image's mean grey
    a = torch.ones_like(mean)
    b = torch.zeros_like(mean)
    c = torch.zeros_like(mean)

    # All three are affine in the pixel and its grey: three numbers an image describe any chain of
    # them.
    for operation in order.unbind(1):
        factor = factors.gather(1, operation[:, None])[:, 0]
        contrast, saturation = (1 - factor) * (operation == 1), (1 - factor) * (operation == 2)
        # The mean grey as it stands.
        level = (a + b) * mean + c
        c = factor * c + contrast * level + saturation * c
        b = factor * b + saturation * (a + b)
        a = factor * a

    matrix = a[:, None, None] * torch.eye(3, device=images.device) + b[:, None, None] * grey
    return affine(images, matrix, c[:, None, None].expand(-1, 3, 1))


def channel_means(images: Tensor) -> Tensor:
    """Return the mean of each channel, (N, C) float32, in the images' own unit."""
    if images.dtype == torch.uint8:
        kind = (
            torch.int32 if images.shape[2] * images.shape[3] < 2**23 else torch.int64
        )  # whole numbers: exact
        return images.flatten(2).sum(2, dtype=kind).float() / (images.shape[2] * images.shape[3])
    return images.flatten(2).mean(2)


def affine(images: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """Return matrix @ colour + bias for each pixel, clamped.

    matrix: (N, 3, 3); bias: (N, 3, 1), in the images' unit.
    """
    colours = images.flatten(2)
    if images.dtype != torch.uint8:
        return (
            torch.baddbmm(bias.to(colours.dtype), matrix.to(colours.dtype), colours)
            .clamp_(0, 1)
            .view_as(images)
        )

    result = torch.baddbmm(bias + 0.5, matrix, colours.float()).clamp_(
        0, 255
    )  # + 0.5: the cast then rounds
    return to_uint8(result).view(images.shape)
