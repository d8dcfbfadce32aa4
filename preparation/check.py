"""Decode every image of a folder and keep its SHA-256: later changes are then found, which no
decoder would notice.
"""

import functools
import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

from base.errors import reason_of
from base.files import read_rows, write_rows
from base.text import printable
from datasets import decode
from datasets.images import FileImages, Limits
from preparation.each import each, images_of

MANIFEST = "manifest.csv"
BAD = "bad_images.csv"


class Checked(NamedTuple):
    """What one image is: name, bytes, SHA-256, pixels, and why it is bad ("" where it is good)."""

    name: str
    size: int
    digest: str
    width: int
    height: int
    reason: str


def check_one(images: FileImages, index: int) -> Checked:
    """Read and decode one image."""
    content = b""
    width = 0
    height = 0

    try:
        content, (width, height) = images.sized(index)
        decode.pixels(content)
        reason = ""
    except (OSError, ValueError) as error:
        reason = reason_of(error)

    digest = hashlib.sha256(content).hexdigest()
    return Checked(images.names[index], len(content), digest, width, height, reason)


def check(data_dir: str, processes: int, limits: Limits) -> int:
    """Check all images, compare with the manifest that is there, or write it; return the exit
    status.
    """
    images = images_of(data_dir, limits)
    count = len(images)
    work = functools.partial(check_one, images)
    found = list(each(work, range(count), count, "checking", processes))
    bad = [image for image in found if image.reason]
    listed = Path(data_dir, BAD)
    rows = ([printable(image.name), printable(image.reason)] for image in bad)
    write_rows(listed, ["path", "reason"], rows)

    path = Path(data_dir, MANIFEST)
    # A manifest that is there is never overwritten: it is what the images are compared with.
    differences = compare(path, found) if path.exists() else []
    if not path.exists():
        heading = ["path", "bytes", "sha256", "width", "height"]
        write_rows(path, heading, ([printable(image.name), *image[1:5]] for image in found))

    total = sum(image.size for image in found)
    print(f"{count} images, {total / 1e9:.3f} GB, {len(bad)} bad: {listed}")
    for line in differences:
        print(line, file=sys.stderr)
    if differences:
        way = "if they are meant, remove it and check again"
        print(f"{len(differences)} differences from {path}: {way}", file=sys.stderr)

    return 1 if bad or differences else 0


def compare(path: Path, found: list[Checked]) -> list[str]:
    """Return a line for each changed, missing and new image.

    Raises Refused for a manifest that cannot be read.
    """
    before = {row.get("path"): row.get("sha256") for row in read_rows(path)}
    now = {printable(image.name): image.digest for image in found}
    lines = [f"changed: {name}" for name in now if name in before and before[name] != now[name]]
    lines += [f"missing: {name}" for name in before if name not in now]
    return lines + [f"new: {name}" for name in now if name not in before]
