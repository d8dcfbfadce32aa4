"""Which images make up which batch, and the loaders that bring them to the device."""

import functools
import multiprocessing
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets import DATASETS, decode
from datasets.images import ArrayImages, FileImages
from randomness import shuffled, uniforms
from transforms import Pipeline
from utils import Failed, Refused, keep_memory, printable

Images = ArrayImages | FileImages
AT_ONCE = 32  # batches whose images are worked out together
PREFETCHED = 2  # batches a process has under way: DataLoader's default
RESIDENT = 2 << 30  # bytes of pixels that are kept on the GPU


def open_images(name: str, data_dir: str | None, part: str, **settings: Any) -> Images:
    """Open the part "train" or "test" of the data set called `name`. Raises Refused."""
    if "storage" in settings:
        dbcollection = import_module("datasets.dbcollection")
        source, storage = settings["source"], settings["storage"]
        return dbcollection.opened(name, source, data_dir, part, storage, classes=settings.get("classes"))
    module, function = DATASETS[name].opener.split(":")
    return getattr(import_module(f"datasets.{module}"), function)(data_dir, part, **settings)


class Batch(NamedTuple):
    """images: (N, 3, S, S) uint8 and labels: (N,) int64 on the device; indices: (N,) int64 of the data set.

    In ten-crop testing images are (N, 5, 3, S, S).

    total: images of this batch over all ranks; number: its place in the epoch.
    """

    images: Tensor
    labels: Tensor
    indices: np.ndarray
    total: int
    number: int = 0


@dataclass(frozen=True)
class Plan:
    """The images of every batch, a pure function of (seed, epoch, batch): O(batch) memory for any number of images.

    count: images there are; batch: images a batch over all ranks; limit: images a pass, the first of a fixed keyed
    order; shuffle: a new order each epoch, and a last batch of 1 image, which batch norm cannot train on, left out.
    """

    count: int
    batch: int
    seed: int = 0
    shuffle: bool = False
    limit: int | None = None
    rank: int = 0
    world: int = 1

    @property
    def images(self) -> int:
        """Images a pass over all ranks."""
        count = min(self.count, self.limit or self.count)
        return count - 1 if self.shuffle and count % self.batch == 1 and count > 1 else count

    def __len__(self) -> int:
        return -(-self.images // self.batch)

    def left(self, number: int) -> int:
        """Return the images of a pass from batch `number` on, over all ranks."""
        return self.images - number * self.batch

    def size(self, number: int) -> int:
        """Return the images of batch `number` over all ranks."""
        return min(self.batch, self.images - number * self.batch)

    def indices(self, epoch: int, number: int) -> np.ndarray:
        """Return this rank's images of a batch, (N,) int64: every world-th one."""
        start = number * self.batch
        return self._images(epoch, np.arange(start + self.rank, start + self.size(number), self.world, dtype=np.int64))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yield this rank's images of each batch from number `start` on: hashed for many batches at once."""
        for first in range(start, len(self), AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, len(self)))
            ends = [number * self.batch + self.size(number) for number in numbers]
            places = [np.arange(n * self.batch + self.rank, end, self.world) for n, end in zip(numbers, ends, strict=True)]
            images = self._images(epoch, np.concatenate(places))
            yield from np.split(images, np.cumsum([len(place) for place in places])[:-1])

    def _images(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the images at these positions of an epoch, (N,) int64."""
        count = min(self.count, self.limit or self.count)
        if self.shuffle:
            positions = shuffled(positions, count, self.seed, epoch)
        return shuffled(positions, self.count, 0, 0, "limit") if count < self.count else positions


@dataclass(frozen=True)
class Chosen(Plan):
    """A plan of one batch: the images named. these: (count,) int64."""

    these: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def _images(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        return self.these[positions]


@dataclass(frozen=True)
class BalancedPlan(Plan):
    """A plan whose every position draws a class first and then one of its images, by its own number. Training only.

    labels: (count,) of all images. An epoch has as many images as ever, some of them twice and some not at all.
    """

    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @functools.cached_property
    def _by_class(self) -> list[np.ndarray]:
        count = min(self.count, self.limit or self.count)
        pool = shuffled(np.arange(count), self.count, 0, 0, "limit") if count < self.count else np.arange(count)
        order = pool[np.argsort(self.labels[pool], kind="stable")]
        return np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1)

    def _images(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        u = uniforms(self.seed, epoch, positions, 2, "balanced").numpy().astype(np.float64)
        members = [self._by_class[int(v)] for v in u[:, 0] * len(self._by_class)]
        return np.array([own[int(v * len(own))] for own, v in zip(members, u[:, 1], strict=True)], np.int64)


class ArrayLoader:
    """Batches of images that lie in memory: one gather and one batched transform each, no processes."""

    def __init__(self, images: ArrayImages, pipeline: Pipeline, plan: Plan, device: torch.device) -> None:
        self.images, self.pipeline, self.plan, self.device = images, pipeline, plan, device
        self.pixels: Any = images.pixels  # or what reads them from a file: rows(indices)
        if isinstance(images.pixels, Tensor):
            stored = images.pixels.permute(0, 2, 3, 1).contiguous()  # channels last: resized twice as fast
            self.pixels = stored.to(device) if device.type == "cuda" and stored.nbytes <= RESIDENT else stored
        self.labels = torch.from_numpy(images.labels)
        self.bad: dict[int, tuple[str, str]] = {}  # none: they were looked at as they were read

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on."""
        for number, indices in enumerate(self.plan.epoch(epoch, start), start):
            images = self.pipeline.arrays(self._rows(indices), epoch, indices).to(self.device, non_blocking=True)
            images = images.expand(*images.shape[:-3], 3, *images.shape[-2:])  # grey ones look the same in each channel
            images = self.pipeline.finish(images, self.pipeline.draws(epoch, indices))
            labels = self.labels[torch.from_numpy(indices)].to(self.device, non_blocking=True)
            yield Batch(images, labels, indices, self.plan.size(number), number)

    def some(self, indices: np.ndarray) -> Tensor:
        """Return what the network sees of these images, (n, 3, S, S) uint8 on the host; of ten crops the centre."""
        images = self.pipeline.alone().arrays(self._rows(indices).cpu(), 0, indices)
        return images.expand(-1, 3, -1, -1)

    def _rows(self, indices: np.ndarray) -> Tensor:
        """Return the stored pixels of these images, (n, C, H, W) uint8."""
        if not isinstance(self.pixels, Tensor):
            return self.pixels.rows(indices).permute(0, 3, 1, 2)
        places = torch.from_numpy(indices).to(self.pixels.device, non_blocking=True)
        return self.pixels.index_select(0, places).permute(0, 3, 1, 2)


class _Task(NamedTuple):
    epoch: int
    number: int


class _Tasks(Sampler[_Task]):
    """What the workers are to do in the next pass."""

    def __init__(self) -> None:
        self.tasks: list[_Task] = []

    def __iter__(self) -> Iterator[_Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


class _Reader(Dataset):
    """Runs in a worker: reads and decodes whole batches. What is bad comes back as (index, path, reason).

    finishes: it runs the pipeline's later steps too, where the device is the CPU; a GPU does them itself.
    """

    def __init__(self, images: FileImages, pipeline: Pipeline, plan: Plan, *, finishes: bool) -> None:
        self.images, self.pipeline, self.plan, self.finishes = images, pipeline, plan, finishes

    def __getitem__(self, task: _Task) -> tuple[Tensor, Tensor, list[tuple[int, str, str]]]:
        """Return images (N, 3, S, S) uint8, their indices (N,) int64, and the bad ones."""
        indices = self.plan.indices(task.epoch, task.number)
        files: list[bytes] = []
        sizes: list[tuple[int, int]] = []
        good: list[int] = []
        bad: list[tuple[int, str, str]] = []
        for index in indices.tolist():
            try:
                content = self.images.read(index)
                sizes.append(decode.size(content))
                files.append(content)
                good.append(index)
            except (OSError, ValueError) as error:
                bad.append((index, self.images.path(index), _reason(error)))
        images, kept = self._decode(files, np.array(sizes, np.int64).reshape(-1, 2), np.array(good, np.int64), task.epoch, bad)
        if self.finishes:
            images = self.pipeline.finish(images, self.pipeline.draws(task.epoch, kept))
        return images, torch.from_numpy(kept), bad

    def _decode(
        self, files: list[bytes], sizes: np.ndarray, indices: np.ndarray, epoch: int, bad: list[tuple[int, str, str]]
    ) -> tuple[Tensor, np.ndarray]:
        side = self.pipeline.crop_size
        window = self.pipeline.windows(sizes[:, 0], sizes[:, 1], epoch, indices)
        # Channels last, as decoders give them and convolutions on a CPU like them.
        parts = window.box.shape[1:-1]  # (), or (5,) for ten-crop testing
        images = torch.empty(len(files), *parts, side, side, 3, dtype=torch.uint8).movedim(-1, -3)
        keep = np.ones(len(files), bool)
        for place, content in enumerate(files):
            try:
                images[place] = decode.windows(
                    content, window.box[place], side, whole=window.whole, headroom=window.headroom,
                    interpolation=self.pipeline.interpolation,
                )  # fmt: skip
            except ValueError as error:
                index = int(indices[place])
                bad.append((index, self.images.path(index), _reason(error)))
                keep[place] = False
        return (images, indices) if keep.all() else (images[torch.from_numpy(keep)], indices[keep])


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def start_worker(_: int) -> None:
    """Shield a worker: a signal to the whole group is the main process's to answer, which then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_memory()


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


class FileLoader:
    """Batches of image files: worker processes decode, the device does the rest."""

    def __init__(
        self, images: FileImages, pipeline: Pipeline, plan: Plan, device: torch.device, *,
        workers: int = 0, start_method: str = "fork", timeout: int = 120, skip: bool = False,
    ) -> None:  # fmt: skip
        self.images, self.pipeline, self.plan, self.device = images, pipeline, plan, device
        self.skip, self.bad = skip, dict[int, tuple[str, str]]()  # bad images by number: path and reason
        self.labels = torch.from_numpy(images.labels)
        self.tasks = _Tasks()
        if workers:
            check_shared_memory(workers, min(plan.batch, max(1, plan.images)) * 3 * pipeline.crop_size**2)
        many: dict[str, Any] = {}
        if workers:
            context = multiprocessing.get_context(start_method)
            if start_method == "forkserver":  # the server imports torch once, its forks then start at once
                context.set_forkserver_preload(["data"])
            many = {"multiprocessing_context": context, "persistent_workers": True, "timeout": timeout}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more processes than cores: who asks for them knows
            self.loader = self._make(workers, many)
            if workers:
                # Start them now: a fork later, beside a thread that writes a checkpoint, can inherit a held lock.
                iter(self.loader)

    def _make(self, workers: int, many: dict[str, Any]) -> DataLoader:
        reader = _Reader(self.images, self.pipeline, self.plan, finishes=self.device.type == "cpu")
        return DataLoader(
            reader, batch_size=None, sampler=self.tasks, num_workers=workers,
            worker_init_fn=start_worker, pin_memory=self.device.type == "cuda", generator=torch.Generator(), **many,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on. Raises Refused for a bad image, Failed for a worker."""
        numbers = range(start, len(self.plan))
        self.tasks.tasks = [_Task(epoch, number) for number in numbers]
        for number, (images, indices, bad) in zip(numbers, self._read(), strict=True):
            if bad and not self.skip:
                shown = "bad image {1} (number {0}): {2}".format(*(printable(part) for part in bad[0]))
                raise Refused(f"{shown}: mend or remove it, or leave out all such with --badImages skip")
            self.bad |= {index: (path, reason) for index, path, reason in bad}
            images = images.to(self.device, non_blocking=True)
            if self.device.type != "cpu":
                images = self.pipeline.finish(images, self.pipeline.draws(epoch, indices.numpy()))
            labels = self.labels[indices].to(self.device, non_blocking=True)
            yield Batch(images, labels, indices.numpy(), self.plan.size(number) - len(bad), number)

    def some(self, indices: np.ndarray) -> Tensor:
        """Return what the network sees of these images, (n, 3, S, S) uint8 on the host; of ten crops the centre."""
        plan = Chosen(len(indices), len(indices), these=indices)
        return _Reader(self.images, self.pipeline.alone(), plan, finishes=False)[_Task(0, 0)][0]

    def _read(self) -> Iterator[Any]:
        try:
            yield from self.loader
        except RuntimeError as error:
            text = str(error)
            if "DataLoader" not in text:
                raise
            raise Failed(f"a process that reads images died or hangs: {text.splitlines()[0]}") from None


def loader(images: Images, pipeline: Pipeline, plan: Plan, device: torch.device, **settings: Any) -> ArrayLoader | FileLoader:
    """Return the loader that fits the images. settings: of FileLoader."""
    if isinstance(images, ArrayImages):
        return ArrayLoader(images, pipeline, plan, device)
    return FileLoader(images, pipeline, plan, device, **settings)
