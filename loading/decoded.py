"""Batches of images that were decoded once: threads cut windows out of their kept pixels."""

import collections
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from augmentation.resize import SUPPORT, cut, gather, resized_boxes
from datasets.decoded import Kept
from loading.plan import Plan
from loading.workers import GROUP, BadImage, Decoded
from transforms import Pipeline, Window


class KeptReader:
    """Makes the batches of a pass from kept pixels, in the memory of this process.

    pinned: in memory that a GPU copies from; finishes: it runs the pipeline's later steps too;
    threads: 0 makes each batch as it is asked for.
    """

    def __init__(
        self,
        kept: Kept,
        pipeline: Pipeline,
        plan: Plan,
        *,
        threads: int,
        pinned: bool,
        finishes: bool,
    ) -> None:
        self.kept = kept
        self.pipeline = pipeline
        self.plan = plan
        self.threads = threads
        self.pinned = pinned
        self.finishes = finishes
        self.pool: ThreadPoolExecutor | None = None
        if threads:
            # Each computes on one core.
            settings = threads, "reading", torch.set_num_threads, (1,)
            self.pool = ThreadPoolExecutor(*settings)

    def batches(self, epoch: int, start: int) -> Iterator[Decoded]:
        """Yield the batches of an epoch from number `start` on, in order; some are made ahead."""
        ahead: collections.deque[Future[Decoded]] = collections.deque()
        for wanted in self.plan.epoch(epoch, start):
            # Here, not in a thread: each has memory of its own that the system takes back.
            room = self._room(len(wanted))
            if self.pool is None:
                yield self._batch(epoch, wanted, room)
                continue
            ahead.append(self.pool.submit(self._batch, epoch, wanted, room))
            if len(ahead) > self.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _room(self, count: int) -> Tensor:
        """Return room for a batch, (count, 3, S, S) or (count, 5, 3, S, S), channels last."""
        side = self.pipeline.crop_size
        shape = count, *self.pipeline.parts, side, side, 3
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned).movedim(-1, -3)

    def _batch(self, epoch: int, wanted: np.ndarray, room: Tensor) -> Decoded:
        """Make one batch in its room; what is bad is left out of it."""
        indices, bad = usable(self.kept, wanted)
        self.kept.will_need(indices)
        batch = room[: len(indices)]
        for start in range(0, len(indices), GROUP):
            self._cut_group(indices[start : start + GROUP], epoch, batch[start : start + GROUP])
        return batch, torch.from_numpy(indices), bad

    def _cut_group(self, indices: np.ndarray, epoch: int, images: Tensor) -> None:
        """Cut some images into their rows of a batch, (n, 3, S, S) or (n, 5, 3, S, S)."""
        pipeline = self.pipeline
        widths, heights = self.kept.sizes(indices)
        window = pipeline.windows(widths, heights, epoch, indices)
        boxes = window.box.reshape(len(images), -1, 4)
        rows = images.view(len(images), -1, 3, window.size, window.size)
        corners, is_plain = plain_corners(boxes, window, widths, heights)
        targets = rows.permute(0, 1, 3, 4, 2).numpy()

        for place, index in enumerate(indices.tolist()):
            if is_plain[place]:
                self.kept.copy(index, corners[place], targets[place])
                continue
            planes = self.kept.planes(index)
            for row, box in zip(rows[place], boxes[place], strict=True):
                row[...] = cut(planes, box, window.size, window.whole, pipeline.interpolation)[0]

        if self.finishes and pipeline.steps:
            # While these pixels are still in the processor's cache.
            pipeline.finish(images, pipeline.draw_uniforms(epoch, indices))


def plain_corners(
    boxes: np.ndarray, window: Window, widths: np.ndarray, heights: np.ndarray
) -> tuple[list[list[list[int]]], list[bool]]:
    """Return left and top of each image's windows, and whether these are pixels as they are: none
    is resized and none reaches over the border.

    boxes: (n, P, 4).
    """
    ends = np.stack([widths, heights], 1)[:, None]
    low, high = boxes[..., :2], boxes[..., 2:]
    same = (low == np.rint(low)) & (high - low == window.size) & (low >= 0) & (high <= ends)
    return low.astype(np.int64).tolist(), same.all((1, 2)).tolist()


def usable(kept: Kept, indices: np.ndarray) -> tuple[np.ndarray, list[BadImage]]:
    """Return which of these images can be used, after a look at their files, and the bad ones."""
    kept.check(indices)
    bad = [
        BadImage(index, kept.images.path(index), *kept.reasons[index])
        for index in indices[kept.rows["width"][indices] == 0].tolist()
    ]
    return indices[kept.rows["width"][indices] > 0], bad


class ResidentPixels:
    """Kept pixels in a GPU's memory: windows are cut there.

    flat: (pixels, 3) uint8 of the images of a pool, (n,); starts: (N,) int64, each image's first
    pixel in it.
    """

    def __init__(self, kept: Kept, pool: np.ndarray, device: torch.device) -> None:
        usable(kept, pool)
        self.kept = kept
        sizes = kept.rows["width"].astype(np.int64) * kept.rows["height"]
        self.starts = np.cumsum(sizes) - sizes
        self.flat = torch.empty(int(sizes.sum()), 3, dtype=torch.uint8, device=device)
        for index in np.flatnonzero(sizes).tolist():
            start, end = int(self.starts[index]), int(self.starts[index] + sizes[index])
            planes = kept.planes(index)[0].permute(1, 2, 0)
            self.flat[start:end] = planes.reshape(-1, 3)

    def layout(self, window: Window, indices: np.ndarray, interpolation: str) -> "Layout":
        """Work out on the host what is read of each image, its parts one after the other."""
        parts = window.box.shape[1] if window.box.ndim == 3 else 1
        boxes = window.box.reshape(-1, 4)
        starts = self.starts[indices].repeat(parts)[:, None]
        ends = np.stack(self.kept.sizes(indices), 1).astype(np.int64).repeat(parts, 0)
        low, high = boxes[:, :2], boxes[:, 2:]
        first, side = low.astype(np.int64), np.array([window.size, window.size])
        # As they are, whatever of them lies beyond the border.
        plain = bool(((low == first) & (high - low == window.size)).all())
        if not plain:
            # So far the resizing filter reaches beyond the box.
            scale = np.maximum(1, (high - low) / window.size)
            reach = np.ceil(SUPPORT[interpolation] * scale) if window.whole else 0 * scale
            first = np.maximum(0, np.floor(low - reach)).astype(np.int64)
            last = np.minimum(ends, np.ceil(high + reach)).astype(np.int64)
            side = np.maximum(1, (last - first).max(0))
        regions = np.concatenate([starts, ends, first], 1)
        boxes = (boxes - np.tile(first, 2)).astype(np.float32)
        return Layout(regions, boxes, (int(side[0]), int(side[1])), plain)

    def cut(
        self, layout: "Layout", regions: Tensor, boxes: Tensor, window: Window, interpolation: str
    ) -> Tensor:
        """Cut a batch's windows, (n, 3, S, S) uint8. regions, boxes: the layout's, on the GPU."""
        pixels = gather(self.flat, regions, layout.side)
        if layout.plain:
            return pixels
        first, ends = regions[:, 3:], regions[:, 1:3]
        edges = torch.cat([-first, ends - first], 1).float()
        return resized_boxes(pixels, boxes, window.size, window.whole, interpolation, edges)


@dataclass(frozen=True)
class Layout:
    """What a GPU needs to cut a batch's windows.

    regions: (n, 5) int64, first pixel, width and height of an image, left and top of what is read;
    boxes: (n, 4) float32, the windows from there; side: width and height that is read of each;
    plain: it is the window as it is.
    """

    regions: np.ndarray
    boxes: np.ndarray
    side: tuple[int, int]
    plain: bool
