"""What a data set is: class names, a label an image, and either all pixels as one array or one file
an image.
"""

import copy
import csv
import dataclasses
import functools
import hashlib
import io
import os
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from base.errors import OverLimit, Refused
from base.files import read_text
from datasets import decode


class StoredPixels(Protocol):
    """Images of one size that stay in a file. shape: (N, C, H, W)."""

    shape: tuple[int, ...]

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """Return these images, (n, H, W, C) uint8."""


@dataclass
class ArrayImages:
    """Images of one size.

    pixels: (N, C, H, W) uint8 with C 1 or 3, or what reads them; labels: (N,) int64 in [0, K);
    classes: K names; where: the folder or file they were read from; numbers: (N,) places in their
    part, where these are some of it.
    """

    pixels: torch.Tensor | StoredPixels
    labels: np.ndarray
    classes: list[str]
    where: str
    numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return what tables call the image: its place among those of its part, from 0."""
        return f"image {index if self.numbers is None else self.numbers[index]}"


class Names(Sequence[str]):
    """File names as one byte string and offsets.

    1.3 million of them as objects would take 150 MB in every worker, copied page by page as
    reference counts touch them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.blob = np.frombuffer(b"".join(encoded), np.uint8)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    @classmethod
    def of(cls, blob: np.ndarray, ends: np.ndarray) -> "Names":
        """Return names that are stored so already."""
        names = cls.__new__(cls)
        names.blob, names.ends = blob, ends
        return names

    @classmethod
    def joined(cls, parts: Sequence["Names"]) -> "Names":
        """Return all names, one part's after the other's."""
        lengths = [part.lengths(range(len(part))) for part in parts]
        ends = np.cumsum(np.concatenate(lengths), dtype=np.int64)
        return cls.of(np.concatenate([part.blob for part in parts]), ends)

    def below(self, folder: str) -> "Names":
        """Return the names as paths that begin with a folder's."""
        prefix = np.frombuffer(os.fsencode(f"{folder}/"), np.uint8)
        lengths = self.lengths(range(len(self))) + len(prefix)
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        own = np.ones(int(lengths.sum()), bool)
        blob = np.empty(len(own), np.uint8)
        # All names at once: a million strings take seconds and hundreds of megabytes.
        for place, byte in enumerate(prefix):
            own[starts + place], blob[starts + place] = False, byte
        blob[own] = self.blob
        return Names.of(blob, ends)

    def slice(self, part: range) -> np.ndarray:
        """Return the bytes of the names at these positions."""
        start = self.ends[part.start - 1] if part.start else 0
        end = self.ends[part.stop - 1] if len(part) else 0
        return self.blob[start:end]

    def lengths(self, part: range) -> np.ndarray:
        """Return how many bytes the names at these positions have."""
        before = self.ends[part.start - 1] if part.start else 0
        return np.diff(self.ends[part.start : part.stop], prepend=before)

    def __len__(self) -> int:
        return len(self.ends)

    # Of Sequence; slices are not needed.
    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.blob[start : self.ends[index]].tobytes())


@dataclass(frozen=True)
class Limits:
    """What of a file is read at all. links: also where a link leads out of the images' folder."""

    # Far above any photograph, far below what would fill a machine's memory.
    bytes: int = 256 << 20
    pixels: int = decode.MAX_PIXELS
    links: bool = False


class Packed(Protocol):
    """Containers that hold the bytes of many images. row: an image's number in them."""

    def read(self, row: int, head: int, most: int) -> bytes:
        """Return an image's bytes, or so many of its first ones (-1: all).

        most: bytes that are allowed. Raises OSError, ValueError; OverLimit for a larger image.
        """

    def facts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what tells that these images changed, bytes and mtime in nanoseconds of each or
        of its container, (n,) int64.
        """

    def remark(self) -> str:
        """Return what a header tells of reading it, "" for nothing."""


# Images whose size and time are looked at: of more, so many evenly spread ones.
MAX_LOOKED_AT = 50_000


@dataclass(frozen=True)
class Facts:
    """What tells that files changed: size in bytes and mtime in nanoseconds, (N,) int64.

    -1 where a file is missing or, among more than 50,000, was not looked at. missing: how many.
    """

    sizes: np.ndarray
    times: np.ndarray
    missing: int


@dataclass
class FileImages:
    """Encoded images: one file each, or packed many in a file.

    names: paths relative to `where`; labels: (N,) int64 in [0, K); classes: K names.

    within: a folder above `where` that links may lead through too; "": `where` alone. left_out:
    files and folders that are no images, by kind. turn: as EXIF's orientation says. packed: what
    holds the bytes where an image is no file of its own, names are then shown only; rows: (N,) of
    the images in it.
    """

    names: Sequence[str]
    labels: np.ndarray
    classes: list[str]
    where: str
    limits: Limits = Limits()
    within: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    turn: bool = False
    packed: Packed | None = None
    rows: np.ndarray | None = None
    # Names are paths below `where`. Where they are not, files are not looked at beforehand.
    listed: ClassVar[bool] = True
    # Folders of images that were found to lie inside.
    inside: set[str] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return what its source calls the image: a path, a member of an archive, a row."""
        return self.names[index]

    def path(self, index: int) -> str:
        """Return where the image lies, as messages have it."""
        return os.path.join(self.where, self.names[index])

    @functools.cached_property
    def facts(self) -> Facts:
        """Sizes and times of the files as they are now."""
        if self.packed is not None and self.rows is not None:
            return Facts(*self.packed.facts(self.rows), 0)
        sizes = np.full(len(self), -1, np.int64)
        times = sizes.copy()
        missing = 0
        if not self.listed:
            return Facts(sizes, times, missing)
        looked_at = min(len(self), MAX_LOOKED_AT)
        names = self.names if isinstance(self.names, Names) else Names(self.names)
        # As bytes: making text of a hundred thousand paths takes as long as looking at their files.
        where = os.fsencode(os.path.join(self.where, ""))
        for index in np.linspace(0, len(self) - 1, looked_at).astype(np.int64).tolist():
            try:
                status = os.stat(where + names.slice(range(index, index + 1)).tobytes())
            except OSError:
                # A link that leads nowhere is listed all the same, and stays so.
                missing += not os.path.lexists(self.path(index))
                continue
            sizes[index], times[index] = status.st_size, status.st_mtime_ns
        return Facts(sizes, times, missing)

    def status(self, index: int) -> tuple[int, int]:
        """Return the file's size and mtime as they are now, (-1, -1) where it cannot be found."""
        if self.packed is not None and self.rows is not None:
            sizes, times = self.packed.facts(self.rows[index : index + 1])
            return int(sizes[0]), int(times[0])
        try:
            status = os.stat(self.path(index))
        except (OSError, ValueError):
            return -1, -1
        return status.st_size, status.st_mtime_ns

    def chosen(self, indices: np.ndarray) -> "FileImages":
        """Return some of the images, (n,) indices, in this order."""
        names = Names([self.names[index] for index in indices])
        part = dataclasses.replace(self, names=names, labels=self.labels[indices], inside=set())
        part.rows = None if self.rows is None else self.rows[indices]
        facts = self.facts
        part.facts = Facts(facts.sizes[indices], facts.times[indices], facts.missing)
        return part

    def __getstate__(self) -> dict[str, Any]:
        # Workers need no facts: those of a million files would be copied to each.
        return {name: value for name, value in self.__dict__.items() if name != "facts"}

    def read(self, index: int, head: int = -1) -> bytes:
        """Return the file's bytes, or so many of its first ones.

        Raises OSError, ValueError where it may not be read.
        """
        if self.packed is not None and self.rows is not None:
            return self.packed.read(int(self.rows[index]), head, self.limits.bytes)
        path = self.path(index)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            self._stay_inside(path)
            status = os.stat(path)

        # A pipe would block, a device act.
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        refuse_large(status.st_size, self.limits.bytes)

        folder = os.path.dirname(path)
        # A folder may be a link too; each is looked at once.
        if folder not in self.inside:
            self._stay_inside(folder)
            self.inside.add(folder)
        # Unbuffered: the whole file is read in one go.
        with open(path, "rb", buffering=0) as file:
            return file.read(head)

    def sized(self, index: int) -> tuple[bytes, tuple[int, int]]:
        """Return the file's bytes, and width and height in pixels.

        Raises OSError, ValueError as `read`.
        """
        content = self.read(index)
        return content, decode.size(content, self.limits.pixels, turn=self.turn)

    def _stay_inside(self, path: str) -> None:
        """Raise OverLimit where a link leads from the images' folder to outside of it."""
        if self.limits.links:
            return
        # Named so by who knows the files: it is not a link that leads there.
        if not _below(os.path.abspath(path), os.path.abspath(self.where)):
            return
        real, within = os.path.realpath(path), self.within or self.where
        if not any(_below(real, os.path.realpath(root)) for root in (self.where, within)):
            raise OverLimit(f"a link to {real}, outside {within}", "links")


def refuse_large(size: int, most: int) -> None:
    """Raise OverLimit for an image of more bytes than are allowed."""
    if size > most:
        raise OverLimit(f"{size} bytes are more than the {most} allowed", "bytes")


def _below(path: str, folder: str) -> bool:
    """True where `path` is `folder` or lies in it, both absolute."""
    return os.path.commonpath([path, folder]) == folder


def files_key(images: FileImages, indices: np.ndarray) -> str:
    """Return a hash of the sizes and times of these files, (n,) indices, as they are now."""
    facts = [images.status(index) for index in indices.tolist()]
    return hashlib.sha256(np.array(facts, np.int64).tobytes()).hexdigest()


# Files whose headers are read to say how many carry a turn, evenly spread, of each side.
HEADERS = 100
# Bytes in which cameras write their metadata.
HEAD = 1 << 17


def turns(sides: Sequence[FileImages]) -> tuple[int, int]:
    """Return how many files were looked at, and how many of these carry an EXIF turn."""
    looked_at = carrying = 0
    for images in sides:
        count = min(len(images), HEADERS)
        for index in np.linspace(0, len(images) - 1, count).astype(np.int64).tolist():
            try:
                content = images.read(index, HEAD)
            except (OSError, ValueError):  # a bad image is named where it is read for good
                continue
            looked_at += 1
            carrying += decode.orientation(content) > 1
    return looked_at, carrying


def display_names(images: ArrayImages | FileImages) -> list[str]:
    """Return what classes are called where they are shown.

    Their names, with the words of a classes.csv beside the images.
    """
    if isinstance(images, ArrayImages):
        return images.classes
    for place in (images.where, os.path.dirname(os.path.abspath(images.where))):
        try:
            path = os.path.join(place, "classes.csv")
            rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
            words = {row["class"]: row["words"] for row in rows}
        except (OSError, KeyError, ValueError, csv.Error):
            continue
        return [f"{name} {words[name]}" if words.get(name) else name for name in images.classes]

    return images.classes


def relabelled(
    images: "ArrayImages | FileImages", classes: list[str]
) -> "ArrayImages | FileImages":
    """Return images whose labels are numbers of these classes, which have the same names in another
    order or form, or more of them. Raises Refused for a class that is not among them.
    """
    if list(images.classes) == classes:
        return images
    numbers = {composed(name): label for label, name in enumerate(classes)}
    if len(numbers) < len(classes):
        raise Refused(f"{images.where}: two of its classes have one name, in another order now")
    # A class that is declared and has no image is nobody's trouble.
    labelled = images.labels[images.labels >= 0]
    there = np.bincount(labelled, minlength=len(images.classes)) > 0
    refuse_unknown(
        [name for name, used in zip(images.classes, there, strict=True) if used],
        classes,
        images.where,
    )
    own = np.array([numbers.get(composed(name), -1) for name in images.classes], np.int64)
    # A copy of whatever kind it is, with what is known of its files.
    result = copy.copy(images)
    result.labels = np.where(images.labels < 0, -1, own[images.labels])
    result.classes = classes
    return result


def refuse_unknown(found: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raise Refused for classes that training, or the weights, lack."""
    numbers = {composed(name) for name in known}
    unknown = [name for name in found if composed(name) not in numbers]
    if unknown:
        shown = ", ".join(f"'{name}'" for name in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        some = ", ".join(f"'{name}'" for name in sorted(numbers)[:5])
        raise Refused(
            f"{where} has {'a class' if len(unknown) == 1 else 'classes'} that training lacks: "
            f"{shown}{more}; it knows {some}{', ...' if len(numbers) > 5 else ''}"
        )


def composed(name: str) -> str:
    """Return a name in the form in which names are compared: disks differ in how they store it."""
    return unicodedata.normalize("NFC", name)


def check_labels(labels: np.ndarray, classes: Sequence[str], where: str) -> None:
    """Raise Refused unless every label names a class."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        bad = int(np.flatnonzero((labels < 0) | (labels >= len(classes)))[0])
        allowed = f"allowed are 0 to {len(classes) - 1}"
        raise Refused(f"{where}: image {bad} has label {labels[bad]}, {allowed}")
