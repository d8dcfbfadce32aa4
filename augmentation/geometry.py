"""Augmentations that move pixels.

images: (N, C, H, W) uint8 in [0, 255] or float in [0, 1]; u: (N, draws) in [0, 1).

What comes from beyond the border is black. All interpolate bilinearly.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from augmentation.resize import like

# Bytes of an image above which one at a time, in the processor's cache, is faster than all at once.
LARGE = 1 << 15


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirror image n left-right where u[n] < 1/2. 1 draw."""
    turning = u[:, 0] < 0.5
    if images.device.type != "cpu":
        return torch.where(turning[:, None, None, None], images.flip(3), images)
    rows = images.permute(0, 2, 3, 1)
    if rows.is_contiguous() and images[:1].nbytes > LARGE:
        result = images.clone()
        for index in turning.nonzero()[:, 0].tolist():
            result[index] = images[index].flip(2)
        return result

    # Choosing among both kinds copies whole images, where their bytes lie in order; torch.where
    # takes pixel by pixel.
    chosen = torch.arange(len(images), device=u.device) + len(images) * ~turning
    both = [images.flip(3), images]
    if rows.is_contiguous():
        kinds = torch.cat([kind.permute(0, 2, 3, 1) for kind in both])
        return kinds.index_select(0, chosen).permute(0, 3, 1, 2)

    return torch.cat(both).index_select(0, chosen)


def flip_in_place(images: Tensor, u: Tensor) -> None:
    """Do what `flip` does to images on a CPU, without a copy of those that stay as they are."""
    for index in (u[:, 0] < 0.5).nonzero()[:, 0].tolist():
        image = images[index]
        image.copy_(image.flip(-1))


def shift(images: Tensor, u: Tensor, pixels: float = 4) -> Tensor:
    """Move by whole pixels, up to `pixels` each way: the Torch7 suite's Jitter.

    2 draws: right, down.
    """
    most = int(pixels)
    padded = F.pad(images, [most] * 4)

    # 0: as far right or down as it goes.
    offsets = (u[:, :2] * (2 * most + 1)).long()
    rows = offsets[:, 1, None] + torch.arange(images.shape[2], device=u.device)
    columns = offsets[:, 0, None] + torch.arange(images.shape[3], device=u.device)
    batch = torch.arange(len(images), device=u.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def rotate(images: Tensor, u: Tensor, degrees: float = 15) -> Tensor:
    """Rotate about the centre by an angle in [-degrees, degrees]. 1 draw."""
    return affine(images, angle=math.radians(degrees) * (2 * u[:, 0] - 1))


def warp(images: Tensor, u: Tensor, degrees: float = 15, scale: float = 0.2) -> Tensor:
    """Rotate by up to `degrees` and enlarge by a factor in [1 - scale, 1 + scale], about the
    centre. 2 draws.
    """
    return affine(
        images, angle=math.radians(degrees) * (2 * u[:, 0] - 1), scale=1 + scale * (2 * u[:, 1] - 1)
    )


def affine(
    images: Tensor,
    *,
    angle: Tensor | None = None,
    scale: Tensor | None = None,
    shear: Tensor | None = None,
    move: Tensor | None = None,
    nearest: bool = False,
) -> Tensor:
    """Turn, enlarge, shear and move each image about its centre.

    angle: (N,) radians, counter-clockwise; scale: (N,); shear: (N, 2) tangents of the horizontal
    and the vertical one; move: (N, 2) pixels right and down.
    """
    count, _, height, width = images.shape
    zero = torch.zeros(count, device=images.device)
    angle = zero if angle is None else angle
    factor = zero + 1 if scale is None else scale
    slant = zero[:, None].expand(-1, 2) if shear is None else shear
    offset = zero[:, None].expand(-1, 2) if move is None else move

    # The sampling grid maps a pixel of the result to the place in the source that it comes from.
    cosine, sine = torch.cos(angle) / factor, torch.sin(angle) / factor
    xx, xy = cosine - sine * slant[:, 1], -sine + cosine * slant[:, 0]
    yx, yy = sine + cosine * slant[:, 1], cosine + sine * slant[:, 0]
    x = torch.arange(width, device=images.device) - (width - 1) / 2 - offset[:, 0, None]  # (N, W)
    y = torch.arange(height, device=images.device) - (height - 1) / 2 - offset[:, 1, None]  # (N, H)
    from_x = xx[:, None, None] * x[:, None, :] + xy[:, None, None] * y[:, :, None]
    from_y = yx[:, None, None] * x[:, None, :] + yy[:, None, None] * y[:, :, None]
    grid = torch.stack([from_x * 2 / width, from_y * 2 / height], 3)
    mode = "nearest" if nearest else "bilinear"
    return like(
        F.grid_sample(images.float(), grid, mode=mode, padding_mode="zeros", align_corners=False),
        images,
    )
