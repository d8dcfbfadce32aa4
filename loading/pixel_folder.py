"""A folder of decoded pixels, which runs find again: made, taken up after a kill, renewed."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from base.errors import Failed, Refused
from base.files import sync_folder
from base.text import printable
from datasets import decoded
from datasets.decoded import INDEX, PIXELS, ROW, Index, Kept
from datasets.images import FileImages
from loading.decode_once import MARGIN, Making, estimate, gigabytes, reasons_of
from transforms import Scaling

# Seconds between two looks at whether another run has finished.
POLL = 0.2


class PixelFolder:
    """The pixels of a run's images in a folder below `parent`.

    pool: (n,) which images the run uses; threads: that decode; skip: bad images are left out.
    """

    def __init__(
        self,
        images: FileImages,
        scaling: Scaling,
        pool: np.ndarray,
        parent: Path,
        *,
        threads: int,
        skip: bool,
    ) -> None:
        self.images = images
        self.scaling = scaling
        self.threads = max(1, threads)
        self.skip = skip
        self.path = parent / decoded.folder_name(images, scaling)
        self.made = decoded.how(images, scaling)
        self.keys = decoded.keys_of(images)
        self.is_used = np.zeros(len(images), bool)
        self.is_used[pool] = True

    def keep(self) -> Kept:
        """Return the pixels, after decoding those that the folder lacks or whose files changed.

        Raises Refused where the disk is too small, or for a bad image; Failed where the folder
        cannot be written to.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path):
                index = decoded.read_index(self.path, self.made)
                if index is None:
                    index, lacks = self._make()
                elif (lacks := self._lacks(index)).any():
                    index = self._add(self.path, index, lacks, first=len(index.rows))
            with open(self.path / PIXELS, "rb") as file:
                memory = decoded.map_pixels(file.fileno())
        except OSError as error:
            told = f"cannot keep pixels in {error.filename or self.path}: {error.strerror}"
            raise Failed(told, limit="decoded folder") from None
        rows = decoded.rows_of(index, self.keys)
        reasons = reasons_of(index, rows)
        return Kept(self.images, self.scaling, rows, memory, reasons, lacks, on_disk=True)

    def _lacks(self, index: Index) -> np.ndarray:
        """Return which of the images that are used have no row that still holds, (N,) bool."""
        rows, facts = decoded.rows_of(index, self.keys), self.images.facts
        # -1 where a file was not looked at.
        changed = (rows["bytes"] != facts.sizes) | (rows["time"] != facts.times)
        changed &= (facts.sizes >= 0) | (rows["bytes"] == decoded.UNKNOWN)
        # Who does not leave bad images out is to be told of one by reading it.
        bad = (rows["width"] == 0) & (not self.skip)
        return self.is_used & (changed | bad)

    def _make(self) -> tuple[Index, np.ndarray]:
        """Decode into a new folder, or what is left of one, and give it its name once every image
        of it was read back. Returns which were decoded too, (N,) bool.
        """
        part = self.path.with_name(f"{self.path.name}.part")
        part.mkdir(exist_ok=True)
        # What a run that was ended had decoded.
        begun = decoded.read_index(part, self.made) or Index(np.empty(0, ROW))
        lacks = self._lacks(begun)
        index = self._add(part, begun, lacks, first=0)
        _remove(self.path)
        os.rename(part, self.path)
        sync_folder(self.path.parent)
        return index, lacks

    def _add(self, folder: Path, index: Index, lacks: np.ndarray, first: int) -> Index:
        """Decode images to the end of the pixels, read back those of all rows from the `first` on,
        replace the index; return that.
        """
        wanted, is_whole = np.flatnonzero(lacks), folder == self.path
        self._refuse_full(folder, len(wanted))
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(folder / PIXELS, flags, 0o666)
        try:
            making = Making(self.images, self.scaling, descriptor, self.skip, self.keys, index.end)

            def result() -> Index:
                added = making.index()
                rows = np.concatenate([index.rows, added.rows])
                return Index(rows, index.reasons | added.reasons)

            def note() -> None:
                decoded.write_index(folder / INDEX, result(), self.made)

            making.run(wanted, self.threads, None if is_whole else note)
            os.fsync(descriptor)
            final = result()
            self._refuse_spoilt(folder, decoded.map_pixels(descriptor), final.rows[first:])
        finally:
            os.close(descriptor)
        decoded.write_index(folder / INDEX, final, self.made)
        return final

    def _refuse_full(self, folder: Path, count: int) -> None:
        """Raise Refused where the disk cannot hold so many more images."""
        if not count:
            return
        needed = estimate(self.images, self.scaling) * count // len(self.images)
        free = shutil.disk_usage(folder).free
        if needed * MARGIN > free:
            raise Refused(
                f"the decoded pixels of {count} images take about {gigabytes(needed)}, on the disk "
                f"of {folder.parent} {gigabytes(free)} are free",
                limit="decoded disk",
            )

    def _refuse_spoilt(self, folder: Path, memory: np.ndarray, rows: np.ndarray) -> None:
        """Raise Failed where pixels came back other than they were written; the next start decodes
        them again.
        """

        def count(part: np.ndarray) -> int:
            wrong = 0
            starts, lengths = part["offset"].tolist(), decoded.nbytes(part).tolist()
            for start, length, told in zip(starts, lengths, part["sum"].tolist(), strict=True):
                wrong += decoded.checksum(memory[start : start + length]) != told
            return wrong

        with ThreadPoolExecutor(self.threads) as pool:
            spoilt = sum(pool.map(count, np.array_split(rows, 4 * self.threads)))
        if spoilt:
            # Of a folder that was finished before, the index does not know these rows yet.
            if folder != self.path:
                (folder / INDEX).unlink(missing_ok=True)
            told = f"{spoilt} images came back from the disk other than they were written"
            raise Failed(f"{folder / PIXELS}: {told}", limit="decoded folder")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; wait for whoever has it."""
    path = folder.with_name(f"{folder.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    told = False
    try:
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if not told:
                    print(f"another run decodes into {printable(str(folder))}: waiting", flush=True)
                told = True
            time.sleep(POLL)
        yield
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder of pixels that cannot be used; what is not ours stays."""
    for name in (PIXELS, INDEX):
        (folder / name).unlink(missing_ok=True)
    # Of whoever was killed while it wrote an index.
    for path in folder.glob(f".{INDEX}.*.tmp"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
