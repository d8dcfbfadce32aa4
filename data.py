"""A data set by its name, and the loaders that bring its batches to the device."""

import math
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from base.errors import Failed, lacks_processes
from datasets import DATASETS
from datasets.decoded import Kept
from datasets.images import ArrayImages, FileImages, StoredPixels
from loading.deaths import LostWorker, WorkerWatch, quiet_pinning, remove_left
from loading.decoded import KeptReader, ResidentPixels, usable
from loading.plan import Batch, ChosenPlan, Plan
from loading.starts import (
    check_shared_memory,
    context_of,
    end_feeders_at_exit,
    enough_processes,
    lack,
    lacked_processes,
    own_modules_first,
    quiet_tracker,
    shorten_socket_paths,
    start_worker,
)
from loading.workers import BadImage, Decoded, Reader, Task, Tasks, refusal
from transforms import Pipeline
from utils import Uploader

Images = ArrayImages | FileImages
Keywords = dict[str, Any]  # of DataLoader
# Bytes of pixels that are kept on the GPU.
MAX_RESIDENT = 2 << 30


class Loader(Protocol):
    """What brings batches, one of `AnyLoader`. bad: images left out, by number."""

    # Images: a protocol's attributes are invariant, each loader has one kind.
    images: Any
    pipeline: Pipeline
    plan: Plan
    bad: dict[int, BadImage]

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...

    def preview(self, indices: np.ndarray) -> Tensor: ...

    def whole(self, indices: np.ndarray) -> Tensor | None: ...


def open_images(name: str, data_dir: str | None, part: str, **settings: Any) -> Images:
    """Open a part of the data set called `name`: "train" or "test", of image files also "all" and
    "other". Raises Refused.
    """
    if "storage" in settings:
        dbcollection = import_module("datasets.dbcollection")
        source, storage = settings["source"], settings["storage"]
        classes = settings.get("classes")
        return dbcollection.open_part(name, source, data_dir, part, storage, classes=classes)
    module, function = DATASETS[name].opener.split(":")
    return getattr(import_module(f"datasets.{module}"), function)(data_dir, part, **settings)


class ArrayLoader:
    """Batches of images that lie in memory: one gather and one transform each, no workers."""

    def __init__(
        self, images: ArrayImages, pipeline: Pipeline, plan: Plan, device: torch.device
    ) -> None:
        self.images = images
        self.pipeline = pipeline
        self.plan = plan
        self.device = device
        self.labels = torch.from_numpy(images.labels).to(device)

        # Always empty: arrays were checked as they were read.
        self.bad: dict[int, BadImage] = {}
        self.uploader = Uploader(device)
        self.pixels: Tensor | StoredPixels = images.pixels
        if isinstance(images.pixels, Tensor):
            # Channels last is resized twice as fast.
            stored = images.pixels.permute(0, 2, 3, 1).contiguous()
            self.pixels = resident(stored, device)

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on."""
        for batch_index, indices in enumerate(self.plan.epoch(epoch, start), start):
            images, labels = self._batch(epoch, indices)
            yield Batch(images, labels, indices, self.plan.size(batch_index), batch_index)

    def _batch(self, epoch: int, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the images and labels of one batch on the device."""
        pipeline = self.pipeline
        draws = pipeline.draw_uniforms(epoch, indices)
        height, width = self.images.pixels.shape[2:]
        placement = pipeline.place_arrays(height, width, epoch, indices)
        small = indices, placement.to_send, pipeline.to_send(draws)
        chosen, placed, sent = self.uploader.pack(*small)
        if isinstance(self.pixels, Tensor) and self.pixels.device == self.device:
            stored = self.pixels.index_select(0, chosen).permute(0, 3, 1, 2)
            images = pipeline.cut_placed(stored, placement, placed)
        else:
            images = self.uploader.send(pipeline.cut_arrays(self._rows(indices), epoch, indices))

        # Grey images look the same in each channel.
        images = images.expand(*images.shape[:-3], 3, *images.shape[-2:])
        return pipeline.apply_steps(images, draws, sent), self.labels.index_select(0, chosen)

    def preview(self, indices: np.ndarray) -> Tensor:
        """Return what the network sees of these images, (n, 3, S, S) uint8 on the host; of ten
        crops the centre.
        """
        images = self.pipeline.single_crop().cut_arrays(self._rows(indices).cpu(), 0, indices)
        return images.expand(-1, 3, -1, -1)

    def whole(self, indices: np.ndarray) -> Tensor | None:
        """Return None: hardly anything of an array is cut off."""
        return None

    def _rows(self, indices: np.ndarray) -> Tensor:
        """Return the stored pixels of these images, (n, C, H, W) uint8."""
        if not isinstance(self.pixels, Tensor):
            return self.pixels.rows(indices).permute(0, 3, 1, 2)
        chosen = torch.from_numpy(indices).to(self.pixels.device, non_blocking=True)
        return self.pixels.index_select(0, chosen).permute(0, 3, 1, 2)


def resident(stored: Tensor, device: torch.device) -> Tensor:
    """Return the pixels on a GPU, where they are few and it has room; else where they are."""
    if device.type != "cuda" or stored.nbytes > MAX_RESIDENT:
        return stored
    try:
        return stored.to(device)
    except torch.OutOfMemoryError:
        return stored


class HostLoader:
    """Batches that are made on the host, where a GPU does the pipeline's later steps itself."""

    def __init__(
        self,
        images: FileImages,
        pipeline: Pipeline,
        plan: Plan,
        device: torch.device,
        *,
        skip: bool = False,
    ) -> None:
        self.images = images
        self.pipeline = pipeline
        self.plan = plan
        self.device = device
        self.skip = skip
        self.labels = torch.from_numpy(images.labels).to(device)
        self.uploader = Uploader(device)
        self.bad: dict[int, BadImage] = {}

    def __len__(self) -> int:
        return len(self.plan)

    def _made(self, epoch: int, start: int) -> Iterator[Decoded]:
        """Yield the batches of an epoch as they are on the host, from number `start` on."""
        raise NotImplementedError

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on.

        Raises Refused for a bad image, Failed for a worker.
        """
        batches = range(start, len(self.plan))
        for batch_index, made in zip(batches, self._made(epoch, start), strict=True):
            images, indices, bad = made
            if bad and not self.skip:
                raise refusal(bad[0])
            self.bad |= {image.index: image for image in bad}

            images = self.uploader.send(images)
            chosen = indices
            # On a CPU the steps are done where the batch was made.
            if self.device.type != "cpu":
                draws = self.pipeline.draw_uniforms(epoch, indices.numpy())
                small = indices.numpy(), self.pipeline.to_send(draws)
                chosen, sent = self.uploader.pack(*small)
                images = self.pipeline.apply_steps(images, draws, sent)
            labels = self.labels.index_select(0, chosen)
            # The loss is a mean over the images that were there.
            total = self.plan.size(batch_index) - len(bad)
            yield Batch(images, labels, indices.numpy(), total, batch_index)

    def preview(self, indices: np.ndarray) -> Tensor:
        """Return what the network sees of these images, (n, 3, S, S) uint8 on the host; of ten
        crops the centre.
        """
        return self._seen(self.pipeline.single_crop(), indices)

    def whole(self, indices: np.ndarray) -> Tensor | None:
        """Return all of these images, black beside, (n, 3, S, S) uint8; None where `preview` shows
        all.
        """
        if self.pipeline.fit != "crop":
            return None
        return self._seen(self.pipeline.padded(), indices)

    def _seen(self, pipeline: Pipeline, indices: np.ndarray) -> Tensor:
        plan = ChosenPlan(len(indices), len(indices), chosen=indices)
        return Reader(self.images, pipeline, plan)[Task(0, 0)][0]


class FileLoader(HostLoader):
    """Batches of image files, decoded by worker processes."""

    def __init__(
        self,
        images: FileImages,
        pipeline: Pipeline,
        plan: Plan,
        device: torch.device,
        *,
        workers: int = 0,
        start_method: str = "forkserver",
        timeout: int = 120,
        skip: bool = False,
    ) -> None:
        super().__init__(images, pipeline, plan, device, skip=skip)
        self.timeout = timeout
        self.tasks = Tasks()
        self.deaths = WorkerWatch()
        more = self._worker_settings(workers, start_method) if workers else {}

        # torch warns of more workers than cores: who asks for them knows.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.loader = self._make(workers, more)
            if workers:
                # Start them now: a fork later, beside a thread that writes a checkpoint, can
                # inherit a held lock.
                with own_modules_first(), enough_processes():
                    iter(self.loader)
                self.deaths = WorkerWatch.installed()

    def _worker_settings(self, workers: int, start_method: str) -> Keywords:
        """Return DataLoader's settings for worker processes.

        Raises Refused where they lack shared memory.
        """
        image_bytes = math.prod(self.pipeline.parts) * 3 * self.pipeline.crop_size**2
        batch = min(self.plan.batch, max(1, self.plan.image_count))
        check_shared_memory(workers, batch * image_bytes)

        shorten_socket_paths()
        quiet_tracker()
        end_feeders_at_exit()
        quiet_pinning()
        return {
            "multiprocessing_context": context_of(start_method),
            "persistent_workers": True,
            "timeout": self.timeout,
        }

    def _make(self, workers: int, more: Keywords) -> DataLoader[Decoded]:
        reader = Reader(self.images, self.pipeline, self.plan, finishes=self.device.type == "cpu")
        return DataLoader(
            reader,
            batch_size=None,
            sampler=self.tasks,
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=self.device.type == "cuda",
            # Of its own: making an iterator draws from the global one.
            generator=torch.Generator(),
            **more,
        )

    def _made(self, epoch: int, start: int) -> Iterator[Decoded]:
        # The sampler hands out tasks, not images: a worker makes a whole batch.
        self.tasks.tasks = [Task(epoch, number) for number in range(start, len(self.plan))]
        return self._read()

    def _read(self) -> Iterator[Decoded]:
        """Yield what the workers read. Raises LostWorker."""
        batches: Iterator[Decoded] | None = None
        for _ in self.tasks.tasks:
            try:
                with self.deaths.guard(self.timeout, self._workers()):
                    batches = batches or iter(self.loader)
                    batch = next(batches)
            except (RuntimeError, EOFError, ConnectionError) as error:
                lines = (str(error) or type(error).__name__).strip().splitlines()
                text = lines[0]
                if lacks_processes(error) or lacked_processes(self._workers()):
                    raise lack("a worker") from None
                # An error within a worker, which lives on: its own last line says what it is.
                if text.startswith("Caught "):
                    raise Failed(f"a loader worker failed: {lines[-1]}") from error
                # A worker killed halfway through handing over a batch shows as a connection that
                # breaks off, here or in the thread that pins batches, which ends then.
                cut_off = isinstance(error, (EOFError, ConnectionError))
                if not (cut_off or "DataLoader" in text or text.startswith("Pin memory")):
                    raise
                # What a killed worker was writing stays in shared memory until someone removes it.
                remove_left([worker.pid for worker in self._workers()])
                raise LostWorker(
                    f"a loader worker died or stopped responding (killed? out of memory?): {text}"
                ) from None
            yield batch

    def _workers(self) -> list[Any]:
        """Return the worker processes, none where this process reads."""
        return getattr(self.loader._iterator, "_workers", [])


class KeptLoader(HostLoader):
    """Batches of images that were decoded once, cut out of their pixels by threads."""

    def __init__(
        self,
        kept: Kept,
        pipeline: Pipeline,
        plan: Plan,
        device: torch.device,
        *,
        threads: int = 0,
        skip: bool = False,
    ) -> None:
        super().__init__(kept.images, pipeline, plan, device, skip=skip)
        self.kept = kept
        pinned, finishes = device.type == "cuda", device.type == "cpu"
        self.reader = KeptReader(
            kept, pipeline, plan, threads=threads, pinned=pinned, finishes=finishes
        )

    def again(self, pipeline: Pipeline, plan: Plan) -> "KeptLoader":
        """Return a loader of the same pixels."""
        threads = self.reader.threads
        return KeptLoader(self.kept, pipeline, plan, self.device, threads=threads, skip=self.skip)

    def _made(self, epoch: int, start: int) -> Iterator[Decoded]:
        return self.reader.batches(epoch, start)


class ResidentLoader(HostLoader):
    """Batches of images that were decoded once and stay on a GPU, which cuts and finishes them."""

    def __init__(
        self,
        kept: Kept,
        pipeline: Pipeline,
        plan: Plan,
        device: torch.device,
        *,
        skip: bool = False,
        pixels: ResidentPixels | None = None,
    ) -> None:
        super().__init__(kept.images, pipeline, plan, device, skip=skip)
        self.kept = kept
        self.pixels = pixels or ResidentPixels(kept, plan.pool, device)

    def again(self, pipeline: Pipeline, plan: Plan) -> "ResidentLoader":
        """Return a loader of the same pixels."""
        given = self.kept, pipeline, plan, self.device
        return ResidentLoader(*given, skip=self.skip, pixels=self.pixels)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on. Raises Refused for a bad image."""
        pipeline, size = self.pipeline, self.pipeline.crop_size
        for batch_index, wanted in enumerate(self.plan.epoch(epoch, start), start):
            indices, bad = usable(self.kept, wanted)
            if bad and not self.skip:
                raise refusal(bad[0])
            self.bad |= {image.index: image for image in bad}

            window = pipeline.windows(*self.kept.sizes(indices), epoch, indices)
            layout = self.pixels.layout(window, indices, pipeline.interpolation)
            draws = pipeline.draw_uniforms(epoch, indices)
            small = indices, layout.regions, layout.boxes, pipeline.to_send(draws)
            chosen, regions, boxes, sent = self.uploader.pack(*small)
            images = self.pixels.cut(layout, regions, boxes, window, pipeline.interpolation)
            images = images.view(len(indices), *pipeline.parts, 3, size, size)
            images = pipeline.apply_steps(images, draws, sent)
            labels = self.labels.index_select(0, chosen)
            total = self.plan.size(batch_index) - len(bad)
            yield Batch(images, labels, indices, total, batch_index)


AnyLoader = ArrayLoader | FileLoader | KeptLoader | ResidentLoader


def make_loader(
    images: Images, pipeline: Pipeline, plan: Plan, device: torch.device, **settings: Any
) -> ArrayLoader | FileLoader:
    """Return the loader that fits the images. settings: of FileLoader."""
    if isinstance(images, ArrayImages):
        return ArrayLoader(images, pipeline, plan, device)
    return FileLoader(images, pipeline, plan, device, **settings)
