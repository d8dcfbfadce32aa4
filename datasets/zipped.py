"""A .zip file of images, read in place: a path may lead into it, as `photos.zip/train/cat`.

`datasets.folder` looks at it as at a folder. What is stored is read at its offset, what is deflated
member by member; both are compared with the CRC-32 that the zip file has of them.
"""

import contextlib
import functools
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from base.errors import Refused
from base.text import printable
from datasets.containers import Files, stamp
from datasets.images import refuse_large

# Bytes of a member's own header before its name (APPNOTE.TXT 4.3.7).
HEADER = 30
SIGNATURE = b"PK\x03\x04"
# Bit 0 of the flags (4.4.4).
ENCRYPTED = 1
# Bit 11: the name is in UTF-8, else in code page 437 (4.4.4, appendix D).
UTF8 = 1 << 11
# Systems that write paths with \ in them (4.4.2): DOS and its heirs.
DOS = (0, 10, 11, 14)
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
# Bytes to which deflate packs one at best (zlib's "Maximum Compression Factor").
MAX_RATIO = 1032
FOLDER = -1


class Entry(NamedTuple):
    """A file or folder in a zip file, as os.scandir tells of those on a disk."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder


class Tree(NamedTuple):
    """What a zip file holds.

    folders: path within it -> name of what lies directly in it -> its row, FOLDER for a folder;
    places: (N, 5) offset, packed bytes, bytes, method, CRC-32 of each file.
    """

    folders: dict[str, dict[str, int]]
    places: np.ndarray


def zip_of(path: str) -> tuple[str, str] | None:
    """Return the zip file that a path names or leads into, and what is within it; None for a path
    on the disk.
    """
    above, within = path, ""
    while above and not os.path.lexists(above):
        above, _, name = above.rstrip("/").rpartition("/")
        within = f"{name}/{within}" if within else name
    if above.lower().endswith(".zip") and os.path.isfile(above):
        return above, "/".join(part for part in within.split("/") if part not in ("", "."))
    return None


def is_folder(path: str) -> bool:
    """As os.path.isdir, also within a zip file, which is a folder itself."""
    if os.path.isdir(path):
        return True
    found = zip_of(path)
    return found is not None and found[1] in tree(found[0]).folders


def scan(path: str) -> contextlib.AbstractContextManager[Iterator[Entry]]:
    """As os.scandir, of a folder in a zip file."""
    found = zip_of(path)
    if found is None or found[1] not in tree(found[0]).folders:
        raise NotADirectoryError(20, os.strerror(20), path)
    names = tree(found[0]).folders[found[1]]
    entries = (Entry(name, f"{path}/{name}", row == FOLDER) for name, row in names.items())
    return contextlib.nullcontext(entries)


def tree(path: str) -> Tree:
    """Return what a zip file holds. Raises Refused."""
    return _tree(path, stamp(path))


# Every question about a folder asks again.
@functools.lru_cache(maxsize=2)
def _tree(path: str, now: tuple[int, int]) -> Tree:
    folders: dict[str, dict[str, int]] = {"": {}}
    places: list[tuple[int, int, int, int, int]] = []
    for info in _members(path):
        name = _name_of(info)
        parts = _parts(name, path)
        is_file = not name.endswith("/")
        above = "/".join(parts[:-1] if is_file else parts)
        if above not in folders:
            _add_folders(folders, parts[: len(parts) - is_file], path)
        if is_file:
            _refuse(info, name, path, now[0])
            if folders[above].setdefault(parts[-1], len(places)) != len(places):
                raise Refused(f"{path}: there are two '{printable(name)}': pack it again")
            packed, size = info.compress_size, info.file_size
            places.append((info.header_offset, packed, size, info.compress_type, info.CRC))
    found = np.array(places, np.int64).reshape(-1, 5)
    _refuse_overlap(found, path)
    return Tree(folders, found)


def _add_folders(folders: dict[str, dict[str, int]], parts: list[str], path: str) -> None:
    """Add a folder and those above it. Raises Refused where one is a file too."""
    for depth, name in enumerate(parts):
        above, inner = "/".join(parts[:depth]), "/".join(parts[: depth + 1])
        if folders[above].setdefault(name, FOLDER) != FOLDER:
            raise Refused(f"{path}: there are two '{printable(inner)}': pack it again")
        folders.setdefault(inner, {})


def _members(path: str) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    # zipfile lets through what its parsers raise for damaged bytes.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise Refused(f"{path} is no .zip file that can be read: {printable(error)}") from None


def _name_of(info: zipfile.ZipInfo) -> str:
    """Return a member's name: some programs write UTF-8 without saying so, others \\ in paths."""
    name = info.filename
    if not info.flag_bits & UTF8 and not name.isascii():
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/") if info.create_system in DOS else name


def _parts(name: str, path: str) -> list[str]:
    """Return the folders of a member's name and its own. Raises Refused for one that leads out."""
    parts = name.rstrip("/").split("/")
    while parts and parts[0] == ".":
        parts.pop(0)
    if name.startswith("/") or name[1:2] == ":" or any(part in ("", ".", "..") for part in parts):
        raise Refused(f"{path}: '{printable(name)}' is not a name within a folder: pack it again")
    return parts


def _refuse(info: zipfile.ZipInfo, name: str, path: str, size: int) -> None:
    """Raise Refused for what a zip file of photographs does not hold."""
    reason = ""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        reason = "is a link or a special file: pack regular files only"
    elif info.flag_bits & ENCRYPTED:
        reason = "is encrypted: pack it without a password"
    elif info.compress_type not in METHODS:
        reason = f"is packed by method {info.compress_type}: store or deflate it"
    elif info.header_offset + info.compress_size > size:
        reason = "lies beyond the end of the file: fetch or pack it again"
    elif info.file_size > MAX_RATIO * info.compress_size + 64:
        reason = f"declares {info.file_size} bytes, more than it can hold"
    if reason:
        raise Refused(f"{path}: '{printable(name)}' {reason}")


def _refuse_overlap(places: np.ndarray, path: str) -> None:
    """Raise Refused where two members share bytes, as those of a bomb do."""
    order = np.argsort(places[:, 0])
    ends = places[order, 0] + HEADER + places[order, 1]
    if (places[order[1:], 0] < ends[:-1]).any():
        raise Refused(f"{path}: two of its files lie on the same bytes: pack it again")


class Zip(Files):
    """Images in one zip file."""

    def __init__(self, path: str) -> None:
        places = tree(path).places
        super().__init__([path], places, np.array([0, len(places)]))

    def rows_of(self, within: str, names: Sequence[str]) -> np.ndarray:
        """Return the rows of files by their paths below a folder of the zip file, (n,) int64."""
        folders = tree(self.paths[0]).folders
        rows = np.empty(len(names), np.int64)
        for index, name in enumerate(names):
            above, _, own = f"{within}/{name}".strip("/").rpartition("/")
            rows[index] = folders[above][own]
        return rows

    def read(self, row: int, head: int, most: int) -> bytes:
        offset, packed, size, method, crc = self.places[row].tolist()
        refuse_large(size, most)
        own = self.pread(0, HEADER, offset)
        if not own.startswith(SIGNATURE):
            raise ValueError("its place in the .zip file holds something else")
        name, extra = struct.unpack("<HH", own[26:HEADER])
        start = offset + HEADER + name + extra
        if method == zipfile.ZIP_STORED and head >= 0:
            return self.pread(0, min(head, size), start)
        content = self.pread(0, packed, start)
        if method == zipfile.ZIP_DEFLATED:
            # One byte more than declared is one too many.
            unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                content = unpacking.decompress(content, head if 0 < head <= size else size + 1)
            except zlib.error as error:
                raise ValueError(f"cannot be unpacked: {error}") from None
            if 0 <= head <= size:
                return content
        if len(content) != size or zlib.crc32(content) != crc:
            raise ValueError("its bytes are not those of which the .zip file has the CRC-32")
        return content

    def facts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.places[rows, 2], np.full(len(rows), self.times[0])
