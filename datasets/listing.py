"""The images of each class folder, kept in one file: a folder is scanned again only where it or one
below it changed.

A folder's mtime changes when a file is added, removed or renamed in it. One that was changed in the
last seconds before it was scanned is scanned again next time: a later change could fall on the same
mtime.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.files import whole_file
from datasets.images import Names

FORMAT = 1
# Nanoseconds that a folder must not have changed for when it is scanned.
RESTED = 3_000_000_000

# Folders, as they are called in the names, each with its mtime.
Scanned = list[tuple[str, int]]


@dataclass(frozen=True)
class ClassListing:
    """One class's images: the bytes of their names, their lengths, and the folders that were
    scanned for them.
    """

    blob: np.ndarray
    lengths: np.ndarray
    scanned: Scanned


@dataclass(frozen=True)
class Listing:
    """All classes' images.

    names: (N) relative to the root, class by class; counts: (K,); folders, stamps: all that were
    scanned, with their mtimes, (F); owners: (F,) the class of each.
    """

    names: Names
    counts: np.ndarray
    folders: list[str]
    stamps: np.ndarray
    owners: np.ndarray

    def of_class(self, label: int) -> ClassListing:
        """Return one class's part."""
        end = int(self.counts[: label + 1].sum())
        part = range(end - int(self.counts[label]), end)
        own = np.flatnonzero(self.owners == label).tolist()
        scanned = [(self.folders[folder], int(self.stamps[folder])) for folder in own]
        return ClassListing(self.names.slice(part), self.names.lengths(part), scanned)


def list_classes(
    root: str, classes: list[str], scan: Callable[[str, Scanned], list[str]], kept: Path | None
) -> Listing:
    """Return the images of these class folders, scanning only those that the kept listing does not
    know as they are.

    scan: from a class and a list that gets the folders it scans, to the sorted names of its images;
    kept: the file.
    """
    # 1.3 million files take over a second to list, and a kept listing a few milliseconds to read.
    before = read(kept, root) if kept is not None else None
    same = {}
    if before is not None:
        known, listing = before
        unchanged = _unchanged(root, listing)
        if known == classes and unchanged.all():
            return listing
        same = {name: label for label, name in enumerate(known) if unchanged[label]}

    parts = []
    for name in classes:
        if before is not None and name in same:
            parts.append(before[1].of_class(same[name]))
        else:
            scanned: Scanned = []
            names = Names(scan(name, scanned))
            lengths = names.lengths(range(len(names)))
            parts.append(ClassListing(names.blob, lengths, scanned))

    result = _joined(parts)
    if kept is not None:
        write(kept, root, classes, result)
    return result


def _joined(parts: list[ClassListing]) -> Listing:
    """Return one listing of all classes, in their order."""
    scanned = [folder for part in parts for folder in part.scanned]
    owners = np.repeat(np.arange(len(parts)), [len(part.scanned) for part in parts])
    ends = np.cumsum(np.concatenate([part.lengths for part in parts]), dtype=np.int64)
    return Listing(
        names=Names.of(np.concatenate([part.blob for part in parts]), ends),
        counts=np.array([len(part.lengths) for part in parts]),
        folders=[folder for folder, _ in scanned],
        stamps=np.array([when for _, when in scanned], np.int64),
        owners=owners.astype(np.int64),
    )


def stamp(path: str) -> int:
    """Return a folder's mtime in nanoseconds, 0 where it changed just now or is gone."""
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        return 0
    return changed if time.time_ns() - changed > RESTED else 0


def read(path: Path, root: str) -> tuple[list[str], Listing] | None:
    """Return the class names and the listing that are kept for `root`, None where there are none
    that can be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if int(kept["format"]) != FORMAT or str(kept["root"]) != os.path.realpath(root):
                return None
            names = Names.of(kept["blob"], kept["ends"])
            folders = kept["folders"].tolist()
            listing = Listing(names, kept["counts"], folders, kept["stamps"], kept["owners"])
            classes = kept["classes"].tolist()
    except (OSError, ValueError, KeyError, EOFError, TypeError):  # it is made anew: nothing is lost
        return None
    except Exception as error:
        # A damaged zip: zipfile's and zlib's own errors.
        if type(error).__module__ in ("zipfile", "zlib"):
            return None
        raise
    if len(classes) != len(listing.counts) or listing.counts.sum() != len(names):
        return None
    return classes, listing


def write(path: Path, root: str, classes: list[str], listing: Listing) -> None:
    """Keep a listing. A disk that cannot take it does not matter."""
    with contextlib.suppress(OSError, UnicodeEncodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, "wb") as file:
            np.savez(
                file,
                format=FORMAT,
                root=os.path.realpath(root),
                blob=listing.names.blob,
                ends=listing.names.ends,
                counts=listing.counts,
                folders=np.array(listing.folders),
                stamps=listing.stamps,
                owners=listing.owners,
                classes=np.array(classes),
            )


def _unchanged(root: str, listing: Listing) -> np.ndarray:
    """Return for each class whether all of its folders are as they were, (K,) bool."""
    pairs = zip(listing.folders, listing.stamps.tolist(), strict=True)
    same = [kept != 0 and stamp(os.path.join(root, name)) == kept for name, kept in pairs]
    result = np.ones(len(listing.counts), bool)
    # A class is scanned again as soon as one of its folders changed.
    result[listing.owners[~np.array(same, bool)]] = False
    return result
