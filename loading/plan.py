"""Which images make up which batch: pure functions of seed, epoch and batch, the same on every
rank.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from base.randomness import shuffled, uniforms

# Batches whose images are worked out together: NumPy's calls cost more than their work.
CHUNK = 32


@dataclass(frozen=True)
class Batch:
    """One batch of this rank, on the device.

    images: (N, 3, S, S) uint8, or (N, 5, 3, S, S) in ten-crop testing; labels: (N,) int64; indices:
    (N,) int64 of the data set, on the host; total: images of this batch over all ranks; index: the
    batch's position in the epoch.
    """

    images: Tensor
    labels: Tensor
    indices: np.ndarray
    total: int
    index: int = 0


@dataclass(frozen=True)
class Plan:
    """The images of every batch, a pure function of (seed, epoch, batch): O(batch) memory for any
    number of images.

    count: images there are; batch: images a batch over all ranks; limit: images an epoch, the first
    of a fixed keyed order; shuffle: a new order each epoch, and a last batch of fewer than
    `smallest` images, which batch norm cannot train on, left out.
    """

    count: int
    batch: int
    seed: int = 0
    shuffle: bool = False
    limit: int | None = None
    rank: int = 0
    world: int = 1
    smallest: int = 2

    @property
    def image_count(self) -> int:
        """Images an epoch over all ranks."""
        count = min(self.count, self.limit or self.count)
        last = count % self.batch
        # Testing counts every image, whatever its batch; an epoch of one small batch is kept.
        too_small = self.shuffle and 0 < last < self.smallest and count > last
        return count - last if too_small else count

    @functools.cached_property
    def pool(self) -> np.ndarray:
        """The images that an epoch is made of, (n,) int64 in no order."""
        count = min(self.count, self.limit or self.count)
        pool = np.arange(count)
        return shuffled(pool, self.count, 0, 0, "limit") if count < self.count else pool

    def __len__(self) -> int:
        """Return the number of batches an epoch."""
        return -(-self.image_count // self.batch)

    def images_left(self, batch_index: int) -> int:
        """Return the images of an epoch from this batch on, over all ranks."""
        return self.image_count - batch_index * self.batch

    def size(self, batch_index: int) -> int:
        """Return the images of this batch over all ranks."""
        return min(self.batch, self.images_left(batch_index))

    def indices(self, epoch: int, batch_index: int) -> np.ndarray:
        """Return this rank's images of a batch, (N,) int64: every world-th one."""
        return self._images_at(epoch, self._positions(batch_index))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yield this rank's images of each batch from `start` on, computed for many at once."""
        for first in range(start, len(self), CHUNK):
            chunk = range(first, min(first + CHUNK, len(self)))
            positions = [self._positions(batch_index) for batch_index in chunk]
            images = self._images_at(epoch, np.concatenate(positions))
            ends = np.cumsum([len(part) for part in positions])
            yield from np.split(images, ends[:-1])

    def _positions(self, batch_index: int) -> np.ndarray:
        """Return where this rank's images of a batch stand in the epoch, (N,) int64."""
        start = batch_index * self.batch
        return np.arange(
            start + self.rank, start + self.size(batch_index), self.world, dtype=np.int64
        )

    def _images_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the images at these positions of an epoch, (N,) int64."""
        count = min(self.count, self.limit or self.count)
        if self.shuffle:
            positions = shuffled(positions, count, self.seed, epoch)
        if count < self.count:
            # Always the same images, whatever the seed: --limit is for trying out, and folders are
            # sorted by class.
            positions = shuffled(positions, self.count, 0, 0, "limit")
        return positions


@dataclass(frozen=True)
class ChosenPlan(Plan):
    """A plan of one batch: the given images. chosen: (count,) int64."""

    chosen: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def _images_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        return self.chosen[positions]


@dataclass(frozen=True)
class BalancedPlan(Plan):
    """A plan whose every position draws a class first and then one of its images, by its own
    number. Training only.

    labels: (count,) of all images. An epoch has as many images as ever, some of them twice and some
    not at all.
    """

    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @functools.cached_property
    def _by_class(self) -> list[np.ndarray]:
        # Balance is over the images that --limit leaves.
        pool = self.pool
        order = pool[np.argsort(self.labels[pool], kind="stable")]
        return np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1)

    def _images_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        draws = uniforms(self.seed, epoch, positions, 2, "balanced").numpy().astype(np.float64)
        classes = self._by_class
        members = [classes[int(u * len(classes))] for u in draws[:, 0]]
        chosen = [own[int(u * len(own))] for own, u in zip(members, draws[:, 1], strict=True)]
        return np.array(chosen, np.int64)
