"""Files that hold many images: what each of them holds, kept from one start to the next, and
reading any image of them by its number.
"""

import collections
import contextlib
import dataclasses
import io
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from base.errors import Refused
from base.files import read_bytes, whole_file
from base.randomness import key
from base.text import listed, printable
from datasets.images import FileImages, Limits, Names, Packed, composed, relabelled
from datasets.listing import told
from datasets.remote import Cache
from datasets.split import side_of

FORMAT = 2
# Bytes of a kept index: of 10 million images.
MAX_KEPT = 1 << 30
# Files that are open at a time in a process; it may be allowed few.
MAX_OPEN = 64
# Classes that are only numbers: a larger one is no class.
MAX_NUMBER = 100_000
SHOWN = 3
# Words in the name of a container that say which images it holds -> the part.
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Part that is asked for -> those that it can be, the first that is there.
PARTS = {"train": ("train",), "test": ("val", "test"), "other": ("test",)}


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
class Wanted:
    """What is asked of a source of image files.

    part: "train", "test" (val before test), "other" (test), or "all": as "test", or all images
    where there are no parts; classes: those of training, whose numbers a test part takes;
    val_share, seed, split_file: of `datasets.split`, where there is no test part; index: a folder
    that keeps what was found; limits: of images; labels: the file of a table; columns: what a user
    calls image, label, split and name; skip: what is wrong with one image leaves it out, instead
    of refusing all; labelled: labels are needed at all; cache: where copies of remote files lie.
    """

    part: str
    classes: list[str] | None = None
    val_share: float | None = None
    seed: int = 0
    split_file: Path | None = None
    index: Path | None = None
    limits: Limits | None = None
    labels: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    skip: bool = False
    labelled: bool = True
    cache: Cache | None = None


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


class NoPart(Refused):
    """The part of the images that is asked for is not there."""


def word_of(name: str, where: str) -> str:
    """Return the part that a name says: "train", "val", "test", or "" where it says none.

    Raises Refused for a name that says two.
    """
    words = re.split(r"[^a-z]+", name.lower())
    found = list(dict.fromkeys(WORDS[word] for word in words if word in WORDS))
    if len(found) > 1:
        raise Refused(f"{where}: {name} is called {' and '.join(found)}: rename it")
    return found[0] if found else ""


def choose_part(found: Sequence[str], part: str, where: str) -> str:
    """Return which of the parts that are there is the one that is asked for, "" for all images
    where there are no parts.

    Raises Refused where there is none.
    """
    if part == "all" and not any(found):
        return ""
    for name in PARTS["test" if part == "all" else part]:
        if name in found:
            return name
    there = listed([name or "images of no part" for name in dict.fromkeys(found)]) or "nothing"
    wanted = " or ".join(PARTS["test" if part == "all" else part])
    limit = "no split" if any(name in found for name in ("train", "")) else ""
    raise NoPart(f"{where} has no images to {_told(part)} ({wanted}), it has {there}", limit=limit)


def _told(part: str) -> str:
    return "train on" if part == "train" else "test on"


def open_part(
    where: str, paths: Sequence[str], kind: "Kind", wanted: Wanted, names: Sequence[str] | None
) -> FileImages:
    """Open one part of the images in these containers, of which each holds one part's.

    where: what messages call them all; names: of the classes by number, where they are told apart
    from the images. Raises Refused.
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(word_of(os.path.relpath(path, where), where), []).append(path)
    part = wanted.part
    if wanted.val_share is None:
        chosen = choose_part(list(groups), part, where)
    else:
        tested = next((name for name in PARTS["test"] if name in groups), None)
        if tested:
            raise Refused(f"{where} has a split of its own, {tested}", limit="own split")
        chosen = "train" if "train" in groups else ""

    _refuse_several(where, groups[chosen])
    kept = kept_index(wanted.index, where, f"{kind.name}-{chosen or 'all'}")
    how = json.dumps(sorted(wanted.columns.items()))
    found = contents_of(groups[chosen], kind.scan, kept, how)
    shelf = Shelf(where, groups[chosen], found)
    images = images_on(shelf, kind.make, wanted, names)
    if wanted.val_share is not None:
        images.limits = wanted.limits or images.limits
        images = side_of(images, part, wanted.val_share, wanted.seed, wanted.split_file)
    return images


def unlabelled(path: str, kind: "Kind") -> FileImages:
    """Return all images of one container, whatever its name and their labels. Raises Refused."""
    shelf = Shelf(path, [path], [kind.scan(path)])
    images = images_on(shelf, kind.make, Wanted("all", labelled=False), None)
    return dataclasses.replace(images, labels=np.zeros(len(images), np.int64), classes=[""])


def _refuse_several(where: str, paths: Sequence[str]) -> None:
    """Raise Refused where one part lies in two folders, as two configurations of a data set do."""
    folders = sorted({os.path.dirname(path) for path in paths})
    if len(folders) > 1 and os.path.isdir(where):
        names = [f"{os.path.relpath(folder, where)}/" for folder in folders]
        both = f"the same images may lie in {listed(names)}"
        raise Refused(f"{where}: {both}: name one of these folders")


def unique(names: Sequence[str]) -> list[str]:
    """Return names of which no two are the same: one that is repeated gets its number."""
    counts = Counter(names)
    return [f"{row}/{name}" if counts[name] > 1 else name for row, name in enumerate(names)]


@dataclass(frozen=True)
class Kind:
    """A kind of container. scan: from a path to what it holds; make: from a shelf and all places,
    (N, P), to what reads them.
    """

    name: str
    scan: Callable[[str], Contents]
    make: Callable[[Shelf, np.ndarray], Packed]


def images_on(
    shelf: Shelf,
    make: Callable[[Shelf, np.ndarray], Packed],
    wanted: Wanted,
    names: Sequence[str] | None,
) -> FileImages:
    """Return the images of containers, with labels by number. Raises Refused."""
    every = shelf.contents
    labels, own = _labels(shelf, names)
    left_out: Counter[str] = sum((held.left_out for held in every), Counter())
    where = shelf.where
    if not sum(len(held.names) for held in every):
        raise Refused(f"{where} has no image{told(left_out)}")
    # Each name is preceded by its container's, relative to where all of them lie.
    folder = where if os.path.isdir(where) else os.path.dirname(where)
    names_in = [
        held.names.below(os.path.relpath(path, folder))
        for path, held in zip(shelf.paths, every, strict=True)
    ]
    full = Names.joined(names_in)
    packed = make(shelf, np.concatenate([held.places for held in every]))
    rows = np.arange(len(full))
    unlabelled = np.flatnonzero(labels < 0)
    if len(unlabelled) and wanted.labelled:
        first = f"{printable(full[unlabelled[0]])} has no label"
        if not wanted.skip or len(unlabelled) == len(full):
            more = f" ({len(unlabelled)} of {len(full)} have none)" if len(unlabelled) > 1 else ""
            raise Refused(f"{where}: {first}{more}", limit="labels")
        left_out["without a label"] += len(unlabelled)
        rows = np.flatnonzero(labels >= 0)
    images = FileImages(full, labels, own, folder, left_out=left_out, packed=packed)
    images.rows = np.arange(len(full))
    if len(rows) < len(full):
        images = images.chosen(rows)
    if wanted.classes is None:
        return images
    result = relabelled(images, wanted.classes)
    assert isinstance(result, FileImages)
    return result


def _labels(shelf: Shelf, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """Return each image's class by number, (N,) int64 with -1 for none, and the classes' names."""
    together = Texts(shelf.where)
    parts = []
    for held in shelf.contents:
        pairs = zip(held.texts, held.titles, strict=True)
        own = np.array([together.number(text, title) for text, title in pairs] + [-1], np.int64)
        parts.append(own[held.labels])
    codes = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    texts = list(together.numbers)
    named = any(held.named for held in shelf.contents)
    numbers, found = class_numbers(texts, names, shelf.where, named=named)
    # Numbers have titles beside them in some containers.
    if names is None and any(together.titles):
        for number, title in zip(numbers, together.titles, strict=True):
            found[number] = title or found[number]
    return np.array([*numbers, -1], np.int64)[codes], distinct(found)


def class_numbers(
    texts: Sequence[str], names: Sequence[str] | None, where: str, *, named: bool = False
) -> tuple[list[int], list[str]]:
    """Return the class of each label by number, and the names of all classes.

    Labels that are all numbers are the classes' numbers from 0 on, others are their names, which
    are sorted. names: of the classes in their order, where they are told.

    Raises Refused for a number without a name, or one too large.
    """
    if names is not None:
        known = {composed(name): number for number, name in enumerate(names)}
    if not named and all(re.fullmatch(r"\d{1,18}", text) for text in texts):
        numbers = [int(text) for text in texts]
        highest = max(numbers, default=-1)
        if names is not None and highest >= len(names):
            raise Refused(f"{where}: label {highest} has no name among {len(names)} class names")
        if highest > MAX_NUMBER:
            raise Refused(f"{where}: label {highest} is no number of a class")
        return numbers, list(names or map(str, range(highest + 1)))
    if names is None:
        ordered = sorted({composed(text) for text in texts})
        known = {name: number for number, name in enumerate(ordered)}
        return [known[composed(text)] for text in texts], ordered
    unknown = [text for text in texts if composed(text) not in known]
    if unknown:
        raise Refused(f"{where}: label '{unknown[0]}' is none of its {len(names)} class names")
    return [known[composed(text)] for text in texts], list(names)


def distinct(names: Sequence[str]) -> list[str]:
    """Return class names of which no two are the same: ImageNet has two cranes."""
    counts = Counter(map(composed, names))
    return [
        f"{name} ({number})" if counts[composed(name)] > 1 else name
        for number, name in enumerate(names)
    ]


def pyarrow_parquet() -> Any:
    """Return pyarrow's module. Raises Refused where it is not installed."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise Refused("pyarrow reads Parquet files: pip install -e '.[parquet]'") from None
