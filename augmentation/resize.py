"""Pixels from one grid to another: resizing, cropping, and back to uint8. images: (N, C, H, W)."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def _like(values: Tensor, images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return to_uint8(values.round().clamp_(0, 255))
    return values.clamp(0, 1).to(images.dtype)


def to_uint8(values: Tensor) -> Tensor:
    """Cut floats in [0, 256) to uint8: by way of int16, for which the CPU has a vector instruction; 5 times as fast."""
    return values.to(torch.int16).to(torch.uint8)


def like(values: Tensor, images: Tensor) -> Tensor:
    """Return float `values` as the type of `images`: rounded and clamped for uint8."""
    if images.dtype == torch.uint8:
        return to_uint8(values.round_().clamp_(0, 255))
    return values.clamp_(0, 1).to(images.dtype)


SUPPORT = {"bilinear": 1, "bicubic": 2}  # reach of the filter, in pixels of the result
KERNELS = {"bilinear": torch.ops.aten._upsample_bilinear2d_aa, "bicubic": torch.ops.aten._upsample_bicubic2d_aa}
NEAR = 1 / 64  # pixels by which a window may be shifted: 0.2 grey levels at most on a typical edge


def cut(images: Tensor, box: np.ndarray, side: int, whole: bool, interpolation: str) -> Tensor:
    """Resize the part `box` of images, (N, C, H, W) uint8, to (N, C, side, side)."""
    left, top, right, bottom = (float(edge) for edge in box)
    reach = SUPPORT[interpolation] if whole else 0
    columns = _axis(left, right, side, images.shape[3], reach)
    rows = _axis(top, bottom, side, images.shape[2], reach)
    part = images[:, :, rows.start : rows.stop, columns.start : columns.stop]
    if rows.scale == 1 and columns.scale == 1:
        result = part[:, :, : rows.count, : columns.count]
    else:
        if part.stride(1) == 1 and part.shape[1] > 1:  # as decoders give it: resized twice as fast without gaps
            part = part.contiguous(memory_format=torch.channels_last)
        resize = KERNELS[interpolation]
        result = resize(part, [rows.count, columns.count], False, 1 / rows.scale, 1 / columns.scale)
    result = result[:, :, rows.skip :, columns.skip :]
    margins = [columns.before, columns.after, rows.before, rows.after]
    return F.pad(result, margins) if any(margins) else result


class _axis:
    """How one axis of a window is read: stored pixels [start, stop) become `count` pixels of which `skip` are dropped.

    The resizing kernel starts at whole pixels only, so it starts some pixels of the result early, where the window's
    fraction is nearly 0. before, after: pixels of the result that lie beyond the border.
    """

    __slots__ = ("after", "before", "count", "scale", "skip", "start", "stop")

    def __init__(self, low: float, high: float, side: int, length: int, reach: int) -> None:
        self.scale = (high - low) / side
        self.before = max(0, round(-low / self.scale))
        self.after = max(0, round((high - length) / self.scale))
        low += self.before * self.scale
        self.skip = self._early(low, reach) if reach else 0
        self.start = max(0, round(low - self.skip * self.scale))
        inside = side - self.before - self.after
        self.count = inside + self.skip
        end = low + (inside + reach) * self.scale
        self.stop = min(length, int(np.ceil(end)) if reach else round(end))

    def _early(self, low: float, reach: int) -> int:
        """Return by how many pixels of the result the kernel starts early."""
        best, distance = 0, 1.0
        most = int(low / self.scale + 1e-6)
        for early in range(most + 1):
            start = low - early * self.scale
            if start > NEAR and early < reach:
                continue  # the first pixel's filter would miss its left part
            if abs(start - round(start)) < distance:
                best, distance = early, abs(start - round(start))
                if distance <= NEAR:
                    break
        return best


def resize(images: Tensor, size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """Resize (N, C, H, W) uint8 to (N, C, *size) with antialiasing, as Pillow does. interpolation: bilinear, bicubic."""
    if not len(images):
        return images.new_empty(0, images.shape[1], *size)
    if images.is_cuda:  # whose kernels take no uint8
        return to_uint8(F.interpolate(images.float(), size, mode=interpolation, antialias=True).clamp_(0, 255).add_(0.5))
    return F.interpolate(images, size, mode=interpolation, antialias=True)


def crop(images: Tensor, offsets: np.ndarray, size: int, padding: int = 0) -> Tensor:
    """Cut a square out of each image. images: (N, C, H, W); offsets: (N, 2) left and top, from -padding on.

    What lies up to `padding` pixels beyond the border is black. Returns (N, C, size, size).
    """
    if padding:
        images, offsets = F.pad(images, [padding] * 4), offsets + padding
    if images.shape[2:] == (size, size):
        return images
    if not images.is_cuda:
        return _copy_squares(images, offsets, size)
    squares = images.unfold(2, size, 1).unfold(3, size, 1)  # (N, C, tops, lefts, size, size), no copy
    place = torch.from_numpy(offsets).to(images.device, non_blocking=True)
    return squares[torch.arange(len(images), device=images.device), :, place[:, 1], place[:, 0]]


def _copy_squares(images: Tensor, offsets: np.ndarray, size: int) -> Tensor:
    """Do what `crop` does, image by image: on a CPU twice as fast as one gather."""
    result = np.empty((*images.shape[:2], size, size), np.uint8)
    pixels, target = images.permute(0, 2, 3, 1).numpy(), result.transpose(0, 2, 3, 1)
    for place, (left, top) in enumerate(offsets.tolist()):
        target[place] = pixels[place, top : top + size, left : left + size]
    return torch.from_numpy(result)


def resized_crop(images: Tensor, scaled: tuple[int, int], offsets: np.ndarray, size: int, interpolation: str) -> Tensor:
    """Resize to `scaled` and cut a square out of each image, computing that square only: two matrix products an image.

    For GPUs, whose resizing kernels take no uint8. The weights are whole multiples of 2^-14 and pixels are rounded after
    each product, as Pillow does: all sums are exact in float32, so neither the batch nor the device can change a bit.
    Returns (N, C, size, size) uint8.
    """
    count, channels, height, width = images.shape
    place = torch.from_numpy(offsets).to(images.device, non_blocking=True)
    across = _resize_matrix(width, scaled[1], size, interpolation, images.device).index_select(0, place[:, 0])  # (N, S, W)
    down = _resize_matrix(height, scaled[0], size, interpolation, images.device).index_select(0, place[:, 1])  # (N, S, H)
    rows = torch.bmm(images.float().view(count, channels * height, width), across.transpose(1, 2)).clamp_(0, 255)
    result = torch.matmul(down[:, None], rows.add_(0.5).floor_().view(count, channels, height, size))
    return to_uint8(result.clamp_(0, 255).add_(0.5))  # halves go up, as Pillow's do


@functools.lru_cache(maxsize=16)
def _resize_matrix(length: int, scaled: int, size: int, interpolation: str, device: torch.device) -> Tensor:
    """Return, for each offset, the weights of `size` pixels of the scaled axis: (scaled - size + 1, size, length)."""
    unit = torch.eye(length).view(1, 1, length, length)
    weights = F.interpolate(unit, (scaled, length), mode=interpolation, antialias=True)[0, 0]  # (scaled, length)
    weights = (weights * 2**14).round() / 2**14
    return weights.unfold(0, size, 1).transpose(1, 2).contiguous().to(device)


def five_crops(images: Tensor, size: int) -> Tensor:
    """Return the four corners and the centre of each image, (N, 5, C, size, size)."""
    height, width = images.shape[2:]
    bottom, right = height - size, width - size
    middle = round(bottom / 2), round(right / 2)
    places = ((0, 0), (0, right), (bottom, 0), (bottom, right), middle)
    return torch.stack([images[:, :, top : top + size, left : left + size] for top, left in places], 1)
