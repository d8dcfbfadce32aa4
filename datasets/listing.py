"""The images of each class folder, kept in one file: a folder is scanned again only where it or one below it changed.

A folder's mtime changes when a file is added, removed or renamed in it. One that was changed in the last seconds before
it was scanned is scanned again next time: a later change could fall on the same mtime.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from base.files import whole_file
from datasets.images import Names

FORMAT = 1
FRESH = 3_000_000_000  # nanoseconds that a folder must have rested for when it is scanned


class Listing:
    """Classes' images. names: (N) relative to the root, class by class; counts: (K,); folders, stamps: all that were scanned,
    with their mtimes, (F); owners: the class of each."""

    def __init__(self, names: Names, counts: np.ndarray, folders: list[str], stamps: np.ndarray, owners: np.ndarray) -> None:
        self.names, self.counts, self.folders, self.stamps, self.owners = names, counts, folders, stamps, owners


def stamp(path: str) -> int:
    """Return a folder's mtime, 0 where it changed just now or is gone."""
    try:
        found = os.stat(path).st_mtime_ns
    except OSError:
        return 0
    return found if time.time_ns() - found > FRESH else 0


def read(path: Path, root: str) -> tuple[list[str], Listing] | None:
    """Return the class names and the listing that are kept for `root`, None where there are none that can be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if int(kept["format"]) != FORMAT or str(kept["root"]) != os.path.realpath(root):
                return None
            names = Names.of(kept["blob"], kept["ends"])
            listing = Listing(names, kept["counts"], kept["folders"].tolist(), kept["stamps"], kept["owners"])
            classes = kept["classes"].tolist()
            if len(classes) != len(listing.counts) or listing.counts.sum() != len(names):
                return None
            return classes, listing
    except (OSError, ValueError, KeyError, EOFError, TypeError):  # it is made anew: nothing is lost
        return None
    except Exception as error:  # a damaged zip: zipfile's and zlib's own errors
        if type(error).__module__ in ("zipfile", "zlib"):
            return None
        raise


def write(path: Path, root: str, classes: list[str], listing: Listing) -> None:
    """Keep a listing. A disk that cannot take it does not matter."""
    with contextlib.suppress(OSError, UnicodeEncodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, "wb") as file:
            np.savez(
                file, format=FORMAT, root=os.path.realpath(root), blob=listing.names.blob, ends=listing.names.ends,
                counts=listing.counts, folders=np.array(listing.folders), stamps=listing.stamps, owners=listing.owners,
                classes=np.array(classes),
            )  # fmt: skip


def unchanged(root: str, listing: Listing) -> np.ndarray:
    """Return for each class whether all of its folders are as they were, (K,) bool."""
    same = np.array([kept != 0 and stamp(os.path.join(root, name)) == kept
                     for name, kept in zip(listing.folders, listing.stamps.tolist(), strict=True)], bool)  # fmt: skip
    result = np.ones(len(listing.counts), bool)
    result[listing.owners[~same]] = False
    return result


def parts(listing: Listing) -> Iterator[range]:
    """Yield the places of each class's images."""
    ends = np.cumsum(listing.counts).tolist()
    for end, count in zip(ends, listing.counts.tolist(), strict=True):
        yield range(end - count, end)
