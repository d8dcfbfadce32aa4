"""Pixels from one grid to another: resizing, cropping, and back to uint8. images: (N, C, H, W)."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Reach of the resizing filter, in pixels of the result.
SUPPORT = {"bilinear": 1, "bicubic": 2}
KERNELS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}
# Pixels by which a window may be shifted: 0.2 grey levels at most on a typical edge.
MAX_SHIFT = 1 / 64


def to_uint8(values: Tensor) -> Tensor:
    """Cut floats in [0, 256) to uint8: by way of int16, for which the CPU has a vector instruction;
    5 times as fast.
    """
    if values.device.type != "cpu":
        return values.to(torch.uint8)
    return values.to(torch.int16).to(torch.uint8)


def like(values: Tensor, images: Tensor) -> Tensor:
    """Return float `values`, which are overwritten, as the type of `images`: rounded and clamped
    for uint8.
    """
    if images.dtype == torch.uint8:
        return to_uint8(values.round_().clamp_(0, 255))
    return values.clamp_(0, 1).to(images.dtype)


def resize(images: Tensor, size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """Resize (N, C, H, W) uint8 to (N, C, *size) with antialiasing, as Pillow does.

    interpolation: bilinear, bicubic.
    """
    if not len(images):
        return images.new_empty(0, images.shape[1], *size)
    if images.device.type != "cpu":
        # A GPU's kernels take no uint8.
        values = F.interpolate(images.float(), size, mode=interpolation, antialias=True)
        return to_uint8(values.clamp_(0, 255).add_(0.5))

    return F.interpolate(images, size, mode=interpolation, antialias=True)


def crop(images: Tensor, offsets: Tensor, size: int, padding: int = 0) -> Tensor:
    """Cut a square out of each image.

    images: (N, C, H, W); offsets: (N, 2) left and top, from -padding on.

    What lies up to `padding` pixels beyond the border is black. Returns (N, C, size, size).
    """
    if padding:
        images, offsets = F.pad(images, [padding] * 4), offsets + padding
    if images.shape[2:] == (size, size):
        return images
    if images.device.type == "cpu":
        return _copy_squares(images, offsets.numpy(), size)

    # (N, C, tops, lefts, size, size), without a copy
    squares = images.unfold(2, size, 1).unfold(3, size, 1)
    rows = torch.arange(len(images), device=images.device)
    return squares[rows, :, offsets[:, 1], offsets[:, 0]]


def _copy_squares(images: Tensor, offsets: np.ndarray, size: int) -> Tensor:
    """Do what `crop` does, image by image: on a CPU twice as fast as one gather."""
    result = np.empty((*images.shape[:2], size, size), np.uint8)
    pixels, target = images.permute(0, 2, 3, 1).numpy(), result.transpose(0, 2, 3, 1)
    for row, (left, top) in enumerate(offsets.tolist()):
        target[row] = pixels[row, top : top + size, left : left + size]
    return torch.from_numpy(result)


def resized_crop(
    images: Tensor, scaled: tuple[int, int], offsets: Tensor, size: int, interpolation: str
) -> Tensor:
    """Resize to `scaled` and cut a square out of each image, computing that square only: two matrix
    products an image.

    For GPUs, whose resizing kernels take no uint8. The weights are whole multiples of 2^-14 and
    pixels are rounded after each product, as Pillow does: all sums are exact in float32, so neither
    the batch nor the device can change a bit. Returns (N, C, size, size) uint8.
    """
    count, channels, height, width = images.shape
    device = images.device
    across = _resize_matrix(width, scaled[1], size, interpolation, device)
    down = _resize_matrix(height, scaled[0], size, interpolation, device)
    across, down = across.index_select(0, offsets[:, 0]), down.index_select(0, offsets[:, 1])

    # As rows of one channel each: images lie channels last, which a view cannot be made of.
    rows = images.contiguous().float().view(count, channels * height, width)
    rows = torch.bmm(rows, across.transpose(1, 2)).clamp_(0, 255)
    rows = rows.add_(0.5).floor_().view(count, channels, height, size)

    # Halves go up, as Pillow's do.
    return to_uint8(torch.matmul(down[:, None], rows).clamp_(0, 255).add_(0.5))


@functools.lru_cache(maxsize=16)
def _resize_matrix(
    length: int, scaled: int, size: int, interpolation: str, device: torch.device
) -> Tensor:
    """Return, for each offset, the weights of `size` pixels of the scaled axis: (scaled - size + 1,
    size, length).
    """
    unit = torch.eye(length).view(1, 1, length, length)
    weights = F.interpolate(unit, (scaled, length), mode=interpolation, antialias=True)[0, 0]
    # Whole multiples of 2^-14 of pixels up to 255: every sum is exact in float32.
    weights = (weights * 2**14).round() / 2**14
    return weights.unfold(0, size, 1).transpose(1, 2).contiguous().to(device)


def gather(flat: Tensor, regions: Tensor, side: tuple[int, int]) -> Tensor:
    """Read a part of each image out of pixels that lie one image after the other.

    flat: (pixels, 3) uint8; regions: (N, 5) int64, an image's first pixel, its width and height,
    left and top of the part; side: width and height of the parts. Black beyond the border. Returns
    (N, 3, height, width), channels last.
    """
    start, width, height, left, top = regions[:, :, None].unbind(1)  # (N, 1)
    columns = left + torch.arange(side[0], device=flat.device)
    rows = top + torch.arange(side[1], device=flat.device)
    inside_x, inside_y = (columns >= 0) & (columns < width), (rows >= 0) & (rows < height)
    columns = torch.minimum(columns.clamp(min=0), width - 1)
    rows = torch.minimum(rows.clamp(min=0), height - 1)
    places = (start + rows * width)[:, :, None] + columns[:, None, :]  # (N, height, width)
    pixels = flat[places]
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    return (pixels * inside[..., None]).permute(0, 3, 1, 2)


def resized_boxes(
    images: Tensor,
    boxes: Tensor,
    size: int,
    whole: bool,
    interpolation: str,
    edges: Tensor | None = None,
) -> Tensor:
    """Resize another box of each image to (N, C, size, size): two matrix products an image.

    For GPUs. boxes: (N, 4) float32 left, top, right, bottom, on the images' device; whole: pixels
    beyond the box count in the filter; edges: (N, 4) where each image's own pixels begin and end,
    None: all are. Black beyond the border.
    """
    count, channels, height, width = images.shape
    left, top, right, bottom = boxes.unbind(1)
    if edges is None:
        # Filled there: a copy from the host would wait.
        first_x = first_y = boxes.new_zeros(count)
        last_x, last_y = boxes.new_full((count,), width), boxes.new_full((count,), height)
    else:
        first_x, first_y, last_x, last_y = edges.unbind(1)
    across_edges, down_edges = (first_x, last_x), (first_y, last_y)
    across = _box_weights(left, right, size, width, whole, interpolation, across_edges)  # (N, S, W)
    down = _box_weights(top, bottom, size, height, whole, interpolation, down_edges)  # (N, S, H)
    rows = images.contiguous().float().view(count, channels * height, width)
    rows = torch.bmm(rows, across.transpose(1, 2)).clamp_(0, 255)
    rows = rows.add_(0.5).floor_().view(count, channels, height, size)
    return to_uint8(torch.matmul(down[:, None], rows).clamp_(0, 255).add_(0.5))


def _box_weights(
    low: Tensor,
    high: Tensor,
    size: int,
    length: int,
    whole: bool,
    interpolation: str,
    edges: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the weights of `length` stored pixels for each of `size` resized ones, (N, size,
    length). edges: (N,) each, where an image's own pixels begin and end.

    The antialiasing filter as Pillow has it: a triangle, or Keys' cubic of a = -1/2, stretched by
    the factor of the reduction, its weights of the pixels there are adding up to 1.
    """
    scale = ((high - low) / size)[:, None, None]
    stretch = scale.clamp(min=1)
    middle = low[:, None, None] + scale * _halves(size, low)[:, None]
    stored = _halves(length, low)
    distance = ((stored - middle) / stretch).abs()
    if interpolation == "bilinear":
        weights = (1 - distance).clamp_(min=0)
    else:
        near = (1.5 * distance - 2.5) * distance * distance + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0 * far))
    first, last = (edge[:, None, None] for edge in edges)
    weights = weights * ((stored > first) & (stored < last))
    if not whole:
        inside = (stored >= low[:, None, None]) & (stored < high[:, None, None])
        weights = weights * inside

    total = weights.sum(2, keepdim=True)

    # What lies wholly beyond the border has no weights: it is black.
    beyond = (middle < first) | (middle > last)
    weights = torch.where(beyond | (total == 0), 0 * weights, weights / total)
    return ((weights * 2**14).round() / 2**14).float()


def _halves(count: int, like_tensor: Tensor) -> Tensor:
    """Return the middles of `count` pixels: 0.5, 1.5, ..."""
    return torch.arange(count, device=like_tensor.device, dtype=like_tensor.dtype) + 0.5


def five_crops(images: Tensor, size: int) -> Tensor:
    """Return the four corners and the centre of each image, (N, 5, C, size, size)."""
    height, width = images.shape[2:]
    bottom, right = height - size, width - size
    middle = round(bottom / 2), round(right / 2)
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), middle)
    crops = [images[:, :, top : top + size, left : left + size] for top, left in corners]
    return torch.stack(crops, 1)


def cut(images: Tensor, box: np.ndarray, side: int, whole: bool, interpolation: str) -> Tensor:
    """Resize one part of all images to (N, C, side, side), computing no more than is seen.

    images: (N, C, H, W) uint8; box: (4,) left, top, right, bottom, in pixels, black beyond the
    border; whole: pixels beyond the box count in the filter.
    """
    left, top, right, bottom = (float(edge) for edge in box)
    reach = SUPPORT[interpolation] if whole else 0
    # Both axes are independent: the filter is separable.
    columns = _Axis(left, right, side, images.shape[3], reach)
    rows = _Axis(top, bottom, side, images.shape[2], reach)
    # A wide `pad` lets a window lie wholly beyond the border.
    if max(axis.before + axis.after for axis in (rows, columns)) >= side:
        return images.new_zeros(*images.shape[:2], side, side)
    part = images[:, :, rows.start : rows.stop, columns.start : columns.stop]

    if rows.scale == 1 and columns.scale == 1:
        result = part[:, :, : rows.count, : columns.count]
    else:
        # As decoders give it, with a gap after each row, it is resized at half the speed.
        if part.stride(1) == 1 and part.shape[1] > 1:
            part = part.contiguous(memory_format=torch.channels_last)
        # torch copies an axis whose size stays, whatever its scale is: one pixel more is asked for.
        size = [
            axis.count + (axis.scale != 1 and axis.count == length)
            for axis, length in zip((rows, columns), part.shape[2:], strict=True)
        ]
        result = KERNELS[interpolation](part, size, False, 1 / rows.scale, 1 / columns.scale)

    result = result[:, :, rows.skip : rows.count, columns.skip : columns.count]
    margins = [columns.before, columns.after, rows.before, rows.after]
    return F.pad(result, margins) if any(margins) else result


class _Axis:
    """How one axis of a window is read: stored pixels [start, stop) become `count` pixels of which
    `skip` are dropped.

    The resizing kernel starts at whole pixels only, so it starts some pixels of the result early,
    where the window's fraction is nearly 0. before, after: pixels of the result that lie beyond the
    border. reach: pixels that the filter takes on either side, of the result where it shrinks and
    stored ones where it enlarges; 0: none beyond the window.
    """

    __slots__ = ("after", "before", "count", "scale", "skip", "start", "stop")

    def __init__(self, low: float, high: float, side: int, length: int, reach: int) -> None:
        self.scale = (high - low) / side
        self.before = max(0, round(-low / self.scale))
        self.after = max(0, round((high - length) / self.scale))
        low += self.before * self.scale
        reach = math.ceil(reach / min(1.0, self.scale))
        self.skip = self._early(low, reach) if reach else 0

        self.start = max(0, round(low - self.skip * self.scale))
        inside = side - self.before - self.after
        self.count = inside + self.skip
        end = low + (inside + reach) * self.scale
        self.stop = min(length, math.ceil(end) if reach else round(end))

    def _early(self, low: float, reach: int) -> int:
        """Return by how many pixels of the result the kernel starts early."""
        best, distance = 0, 1.0
        for early in range(int(low / self.scale + 1e-6) + 1):
            start = low - early * self.scale
            # The first pixel's filter would miss its left part.
            if start > MAX_SHIFT and early < reach:
                continue
            shift = abs(start - round(start))
            if shift < distance:
                best, distance = early, shift
            if distance <= MAX_SHIFT:
                break

        return best
