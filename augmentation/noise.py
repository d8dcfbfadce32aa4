"""Augmentations that blur, add noise and hide parts.

images: (N, C, H, W) uint8 in [0, 255] or float in [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from augmentation.colour import constant
from augmentation.resize import like

FILL = (
    124,
    116,
    104,
)  # ImageNet's mean colour: what is hidden is 0 to the network, as in the papers


def smooth(images: Tensor, u: Tensor, sigma: float = 1.0) -> Tensor:
    """Blur by a Gaussian whose deviation is in [0, sigma] pixels; the border's pixels go on beyond
    it. 1 draw.
    """
    return blur(images, sigma * u[:, 0], reach=max(1, round(4 * sigma)))


def blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur image n by a Gaussian of deviation sigma[n] pixels, cut off at `reach` pixels.

    sigma: (N,).
    """
    count, channels, height, width = images.shape
    if count == 0:
        return images
    distance = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(
        channels, 0
    )  # (N C, 2 reach + 1)

    # Of files the channels lie last: a view cannot join them with the batch.
    planes = images.float().reshape(1, -1, height, width)
    rows = F.pad(planes, [reach] * 4, mode="replicate")
    groups = count * channels
    blurred = F.conv2d(
        F.conv2d(rows, kernel[:, None, None, :], groups=groups),
        kernel[:, None, :, None],
        groups=groups,
    )
    return like(blurred.view_as(images), images)


def noise(images: Tensor, u: Tensor, deviation: float = 0.05) -> Tensor:
    """Add normal noise of this deviation, of pixels in [0, 1].

    1 draw: each pixel's number is a hash of it and its position.
    """
    count = images[0].numel() if len(images) else 0
    positions = torch.arange(count, dtype=torch.int32, device=images.device)
    keys = (u[:, 0] * 2**24).to(torch.int32)[:, None] * 0x9E3779B + positions
    first, second = _uniform(keys), _uniform(keys ^ 0x5BD1E995)
    values = torch.sqrt(-2 * torch.log(1 - first)) * torch.cos(2 * torch.pi * second)
    unit = 255 if images.dtype == torch.uint8 else 1
    return like(images.float() + unit * deviation * values.view(images.shape), images)


def _uniform(x: Tensor) -> Tensor:
    """Hash int32 to floats in [0, 1): Wellons' lowbias32."""
    for shift, factor in ((16, 0x7FEB352D), (15, -2073254261)):
        x = (x ^ (x >> shift & (1 << 32 - shift) - 1)) * factor
    x = x ^ (x >> 16 & 0xFFFF)
    return (x >> 8 & 0xFFFFFF).float() * 2.0**-24


def erase(
    images: Tensor, u: Tensor, probability: float = 0.25, low: float = 0.02, high: float = 0.33
) -> Tensor:
    """Hide a rectangle with this probability (Zhong 2017, arXiv 1708.04896). 5 draws.

    Its area is a share in [low, high] of the image, its aspect in [0.3, 3.3]; a side longer than
    the image is cut to it.
    """
    height, width = images.shape[2:]
    area = (low + (high - low) * u[:, 1]) * height * width
    aspect = torch.exp(math.log(0.3) * (1 - 2 * u[:, 2]))
    tall = torch.sqrt(area * aspect).round().clamp(1, height)
    wide = torch.sqrt(area / aspect).round().clamp(1, width)
    top, left = (u[:, 3] * (height - tall + 1)).floor(), (u[:, 4] * (width - wide + 1)).floor()
    shown = u[:, 0] < probability
    return hide(images, torch.stack([left, top, left + wide, top + tall], 1) * shown[:, None])


def cutout(images: Tensor, u: Tensor, pixels: float = 16) -> Tensor:
    """Hide a square of this side about a random pixel; it may reach over the border (arXiv
    1708.04552). 2 draws.
    """
    height, width = images.shape[2:]
    middle = (u[:, :2] * constant((width, height), u.device)).floor()
    return hide(images, torch.cat([middle - pixels // 2, middle - pixels // 2 + int(pixels)], 1))


def hide(images: Tensor, boxes: Tensor) -> Tensor:
    """Fill boxes, (N, 4) left, top, right, bottom in pixels, with the mean colour."""
    y = torch.arange(images.shape[2], device=images.device)[None, :, None]
    x = torch.arange(images.shape[3], device=images.device)[None, None, :]
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)  # (N, H, W)
    colour = constant(FILL, images.device)[:, None, None]
    fill = (
        colour.to(images.dtype) if images.dtype == torch.uint8 else (colour / 255).to(images.dtype)
    )
    return torch.where(inside[:, None], fill, images)
