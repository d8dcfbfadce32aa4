"""The loaders that bring batches to the device."""

import math
import multiprocessing
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from base.errors import Refused
from base.text import printable
from datasets import DATASETS
from datasets.images import ArrayImages, FileImages
from loading.deaths import Deaths, LostWorker, remove_left
from loading.plan import Batch, Chosen, Plan
from loading.workers import Reader, Task, Tasks, check_shared_memory, start_worker
from transforms import Pipeline

Images = ArrayImages | FileImages
RESIDENT = 2 << 30  # bytes of pixels that are kept on the GPU


def open_images(name: str, data_dir: str | None, part: str, **settings: Any) -> Images:
    """Open the part "train" or "test" of the data set called `name`. Raises Refused."""
    if "storage" in settings:
        dbcollection = import_module("datasets.dbcollection")
        source, storage = settings["source"], settings["storage"]
        return dbcollection.opened(name, source, data_dir, part, storage, classes=settings.get("classes"))
    module, function = DATASETS[name].opener.split(":")
    return getattr(import_module(f"datasets.{module}"), function)(data_dir, part, **settings)


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


class FileLoader:
    """Batches of image files: worker processes decode, the device does the rest."""

    def __init__(
        self, images: FileImages, pipeline: Pipeline, plan: Plan, device: torch.device, *,
        workers: int = 0, start_method: str = "fork", timeout: int = 120, skip: bool = False,
    ) -> None:  # fmt: skip
        self.images, self.pipeline, self.plan, self.device = images, pipeline, plan, device
        self.skip, self.bad = skip, dict[int, tuple[str, str]]()  # bad images by number: path and reason
        self.labels = torch.from_numpy(images.labels)
        self.tasks, self.deaths, self.timeout = Tasks(), Deaths(), timeout
        many: dict[str, Any] = {}
        if workers:
            shown = math.prod(pipeline.parts) * 3 * pipeline.crop_size**2
            check_shared_memory(workers, min(plan.batch, max(1, plan.images)) * shown)
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
                self.deaths = Deaths.watched()

    def _make(self, workers: int, many: dict[str, Any]) -> DataLoader:
        reader = Reader(self.images, self.pipeline, self.plan, finishes=self.device.type == "cpu")
        return DataLoader(
            reader, batch_size=None, sampler=self.tasks, num_workers=workers,
            worker_init_fn=start_worker, pin_memory=self.device.type == "cuda", generator=torch.Generator(), **many,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on. Raises Refused for a bad image, Failed for a worker."""
        numbers = range(start, len(self.plan))
        self.tasks.tasks = [Task(epoch, number) for number in numbers]
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
        return Reader(self.images, self.pipeline.alone(), plan, finishes=False)[Task(0, 0)][0]

    def _read(self) -> Iterator[Any]:
        batches: Any = None
        for _ in self.tasks.tasks:
            try:
                with self.deaths.raised(self.timeout):
                    batches = batches or iter(self.loader)
                    batch = next(batches)
            except (RuntimeError, EOFError, ConnectionError) as error:
                text = (str(error) or type(error).__name__).splitlines()[0]
                # A process that is killed halfway through handing over a batch shows as a connection that breaks off.
                if "DataLoader" not in text and not isinstance(error, (EOFError, ConnectionError)):
                    raise
                remove_left([process.pid for process in getattr(self.loader._iterator, "_workers", [])])
                raise LostWorker(
                    f"a process that reads images has ended or hangs, as if killed or out of memory: {text}"
                ) from None
            yield batch


def loader(images: Images, pipeline: Pipeline, plan: Plan, device: torch.device, **settings: Any) -> ArrayLoader | FileLoader:
    """Return the loader that fits the images. settings: of FileLoader."""
    if isinstance(images, ArrayImages):
        return ArrayLoader(images, pipeline, plan, device)
    return FileLoader(images, pipeline, plan, device, **settings)
