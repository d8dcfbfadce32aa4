"""What a worker process does: it reads and decodes image files, a batch at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from base.errors import (
    OverLimit,
    Refused,
    reason_of,
)
from base.text import printable
from datasets import decode
from datasets.images import FileImages
from loading.plan import Plan
from transforms import Pipeline

# Images that are worked on together: they stay in the processor's cache.
GROUP = 16


class Task(NamedTuple):
    """One batch of one epoch."""

    epoch: int
    batch_index: int


@dataclass(frozen=True)
class BadImage:
    """An image that could not be read: number, path, why, and the limit it is beyond, if any."""

    index: int
    path: str
    reason: str
    limit: str = ""


def refusal(image: BadImage) -> Refused:
    """Return the error that ends a run at a bad image."""
    path, reason = printable(image.path), printable(image.reason)
    message = f"bad image {path} (number {image.index}): {reason}"
    return Refused(message, limit=image.limit or "bad images")


Decoded = tuple[
    Tensor, Tensor, list[BadImage]
]  # images (N, 3, S, S) uint8, indices (N,) int64, the bad ones


class Tasks(Sampler[Task]):
    """What the workers are to do in the next pass."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


class Reader(Dataset[Decoded]):
    """Runs in a worker: reads and decodes whole batches.

    finishes: it runs the pipeline's later steps too, where the device is the CPU; a GPU does them
    itself.
    """

    def __init__(
        self, images: FileImages, pipeline: Pipeline, plan: Plan, *, finishes: bool = False
    ) -> None:
        self.images = images
        self.pipeline = pipeline
        self.plan = plan
        self.finishes = finishes

    def __getitem__(self, task: Task) -> Decoded:
        """Read one batch; what is bad is left out of it."""
        indices = self.plan.indices(task.epoch, task.batch_index)
        side = self.pipeline.crop_size
        # One allocation for the batch, in shared memory, channels last as decoders write.
        batch = _shared(len(indices), *self.pipeline.parts, side, side, 3).movedim(-1, -3)
        kept: list[int] = []
        bad: list[BadImage] = []
        for start in range(0, len(indices), GROUP):
            self._read_group(indices[start : start + GROUP], task.epoch, batch, kept, bad)
        return batch[: len(kept)], torch.tensor(kept, dtype=torch.int64), bad

    def _read_group(
        self, indices: np.ndarray, epoch: int, batch: Tensor, kept: list[int], bad: list[BadImage]
    ) -> None:
        """Read some images into the next free rows of the batch."""
        files: list[bytes] = []
        sizes: list[tuple[int, int]] = []
        readable: list[int] = []

        for index in indices.tolist():
            try:
                content, size = self.images.sized(index)
            except (OSError, ValueError) as error:
                # It is left out here and counted by the main process: it is never replaced by a
                # neighbour.
                bad.append(self._bad(index, error))
                continue
            files.append(content)
            sizes.append(size)
            readable.append(index)

        first = len(kept)
        widths, heights = np.array(sizes, np.int64).reshape(-1, 2).T
        # The header's size is enough to choose the window: what is not seen is not decoded.
        window = self.pipeline.windows(widths, heights, epoch, np.array(readable, np.int64))

        for index, content, box in zip(readable, files, window.box, strict=True):
            try:
                batch[len(kept)] = decode.read_windows(
                    content,
                    box,
                    window,
                    interpolation=self.pipeline.interpolation,
                    turn=self.images.turn,
                )
                kept.append(index)
            except ValueError as error:
                bad.append(self._bad(index, error))

        if self.finishes and self.pipeline.steps:
            draws = self.pipeline.draw_uniforms(epoch, np.array(kept[first:], np.int64))
            # While these pixels are still in the processor's cache.
            self.pipeline.finish(batch[first : len(kept)], draws)

    def _bad(self, index: int, error: Exception) -> BadImage:
        limit = error.limit if isinstance(error, OverLimit) else ""
        return BadImage(index, self.images.path(index), reason_of(error), limit)


def _shared(*shape: int) -> Tensor:
    """Return room for a batch, uint8: in a worker in shared memory, where it would be copied to
    otherwise.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
