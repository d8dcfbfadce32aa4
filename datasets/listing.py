"""The images of each class folder, kept in one file: a folder is scanned again only where it or one
below it changed.

A folder's times change when a file is added, removed or renamed in it. One that was changed in the
last seconds before it was scanned is scanned again next time: a later change could fall on the same
time. Archives, container layers and some network disks set a folder's mtime to what it was
elsewhere: its ctime and inode tell then, and where the mtime is a whole second its entries are
counted too.
"""

import contextlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from base.files import read_bytes, whole_file
from base.text import printable
from datasets.images import Names

FORMAT = 2
# Kinds of left-out files that are named.
MAX_KINDS = 12
# Bytes of a kept listing: of 20 million images.
MAX_KEPT = 1 << 30
# Nanoseconds that a folder must not have changed for when it is scanned.
RESTED = 3_000_000_000

# A folder's mtime, ctime, inode, and number of entries (-1: not counted); all 0: scan it again.
Stamp = tuple[int, int, int, int]
FRESH: Stamp = (0, 0, 0, 0)


@dataclass
class Scan:
    """What a scan finds beside images: folders as they are called in the names, with their stamps,
    and how many files and folders of each kind are left out.
    """

    folders: list[tuple[str, Stamp]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ClassListing:
    """One class's images: the bytes of their names, their lengths, and what lay beside them."""

    blob: np.ndarray
    lengths: np.ndarray
    scanned: Scan


@dataclass(frozen=True)
class Listing:
    """All classes' images.

    names: (N) relative to the root, class by class; counts: (K,); folders, stamps: all that were
    scanned, (F) and (F, 4); owners: (F,) the class of each; left_out: of each class; was_kept: some
    of it was not scanned now.
    """

    names: Names
    counts: np.ndarray
    folders: list[str]
    stamps: np.ndarray
    owners: np.ndarray
    left_out: list[Counter[str]]
    was_kept: bool = False

    def of_class(self, label: int) -> ClassListing:
        """Return one class's part."""
        end = int(self.counts[: label + 1].sum())
        part = range(end - int(self.counts[label]), end)
        own = np.flatnonzero(self.owners == label).tolist()
        rows = self.stamps[own].tolist()
        folders = [(self.folders[at], _stamp_of(row)) for at, row in zip(own, rows, strict=True)]
        scanned = Scan(folders, self.left_out[label])
        return ClassListing(self.names.slice(part), self.names.lengths(part), scanned)


def list_classes(
    root: str, classes: list[str], scan: Callable[[str, Scan], list[str]], kept: Path | None
) -> Listing:
    """Return the images of these class folders, scanning only those that the kept listing does not
    know as they are.

    scan: from a class and what gets the folders it scans, to the sorted names of its images; kept:
    the file.
    """
    # 1.3 million files take over a second to list, and a kept listing a few milliseconds to read.
    before = read(kept, root) if kept is not None else None
    same = {}
    if before is not None:
        known, listing = before
        unchanged = _unchanged(root, listing)
        if known == classes and unchanged.all():
            return replace(listing, was_kept=True)
        same = {name: label for label, name in enumerate(known) if unchanged[label]}

    parts = []
    for name in classes:
        if before is not None and name in same:
            parts.append(before[1].of_class(same[name]))
        else:
            scanned = Scan()
            names = Names(scan(name, scanned))
            lengths = names.lengths(range(len(names)))
            parts.append(ClassListing(names.blob, lengths, scanned))

    result = replace(_joined(parts), was_kept=bool(same))
    if kept is not None:
        write(kept, root, classes, result)
    return result


def _joined(parts: list[ClassListing]) -> Listing:
    """Return one listing of all classes, in their order."""
    scanned = [folder for part in parts for folder in part.scanned.folders]
    owners = np.repeat(np.arange(len(parts)), [len(part.scanned.folders) for part in parts])
    ends = np.cumsum(np.concatenate([part.lengths for part in parts]), dtype=np.int64)
    return Listing(
        names=Names.of(np.concatenate([part.blob for part in parts]), ends),
        counts=np.array([len(part.lengths) for part in parts]),
        folders=[folder for folder, _ in scanned],
        stamps=np.array([stamp for _, stamp in scanned], np.int64).reshape(-1, 4),
        owners=owners.astype(np.int64),
        left_out=[part.scanned.left_out for part in parts],
    )


def _stamp_of(row: list[int]) -> Stamp:
    mtime, ctime, inode, entries = row
    return mtime, ctime, inode, entries


def stamp(path: str) -> Stamp:
    """Return what changes when a folder does; FRESH where it changed just now or is gone."""
    try:
        status = os.stat(path)
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        if time.time_ns() - changed <= RESTED:
            return FRESH
        # Real changes fall between two seconds, times that were set seldom do.
        was_set = status.st_mtime_ns % 1_000_000_000 == 0
        entries = len(os.listdir(path)) if was_set else -1
    except OSError:
        return FRESH
    inode = status.st_ino & 0x7FFF_FFFF_FFFF_FFFF
    return status.st_mtime_ns, status.st_ctime_ns, inode, entries


def told(left_out: Mapping[str, int]) -> str:
    """Return what was left out, as messages have it: "; left out: 3 .txt, 1 .heic", or ""."""
    if not left_out:
        return ""
    counts = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {printable(kind)}" for kind, count in counts[:MAX_KINDS]]
    rest = sum(count for _, count in counts[MAX_KINDS:])
    if rest:
        shown.append(f"{rest} of {len(counts) - MAX_KINDS} other kinds")
    return "; left out: " + ", ".join(shown)


def read(path: Path, root: str) -> tuple[list[str], Listing] | None:
    """Return the class names and the listing that are kept for `root`, None where there are none
    that can be read.
    """
    try:
        content = io.BytesIO(read_bytes(path, MAX_KEPT))
        with np.load(content, allow_pickle=False) as kept:
            if int(kept["format"]) != FORMAT or str(kept["root"]) != os.path.realpath(root):
                return None
            names = Names.of(kept["blob"], kept["ends"])
            folders, classes = kept["folders"].tolist(), kept["classes"].tolist()
            left_out = [Counter(counts) for counts in json.loads(str(kept["left_out"]))]
            stamps, owners = kept["stamps"], kept["owners"]
            listing = Listing(names, kept["counts"], folders, stamps, owners, left_out)
        return (classes, listing) if _is_whole(classes, listing) else None
    # A damaged file can fail in any way. It is made anew: nothing is lost.
    except Exception:
        return None


def _is_whole(classes: list[str], listing: Listing) -> bool:
    """True where the parts fit together and no name leads out of the root."""
    ends, blob, counts = listing.names.ends, listing.names.blob, listing.counts
    whole = (ends, counts, listing.owners, listing.stamps)
    if not all(np.issubdtype(array.dtype, np.integer) for array in whole) or blob.dtype != np.uint8:
        return False
    lengths = np.diff(ends, prepend=0)
    if ends.ndim != 1 or (lengths < 1).any() or (counts < 0).any() or counts.sum() != len(ends):
        return False
    if len(blob) != (ends[-1] if len(ends) else 0) or len(listing.folders) != len(listing.owners):
        return False
    if listing.stamps.shape != (len(listing.owners), 4) or len(counts) != len(classes):
        return False
    owners = listing.owners
    if len(listing.left_out) != len(classes) or not ((owners >= 0) & (owners < len(counts))).all():
        return False
    # Rare in honest names, so only then each is looked at.
    starts, text = ends - lengths, blob.tobytes()
    if (blob[starts] == ord("/")).any() or b"\0" in text:
        return False
    return b".." not in text or not any(".." in name.split("/") for name in listing.names)


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
                left_out=json.dumps(listing.left_out),
            )


def _unchanged(root: str, listing: Listing) -> np.ndarray:
    """Return for each class whether all of its folders are as they were, (K,) bool."""
    pairs = zip(listing.folders, listing.stamps.tolist(), strict=True)
    same = [
        _stamp_of(kept) != FRESH and stamp(os.path.join(root, name)) == _stamp_of(kept)
        for name, kept in pairs
    ]
    result = np.ones(len(listing.counts), bool)
    # A class is scanned again as soon as one of its folders changed.
    result[listing.owners[~np.array(same, bool)]] = False
    return result
