"""Decoding the images of a run once, by threads, into memory or an open file."""

import collections
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from base.errors import Refused
from base.machine import free_memory
from datasets import decode, decoded
from datasets.decoded import ROW, Index, Kept, Reason
from datasets.images import HEAD, FileImages
from loading.workers import BadImage, refusal
from transforms import Scaling

# Images that a thread takes at a time.
CHUNK = 16
# Images whose headers are read to say how much all of them take, evenly spread.
HEADERS = 1000
# Of what an estimate is multiplied with: how far it may be off.
MARGIN = 1.05
# Share of the free memory that pixels may take: the run needs some too.
MAX_MEMORY_SHARE = 0.9
# Seconds between two records of how far the decoding is.
RECORD_EVERY = 5.0


def estimate(images: FileImages, scaling: Scaling, most: int = HEADERS) -> int:
    """Return about how many bytes the pixels of all images take, from the headers of `most`."""
    count = min(len(images), most)
    sizes = []
    for index in np.linspace(0, len(images) - 1, count).astype(np.int64).tolist():
        # A bad image is named where it is read for good.
        with contextlib.suppress(OSError, ValueError):
            head = images.read(index, HEAD)
            width, height = decode.size(head, images.limits.pixels, turn=images.turn)
            sizes.append(3 * int(np.prod(scaling.size(width, height))))
    return int(np.mean(sizes) * len(images)) if sizes else 0


def fits(needed: int, free: int | None) -> bool:
    """True where so many bytes of pixels leave enough of the free ones."""
    return free is None or needed * MARGIN <= MAX_MEMORY_SHARE * free


def refuse_memory(needed: int, where: str) -> None:
    """Raise Refused where so many bytes of pixels do not fit into memory."""
    free = free_memory()
    if free is not None and not fits(needed, free):
        raise Refused(
            f"the decoded pixels of {where} take about {gigabytes(needed)}, of memory "
            f"{gigabytes(free)} are free",
            limit="decoded memory",
        )


@dataclass(frozen=True)
class Place:
    """Where one process of a machine keeps pixels in its memory, for the others to find."""

    process: int
    pixels: int
    index: int

    def path(self, descriptor: int) -> str:
        return f"/proc/{self.process}/fd/{descriptor}"

    def close(self) -> None:
        """Let go of it, where this process holds it open; what is mapped stays."""
        if self.process == os.getpid():
            os.close(self.pixels)
            os.close(self.index)


def in_memory(
    images: FileImages, scaling: Scaling, pool: np.ndarray, *, threads: int, skip: bool
) -> tuple[Kept, Place]:
    """Decode images into memory that processes can share, which is free again once they end.

    pool: (n,) which of them. Raises Refused for a bad image.
    """
    descriptor = _anonymous("pixels")
    making = Making(images, scaling, descriptor, skip)
    making.run(pool, threads)
    place = Place(os.getpid(), descriptor, _anonymous("index"))
    content = decoded.index_bytes(making.index(), decoded.how(images, scaling))
    _write_all(place.index, content, 0)
    return _kept(images, scaling, making.index(), decoded.map_pixels(descriptor)), place


def attach(images: FileImages, scaling: Scaling, place: Place) -> Kept:
    """Return the pixels that another process of this machine keeps in memory. Raises Refused."""
    try:
        with open(place.path(place.pixels), "rb") as file:
            memory = decoded.map_pixels(file.fileno())
        content = Path(place.path(place.index)).read_bytes()
        index = decoded.index_from(content, decoded.how(images, scaling), len(memory))
    except (OSError, ValueError, KeyError) as error:
        other = f"the pixels in the memory of process {place.process}"
        raise Refused(f"{other} cannot be read: {error}", limit="shared pixels") from None
    return _kept(images, scaling, index, memory)


def _kept(images: FileImages, scaling: Scaling, index: Index, memory: np.ndarray) -> Kept:
    """Return pixels that were decoded for this run."""
    rows = decoded.rows_of(index, decoded.keys_of(images))
    now = rows["bytes"] != decoded.UNKNOWN
    return Kept(images, scaling, rows, memory, reasons_of(index, rows), now)


def reasons_of(index: Index, rows: np.ndarray) -> dict[int, Reason]:
    """Return why images are bad, by their number."""
    bad = np.flatnonzero(rows["width"] == 0).tolist()
    return {at: index.reasons.get(int(rows["key"][at]), ("it is bad", "")) for at in bad}


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


class Making:
    """Decodes images into an open file.

    keys: (N,) of all images; end: where the first one's pixels begin.
    """

    def __init__(
        self,
        images: FileImages,
        scaling: Scaling,
        descriptor: int,
        skip: bool,
        keys: np.ndarray | None = None,
        end: int = 0,
    ) -> None:
        self.images = images
        self.scaling = scaling
        self.descriptor = descriptor
        self.skip = skip
        self.end = end
        self.rows = np.zeros(len(images), ROW)
        self.rows["key"] = decoded.keys_of(images) if keys is None else keys
        self.is_done = np.zeros(len(images), bool)
        self.reasons: dict[int, Reason] = {}
        self._lock = threading.Lock()
        self._ended = False

    def index(self) -> Index:
        """Return what is decoded so far."""
        with self._lock:
            return Index(self.rows[self.is_done], dict(self.reasons))

    def run(
        self, indices: np.ndarray, threads: int, note: Callable[[], None] | None = None
    ) -> None:
        """Decode these images. note: records how far it is.

        Raises Refused for a bad image, unless they are left out; OSError for a full disk.
        """
        # A table may name one file twice.
        _, firsts = np.unique(self.rows["key"][indices], return_index=True)
        indices = indices[np.sort(firsts)]
        bar = tqdm(total=len(indices), desc="decoding", unit=" images", leave=False, disable=None)
        noted, cost = time.monotonic(), 0.0
        with bar, _pool(threads) as pool:
            try:
                for count in self._in_order(pool, indices, max(1, threads)):
                    bar.update(count)
                    now = time.monotonic()
                    # However large it is, the record takes no more than a twentieth of the time.
                    if note is not None and now - noted > max(RECORD_EVERY, 20 * cost):
                        note()
                        noted = time.monotonic()
                        cost = noted - now
            except BaseException:
                self._ended = True
                # What is done is not decoded again.
                if note is not None:
                    with contextlib.suppress(OSError):
                        note()
                raise

    def _in_order(
        self, pool: ThreadPoolExecutor, indices: np.ndarray, threads: int
    ) -> Iterator[int]:
        """Yield how many images were decoded, chunk by chunk; few chunks wait for a thread."""
        under_way: collections.deque[Future[int]] = collections.deque()
        for start in range(0, len(indices), CHUNK):
            under_way.append(pool.submit(self._make, indices[start : start + CHUNK]))
            if len(under_way) > 2 * threads:
                yield under_way.popleft().result()
        for future in under_way:
            yield future.result()

    def _make(self, indices: np.ndarray) -> int:
        for index in indices.tolist():
            if self._ended:
                break
            self._make_one(index)
        return len(indices)

    def _make_one(self, index: int) -> None:
        # Before it is read: of a file that changes meanwhile the new time is unknown here.
        facts = self.images.status(index)
        try:
            pixels = decoded.decode_one(self.images, index, self.scaling)
        except (OSError, ValueError) as error:
            reason, limit = decoded.why(error)
            if not self.skip:
                raise refusal(BadImage(index, self.images.path(index), reason, limit)) from None
            self.reasons[int(self.rows["key"][index])] = reason, limit
            pixels = np.empty((0, 0, 3), np.uint8)
        with self._lock:
            offset = self.end
            self.end += pixels.nbytes
        _write_all(self.descriptor, pixels.reshape(-1).data, offset)
        self._keep(index, offset, pixels, facts)

    def _keep(self, index: int, offset: int, pixels: np.ndarray, facts: tuple[int, int]) -> None:
        height, width = pixels.shape[:2]
        row = (self.rows["key"][index], offset, width, height, decoded.checksum(pixels), *facts)
        with self._lock:
            self.rows[index] = row
            self.is_done[index] = True


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that compute on one core each."""
    return ThreadPoolExecutor(max(1, threads), "decoding", torch.set_num_threads, (1,))


def _write_all(descriptor: int, content: "memoryview | bytes", offset: int) -> None:
    """Write all of it at this offset. Raises OSError."""
    left = memoryview(content)
    while len(left):
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _anonymous(name: str) -> int:
    """Return an open file in memory that is gone with the processes that have it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    # Another system: a file without a name.
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
