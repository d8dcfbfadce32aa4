"""Training and test images of a folder that has no split of its own: keyed, stratified, and stable.

In each class the images with the smallest hash of their content are tested on. A split that was
made is kept in a file: an image in it stays on its side, wherever it is moved to and whatever it is
called then, and only new ones are dealt out, so that each class keeps its share within one image,
copies aside. Copies of an image lie on one side.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from base.errors import Refused
from base.files import read_text, whole_file
from base.randomness import key
from datasets.images import FileImages

TRAIN, TEST = "train", "test"
MEND = "remove it, the split is then made anew"
# Of the rows: after these, each image's size, mtime and SHA-256, which older files lack.
HEADING = ["side", "image"]
MORE = ["bytes", "mtime_ns", "sha256"]
THREADS = 8
# Files that are handed to them at a time.
BLOCK = 1024
# Bytes of a kept split: of some 8 million images.
MAX_KEPT = 1 << 30


@dataclass(frozen=True)
class Known:
    """What a kept split says of one image. digest: "" in an older file."""

    side: str
    size: int = -1
    time: int = -1
    digest: str = ""


def side_of(
    images: FileImages, part: str, share: float, seed: int, kept: Path | None
) -> FileImages:
    """Return one side of a split, "train" or what is tested on. Raises Refused as `split`, and for
    a class of which nothing is left to train on.
    """
    test = split(images, share, seed, kept)
    count = len(images.classes)
    there = np.bincount(images.labels, minlength=count) > 0
    trained = np.bincount(images.labels[~test], minlength=count) > 0
    untrained = np.flatnonzero(there & ~trained)
    if len(untrained) and part == "train":
        name = images.classes[untrained[0]]
        raise Refused(f"the split leaves no image of '{name}' to train on: add some, or remove it")
    return images.chosen(np.flatnonzero(~test if part == "train" else test))


def split(images: FileImages, share: float, seed: int, kept: Path | None) -> np.ndarray:
    """Return (N,) bool: True for the images to test on.

    share: of each class that is tested on, in (0, 1); kept: the CSV file of the split, read where
    it is there and written where anything is new. Raises Refused for a class with one image.
    """
    before = read(kept, share) if kept is not None else {}
    names = list(images.names)
    facts = [images.status(index) for index in range(len(images))]
    digests = _digests(images, names, facts, before)
    by_digest = {known.digest: known.side for known in before.values() if known.digest}
    sides: dict[int, str] = {}
    for index, (name, digest) in enumerate(zip(names, digests, strict=True)):
        known = before.get(name)
        if known and known.digest in ("", digest):
            sides[index] = known.side
        elif digest in by_digest:
            # A file that took another's name is that other image.
            sides[index] = by_digest[digest]
        elif known:
            sides[index] = known.side

    # Copies of an image lie on one side, whatever their classes.
    dealt = {digests[index]: side for index, side in sides.items()}
    order = np.argsort(images.labels, kind="stable")
    ends = np.flatnonzero(np.diff(images.labels[order])) + 1
    for group in np.split(order, ends):
        members = group.tolist()
        if len(members) < 2:
            least = "at least 2 are needed, one to test on"
            name = images.classes[int(images.labels[members[0]])]
            one = f"class '{name}' has 1 image, {names[members[0]]}"
            raise Refused(f"{images.where}: {one}: {least}")
        wanted = min(len(members) - 1, max(1, round(share * len(members))))
        _deal(members, digests, sides, dealt, wanted, seed)

    test = np.array([sides[index] == TEST for index in range(len(names))], bool)
    # What is gone for now may come back.
    present = {"", *digests}
    rows = {name: known for name, known in before.items() if known.digest not in present}
    for index, name in enumerate(names):
        rows[name] = Known(sides[index], *facts[index], digests[index])
    if kept is not None and rows != before:
        write(kept, rows, share)
    return test


def _deal(
    members: list[int],
    digests: list[str],
    sides: dict[int, str],
    dealt: dict[str, str],
    wanted: int,
    seed: int,
) -> None:
    """Give each of a class's images that has none a side, so that `wanted` are tested on."""
    tested = sum(sides.get(index) == TEST for index in members)
    new = [index for index in members if index not in sides]
    copies = Counter(digests[index] for index in members)

    for index in sorted(new, key=lambda index: key(seed, digests[index])):
        # Something is left to train on, were all of a class one image and its copies.
        free = tested < wanted and tested + copies[digests[index]] < len(members)
        side = dealt.get(digests[index]) or (TEST if free else TRAIN)
        tested += side == TEST
        sides[index] = dealt[digests[index]] = side


def _digests(
    images: FileImages, names: list[str], facts: list[tuple[int, int]], before: dict[str, Known]
) -> list[str]:
    """Return each SHA-256. Files whose size and mtime are as they were are not read again."""
    found = [""] * len(names)
    unread = []
    for index, name in enumerate(names):
        known = before.get(name)
        is_same = known and known.digest and (known.size, known.time) == facts[index] != (-1, -1)
        if known and is_same:
            found[index] = known.digest
        else:
            unread.append(index)

    for index, digest in _read_all(images, unread):
        found[index] = digest
    return found


def _read_all(images: FileImages, indices: list[int]) -> Iterator[tuple[int, str]]:
    def digest(index: int) -> tuple[int, str]:
        try:
            return index, hashlib.sha256(images.read(index)).hexdigest()
        except (OSError, ValueError):
            # A bad image is the loader's to name; it needs a side all the same.
            return index, hashlib.sha256(os.fsencode(images.names[index])).hexdigest()

    title = "reading all images for the split"
    bar = tqdm(total=len(indices), desc=title, unit=" images", leave=False, disable=None)
    with bar, ThreadPoolExecutor(THREADS) as pool:
        # Not all at once: whoever interrupts would wait for every file that was handed out.
        for start in range(0, len(indices), BLOCK):
            for found in pool.map(digest, indices[start : start + BLOCK]):
                yield found
                bar.update()


def read(path: Path, share: float | None = None) -> dict[str, Known]:
    """Return what is kept of each image, of a split with the same share; nothing where there is
    none.

    share: None for any. Raises Refused for a damaged file.
    """
    if not path.exists():
        return {}
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, MAX_KEPT), newline="")))
        heading = rows[0] if rows else []
        if heading[:2] != HEADING or heading[3:] not in ([], MORE):
            raise ValueError("its first line is no split's")
        if share is not None and heading[2] != f"share {share:g}":
            return {}
        sides = {os.fsdecode(row[1].encode("latin1")): _known(row) for row in rows[1:]}
    except (OSError, UnicodeError, csv.Error, ValueError, IndexError) as error:
        raise Refused(f"{path} is damaged ({error}): {MEND}") from None
    return sides


def _known(row: list[str]) -> Known:
    if row[0] not in (TRAIN, TEST):
        raise ValueError(f"a side is neither {TRAIN} nor {TEST}")
    return Known(row[0], int(row[2]), int(row[3]), row[4]) if len(row) > 2 else Known(row[0])


def write(path: Path, rows: dict[str, Known], share: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow([*HEADING, f"share {share:g}", *MORE])
        # A name's bytes as latin-1 round-trip whatever their encoding is.
        for name, known in rows.items():
            image = os.fsencode(name).decode("latin1")
            writer.writerow([known.side, image, known.size, known.time, known.digest])
