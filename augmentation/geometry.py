"""Augmentations that move pixels. images: (N, C, H, W); u: (N, draws) float32 in [0, 1)."""

import torch
from torch import Tensor


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirror image n left-right where u[n] < 1/2. Any dtype. 1 draw."""
    return torch.where(u[:, 0, None, None, None] < 0.5, images.flip(3), images)
