"""The processes that read image files: what each does, how it starts and ends."""

import contextlib
import math
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from datasets import decode
from datasets.images import FileImages
from plan import Plan
from transforms import Pipeline
from utils import Failed, Refused, keep_memory

AT_ONCE = 16  # images that are worked on together: they stay in the processor's cache
LOOK_AGAIN = 0.5  # seconds between two looks at the processes while a batch is awaited
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


class LostWorker(Failed):
    """A reading process is gone; what was trained until then is whole."""


class Deaths:
    """Turns the death of a reading process into an error where the next batch is awaited, and nowhere else.

    torch raises it wherever the main process happens to be, also halfway through a step.
    """

    def __init__(self, theirs: Any = None) -> None:
        self.theirs = theirs  # torch's handler
        self.waiting = self.pending = False
        self.found: str | None = None  # what torch said of a death
        self.deadline = 0.0

    @classmethod
    def watched(cls) -> "Deaths":
        """Return the one of this process, which begins once torch has set its handler."""
        now = signal.getsignal(signal.SIGCHLD)
        known = getattr(now, "__self__", None)
        if isinstance(known, cls):
            return known
        if not callable(now):
            return cls()
        deaths = cls(now)
        signal.signal(signal.SIGCHLD, deaths._on_death)
        signal.signal(signal.SIGALRM, deaths._on_alarm)
        return deaths

    def _on_death(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        if self.waiting and _waits(frame):
            self._look()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self.waiting and _waits(frame):
            self._look()
            if time.monotonic() > self.deadline:
                raise RuntimeError("DataLoader: no batch has come in time")

    def _look(self) -> None:
        """Raise RuntimeError if a process is gone. torch says so once only."""
        if self.found is None and self.pending:
            self.pending = False
            try:
                self.theirs(signal.SIGCHLD, None)
            except RuntimeError as error:
                self.found = str(error)
        if self.found is not None:
            raise RuntimeError(self.found)

    @contextlib.contextmanager
    def raised(self, timeout: int) -> Iterator[None]:
        """Raise RuntimeError in here, if a process has died or dies, or after `timeout` seconds and one more.

        DataLoader's own timeout does not help where a process stops halfway through a message.
        """
        if self.theirs is None:
            yield
            return
        self.waiting, self.deadline = True, time.monotonic() + timeout + 1
        try:
            signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN, LOOK_AGAIN)
            self._look()
            yield
        except (RuntimeError, EOFError, OSError):
            self.found = None
            raise
        finally:
            self.waiting = False
            signal.setitimer(signal.ITIMER_REAL, 0)


def _waits(frame: FrameType | None) -> bool:
    """True where Python waits for another process: an error within a constructor or destructor would break that or be lost."""
    return frame is not None and frame.f_code.co_name in ("select", "_recv", "get", "wait")


def end_workers() -> None:
    """Kill the loader's processes: they ignore the signals that end this one."""
    processes = multiprocessing.active_children()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes a worker's death for an error
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    signal.signal(signal.SIGCHLD, before)
    remove_left([process.pid for process in processes])


def remove_left(pids: list[int | None]) -> None:
    """Remove what processes that were killed have left in shared memory: torch names it after them, for an instant."""
    for pid in pids:
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
            path.unlink(missing_ok=True)
