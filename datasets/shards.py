"""Tar files of samples as the webdataset library writes and reads them: image and label lie side by
side, called the same but for their endings.

https://github.com/webdataset/webdataset, "The WebDataset Format". One pass over the headers finds
each image; it is then read by its number, so that order and resuming are exact.
"""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from base.arguments import is_address
from base.errors import Refused
from base.files import read_text
from base.text import printable
from datasets import remote
from datasets.braces import expand
from datasets.containers import Contents, Files, Shelf, Texts, unique
from datasets.folder import ENDINGS
from datasets.images import FileImages, Names, refuse_large
from datasets.parts import Kind, Wanted, open_part
from datasets.remote import CLASSES

# A sample's name goes up to the first dot of the file's; what follows is what the file holds.
KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
# Where a label may stand, in the order in which it is looked for.
LABELS = ("cls", "json", "txt")
FIELDS = ("label", "class", "target")
TITLES = ("class_name", "label_name")
# Bytes of a label.
MAX_LABEL = 1 << 20
NO_LABEL = ("", "-1")
# Of a whole number, as some programs write it.
WHOLE = re.compile(r"-?\d+\.0+")
# What compressed files begin with.
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def open_shards(data_dir: str | None, part: str, **settings: Any) -> FileImages:
    """Open one part of the tar files in a folder, or of those that a pattern names.

    data_dir: `D`, `D/train-{000..146}.tar`, or the same at an address that fsspec knows; settings:
    of `Wanted`. A file belongs to the part whose word is in its name. Raises Refused.
    """
    wanted = Wanted(part, **settings)
    if data_dir is None:
        needed = "a folder of .tar files, or D/train-{000..146}.tar, is needed"
        raise Refused(needed, limit="data_dir")
    where, paths = find(data_dir, ".tar", wanted.cache)
    kind = Kind("shards", partial(scan, columns=wanted.columns), Shards.on)
    return open_part(where, paths, kind, wanted, told_names(where, paths))


def find(data_dir: str, ending: str, cache: remote.Cache | None) -> tuple[str, list[str]]:
    """Return the folder and the sorted files of this ending: in a folder or up to two folders below
    it, or that a pattern names; remote ones are copied first.

    Raises Refused.
    """
    if is_address(data_dir):
        paths = remote.copies(data_dir, ending, cache or remote.Cache())
        return os.path.commonpath([os.path.dirname(path) for path in paths]), paths
    if os.path.isdir(data_dir):
        paths = [path for path in files_below(data_dir) if path.lower().endswith(ending)]
        if not paths:
            _refuse_compressed(data_dir)
            raise Refused(f"{data_dir} has no {ending} file")
        return data_dir, sorted(paths)
    paths = expand(data_dir)
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        more = f" ({len(missing)} of {len(paths)} are missing)" if len(paths) > 1 else ""
        raise Refused(f"there is no {missing[0]}{more}")
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise Refused(f"{data_dir} names {twice[0]} twice")
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return folder or ".", paths


def files_below(folder: str, depth: int = remote.DEPTH) -> Iterator[str]:
    """Yield the files in a folder and in those up to so deep below it that are not hidden."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry.path
            elif depth:
                yield from files_below(entry.path, depth - 1)


def _refuse_compressed(folder: str) -> None:
    """Raise Refused for a folder whose tar files are all compressed."""
    for path in sorted(files_below(folder)):
        if re.search(r"\.(tar\.\w+|tgz|tbz2|txz)$", path.lower()):
            way = "unpack it: images within it cannot be read one by one"
            raise Refused(f"{folder} has no .tar file, {path} is compressed: {way}")


def told_names(where: str, paths: Sequence[str]) -> list[str] | None:
    """Return the class names in a classes.txt beside the files, a name a line, None without one.

    Raises Refused.
    """
    places = dict.fromkeys([where, *map(os.path.dirname, paths)])
    found = (os.path.join(place, CLASSES) for place in places)
    path = next(filter(os.path.exists, found), None)
    if path is None:
        return None
    try:
        names = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {path}: {error}") from None
    empty = next((number for number, name in enumerate(names, 1) if not name.strip()), None)
    if empty or not names:
        raise Refused(f"{path}: line {empty or 1} has no name of a class")
    return names


class Shards(Files):
    """Images within tar files; a place is offset and bytes."""

    @classmethod
    def on(cls, shelf: Shelf, places: np.ndarray) -> "Shards":
        return cls(shelf.paths, places, shelf.starts)

    def read(self, row: int, head: int, most: int) -> bytes:
        offset, size = self.places[row].tolist()
        refuse_large(size, most)
        return self.pread(self.container(row), size if head < 0 else min(head, size), offset)

    def facts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        containers = np.searchsorted(self.starts, rows, "right") - 1
        return self.places[rows, 1], self.times[containers]


class Sample:
    """The files of one sample, by their endings in lower case: offset and bytes of each, and the
    ending as it is written.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[str, tuple[int, int]] = {}
        self.endings: dict[str, str] = {}


def scan(path: str, columns: Mapping[str, str]) -> Contents:
    """Return the samples of one tar file. Raises Refused for one that is packed or damaged."""
    names: list[str] = []
    places: list[tuple[int, int]] = []
    labels: list[int] = []
    texts, left_out = Texts(path), Counter[str]()
    named = False
    with open(path, "rb") as file:
        for sample in _samples(path, left_out):
            image = _image_of(sample, path, columns)
            if image is None:
                left_out["samples without an image"] += 1
                continue
            names.append(f"{sample.name}.{sample.endings[image]}".removeprefix("./"))
            places.append(sample.files[image])
            label, title = _label_of(sample, file, path, columns)
            if label is None and "label" not in columns:
                # The folder part is the class where nothing else says one.
                folder = os.path.basename(os.path.dirname(sample.name))
                label = None if folder in ("", ".") else folder
                named = named or label is not None
            labels.append(texts.number(None if label in NO_LABEL else label, title))
    return Contents(
        Names(unique(names)),
        np.array(places, np.int64).reshape(-1, 2),
        np.array(labels, np.int64),
        list(texts.numbers),
        texts.titles,
        left_out,
        named,
    )


def _samples(path: str, left_out: Counter[str]) -> Iterator[Sample]:
    """Yield the samples: files that follow each other and are called the same."""
    sample: Sample | None = None
    for member in _members(path):
        match = KEY.fullmatch(member.name)
        if match is None or match[1].rpartition("/")[2].startswith("__"):
            left_out["files of no sample"] += 1
            continue
        name, kind = match[1], match[2].lower()
        if sample is not None and sample.name != name:
            yield sample
            sample = None
        sample = sample or Sample(name)
        if kind in sample.files:
            raise Refused(f"{path}: sample {printable(name)} has two files .{printable(kind)}")
        sample.files[kind] = (member.offset_data, member.size)
        sample.endings[kind] = match[2]
    if sample is not None:
        yield sample


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files in a tar file. Raises Refused."""
    last = "its beginning"
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            while True:
                member = archive.next()
                if member is None:
                    break
                # Not all of millions are kept.
                archive.members = []  # type: ignore[attr-defined]
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    kind = "link" if member.issym() or member.islnk() else "special or sparse file"
                    refused = f"{printable(member.name)} is a {kind}: pack regular files only"
                    raise Refused(f"{path}: {refused}")
                if member.offset_data + member.size > size:
                    break
                yield member
                last = member.name
            # tarfile takes a header that it cannot read for the end.
            file.seek(archive.offset)
            if member is None and file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
                return
    except Refused:
        raise
    # What tarfile lets through of a header that lies.
    except (tarfile.TarError, ValueError, OverflowError, EOFError, MemoryError):
        pass
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, name in PACKED.items():
        if start.startswith(magic):
            way = "unpack it: images within it cannot be read one by one"
            raise Refused(f"{path} is compressed by {name}, {way}")
    raise Refused(f"{path} is cut off or damaged after {printable(last)}: fetch or pack it again")


def _image_of(sample: Sample, path: str, columns: Mapping[str, str]) -> str | None:
    """Return which of a sample's files is the image, None where there is none."""
    if "image" in columns:
        wanted = columns["image"].lower().lstrip(".")
        return wanted if wanted in sample.files else None
    found = [kind for kind in sample.files if f".{kind}" in ENDINGS]
    if len(found) > 1:
        both = " and ".join(f".{kind}" for kind in found)
        raise Refused(f"{path}: sample {printable(sample.name)} has {both}", limit="column")
    return found[0] if found else None


def _label_of(
    sample: Sample, file: Any, path: str, columns: Mapping[str, str]
) -> tuple[str | None, str]:
    """Return a sample's label as it is written, None where nothing says one, and what its class is
    called.
    """
    kind, _, inner = columns.get("label", "").partition(".")
    kinds = [kind] if kind else [found for found in LABELS if found in sample.files]
    title = ""
    for kind in kinds:
        if kind not in sample.files:
            return None, ""
        content = _text_in(sample, kind, file, path)
        if WHOLE.fullmatch(content):
            content = content.partition(".")[0]
        if kind != "json":
            return content, _title_of(sample, file, path, columns)
        label = _field(_json_in(content, sample, path), [inner] if inner else FIELDS)
        title = _title_of(sample, file, path, columns)
        if label is not None:
            return label, title
    return None, title


def _title_of(sample: Sample, file: Any, path: str, columns: Mapping[str, str]) -> str:
    """Return what a sample's class is called where its .json says so."""
    if "json" not in sample.files:
        return ""
    known = _json_in(_text_in(sample, "json", file, path), sample, path)
    name = columns.get("name", "").removeprefix("json.")
    return _field(known, [name] if name else TITLES) or ""


def _text_in(sample: Sample, kind: str, file: Any, path: str) -> str:
    offset, size = sample.files[kind]
    if size > MAX_LABEL:
        raise Refused(f"{_shown(sample, kind, path)} has {size} bytes: too many for a label")
    try:
        return os.pread(file.fileno(), size, offset).decode().strip("\0 \t\r\n\ufeff")
    except UnicodeDecodeError:
        raise Refused(f"{_shown(sample, kind, path)} is no text in UTF-8") from None


def _shown(sample: Sample, kind: str, path: str) -> str:
    return f"{path}: {printable(sample.name)}.{printable(kind)}"


def _json_in(content: str, sample: Sample, path: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(f"{path}: {printable(sample.name)}.json is no JSON") from None


def _field(known: Any, names: Any) -> str | None:
    """Return the first of these fields that is there, as text; a.b is within a."""
    for name in names:
        value = known
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, (str, int)):
            return str(value)
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
    return None


# Of any tar file, whatever its columns are called.
KIND = Kind("shards", partial(scan, columns={}), Shards.on)
