"""What a data set is: class names, a label an image, and either all pixels as one array or one file
an image.
"""

import csv
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from base.errors import OverLimit, Refused
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
    classes: K names; where: the folder or file they were read from.
    """

    pixels: torch.Tensor | StoredPixels
    labels: np.ndarray
    classes: list[str]
    where: str

    def __len__(self) -> int:
        return len(self.labels)


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


@dataclass
class FileImages:
    """One file an image.

    names: paths relative to `where`; labels: (N,) int64 in [0, K); classes: K names.

    within: a folder above `where` that links may lead through too; "": `where` alone.
    """

    names: Sequence[str]
    labels: np.ndarray
    classes: list[str]
    where: str
    limits: Limits = Limits()
    within: str = ""
    # Folders of images that were found to lie inside.
    inside: set[str] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.where, self.names[index])

    def read(self, index: int) -> bytes:
        """Return the file's bytes. Raises OSError, ValueError where it may not be read."""
        path = self.path(index)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            self._stay_inside(path)
            status = os.stat(path)

        # A pipe would block, a device act.
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > self.limits.bytes:
            allowed = f"more than the {self.limits.bytes} allowed"
            raise OverLimit(f"{status.st_size} bytes are {allowed}", "bytes")

        folder = os.path.dirname(path)
        # A folder may be a link too; each is looked at once.
        if folder not in self.inside:
            self._stay_inside(folder)
            self.inside.add(folder)
        # Unbuffered: the whole file is read in one go.
        with open(path, "rb", buffering=0) as file:
            return file.read()

    def sized(self, index: int) -> tuple[bytes, tuple[int, int]]:
        """Return the file's bytes, and width and height in pixels.

        Raises OSError, ValueError as `read`.
        """
        content = self.read(index)
        return content, decode.size(content, self.limits.pixels)

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


def _below(path: str, folder: str) -> bool:
    """True where `path` is `folder` or lies in it, both absolute."""
    return os.path.commonpath([path, folder]) == folder


def display_names(images: ArrayImages | FileImages) -> list[str]:
    """Return what classes are called where they are shown.

    Their names, with the words of a classes.csv beside the images.
    """
    if isinstance(images, ArrayImages):
        return images.classes
    for place in (images.where, os.path.dirname(os.path.abspath(images.where))):
        try:
            path = os.path.join(place, "classes.csv")
            with open(path, newline="", encoding="utf-8") as file:
                words = {row["class"]: row["words"] for row in csv.DictReader(file)}
        except (OSError, KeyError, ValueError, csv.Error):
            continue
        return [f"{name} {words[name]}" if words.get(name) else name for name in images.classes]

    return images.classes


def check_labels(labels: np.ndarray, classes: Sequence[str], where: str) -> None:
    """Raise Refused unless every label names a class."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        bad = int(np.flatnonzero((labels < 0) | (labels >= len(classes)))[0])
        allowed = f"allowed are 0 to {len(classes) - 1}"
        raise Refused(f"{where}: image {bad} has label {labels[bad]}, {allowed}")
