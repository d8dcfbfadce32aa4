"""The worker processes that read image files: what each does, and how it starts."""

import contextlib
import ctypes
import gc
import math
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from base.errors import (
    NO_MORE_PROCESSES,
    STOPPING,
    Failed,
    OverLimit,
    Refused,
    lacks_processes,
    reason_of,
)
from base.text import printable
from datasets import decode
from datasets.images import FileImages
from loading.deaths import print_unless_told
from loading.plan import Plan
from transforms import Pipeline
from utils import keep_memory

# Images that are worked on together: they stay in the processor's cache.
GROUP = 16
# Batches a worker has under way: DataLoader's default.
PREFETCHED = 2


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
        self, images: FileImages, pipeline: Pipeline, plan: Plan, *, finishes: bool
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


def start_worker(_: int) -> None:
    """Shield a worker: a signal to the whole group is the main process's to answer, which then ends
    its workers.
    """
    for number in (*STOPPING, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = print_unless_told
    _end_with_parent()
    _start_threads(2)
    torch.set_num_threads(1)
    keep_memory()


def _start_threads(count: int) -> None:
    """Start so many threads at once, as those that hand batches and their memory over will: here
    the main process is told if it cannot be done.
    """
    done = threading.Event()
    try:
        for _ in range(count):
            threading.Thread(target=done.wait).start()
    finally:
        done.set()


@contextlib.contextmanager
def enough_processes() -> Iterator[None]:
    """Turn a system that starts no more workers into one line. Raises Failed."""
    try:
        yield
    except (OSError, EOFError, RuntimeError) as error:
        # A server of workers that could not fork ended, and its pipe broke.
        if not (lacks_processes(error) or isinstance(error, (ConnectionError, EOFError))):
            raise
        before = sys.unraisablehook
        # torch's half-made iterator, which these frames hold, complains when it goes.
        sys.unraisablehook = lambda _: None
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        sys.unraisablehook = before
        raise Failed(f"the workers could not start: {NO_MORE_PROCESSES}", limit="workers") from None


# Linux's sys/prctl.h: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Let the system end this process with the one that forked it, however that one ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# Bytes of a socket's path: sockaddr_un's 108, less what multiprocessing adds.
MAX_SOCKET_FOLDER = 60
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def own_modules_first() -> Iterator[None]:
    """Let a server of workers that starts here import this suite's files, not those of the working
    folder or of another installed copy.

    CPython gives the server no sys.path before it imports what is preloaded (github.com/python/
    cpython, issue 117378).
    """
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def shorten_socket_paths() -> None:
    """Let workers' sockets lie in a short folder where TMPDIR is a long one.

    Raises Refused where there is none.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER:
        return
    for short in SHORT_FOLDERS:
        if os.access(short, os.W_OK | os.X_OK):
            tempfile.tempdir = short
            # Made here, where the workers will find it: they would look at TMPDIR again.
            multiprocessing.util.get_temp_dir()
            return
    raise Refused(
        f"TMPDIR {folder} is too long a path for the workers' sockets: name a shorter one"
    )


def check_shared_memory(workers: int, batch: int, free: int | None = None) -> None:
    """Raise Refused where /dev/shm cannot hold the batches under way: a worker would die of a bus
    error.

    batch: bytes of one; each worker has PREFETCHED of them under way, and one is in use.
    """
    if free is None:
        try:
            free = shutil.disk_usage("/dev/shm").free
        except OSError:
            return

    needed = (workers * PREFETCHED + 1) * batch
    # Seen beforehand: a bus error in a worker has no message at all.
    if needed > free:
        raise Refused(
            f"/dev/shm has {free / 2**20:.0f} MiB free, {workers} workers need "
            f"{needed / 2**20:.0f} MiB for their "
            "batches: enlarge it (docker run --shm-size)",
            limit="shared memory",
        )
