"""Decode every image and keep its SHA-256: later changes are then found, which no decoder would
notice. Images that are there twice, or on both sides, are found too.
"""

import functools
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from base.arguments import is_address
from base.errors import Refused, reason_of
from base.files import read_rows, refuse_foreign, write_rows
from base.text import printable
from datasets import decode, listing
from preparation import duplicates
from preparation.duplicates import DUPLICATES, Seen
from preparation.each import each
from preparation.sources import Origin, Piece, items_of

MANIFEST = "manifest.csv"
BAD = "bad_images.csv"
BAD_HEADING = ["path", "reason"]
HEADING = ["path", "bytes", "sha256", "width", "height"]
# Bad images that are printed too.
SHOWN = 20


class Checked(NamedTuple):
    """What one image is: name, bytes, SHA-256, pixels, why it is bad ("" where it is good), and its
    perceptual hash (-1 for none).
    """

    name: str
    size: int
    digest: str
    width: int
    height: int
    reason: str
    look: int


def check_one(pieces: Sequence[Piece], item: tuple[int, int]) -> Checked:
    """Read and decode one image. item: number of its piece, and of the image in it."""
    images, names = pieces[item[0]]
    index = item[1]
    content = b""
    width = 0
    height = 0
    look = -1

    try:
        content, (width, height) = images.sized(index)
        look = duplicates.look_of(decode.pixels(content))
        reason = ""
    except (OSError, ValueError) as error:
        reason = reason_of(error)

    digest = hashlib.sha256(content).hexdigest()
    return Checked(names[index], len(content), digest, width, height, reason, look)


def check(origin: Origin, processes: int, out: str | None = None) -> int:
    """Check all images, compare with the manifest that is there, or write it; return the exit
    status.

    out: the folder of the lists, where that of the images is read-only. Raises Refused.
    """
    place, prefix = _lists_of(origin.where, out)
    if out is not None:
        place.mkdir(parents=True, exist_ok=True)
    if not os.access(place, os.W_OK):
        raise Refused(f"{place} is read-only for this user", limit="lists")
    listed, path = place / f"{prefix}{BAD}", place / f"{prefix}{MANIFEST}"
    refuse_foreign(listed, BAD_HEADING)
    refuse_foreign(path, HEADING)
    twice = place / f"{prefix}{DUPLICATES}"
    refuse_foreign(twice, duplicates.HEADING)
    pieces = origin.pieces()
    items = items_of(pieces)
    work = functools.partial(check_one, pieces)
    found = list(each(work, items, len(items), "checking", processes))
    bad = [image for image in found if image.reason]
    rows = ([printable(image.name), printable(image.reason)] for image in bad)
    write_rows(listed, BAD_HEADING, rows)

    # A manifest that is there is never overwritten: it is what the images are compared with.
    differences = compare(path, found) if path.exists() else []
    if not path.exists():
        write_rows(path, HEADING, ([shown(image.name), *image[1:5]] for image in found))

    total = sum(image.size for image in found)
    left_out = listing.told(sum((Counter(piece.images.left_out) for piece in pieces), Counter()))
    print(f"{len(items)} images, {total / 1e9:.3f} GB, {len(bad)} bad: {listed}{left_out}")
    for image in bad[:SHOWN]:
        print(f"bad: {printable(image.name)}: {printable(image.reason)}", file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"{len(bad) - SHOWN} more bad ones stand in {listed}", file=sys.stderr)
    _tell_duplicates(pieces, items, found, twice)
    for line in differences:
        print(line, file=sys.stderr)
    if differences:
        way = "if they are meant, remove it and check again"
        print(f"{len(differences)} differences from {path}: {way}", file=sys.stderr)

    return 1 if bad or differences else 0


def _tell_duplicates(
    pieces: Sequence[Piece], items: Sequence[tuple[int, int]], found: list[Checked], path: Path
) -> None:
    """Write the images that are there twice, say how many there are, and what is far from the
    rest.
    """
    seen = []
    for (side, index), image in zip(items, found, strict=True):
        if not image.reason:
            images = pieces[side].images
            label = int(images.labels[index])
            name = images.classes[label] if label >= 0 else ""
            pixels = image.width * image.height
            seen.append(Seen(image.name, side, name, image.digest, image.look, pixels))
    pairs = duplicates.find(seen)
    rows = [[pair.kind, str(pair.bits), shown(pair.first), shown(pair.second)] for pair in pairs]
    write_rows(path, duplicates.HEADING, rows)
    counts = Counter(pair.kind for pair in pairs)
    if pairs:
        told = {
            "leak": "on both sides (a test is easier for it)",
            "two classes": "in two classes",
            "twice": "twice",
        }
        parts = [f"{counts[kind]} {text}" for kind, text in told.items() if counts[kind]]
        print(f"the same or nearly: {', '.join(parts)}: {path}")
    if seen and all(image.look < 0 for image in seen):
        print("only equal files were compared: pip install imagehash, for images that look alike")
    for line in duplicates.remarks(seen):
        print(printable(line))


def _lists_of(where: str, out: str | None) -> tuple[Path, str]:
    """Return the folder of the lists, and what precedes their names: files beside each other have
    lists of their own. Raises Refused.
    """
    if is_address(where) and out is None:
        raise Refused(f"{where} is an address", limit="lists")
    if os.path.isdir(where):
        return Path(out or where), ""
    name = re.sub(r"[^\w.-]+", "_", os.path.basename(where.rstrip("/")))
    return Path(out or os.path.dirname(where) or "."), f"{name}."


def shown(name: str) -> str:
    """Return a name as the manifest has it: on one line, and another for every other name."""
    return printable(name.replace("\\", "\\\\"))


def compare(path: Path, found: list[Checked]) -> list[str]:
    """Return a line for each changed, missing and new image.

    Raises Refused for a manifest that cannot be read.
    """
    before = {row.get("path"): row.get("sha256") for row in read_rows(path)}
    now = {shown(image.name): image.digest for image in found}
    lines = [f"changed: {name}" for name in now if name in before and before[name] != now[name]]
    lines += [f"missing: {name}" for name in before if name not in now]
    return lines + [f"new: {name}" for name in now if name not in before]
