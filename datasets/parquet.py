"""Parquet files as the Hugging Face hub has them: a row an image, with its bytes and its label.

https://huggingface.co/docs/datasets/image_load: the column of images is a struct of bytes and path;
the names of a ClassLabel stand in the schema's metadata. Rows are compressed in groups, so that one
image costs its whole group; some groups are kept.
"""

import json
import math
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from base.errors import Refused
from base.text import listed, printable
from datasets.containers import Contents, Files, Shelf, Texts, pyarrow_parquet, unique
from datasets.images import FileImages, Names, refuse_large
from datasets.parts import Kind, Wanted, open_part, word_of
from datasets.shards import find, told_names

IMAGES = ("image", "img", "jpg", "png")
LABELS = ("label", "fine_label", "labels", "class", "target")
# Bytes of decompressed groups that a process keeps, but always one group.
MAX_CACHE = 256 << 20
# Of a row group: more is no file of images.
MAX_GROUP = 2 << 30
# Groups that are read to tell what an image read by itself costs.
MEASURED = 3
NO_BYTES = "the row has no bytes of an image"


def open_parquet(data_dir: str | None, part: str, **settings: Any) -> FileImages:
    """Open one part of the Parquet files in a folder or up to two below it, or of a pattern.

    settings: of `Wanted`. A file belongs to the part whose word is in its name. Raises Refused.
    """
    wanted = Wanted(part, **settings)
    if data_dir is None:
        raise Refused("a folder with .parquet files is needed", limit="data_dir")
    # Before files at an address are copied.
    pyarrow_parquet()
    where, paths = find(data_dir, ".parquet", wanted.cache)
    names = told_names(where, paths) or _class_names(paths, wanted.columns)
    kind = Kind("parquet", partial(scan, columns=wanted.columns), partial(_made, wanted.columns))
    try:
        images = open_part(where, paths, kind, wanted, names)
    except Refused as error:
        if error.limit != "labels":
            raise
        advice, limit = _advice(paths, where, wanted)
        if not advice:
            raise
        raise Refused(f"{error}: {advice}", limit=limit) from None
    try:
        images.read(0, 1)
    # What else is wrong with one image is its reader's to name.
    except (OSError, ValueError) as error:
        if str(error) == NO_BYTES:
            way = "name the files themselves in a table, or write the files' bytes into the rows"
            raise Refused(f"{images.path(0)}: {error}, at most its path: {way}") from None
    return images


def _advice(paths: Sequence[str], where: str, wanted: Wanted) -> tuple[str, str]:
    """Return what is to be known of a part without labels, and the limit: its labels are not
    published, and others' are, or the column is called otherwise; "" where only some lack.
    """
    labelled: set[str] = set()
    columns: set[str] = set()
    for path in paths:
        held = scan(path, wanted.columns)
        if len(set((held.labels >= 0).tolist())) == 2:
            return "", "labels"
        if len(held.labels) and (held.labels >= 0).all():
            labelled.add(word_of(os.path.relpath(path, where), where) or os.path.basename(path))
        columns.update(_file(path).schema_arrow.names)
    if labelled:
        return f"labels are there for {listed(sorted(labelled))}", ""
    return f"the columns are {listed(sorted(columns))}", "column"


def _file(path: str) -> Any:
    """Return an open Parquet file. Raises Refused for what is none."""
    try:
        # Buffers that were read ahead would be of whole files.
        return pyarrow_parquet().ParquetFile(path, pre_buffer=False, memory_map=False)
    except (OSError, ValueError, MemoryError) as error:
        raise Refused(f"{path} is no Parquet file that can be read: {_reason(error)}") from None


def _class_names(paths: Sequence[str], columns: Mapping[str, str]) -> list[str] | None:
    """Return the names of a ClassLabel, None where the labels are none. Raises Refused where files
    have different ones.
    """
    every: dict[tuple[str, ...] | None, str] = {}
    for path in paths:
        file = _file(path)
        label = _column(file, path, columns.get("label"), LABELS, "label")
        if label is not None:
            every.setdefault(_names_in(file, label), path)
        file.close()
    found = [names for names in every if names is not None]
    if len(found) > 1:
        first, other = (every[names] for names in found[:2])
        raise Refused(f"{first} and {other} have different class names: read one of them")
    return list(found[0]) if found else None


def _names_in(file: Any, label: str) -> tuple[str, ...] | None:
    """Return the class names of a column in the schema's metadata of the datasets library."""
    metadata = file.schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = feature["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    if isinstance(names, dict):  # of older versions: {"0": "cat", ...}
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _column(file: Any, path: str, given: str | None, usual: Sequence[str], what: str) -> str | None:
    """Return the name of a column: what the user says, else the usual name that is there, else for
    images the one column of structs, and for labels None. Raises Refused.
    """
    there = file.schema_arrow.names
    if given is not None:
        if given in there:
            return given
        raise Refused(f"{path} has no column '{given}', it has {listed(there)}", limit="column")
    for name in usual:
        if name in there:
            return name
    if what == "label":
        return None
    types = import_module("pyarrow").types
    structs = [field.name for field in file.schema_arrow if types.is_struct(field.type)]
    if len(structs) == 1:
        return str(structs[0])
    found = f"has no column of {what}s ({', '.join(usual)}), it has {listed(there)}"
    raise Refused(f"{path} {found}", limit="column")


def scan(path: str, columns: Mapping[str, str]) -> Contents:
    """Return the rows of one file; a place is row group, row in it, and row in the file."""
    file = _file(path)
    image = _column(file, path, columns.get("image"), IMAGES, "image") or ""
    label = _column(file, path, columns.get("label"), LABELS, "label")
    texts = Texts(path)
    labels: list[int] = []
    names: list[str] = []
    places: list[np.ndarray] = []
    try:
        has_path = _has_path(file, image, path)
        wanted = [label] if label is not None else []
        wanted += [f"{image}.path"] if has_path else []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=wanted, use_threads=False)
            count = file.metadata.row_group(group).num_rows
            values = [None] * count if label is None else table.column(label).to_pylist()
            labels += [texts.number(_text(value, path)) for value in values]
            known: list[str | None] = [None] * count
            if has_path:
                known = table.column(image).combine_chunks().field("path").to_pylist()
            if not len(values) == len(known) == count:
                raise ValueError(f"row group {group} has not the {count} rows that it declares")
            first = len(names)
            names += [name or str(first + row) for row, name in enumerate(known)]
            rows = np.arange(len(values))
            places.append(np.stack([np.full(len(values), group), rows, first + rows], 1))
    except Refused:
        raise
    # pyarrow raises its own, and others, for what is damaged.
    except Exception as error:
        raise Refused(f"{path} cannot be read: {_reason(error)}") from None
    return Contents(
        Names(unique(names)),
        np.concatenate(places).astype(np.int64) if places else np.zeros((0, 3), np.int64),
        np.array(labels, np.int64),
        list(texts.numbers),
        texts.titles,
        Counter(),
        label is not None and not _is_number(file, label),
    )


def _is_number(file: Any, label: str) -> bool:
    """True for a column of numbers; texts are names, were they digits."""
    types = import_module("pyarrow").types
    kind = file.schema_arrow.field(label).type
    return bool(types.is_integer(kind) or types.is_floating(kind))


def _has_path(file: Any, image: str, path: str) -> bool:
    """True where the column of images has the files' names too. Raises Refused for what is no
    column of images.
    """
    pyarrow = import_module("pyarrow")
    kind = file.schema_arrow.field(image).type
    binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary)
    if any(is_kind(kind) for is_kind in binary):
        return False
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    if not pyarrow.types.is_struct(kind) or not any(
        is_kind(fields["bytes"]) for is_kind in binary if "bytes" in fields
    ):
        raise Refused(f"{path}: column {image} is {kind}, not bytes of images")
    return "path" in fields and pyarrow.types.is_string(fields["path"])


def _text(value: object, path: str) -> str | None:
    """Return a label as text, None for no label."""
    # pandas makes numbers of which some are missing floats.
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    if value is None or (isinstance(value, int) and value < 0):
        return None
    if not isinstance(value, (int, str)):
        wrong = f"a label is {type(value).__name__}, not a whole number or a text"
        raise Refused(f"{path}: {wrong}", limit="column")
    return str(value) or None


def _made(columns: Mapping[str, str], shelf: Shelf, places: np.ndarray) -> "Rows":
    file = _file(shelf.paths[0])
    image = _column(file, shelf.paths[0], columns.get("image"), IMAGES, "image")
    return Rows(shelf.paths, places, shelf.starts, image or "")


class Rows(Files):
    """Images that are rows of Parquet files. A process keeps the groups that it read last."""

    def __init__(
        self, paths: Sequence[str], places: np.ndarray, starts: np.ndarray, image: str
    ) -> None:
        super().__init__(paths, places, starts)
        self.image = image

    def _restart(self) -> None:
        super()._restart()
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._files: dict[int, Any] = {}
        self._kept = 0

    def read(self, row: int, head: int, most: int) -> bytes:
        number = self.container(row)
        group, inside, _ = self.places[row].tolist()
        with self._lock:
            images = self._group(number, group)
        if inside >= len(images):
            raise ValueError(f"{self.paths[number]} changed since it was opened: start again")
        value = images[inside].as_py()
        if value is None:
            raise ValueError(NO_BYTES)
        refuse_large(len(value), most)
        return bytes(value if head < 0 else value[:head])

    def facts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # An image's own size would take reading it.
        containers = np.searchsorted(self.starts, rows, "right") - 1
        return self.sizes[containers], self.times[containers]

    def _group(self, number: int, group: int) -> Any:
        """Return the images of a row group, (rows,). Raises ValueError."""
        at = (number, group)
        if at in self._groups:
            self._groups.move_to_end(at)
            return self._groups[at]
        try:
            images = self._read(number, group)
        except (OSError, ValueError):
            raise
        # pyarrow raises its own, and others, for what is damaged.
        except Exception as error:
            raise ValueError(_reason(error)) from None
        self._groups[at] = images
        self._kept += images.nbytes
        while self._kept > MAX_CACHE and len(self._groups) > 1:
            self._kept -= self._groups.popitem(last=False)[1].nbytes
        return images

    def _read(self, number: int, group: int) -> Any:
        path = self.paths[number]
        status = os.stat(path)
        if (status.st_size, status.st_mtime_ns) != (self.sizes[number], self.times[number]):
            raise ValueError(f"{path} changed since it was opened: start again")
        # Few at a time: a process may open only so many.
        if number not in self._files:
            for file in self._files.values():
                file.close()
            self._files = {number: _file(path)}
        file = self._files[number]
        size = file.metadata.row_group(group).total_byte_size
        if size > MAX_GROUP:
            raise ValueError(f"row group {group} has {size} bytes, more than is read")
        column = file.read_row_group(group, columns=[self.image], use_threads=False).column(0)
        images = column.combine_chunks()
        is_struct = import_module("pyarrow").types.is_struct(images.type)
        return images.field("bytes") if is_struct else images

    def remark(self) -> str:
        """Return what reading single images costs here, measured, as a header tells it; "" where
        they are groups of one.
        """
        groups = np.unique(self.places[:, :1] + (self._numbers() << 32)[:, None])
        rows = len(self.places) / max(1, len(groups))
        if rows < 2:
            return ""
        step = max(1, len(self.places) // MEASURED)
        started, count = time.perf_counter(), 0
        for row in range(0, len(self.places), step):
            self.read(row, -1, MAX_GROUP)
            count += 1
        each = (time.perf_counter() - started) / count
        return (
            f"an image costs its row group of {rows:.0f} images, {1000 * each:.1f} ms, "
            f"{1000 * each / rows:.2f} ms in stored order; `python prepare.py pack` makes shards "
            "that are read one by one"
        )

    def _numbers(self) -> np.ndarray:
        every = np.arange(len(self.places))
        return np.searchsorted(self.starts, every, "right") - 1


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__)


# Of any Parquet file with the usual columns.
KIND = Kind("parquet", partial(scan, columns={}), partial(_made, {}))
