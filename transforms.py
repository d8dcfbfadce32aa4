"""The train and the test pipeline: from stored images to the uint8 pixels that the network sees.

    window (which part of the stored image is read, at what size) -> geometry -> flip -> colour -> noise -> erase

For files the window is all that a loader's worker does: it decodes that part and no more. For arrays it is one gather
for the whole batch. The rest runs on whole batches on the device. Each step draws from a random stream of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from augmentation import WINDOW, Step
from randomness import uniforms


@dataclass(frozen=True)
class Window:
    """Parts of N stored images that become (size, size) pixels each, in pixels of the stored image.

    box: (N, 4) float64, left, top, right, bottom; it may reach over the border, where the result is black.
    whole: what lies beyond the box counts in the resizing filter, as if the whole image were resized and then cropped.
    headroom: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its scale while it stays this many times too large: 1 in
    training; 4 in testing, where the result must be within 1 grey level of resizing the whole image (measured: 2 gave
    0.3 levels on average but 6 at worst).
    """

    box: np.ndarray
    size: int
    whole: bool = True
    headroom: float = 4


class Pipeline:
    """What happens to images of one pass. steps: from `augmentation.parse`; sizes in pixels; seed: of the run."""

    def __init__(
        self, steps: Sequence[Step], image_size: int, crop_size: int, *, seed: int = 0, interpolation: str = "bilinear"
    ) -> None:
        self.image_size, self.crop_size, self.seed, self.interpolation = image_size, crop_size, seed, interpolation
        self.window_steps = {step.name: step.values for step in steps if step.entry.stage == WINDOW}
        self.steps = [step for step in steps if step.entry.stage != WINDOW]
        self.functions = [_find(step.entry.function) for step in self.steps]
        self.padding = int(self.window_steps.get("pad", (0,))[0])

    def windows(self, widths: np.ndarray, heights: np.ndarray, epoch: int, indices: np.ndarray) -> Window:
        """Choose the part of each image that is read. widths, heights: (N,) pixels of the stored images.

        The shorter side is scaled to image_size (rounding down the longer one, as torchvision's Resize does), of which
        a square of crop_size is taken: at random with `crop`, else the centre.
        """
        sides = np.stack([widths, heights], 1).astype(np.float64)  # (N, 2)
        shorter = sides.min(1, keepdims=True)
        scaled = np.floor(self.image_size * sides / shorter)
        offset = self._offsets(scaled, epoch, indices)
        ratio = sides / scaled  # pixels of the stored image a pixel of the scaled one
        box = np.concatenate([offset * ratio, (offset + self.crop_size) * ratio], 1)
        return Window(box, self.crop_size, headroom=1 if "crop" in self.window_steps else 4)

    def _offsets(self, scaled: np.ndarray, epoch: int, indices: np.ndarray) -> np.ndarray:
        """Return left and top, (N, 2) whole pixels of the scaled image, of the square that is taken."""
        free = scaled - self.crop_size
        if "crop" not in self.window_steps:
            return np.rint(free / 2)
        u = uniforms(self.seed, epoch, indices, 2, "crop").numpy().astype(np.float64)
        return np.floor(u * (free + 2 * self.padding + 1)) - self.padding

    def arrays(self, pixels: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        """Scale and crop images of one size. pixels: (N, C, H, W) uint8 -> (N, C, S, S) uint8."""
        height, width = pixels.shape[2:]
        shorter = min(height, width)
        scaled = (self.image_size * height // shorter, self.image_size * width // shorter)
        if scaled != (height, width):
            pixels = resize(pixels, scaled, self.interpolation)
        sides = np.tile(np.array([[scaled[1], scaled[0]]], np.float64), (len(indices), 1))
        return crop(pixels, self._offsets(sides, epoch, indices).astype(np.int64), self.crop_size, self.padding)

    def draws(self, epoch: int, indices: np.ndarray) -> Tensor:
        """Return the random numbers of all steps on the device, side by side: (N, sum of draws) float32."""
        columns = [uniforms(self.seed, epoch, indices, step.entry.draws, step.name) for step in self.steps]
        return torch.cat(columns, 1) if columns else torch.empty(len(indices), 0)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """Run the steps after the window. images: (N, 3, S, S) uint8 on any device; draws: from `draws`, on it too."""
        start = 0
        for step, function in zip(self.steps, self.functions, strict=True):
            images = function(images, draws[:, start : start + step.entry.draws], *step.values)
            start += step.entry.draws
        return images


def _find(name: str):
    module, function = name.split(":")
    return getattr(import_module(f"augmentation.{module}"), function)


def resize(images: Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """Resize (N, C, H, W) uint8 to (N, C, *size) with antialiasing, as Pillow does. interpolation: bilinear, bicubic."""
    return F.interpolate(images, size, mode=interpolation, antialias=True, align_corners=False)


def crop(images: Tensor, offsets: np.ndarray, size: int, padding: int = 0) -> Tensor:
    """Cut a square out of each image. images: (N, C, H, W); offsets: (N, 2) left and top, from -padding on.

    What lies up to `padding` pixels beyond the border is black. Returns (N, C, size, size).
    """
    if padding:
        images, offsets = F.pad(images, [padding] * 4), offsets + padding
    if images.shape[2:] == (size, size):
        return images
    squares = images.unfold(2, size, 1).unfold(3, size, 1)  # (N, C, tops, lefts, size, size), no copy
    place = torch.from_numpy(offsets).to(images.device)
    return squares[torch.arange(len(images), device=images.device), :, place[:, 1], place[:, 0]]
