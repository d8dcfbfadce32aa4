"""Images decoded once: all their pixels in one flat file, and what is known of each of them.

A folder `decoded-KEY` holds two files. `pixels`: image after image, (height, width, 3) uint8 each,
with nothing between them. `index.npz`: a row an image. It gets its name when every image of it was
read back and found whole; until then it is called `decoded-KEY.part`. Images that are new or
changed later are added at the end of `pixels`, before the index that knows them replaces the old
one: who reads by that one is not disturbed.
"""

import hashlib
import io
import json
import mmap
import os
import threading
import warnings
import zlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.errors import OverLimit, reason_of
from base.files import read_bytes, whole_file
from base.randomness import key
from datasets import decode
from datasets.images import FileImages
from transforms import Scaling

FORMAT = 1
PIXELS, INDEX = "pixels", "index.npz"
# Bytes of an index: of 20 million images.
MAX_INDEX = 1 << 30
# What makes the pixels: another version may make others.
DECODERS = ("simplejpeg", "pillow", "torch")

# An image: key of its path; where its pixels begin; their size, 0 x 0 for a bad image; their
# CRC-32; bytes and mtime of its file in nanoseconds, when it was read.
ROW = np.dtype(
    [
        ("key", "<u8"),
        ("offset", "<i8"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("sum", "<u4"),
        ("bytes", "<i8"),
        ("time", "<i8"),
    ]
)
# Bytes and mtime of no file.
UNKNOWN = -2
# Why an image is bad, and the limit that it is beyond, if any.
Reason = tuple[str, str]


@dataclass
class Index:
    """What a file of pixels holds. rows: (M,) of ROW; reasons: of bad images, by their key."""

    rows: np.ndarray
    reasons: dict[int, Reason] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Where the next image's pixels begin."""
        return int((self.rows["offset"] + nbytes(self.rows)).max(initial=0))


def nbytes(rows: np.ndarray) -> np.ndarray:
    """Return the bytes of these images' pixels, (n,) int64."""
    return 3 * rows["width"].astype(np.int64) * rows["height"]


def checksum(pixels: np.ndarray) -> int:
    """Return the CRC-32 of an image's bytes."""
    return zlib.crc32(pixels.data)


def keys_of(images: FileImages) -> np.ndarray:
    """Return a key of each image's name, (N,) uint64."""
    # What is packed may have one name twice.
    rows = [""] * len(images) if images.rows is None else images.rows.tolist()
    texts = (f"{row}/{name}" for row, name in zip(rows, images.names, strict=True))
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for text in texts
    )
    return np.frombuffer(digests, np.uint64)


def how(images: FileImages, scaling: Scaling) -> str:
    """Return what the pixels depend on beside the files, as text."""
    versions = {name: version(name) for name in DECODERS}
    # Pixels of before fit there was one are found again.
    scaled = [value for name, value in vars(scaling).items() if (name, value) != ("fit", "crop")]
    return json.dumps([FORMAT, *scaled, images.turn, images.limits.pixels, versions])


def folder_name(images: FileImages, scaling: Scaling) -> str:
    """Return what the folder of these images' pixels is called."""
    return f"decoded-{key(os.path.realpath(images.where), how(images, scaling)):016x}"


def read_index(folder: Path, made: str) -> Index | None:
    """Return what a folder's pixels are known to be, None where that cannot be read or used.

    made: as of `how`.
    """
    try:
        return index_from(read_bytes(folder / INDEX, MAX_INDEX), made, _size(folder / PIXELS))
    except Exception:  # damaged in any way: it is made anew, nothing is lost
        return None


def index_from(content: bytes, made: str, size: int) -> Index:
    """Return the index in a file's content. size: bytes of the pixels. Raises any error."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        rows, about = stored["rows"], json.loads(str(stored["about"]))
    reasons = {int(number): (str(why), str(limit)) for number, why, limit in about["reasons"]}
    index = Index(rows, reasons)
    if about["made"] != made or rows.dtype != ROW or rows.ndim != 1:
        raise ValueError("of other pixels")
    if any((rows[name] < 0).any() for name in ("offset", "width", "height")) or index.end > size:
        raise ValueError("not of these pixels")
    return index


def _size(path: Path) -> int:
    return os.stat(path).st_size if path.is_file() else -1


def write_index(path: Path, index: Index, made: str) -> None:
    """Write an index, whole or not at all. Raises OSError."""
    with whole_file(path, "wb") as file:
        file.write(index_bytes(index, made))


def index_bytes(index: Index, made: str) -> bytes:
    """Return the content of an index's file."""
    reasons = [[str(number), *reason] for number, reason in index.reasons.items()]
    about = json.dumps({"made": made, "reasons": reasons})
    buffer = io.BytesIO()
    np.savez(buffer, rows=index.rows, about=np.array(about))
    return buffer.getvalue()


def matched(index: Index, keys: np.ndarray) -> np.ndarray:
    """Return for each image the newest row of the index that is of its path, (N,) int64, -1 for
    none.
    """
    # Of two rows with one key the later one was added for a file that changed.
    order = np.argsort(index.rows["key"], kind="stable")
    at = np.searchsorted(index.rows["key"][order], keys, side="right") - 1
    if not len(order):
        return np.full(len(keys), -1, np.int64)
    found = order[np.maximum(at, 0)]
    return np.where((at >= 0) & (index.rows["key"][found] == keys), found, -1)


def rows_of(index: Index, keys: np.ndarray) -> np.ndarray:
    """Return each image's row, (N,) of ROW; one that no file matches where it has none."""
    found = matched(index, keys)
    unknown = np.zeros(1, ROW)
    unknown["bytes"] = unknown["time"] = UNKNOWN
    return np.concatenate([index.rows, unknown])[found]


def map_pixels(descriptor: int) -> np.ndarray:
    """Return the bytes of an open file as one flat uint8 array to read, shared by all that map
    it.
    """
    if not os.fstat(descriptor).st_size:
        return np.empty(0, np.uint8)
    # Not as a private copy: the system would refuse one that is larger than the memory.
    return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)


def decode_one(images: FileImages, index: int, scaling: Scaling) -> np.ndarray:
    """Decode an image as it is kept, (H, W, 3) uint8. Raises OSError, ValueError."""
    content = images.read(index)
    return decode.scaled(content, scaling, images.limits.pixels, turn=images.turn)


class Kept:
    """The pixels of a run's images, decoded once.

    rows: (N,) of ROW; memory: flat uint8; made_now: images that were decoded by this process;
    on_disk: the memory is a file's.

    No pixel of a changed file is given: before an image is used for the first time in a process,
    its file's size and time are looked at and its pixels' CRC-32 is compared. Where either differs,
    or where it was not kept, it is decoded from its file, for this process.
    """

    def __init__(
        self,
        images: FileImages,
        scaling: Scaling,
        rows: np.ndarray,
        memory: np.ndarray,
        reasons: dict[int, Reason],
        made_now: np.ndarray,
        *,
        on_disk: bool = False,
    ) -> None:
        self.images = images
        self.scaling = scaling
        self.rows = rows
        self.memory = memory
        # By number of the image.
        self.reasons = reasons
        self.checked = np.zeros(len(rows), bool)
        self.made_now = made_now
        self.on_disk = on_disk
        # Decoded again by this process.
        self.renewed: dict[int, np.ndarray] = {}
        with warnings.catch_warnings():
            # That it cannot be written to is meant.
            warnings.simplefilter("ignore")
            self._tensor = torch.from_numpy(memory)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of these images' pixels."""
        return int(nbytes(self.rows).sum())

    def sizes(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return widths and heights, (n,) each; 0 for bad images."""
        rows = self.rows[indices]
        return rows["width"], rows["height"]

    def pixels(self, index: int) -> np.ndarray:
        """Return an image, (H, W, 3) uint8, a view to read. Not of a bad one."""
        if index in self.renewed:
            return self.renewed[index]
        _, start, width, height, *_ = self.rows[index].item()
        return self.memory[start : start + 3 * width * height].reshape(height, width, 3)

    def copy(self, index: int, corners: list[list[int]], targets: np.ndarray) -> None:
        """Copy squares of an image, (P, S, S, 3). corners: left and top of each."""
        if index in self.renewed:
            image = self.renewed[index]
            memory, start, width = image.reshape(-1), 0, image.shape[1]
        else:
            memory = self.memory
            _, start, width, *_ = self.rows[index].item()
        for target, (left, top) in zip(targets, corners, strict=True):
            # A view that NumPy makes in one call.
            offset = start + 3 * (top * width + left)
            target[...] = np.ndarray(target.shape, np.uint8, memory, offset, (3 * width, 3, 1))

    def planes(self, index: int) -> Tensor:
        """Return the same as (1, 3, H, W), channels last, to read."""
        if index in self.renewed:
            image = torch.from_numpy(self.renewed[index])
        else:
            _, start, width, height, *_ = self.rows[index].item()
            image = self._tensor[start : start + 3 * width * height].view(height, width, 3)
        return image[None].permute(0, 3, 1, 2)

    def check(self, indices: np.ndarray) -> None:
        """Look at images that were not used yet; decode those anew that are not what they were."""
        for index in indices[~self.checked[indices]].tolist():
            with self._lock:
                if self.checked[index]:
                    continue
                row = self.rows[index]
                same = self.images.status(index) == (int(row["bytes"]), int(row["time"]))
                # What was decoded by this process was read back then.
                if not same or not (self.made_now[index] or self._is_whole(index)):
                    self._renew(index)
                self.checked[index] = True

    def _is_whole(self, index: int) -> bool:
        return checksum(self.pixels(index)) == int(self.rows["sum"][index])

    def _renew(self, index: int) -> None:
        self.reasons.pop(index, None)
        height, width = 0, 0
        try:
            self.renewed[index] = decode_one(self.images, index, self.scaling)
            height, width = self.renewed[index].shape[:2]
        except (OSError, ValueError) as error:
            self.reasons[index] = why(error)
        self.rows["height"][index], self.rows["width"][index] = height, width

    def will_need(self, indices: np.ndarray) -> None:
        """Ask the system to bring these images from the disk, all at once."""
        if not self.on_disk:
            return
        base = self.memory.base
        source = base.obj if isinstance(base, memoryview) else base  # as NumPy has it
        if not isinstance(source, mmap.mmap) or not hasattr(source, "madvise"):
            return
        rows = self.rows[indices]
        starts = rows["offset"] // mmap.PAGESIZE * mmap.PAGESIZE
        lengths = rows["offset"] + nbytes(rows) - starts
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            if length:
                source.madvise(mmap.MADV_WILLNEED, start, length)

    def release(self) -> None:
        """Give the memory back: the pixels were taken elsewhere."""
        self.memory, self._tensor = np.empty(0, np.uint8), torch.empty(0, dtype=torch.uint8)
        self.renewed.clear()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("kept pixels are shared by threads, not sent to processes")


def why(error: Exception) -> Reason:
    """Return why an image is bad."""
    return reason_of(error), error.limit if isinstance(error, OverLimit) else ""
