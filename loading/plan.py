"""Which images make up which batch: pure functions of seed, epoch and batch, the same on every rank."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from base.randomness import shuffled, uniforms

AT_ONCE = 32  # batches whose images are worked out together


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
