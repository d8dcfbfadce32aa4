"""The train and the test pipeline: from stored images to the uint8 pixels that the network sees.

    window (which part of the stored image is read, at what size)
    -> geometry -> flip -> colour -> noise -> erase -> mix

For files the window is all that a loader's worker does: it decodes that part and no more. For
arrays it is one gather for the whole batch. The rest runs on whole batches on the device. Each step
draws from a random stream of its own.

To see what the network sees:

    python transforms.py --dataset mnist --augment pad:2,crop --out sheet.png
"""

import functools
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augmentation import AUGMENTATIONS, MIX, WINDOW, Step
from augmentation.resize import crop, cut, five_crops, resize, resized_boxes, resized_crop
from base.randomness import uniforms

# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its scale while it stays this many times too large. In
# testing the result must be within 1 grey level of resizing the whole image: 2 gave 0.3 levels on
# average but 6 at worst.
TRAIN_HEADROOM = 1
TEST_HEADROOM = 4
# Steps whose windows are of training.
RANDOM = {"crop", "resizedcrop"}


@dataclass(frozen=True)
class Window:
    """Parts of N stored images that become (size, size) pixels each, in pixels of the stored image.

    box: (N, 4) float64, left, top, right, bottom; it may reach over the border, where the result is
    black. (N, 5, 4) for the five parts of ten-crop testing. whole: what lies beyond the box counts
    in the resizing filter, as if the whole image were resized and then cropped. headroom: how many
    times too large a JPEG that is decoded at a reduced scale must stay.
    """

    box: np.ndarray
    size: int
    whole: bool = True
    headroom: float = TEST_HEADROOM


@dataclass(frozen=True)
class Scaling:
    """What is done to a whole image before its pixels are kept for all epochs.

    shorter: pixels that its shorter side is scaled to; enlarge: a smaller one too; headroom: as of
    `Window`; fit: as of `Pipeline`.
    """

    shorter: int
    enlarge: bool
    headroom: float
    interpolation: str
    fit: str = "crop"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an image gets, rounded down as `Pipeline.windows`
        does.
        """
        if self.fit != "crop":
            wide, tall = fitted(np.array([[width, height]], np.float64), self.shorter, self.fit)[0]
            return int(wide), int(tall)
        least = min(width, height)
        if least <= self.shorter and not self.enlarge:
            return width, height
        return self.shorter * width // least, self.shorter * height // least


@dataclass(frozen=True)
class Placement:
    """Where images of one size are cut: worked out on the host, sent to the device in one piece.

    scaled: (N, 2) width and height that all are scaled to, and corners: (N, 2) left and top there;
    None where each image is scaled by another factor.
    """

    window: Window
    scaled: np.ndarray | None = None
    corners: np.ndarray | None = None

    @property
    def to_send(self) -> np.ndarray:
        """What the device needs: corners (N, 2) int64, or boxes (N, 4) float32."""
        return self.window.box.astype(np.float32) if self.corners is None else self.corners


class Pipeline:
    """What happens to images of one pass.

    steps: from `augmentation.parse`; sizes in pixels; seed: of the run.

    ten: give the four corners and the centre of each image, (N, 5, ...), for ten-crop testing;
    mirrored: in testing, each image and its mirror image count. fit: what the square of image_size
    is: "crop", as wide as the shorter side; "pad", as wide as the longer one, black beside the
    image; "squash", the whole image squeezed.

    Raises ValueError where a scale is less than the crop.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        image_size: int,
        crop_size: int,
        *,
        seed: int = 0,
        interpolation: str = "bilinear",
        ten: bool = False,
        mirrored: bool = False,
        fit: str = "crop",
    ) -> None:
        self.image_size, self.crop_size = image_size, crop_size
        self.seed = seed
        self.interpolation = interpolation
        self.ten, self.mirrored, self.fit = ten, mirrored, fit
        self.all_steps = steps
        self.window_steps = {step.name: step.values for step in steps if step.entry.stage == WINDOW}
        self.steps = [step for step in steps if WINDOW < step.entry.stage < MIX]
        self.mixes = [step for step in steps if step.entry.stage == MIX]
        self.padding = int(self.window_steps.get("pad", (0,))[0])

        least = self.window_steps.get("scale", (crop_size,))[0]
        if least < crop_size:
            raise ValueError(
                f"scale:{least:g} is less than the crop's {crop_size} pixels: raise it"
            )

    def single_crop(self) -> "Pipeline":
        """Return the pipeline with one part an image, the centre in ten-crop testing."""
        sizes = self.image_size, self.crop_size
        return Pipeline(
            self.all_steps,
            *sizes,
            seed=self.seed,
            interpolation=self.interpolation,
            fit=self.fit,
        )

    def padded(self) -> "Pipeline":
        """Return the pipeline that shows all of an image, as large as this one's crop."""
        sizes = self.crop_size, self.crop_size
        return Pipeline([], *sizes, interpolation=self.interpolation, fit="pad")

    @property
    def parts(self) -> tuple[int, ...]:
        """The axes before a part's own: none, or (5,) in ten-crop testing."""
        return (5,) if self.ten else ()

    @property
    def varied(self) -> bool:
        """True where each image is resized by another factor."""
        return "resizedcrop" in self.window_steps or "scale" in self.window_steps

    def windows(
        self, widths: np.ndarray, heights: np.ndarray, epoch: int, indices: np.ndarray
    ) -> Window:
        """Choose the part of each image that is read.

        widths, heights: (N,) pixels of the stored images.

        The shorter side is scaled to image_size (rounding down the longer one, as torchvision's
        Resize does), of which a square of crop_size is taken: at random with `crop`, else the
        centre.
        """
        sides = np.stack([widths, heights], 1).astype(np.float64)  # (N, 2)
        if "resizedcrop" in self.window_steps:
            draws = self._draws("resizedcrop", epoch, indices)
            box = sized_boxes(sides, draws, *self.window_steps["resizedcrop"])
            return Window(box, self.crop_size, whole=False, headroom=self._headroom)

        scaled, offset = self._placement(sides, epoch, indices)
        box = self._boxes(sides, scaled, offset)
        return Window(box, self.crop_size, headroom=self._headroom)

    @property
    def _headroom(self) -> float:
        """How many times too large a JPEG must stay: random windows forgive more."""
        return TRAIN_HEADROOM if self.window_steps.keys() & RANDOM else TEST_HEADROOM

    def scaling(self, size: int | None = None) -> Scaling:
        """Return how whole images are scaled so that windows of them are those of the files.

        size: shorter side where each window is resized by another factor, where a file has so many.
        """
        shorter = size if self.varied and size is not None else self.image_size
        # Random windows are cut out of the image as it is.
        fit = "crop" if self.varied else self.fit
        return Scaling(shorter, not self.varied, self._headroom, self.interpolation, fit)

    def _placement(
        self, sides: np.ndarray, epoch: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the size that each image is scaled to and where its square begins there, both (N,
        2) whole pixels.
        """
        shorter: Any = self.image_size
        if "scale" in self.window_steps:
            least, most = self.window_steps["scale"]
            shorter = np.floor(least + self._draws("scale", epoch, indices) * (most - least + 1))

        scaled = fitted(sides, shorter, self.fit)
        # What a window lies in: the image, or the square that it is padded to.
        canvas = np.maximum(scaled, self.image_size) if self.fit == "pad" else scaled
        border = np.floor((canvas - scaled) / 2)

        free = canvas - self.crop_size
        if "crop" not in self.window_steps:
            return scaled, np.rint(free / 2) - border
        draws = self._draws("crop", epoch, indices)
        # One more position than free pixels, so that both borders are reached.
        offset = np.floor(draws * (free + 2 * self.padding + 1)) - self.padding
        return scaled, offset - border

    def _boxes(self, sides: np.ndarray, scaled: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Return the squares in pixels of the stored images, (N, 4), or (N, 5, 4) in ten-crop
        testing.
        """
        # Pixels of the stored image a pixel of the scaled one.
        # The window is a fraction of a stored pixel: rounding it would shift the image.
        ratio = sides / scaled
        if self.ten:
            free = scaled - self.crop_size
            corners = [[0, 0], [1, 0], [0, 1], [1, 1]]
            offset = np.stack([*(free * corner for corner in corners), offset], 1)  # (N, 5, 2)
            ratio = ratio[:, None]

        return np.concatenate([offset * ratio, (offset + self.crop_size) * ratio], -1)

    def _draws(self, name: str, epoch: int, indices: np.ndarray) -> np.ndarray:
        """Return a step's random numbers, (N, draws of the table) float64 in [0, 1)."""
        columns = AUGMENTATIONS[name].draws
        return uniforms(self.seed, epoch, indices, columns, name).numpy().astype(np.float64)

    def place_arrays(self, height: int, width: int, epoch: int, indices: np.ndarray) -> "Placement":
        """Choose the part of each image of one size. height, width: pixels of the stored images."""
        count = len(indices)
        if self.varied:
            sizes = np.full(count, width), np.full(count, height)
            return Placement(self.windows(*sizes, epoch, indices))
        sides = np.tile(np.array([[width, height]], np.float64), (count, 1))
        scaled, offset = self._placement(sides, epoch, indices)
        window = Window(self._boxes(sides, scaled, offset), self.crop_size)
        return Placement(window, scaled, offset.astype(np.int64))

    def cut_arrays(self, pixels: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        """Scale and crop images of one size.

        pixels: (N, C, H, W) uint8 -> (N, C, S, S), or (N, 5, C, S, S), uint8.
        """
        height, width = pixels.shape[2:]
        placement = self.place_arrays(height, width, epoch, indices)
        return self.cut_placed(pixels, placement, torch.from_numpy(placement.to_send))

    def cut_placed(self, pixels: Tensor, placement: "Placement", sent: Tensor) -> Tensor:
        """Do what `cut_arrays` does, on any device. sent: the placement's `to_send`, there."""
        on_host = pixels.device.type == "cpu"
        if not len(pixels):
            return pixels.new_empty(0, *self.parts, pixels.shape[1], *[self.crop_size] * 2)
        if placement.scaled is None or placement.corners is None:
            cut_all = _cut_each if on_host else cut_boxes
            return cut_all(pixels, placement.window, sent, self.interpolation)

        size = int(placement.scaled[0, 1]), int(placement.scaled[0, 0])
        if size != tuple(pixels.shape[2:]):
            one_crop = not (self.ten or self.padding or self.fit == "pad")
            if one_crop and not on_host:
                return resized_crop(pixels, size, sent, self.crop_size, self.interpolation)
            if one_crop and "crop" not in self.window_steps:
                # One part for all: no more of it is resized than is seen.
                box = placement.window.box[0]
                return cut(pixels, box, self.crop_size, True, self.interpolation)
            pixels = resize(pixels, size, self.interpolation)
        if self.ten:
            return five_crops(pixels, self.crop_size)
        return crop(pixels, sent, self.crop_size, self._beyond(placement.corners, size))

    def _beyond(self, corners: np.ndarray, size: tuple[int, int]) -> int:
        """Return how far windows may reach over the border of images of this size, height and
        width.
        """
        if self.fit != "pad":
            return self.padding
        ends = corners + self.crop_size - np.array(size[::-1])
        return max(0, -int(corners.min()), int(ends.max()))

    def draw_uniforms(self, epoch: int, indices: np.ndarray) -> Tensor:
        """Return the random numbers of all steps after the window, side by side: (N, sum of draws)
        float32.
        """
        columns = [
            uniforms(self.seed, epoch, indices, step.entry.draws, step.name) for step in self.steps
        ]
        return torch.cat(columns, 1) if columns else torch.empty(len(indices), 0)

    def apply_steps(self, images: Tensor, draws: Tensor, sent: Tensor | None = None) -> Tensor:
        """Run the steps after the window.

        images: (N, 3, S, S) uint8 on any device; draws: from `draw_uniforms`, on the host; sent:
        the same on the images' device. On a GPU the result lies channels last, as convolutions read
        it.
        """
        if images.device.type == "cpu":
            parts = draws.split([step.entry.draws for step in self.steps], 1)
            for step, u in zip(self.steps, parts, strict=True):
                images = _find(step.entry.function)(images, u, *step.values)
            return images

        if sent is None:
            sent = torch.from_numpy(self.to_send(draws)).to(images.device)
        start = 0
        for step, width in zip(self.steps, self._sent_widths, strict=True):
            part = sent[:, start : start + width]
            if step.entry.on_gpu:
                images = _find(step.entry.on_gpu)(images, part)
            else:
                images = _find(step.entry.function)(images, part, *step.values)
            start += width
        if images.dim() != 4:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    def finish(self, images: Tensor, draws: Tensor) -> None:
        """Do what `apply_steps` does, in place, on the host."""
        parts = draws.split([step.entry.draws for step in self.steps], 1)
        for step, u in zip(self.steps, parts, strict=True):
            if step.entry.in_place:
                _find(step.entry.in_place)(images, u)
            else:
                images.copy_(_find(step.entry.function)(images, u, *step.values))

    def to_send(self, draws: Tensor) -> np.ndarray:
        """Return what a GPU's steps get, (N, columns) float32: draws, or what they prepare."""
        parts = []
        for step, u in zip(
            self.steps, draws.split([s.entry.draws for s in self.steps], 1), strict=True
        ):
            part = u.numpy()
            if step.entry.prepare:
                part = _find(step.entry.prepare)(part, self.crop_size, *step.values)
            parts.append(part)

        return np.concatenate(parts, 1) if parts else draws.numpy()

    @functools.cached_property
    def _sent_widths(self) -> list[int]:
        """The columns of each step in what is sent."""
        widths = []
        for step in self.steps:
            one = np.zeros((1, step.entry.draws), np.float32)
            if step.entry.prepare:
                one = _find(step.entry.prepare)(one, self.crop_size, *step.values)
            widths.append(one.shape[1])
        return widths

    def mix(
        self, images: Tensor, labels: Tensor, classes: int, epoch: int, batch_index: int
    ) -> tuple[Tensor, Tensor]:
        """Mix images and labels within a batch; without such a step return both as they are."""
        for step in self.mixes:
            u = uniforms(self.seed, epoch, np.array([batch_index]), step.entry.draws, step.name)[0]
            return _find(step.entry.function)(images, labels, classes, u, *step.values)
        return images, labels


def _cut_each(pixels: Tensor, window: Window, boxes: Tensor, interpolation: str) -> Tensor:
    """Do what `cut_boxes` does, image by image: on a CPU that is faster, and as files are cut."""
    parts = [
        cut(image[None], box, window.size, window.whole, interpolation)
        for image, box in zip(pixels, window.box, strict=True)
    ]
    return torch.cat(parts)


def cut_boxes(pixels: Tensor, window: Window, boxes: Tensor, interpolation: str) -> Tensor:
    """Cut another box out of each image of a batch and resize it, on any device."""
    return resized_boxes(pixels, boxes, window.size, window.whole, interpolation)


def fitted(sides: np.ndarray, side: Any, fit: str) -> np.ndarray:
    """Return the whole pixels that images are scaled to, (N, 2) width and height.

    sides: (N, 2) of the stored images; side: of the square that they are to fill, or fit in.

    Rounding down, as torchvision's Resize does: otherwise test figures would differ from published
    ones.
    """
    if fit == "squash":
        return np.broadcast_to(np.floor(np.asarray(side, np.float64)), sides.shape).copy()
    if fit == "pad":
        return np.maximum(1.0, np.floor(side * sides / sides.max(1, keepdims=True)))
    return np.floor(side * sides / sides.min(1, keepdims=True))


def _find(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    return getattr(import_module(f"augmentation.{module}"), function)


def sized_boxes(
    sides: np.ndarray, u: np.ndarray, low: float, high: float, aspect: float
) -> np.ndarray:
    """Return RandomSizedCrop's boxes, (N, 4) left, top, right, bottom in whole pixels.

    sides: (N, 2) width and height; u: (N, 4 tries): area, aspect, left, top of each try. The first
    box that fits is taken (Szegedy 2014, arXiv 1409.4842, section 6, in torchvision's form), else
    the largest central one of an allowed aspect.
    """
    area, shape, left, top = u.reshape(len(u), u.shape[1] // 4, 4).transpose(
        2, 0, 1
    )  # each (N, tries)
    areas = sides.prod(1, keepdims=True) * (low + (high - low) * area)
    aspects = np.exp(np.log(aspect) * (2 * shape - 1))
    wide, tall = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))

    width, height = sides[:, :1], sides[:, 1:]
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    lefts, tops = np.floor(left * (width - wide + 1)), np.floor(top * (height - tall + 1))
    boxes = np.stack([lefts, tops, lefts + wide, tops + tall], 2)
    first_fit = boxes[np.arange(len(u)), fits.argmax(1)]
    return np.where(fits.any(1)[:, None], first_fit, _central(sides, aspect))


def _central(sides: np.ndarray, aspect: float) -> np.ndarray:
    """Return the largest central boxes whose aspect is at most `aspect`, (N, 4)."""
    width, height = sides.T
    wide = np.minimum(width, np.rint(height * aspect))
    tall = np.minimum(height, np.rint(width * aspect))
    left, top = (width - wide) // 2, (height - tall) // 2
    return np.stack([left, top, left + wide, top + tall], 1)


if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parent / "preparation" / "sheet.py"), run_name="__main__")
