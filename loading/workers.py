"""The processes that read image files: what each does, how it starts and ends."""

import math
import shutil
import signal
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from base.errors import Refused
from datasets import decode
from datasets.images import FileImages
from loading.plan import Plan
from transforms import Pipeline
from utils import keep_memory

AT_ONCE = 16  # images that are worked on together: they stay in the processor's cache
PREFETCHED = 2  # batches a process has under way: DataLoader's default


class Task(NamedTuple):
    epoch: int
    number: int


class Tasks(Sampler[Task]):
    """What the workers are to do in the next pass."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


class Reader(Dataset):
    """Runs in a worker: reads and decodes whole batches. What is bad comes back as (index, path, reason).

    finishes: it runs the pipeline's later steps too, where the device is the CPU; a GPU does them itself.
    """

    def __init__(self, images: FileImages, pipeline: Pipeline, plan: Plan, *, finishes: bool) -> None:
        self.images, self.pipeline, self.plan, self.finishes = images, pipeline, plan, finishes

    def __getitem__(self, task: Task) -> tuple[Tensor, Tensor, list[tuple[int, str, str]]]:
        """Return images (N, 3, S, S) uint8, their indices (N,) int64, and the bad ones."""
        indices = self.plan.indices(task.epoch, task.number)
        side = self.pipeline.crop_size
        batch = _shared(len(indices), *self.pipeline.parts, side, side, 3).movedim(-1, -3)
        kept: list[int] = []
        bad: list[tuple[int, str, str]] = []
        for start in range(0, len(indices), AT_ONCE):
            self._read(indices[start : start + AT_ONCE], task.epoch, batch, kept, bad)
        return batch[: len(kept)], torch.tensor(kept, dtype=torch.int64), bad

    def _read(self, indices: np.ndarray, epoch: int, batch: Tensor, kept: list[int], bad: list[tuple[int, str, str]]) -> None:
        """Read some images into the next free places of the batch."""
        files: list[bytes] = []
        sizes: list[tuple[int, int]] = []
        found: list[int] = []
        for index in indices.tolist():
            try:
                content, size = self.images.sized(index)
                sizes.append(size)
                files.append(content)
                found.append(index)
            except (OSError, ValueError) as error:
                bad.append((index, self.images.path(index), _reason(error)))
        first = len(kept)
        widths, heights = np.array(sizes, np.int64).reshape(-1, 2).T
        window = self.pipeline.windows(widths, heights, epoch, np.array(found, np.int64))
        for index, content, box in zip(found, files, window.box, strict=True):
            try:
                batch[len(kept)] = decode.windows(
                    content, box, self.pipeline.crop_size, whole=window.whole, headroom=window.headroom,
                    interpolation=self.pipeline.interpolation,
                )  # fmt: skip
                kept.append(index)
            except ValueError as error:
                bad.append((index, self.images.path(index), _reason(error)))
        if self.finishes and self.pipeline.steps:
            images = batch[first : len(kept)]
            images.copy_(self.pipeline.finish(images, self.pipeline.draws(epoch, np.array(kept[first:], np.int64))))


def _shared(*shape: int) -> Tensor:
    """Return room for a batch, uint8: in a worker in shared memory, where it would be copied to otherwise."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(math.prod(shape))).view(shape)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def start_worker(_: int) -> None:
    """Shield a worker: a signal to the whole group is the main process's to answer, which then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _say_unless_cut_off
    torch.set_num_threads(1)
    keep_memory()


def _say_unless_cut_off(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what a thread did not catch, but for a main process that is gone: that one says so itself."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def check_shared_memory(workers: int, batch: int, free: int | None = None) -> None:
    """Raise Refused where /dev/shm cannot hold the batches that are under way: a process would die of a bus error.

    batch: bytes of one; each process has PREFETCHED of them under way, and one is in use.
    """
    if free is None:
        try:
            free = shutil.disk_usage("/dev/shm").free
        except OSError:
            return
    needed = (workers * PREFETCHED + 1) * batch
    if needed > free:
        raise Refused(
            f"/dev/shm has {free / 2**20:.0f} MiB free, {workers} processes need {needed / 2**20:.0f} MiB for their batches: "
            "enlarge it (docker run --shm-size), or lower --nThreads or --batchSize; --nThreads 0 needs none"
        )
