"""The train and the test pipeline: from stored images to the uint8 pixels that the network sees.

    window (which part of the stored image is read, at what size) -> geometry -> flip -> colour -> noise -> erase -> mix

For files the window is all that a loader's worker does: it decodes that part and no more. For arrays it is one gather
for the whole batch. The rest runs on whole batches on the device. Each step draws from a random stream of its own.

    python transforms.py --dataset mnist --augment pad:2,crop --out sheet.png      shows what the network sees
"""

import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augmentation import MIX, WINDOW, Step
from augmentation.mix import DRAWS
from augmentation.resize import crop, cut, five_crops, resize, resized_crop
from base.randomness import uniforms

TRIES = 10  # of RandomSizedCrop, as torchvision's


@dataclass(frozen=True)
class Window:
    """Parts of N stored images that become (size, size) pixels each, in pixels of the stored image.

    box: (N, 4) float64, left, top, right, bottom; it may reach over the border, where the result is black. (N, 5, 4)
    for the five parts of ten-crop testing.
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
    """What happens to images of one pass. steps: from `augmentation.parse`; sizes in pixels; seed: of the run.

    ten: give the four corners and the centre of each image, (N, 5, ...), for ten-crop testing.
    """

    def __init__(
        self, steps: Sequence[Step], image_size: int, crop_size: int, *,
        seed: int = 0, interpolation: str = "bilinear", ten: bool = False,
    ) -> None:  # fmt: skip
        self.image_size, self.crop_size, self.seed, self.interpolation = image_size, crop_size, seed, interpolation
        self.all_steps = steps
        self.window_steps = {step.name: step.values for step in steps if step.entry.stage == WINDOW}
        self.steps = [step for step in steps if WINDOW < step.entry.stage < MIX]
        self.mixes = [step for step in steps if step.entry.stage == MIX]
        self.padding = int(self.window_steps.get("pad", (0,))[0])
        self.ten = ten
        if "scale" in self.window_steps and self.window_steps["scale"][0] < crop_size:
            raise ValueError(f"scale:{self.window_steps['scale'][0]:g} is less than the crop's {crop_size} pixels: raise it")

    def alone(self) -> "Pipeline":
        """Return the pipeline with one part an image, the centre in ten-crop testing."""
        return Pipeline(self.all_steps, self.image_size, self.crop_size, seed=self.seed, interpolation=self.interpolation)

    @property
    def parts(self) -> tuple[int, ...]:
        """The axes before a part's own: none, or (5,) in ten-crop testing."""
        return (5,) if self.ten else ()

    @property
    def varied(self) -> bool:
        """True where each image is resized by another factor."""
        return "resizedcrop" in self.window_steps or "scale" in self.window_steps

    def windows(self, widths: np.ndarray, heights: np.ndarray, epoch: int, indices: np.ndarray) -> Window:
        """Choose the part of each image that is read. widths, heights: (N,) pixels of the stored images.

        The shorter side is scaled to image_size (rounding down the longer one, as torchvision's Resize does), of which
        a square of crop_size is taken: at random with `crop`, else the centre.
        """
        sides = np.stack([widths, heights], 1).astype(np.float64)  # (N, 2)
        random = bool(self.window_steps.keys() & {"crop", "resizedcrop"})
        headroom = 1 if random else 4
        if "resizedcrop" in self.window_steps:
            u = uniforms(self.seed, epoch, indices, 4 * TRIES, "resizedcrop").numpy().astype(np.float64)
            return Window(sized_boxes(sides, u, *self.window_steps["resizedcrop"]), self.crop_size, False, headroom)
        scaled = np.floor(self._shorter(epoch, indices) * sides / sides.min(1, keepdims=True))
        offset = self._offsets(scaled, epoch, indices)
        ratio = sides / scaled  # pixels of the stored image a pixel of the scaled one
        if self.ten:
            free = scaled - self.crop_size
            corners = [[0, 0], [1, 0], [0, 1], [1, 1]]
            offset = np.stack([*(free * corner for corner in corners), offset], 1)  # (N, 5, 2)
            ratio = ratio[:, None]
        box = np.concatenate([offset * ratio, (offset + self.crop_size) * ratio], -1)
        return Window(box, self.crop_size, headroom=headroom)

    def _shorter(self, epoch: int, indices: np.ndarray) -> Any:
        """Return the shorter side that images are scaled to: one for all, or with `scale` (N, 1) drawn ones."""
        if "scale" not in self.window_steps:
            return self.image_size
        least, most = self.window_steps["scale"]
        u = uniforms(self.seed, epoch, indices, 1, "scale").numpy().astype(np.float64)
        return np.floor(least + u * (most - least + 1))

    def _offsets(self, scaled: np.ndarray, epoch: int, indices: np.ndarray) -> np.ndarray:
        """Return left and top, (N, 2) whole pixels of the scaled image, of the square that is taken."""
        free = scaled - self.crop_size
        if "crop" not in self.window_steps:
            return np.rint(free / 2)
        u = uniforms(self.seed, epoch, indices, 2, "crop").numpy().astype(np.float64)
        return np.floor(u * (free + 2 * self.padding + 1)) - self.padding

    def arrays(self, pixels: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        """Scale and crop images of one size. pixels: (N, C, H, W) uint8 -> (N, C, S, S), or (N, 5, C, S, S), uint8."""
        height, width = pixels.shape[2:]
        if self.varied:
            return self._cut_each(pixels, epoch, indices)
        shorter = min(height, width)
        scaled = (self.image_size * height // shorter, self.image_size * width // shorter)
        sides = np.tile(np.array([[scaled[1], scaled[0]]], np.float64), (len(indices), 1))
        offsets = self._offsets(sides, epoch, indices).astype(np.int64)
        if scaled != (height, width):
            plain = not (self.ten or self.padding) and len(pixels)
            if plain and pixels.is_cuda:
                return resized_crop(pixels, scaled, offsets, self.crop_size, self.interpolation)
            if plain and "crop" not in self.window_steps:  # one part for all: no more of it is resized than is seen
                window = self.windows(np.array([width]), np.array([height]), epoch, indices[:1])
                return cut(pixels, window.box[0], window.size, window.whole, self.interpolation)
            pixels = resize(pixels, scaled, self.interpolation)
        if self.ten:
            return five_crops(pixels, self.crop_size)
        return crop(pixels, offsets, self.crop_size, self.padding)

    def _cut_each(self, pixels: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        height, width = pixels.shape[2:]
        window = self.windows(np.full(len(indices), width), np.full(len(indices), height), epoch, indices)
        parts = [
            cut(image[None], box, window.size, window.whole, self.interpolation)
            for image, box in zip(pixels.cpu(), window.box, strict=True)
        ]
        return torch.cat(parts).to(pixels.device) if parts else pixels.new_empty(0, pixels.shape[1], *[window.size] * 2)

    def draws(self, epoch: int, indices: np.ndarray) -> Tensor:
        """Return the random numbers of all steps on the device, side by side: (N, sum of draws) float32."""
        columns = [uniforms(self.seed, epoch, indices, step.entry.draws, step.name) for step in self.steps]
        return torch.cat(columns, 1) if columns else torch.empty(len(indices), 0)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """Run the steps after the window. images: (N, 3, S, S) uint8 on any device; draws: from `draws`, on the host."""
        start = 0
        on_device = draws.to(images.device, non_blocking=True)
        for step in self.steps:
            u = (draws if step.entry.host else on_device)[:, start : start + step.entry.draws]
            images = _find(step.entry.function)(images, u, *step.values)
            start += step.entry.draws
        return images

    def mix(self, images: Tensor, labels: Tensor, classes: int, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """Mix images and labels within batch `number`; without such a step return both as they are."""
        for step in self.mixes:
            u = uniforms(self.seed, epoch, np.array([number]), DRAWS, step.name)[0]
            return _find(step.entry.function)(images, labels, classes, u, *step.values)
        return images, labels


def _find(name: str) -> Any:
    module, function = name.split(":")
    return getattr(import_module(f"augmentation.{module}"), function)


def sized_boxes(sides: np.ndarray, u: np.ndarray, low: float, high: float, aspect: float) -> np.ndarray:
    """Return RandomSizedCrop's boxes, (N, 4) left, top, right, bottom in whole pixels.

    sides: (N, 2) width and height; u: (N, 40), four for each of ten tries: area, aspect, left, top. The first box that
    fits is taken (Szegedy 2014, arXiv 1409.4842, section 6, in torchvision's form), else the largest central one of an
    allowed aspect.
    """
    area, shape, left, top = u.reshape(len(u), TRIES, 4).transpose(2, 0, 1)  # each (N, tries)
    areas = sides.prod(1, keepdims=True) * (low + (high - low) * area)
    aspects = np.exp(np.log(aspect) * (2 * shape - 1))
    wide, tall = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    width, height = sides[:, :1], sides[:, 1:]
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    lefts, tops = np.floor(left * (width - wide + 1)), np.floor(top * (height - tall + 1))
    boxes = np.stack([lefts, tops, lefts + wide, tops + tall], 2)[np.arange(len(u)), fits.argmax(1)]
    return np.where(fits.any(1)[:, None], boxes, _central(sides, aspect))


def _central(sides: np.ndarray, aspect: float) -> np.ndarray:
    width, height = sides.T
    wide = np.minimum(width, np.rint(height * aspect))
    tall = np.minimum(height, np.rint(width * aspect))
    left, top = (width - wide) // 2, (height - tall) // 2
    return np.stack([left, top, left + wide, top + tall], 1)


if __name__ == "__main__":  # the sheet is a program of its own, which imports this file
    runpy.run_path(str(Path(__file__).with_name("sheets.py")), run_name="__main__")
