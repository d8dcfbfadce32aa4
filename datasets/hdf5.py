"""HDF5 files as dbcollection writes them, read with h5py alone.

Only plain data is read: no links, nothing external or virtual, no filter but gzip's, and nothing
that declares more than its file can hold. Rows are read when they are asked for, with a chunk cache
as large as the data needs, at most MAX_CACHE.
"""

import os
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import torch

from base.errors import Refused
from base.files import absent
from base.text import printable

# Bytes of decompressed chunks that are kept.
MAX_CACHE = 2 << 30
# gzip packs zeros about a thousand times.
MAX_RATIO = 1100
# What h5py raises for a file that is damaged or made to deceive.
H5_ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError)
# HDF5's numbers of deflate, shuffle and fletcher32.
FILTERS = {1, 2, 3}


Node = Any  # h5py's: a group or a dataset, whatever the file says


class File:
    """One HDF5 file, opened once a process: a fork or a pickle carries the path only."""

    def __init__(self, path: str) -> None:
        self.path, self.cache = path, 1 << 20
        self._open: h5py.File | None = None
        self._process = -1
        # Of the open file: each is looked at once.
        self._checked: dict[str, h5py.Dataset] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "cache": self.cache,
            "_open": None,
            "_process": -1,
            "_checked": {},
        }

    def handle(self) -> h5py.File:
        """Return the open file. Raises Refused."""
        if self._open is None or self._process != os.getpid():
            self._open = self._opened()
            self._process = os.getpid()
            self._checked = {}
        return self._open

    def _opened(self) -> h5py.File:
        if not os.path.exists(self.path):
            raise Refused(absent(self.path, "file "), limit="dbcollection")
        # w0 0: what was read longest ago leaves the cache first, whether it was read whole or not.
        cache: dict[str, Any] = {"rdcc_nbytes": self.cache, "rdcc_nslots": 100_003, "rdcc_w0": 0}
        try:
            return h5py.File(self.path, "r", locking=False, **cache)
        except OSError as error:
            unreadable = f"{self.path} is no HDF5 file that can be read"
            raise Refused(f"{unreadable}: {_reason(error)}") from None

    def keep(self, size: int) -> None:
        """Keep so many bytes of decompressed chunks from now on."""
        self.cache = min(max(size, 1 << 20), MAX_CACHE)
        self._open = None
        self._checked = {}

    def dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset of plain numbers.

        Raises Refused for links, external, virtual or impossible ones.
        """
        node: Node = self.handle()
        if name in self._checked:
            return self._checked[name]
        for part in name.strip("/").split("/"):
            try:
                self._refuse_link(node, part, name)
                node = node[part]
            except Refused:
                raise
            except (AttributeError, *H5_ERRORS) as error:
                raise Refused(f"{self.path} has no {name}: {_reason(error)}") from None
        if not isinstance(node, h5py.Dataset):
            raise Refused(f"{self.path}: {name} is no dataset")
        self._check(node, name)
        self._checked[name] = node
        return node

    def _check(self, dataset: h5py.Dataset, name: str) -> None:
        try:
            plist = dataset.id.get_create_plist()
            filters = {plist.get_filter(number)[0] for number in range(plist.get_nfilters())}
            virtual, external = dataset.is_virtual, plist.get_external_count()
            # Of Python's integers: a forged shape overflows 64 bits.
            count = int(np.prod(dataset.shape, dtype=object))
            kind, declared = dataset.dtype.kind, count * dataset.dtype.itemsize
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise Refused(f"{self.path}: {name} cannot be read: {_reason(error)}") from None
        if virtual or external:
            raise Refused(f"{self.path}: the data of {name} lies in other files: they are not read")
        if kind not in "iu" or not filters <= FILTERS:
            found = f"{dataset.dtype}, packed by filters {sorted(filters)}"
            raise Refused(f"{self.path}: {name} holds {found}: no data of dbcollection")
        if declared > MAX_RATIO * os.path.getsize(self.path):
            forged = f"{name} declares {declared} bytes, more than the file can hold"
            raise Refused(f"{self.path}: {forged}")

    def read(self, name: str) -> np.ndarray:
        """Return all of a dataset. Raises Refused."""
        dataset = self.dataset(name)
        try:
            return dataset[()]
        except (OSError, RuntimeError, MemoryError) as error:
            raise Refused(f"{self.path}: {name} cannot be read: {_reason(error)}") from None

    def has(self, name: str) -> bool:
        """Return whether there is something of this name.

        Raises Refused for a link to somewhere else.
        """
        node: Node = self.handle()
        try:
            for part in name.strip("/").split("/"):
                if not isinstance(node, h5py.Group) or part not in node:
                    return False
                self._refuse_link(node, part, name)
                node = node[part]
        except Refused:
            raise
        except H5_ERRORS as error:
            raise Refused(f"{self.path}: {name} cannot be read: {_reason(error)}") from None

        return True

    def _refuse_link(self, node: Node, part: str, name: str) -> None:
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise Refused(f"{self.path}: {name} is a link to somewhere else: it is not followed")

    def names(self) -> list[str]:
        """Return what the file holds at its root. Raises Refused."""
        try:
            return list(self.handle())
        except (OSError, RuntimeError, ValueError) as error:
            raise Refused(f"{self.path} cannot be read: {_reason(error)}") from None

    def strings(self, name: str) -> list[str]:
        """Return the strings of a dataset, a row each; one string alone is stored as (length,)."""
        rows = self.read(name)
        return [_text(row) for row in (rows if rows.ndim == 2 else rows[None])]


def _text(row: np.ndarray) -> str:
    return row.astype(np.uint8).tobytes().split(b"\0")[0].decode("latin-1")


def _reason(error: BaseException) -> str:
    text = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
    if "truncated" in text:
        return f"{text}: it is cut off, fetch or process it again"
    if "version" in text or "superblock" in text:
        return f"{text}: if a newer HDF5 wrote it, write it again with libver=('earliest', 'v108')"
    return text


class StoredNames(Sequence[str]):
    """Image file names that stay in HDF5: a row is read when it is asked for.

    rows: (N,) of the images.
    """

    def __init__(self, file: File, name: str, rows: np.ndarray) -> None:
        self.file = file
        self.name = name
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    # Of Sequence; slices are not needed.
    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        names = self.file.dataset(self.name)
        return _text(names[int(self.rows[index])] if names.ndim == 2 else names[()])


class HDF5Pixels:
    """Images of one size that stay in HDF5. shape: (N, C, H, W)."""

    def __init__(self, file: File, name: str, rows: np.ndarray) -> None:
        self.file = file
        self.name = name
        self.indices = rows
        stored = file.dataset(name)
        _, height, width, *channels = stored.shape
        self.shape = (len(rows), *(channels or [1]), height, width)
        file.keep(stored.size * stored.dtype.itemsize)

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """Return these images, (n, H, W, C) uint8."""
        _, channels, height, width = self.shape
        result = np.empty((len(indices), height, width, channels), np.uint8)
        stored = self.file.dataset(self.name)
        for position, row in enumerate(self.indices[indices].tolist()):
            result[position] = stored[row].reshape(height, width, channels)
        return torch.from_numpy(result)
