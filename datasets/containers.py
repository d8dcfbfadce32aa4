"""Files that hold many images: what each of them holds, kept from one start to the next, and
reading any image of them by its number.
"""

import collections
import contextlib
import io
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from base.errors import Refused
from base.files import read_bytes, whole_file
from base.randomness import key
from datasets.images import Names

FORMAT = 2
# Bytes of a kept index: of 10 million images.
MAX_KEPT = 1 << 30
# Files that are open at a time in a process; it may be allowed few.
MAX_OPEN = 64


@dataclass(frozen=True)
class Contents:
    """The images of one container, in its own order.

    names: what it calls them; places: (n, P) int64, what its reader needs to find each; labels:
    (n,) int64, numbers of `texts`, -1 without one; texts: the labels as they are written; titles:
    what each of them is called, "" where nothing is said; left_out: what is no image, by kind;
    named: labels are names of classes, were they numbers.
    """

    names: Names
    places: np.ndarray
    labels: np.ndarray
    texts: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    named: bool = False


class Texts:
    """Numbers for texts, in the order in which they come; and what each is called."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.numbers: dict[str, int] = {}
        self.titles: list[str] = []

    def number(self, text: str | None, title: str = "") -> int:
        """Return the number of a label, -1 for None. Raises Refused for one with two titles."""
        if text is None:
            return -1
        number = self.numbers.setdefault(text, len(self.numbers))
        if number == len(self.titles):
            self.titles.append(title)
        elif title and self.titles[number] not in ("", title):
            both = f"'{self.titles[number]}' and '{title}'"
            raise Refused(f"{self.where}: label {text} is called {both}")
        self.titles[number] = self.titles[number] or title
        return number


@dataclass(frozen=True)
class Shelf:
    """Containers of one part, one after the other, with what each holds.

    where: what messages call them all together.
    """

    where: str
    paths: list[str]
    contents: list[Contents]

    @property
    def starts(self) -> np.ndarray:
        """The number of each container's first image, and their sum, (len(paths) + 1,) int64."""
        return np.cumsum([0, *(len(held.names) for held in self.contents)], dtype=np.int64)


class Files:
    """Containers that are read at an offset, opened when they are needed.

    Descriptors are shared by all threads; a pickle carries paths only.
    """

    def __init__(self, paths: Sequence[str], places: np.ndarray, starts: np.ndarray) -> None:
        self.paths = list(paths)
        self.places = places
        self.starts = starts
        stamps = [stamp(path) for path in self.paths]
        self.sizes = np.array([size for size, _ in stamps], np.int64)
        self.times = np.array([time for _, time in stamps], np.int64)
        self._restart()

    def _restart(self) -> None:
        self._open: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._restart()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def container(self, row: int) -> int:
        """Return the number of the container that holds an image."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def remark(self) -> str:
        return ""

    def pread(self, number: int, length: int, offset: int) -> bytes:
        """Return so many bytes of a container. Raises OSError, ValueError where it is not as it
        was when it was opened first.
        """
        # Locked while it is read: another thread could close it.
        with self._lock:
            content = os.pread(self._descriptor(number), length, offset)
        if len(content) < length:
            raise ValueError(f"{self.paths[number]} is cut off")
        return content

    def _descriptor(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        path = self.paths[number]
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.sizes[number], self.times[number]):
            os.close(descriptor)
            raise ValueError(f"{path} changed since it was opened: start again")
        self._open[number] = descriptor
        while len(self._open) > MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor


def stamp(path: str) -> tuple[int, int]:
    """Return a container's size in bytes and mtime in nanoseconds. Raises Refused."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None
    if not os.path.isfile(path):
        raise Refused(f"{path} is not a regular file")
    return status.st_size, status.st_mtime_ns


def contents_of(
    paths: Sequence[str], scan: Callable[[str], Contents], kept: Path | None, how: str = ""
) -> list[Contents]:
    """Return what these containers hold, scanning only those that the kept index does not know as
    they are.

    kept: the file of the index; how: whatever else the scan depends on.
    """
    stamps = [stamp(path) for path in paths]
    before = _read(kept, how) if kept is not None else {}
    result: list[Contents] = []
    is_new = False
    bar = tqdm(paths, "listing containers", unit=" files", leave=False, disable=None)
    for path, now in zip(bar, stamps, strict=True):
        known = before.get(os.path.realpath(path))
        if known is not None and known[0] == now:
            result.append(known[1])
            continue
        result.append(scan(path))
        is_new = True
    if kept is not None and is_new:
        _write(kept, how, paths, stamps, result)
    return result


def kept_index(index: Path | None, data_dir: str, part: str) -> Path | None:
    """Return the file that keeps what the containers of a part hold."""
    if index is None:
        return None
    where = data_dir if "://" in data_dir else os.path.realpath(data_dir)
    return index / f"containers-{key(where):016x}-{part}.npz"


Kept = dict[str, tuple[tuple[int, int], Contents]]


def _read(path: Path, how: str) -> Kept:
    """Return what is kept of each container, by its path; nothing where that cannot be read."""
    found: Kept = {}
    try:
        with np.load(io.BytesIO(read_bytes(path, MAX_KEPT)), allow_pickle=False) as kept:
            if int(kept["format"]) != FORMAT or str(kept["how"]) != how:
                return {}
            places, labels = kept["places"], kept["labels"]
            blob, ends = kept["blob"], kept["ends"]
            first = 0
            for row in json.loads(str(kept["containers"])):
                last = first + row["count"]
                part, names = slice(first, last), Names.of(blob, ends)
                part_names = Names.of(
                    names.slice(range(first, last)), np.cumsum(names.lengths(range(first, last)))
                )
                held = Contents(
                    part_names,
                    places[part],
                    labels[part],
                    row["texts"],
                    row["titles"],
                    Counter(row["left_out"]),
                    bool(row["named"]),
                )
                size, time = row["stamp"]
                if not _is_whole(held, size):
                    return {}
                found[row["path"]] = (size, time), held
                first = last
    # A damaged file can fail in any way. It is made anew: nothing is lost.
    except Exception:
        return {}
    return found


def _is_whole(held: Contents, size: int) -> bool:
    """True where the parts fit together and lie within the container."""
    count = len(held.names)
    places, labels = held.places, held.labels
    if places.shape[0] != count or labels.shape != (count,) or places.dtype != np.int64:
        return False
    if len(held.texts) != len(held.titles) or not all(isinstance(t, str) for t in held.texts):
        return False
    if count and not (labels.min() >= -1 and labels.max() < len(held.texts)):
        return False
    return bool((places >= 0).all() and (places[:, 0] <= size).all())


def _write(
    path: Path,
    how: str,
    paths: Sequence[str],
    stamps: list[tuple[int, int]],
    contents: list[Contents],
) -> None:
    """Keep an index. A disk that cannot take it does not matter."""
    rows = [
        {
            "path": os.path.realpath(path),
            "stamp": now,
            "count": len(held.names),
            "texts": held.texts,
            "titles": held.titles,
            "left_out": held.left_out,
            "named": held.named,
        }
        for path, now, held in zip(paths, stamps, contents, strict=True)
    ]
    lengths = [held.names.lengths(range(len(held.names))) for held in contents]
    with contextlib.suppress(OSError, UnicodeEncodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, "wb") as file:
            np.savez(
                file,
                format=FORMAT,
                how=how,
                containers=json.dumps(rows),
                blob=np.concatenate([held.names.blob for held in contents]),
                ends=np.cumsum(np.concatenate(lengths), dtype=np.int64),
                places=np.concatenate([held.places for held in contents]),
                labels=np.concatenate([held.labels for held in contents]),
            )


def unique(names: Sequence[str]) -> list[str]:
    """Return names of which no two are the same: one that is repeated gets its number."""
    counts = Counter(names)
    return [f"{row}/{name}" if counts[name] > 1 else name for row, name in enumerate(names)]


def pyarrow_parquet() -> Any:
    """Return pyarrow's module. Raises Refused where it is not installed."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise Refused("pyarrow reads Parquet files: pip install -e '.[parquet]'") from None
