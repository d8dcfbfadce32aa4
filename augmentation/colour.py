"""Augmentations of colour. images: (N, 3, H, W) uint8 in [0, 255] or float in [0, 1]; u: (N, draws) float32 in [0, 1).

Brightness, contrast and saturation are affine in the three channels, and stay so in a chain: one pass measures the
mean colour of each image, one applies a 3 x 3 matrix and a bias. So a chain clamps once, at its end, where torchvision
clamps after each operation.
"""

from itertools import permutations

import torch
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma of red, green, blue
ORDERS = tuple(permutations(range(3)))


def jitter(images: Tensor, u: Tensor, strength: float = 0.4) -> Tensor:
    """Brightness, contrast and saturation, each by a factor in [1 - strength, 1 + strength], in a random order.

    4 draws: the three factors and the order. The source is fb.resnet.torch's ColorJitter, with contrast about the mean
    grey of the image as it stands at that point of the chain.
    """
    factors = 1 + strength * (2 * u[:, :3] - 1)
    order = torch.tensor(ORDERS, device=u.device)[(u[:, 3] * len(ORDERS)).long()]  # (N, 3)
    return chain(images, factors, order)


def chain(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Apply brightness (0), contrast (1) and saturation (2) with factors (N, 3) in the order (N, any) of each image."""
    grey = torch.tensor(GREY, device=images.device)
    identity = torch.eye(3, device=images.device)
    shades = grey.expand(3, 3)  # maps a colour to its grey, three times
    mean = channel_means(images)  # (N, 3)
    matrix = identity.expand(len(images), 3, 3)
    bias = mean.new_zeros(len(images), 3, 1)
    for place in range(order.shape[1]):
        operation = order[:, place]
        factor = factors.gather(1, operation[:, None])[:, :, None]  # (N, 1, 1)
        level = grey @ (matrix @ mean[:, :, None] + bias)  # (N, 1): the mean grey as it stands
        toward = torch.where((operation == 2)[:, None, None], shades, torch.zeros_like(shades))
        step = factor * identity + (1 - factor) * toward
        constant = torch.where((operation == 1)[:, None, None], (1 - factor) * level[:, None], torch.zeros_like(factor))
        matrix, bias = step @ matrix, step @ bias + constant
    return affine(images, matrix, bias)


def channel_means(images: Tensor) -> Tensor:
    """Return the mean of each channel, (N, C) float32, in the images' own unit."""
    if images.dtype == torch.uint8:
        return images.flatten(2).sum(2, dtype=torch.int64).float() / (images.shape[2] * images.shape[3])
    return images.flatten(2).mean(2)


def affine(images: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """Return matrix @ colour + bias for each pixel, clamped. matrix: (N, 3, 3); bias: (N, 3, 1), in the images' unit."""
    colours = images.flatten(2)
    if images.dtype != torch.uint8:
        return torch.baddbmm(bias.to(colours.dtype), matrix.to(colours.dtype), colours).clamp_(0, 1).view_as(images)
    result = torch.baddbmm(bias + 0.5, matrix, colours.float()).clamp_(0, 255)  # + 0.5: the cast then rounds
    return result.to(torch.uint8).view(images.shape)
