"""Decode every image of a folder and keep its SHA-256: later changes are then found, which no decoder would notice."""

import functools
import hashlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

from base.text import printable
from datasets import decode
from datasets.images import FileImages
from preparation.each import each, images_of, read_rows, write_rows

MANIFEST, BAD = "manifest.csv", "bad_images.csv"


class Looked(NamedTuple):
    """What one image is: its name, bytes, SHA-256, pixels, and why it is bad ("" where it is good)."""

    name: str
    size: int
    digest: str
    width: int
    height: int
    reason: str


def look(images: FileImages, index: int) -> Looked:
    """Read and decode one image."""
    name, content, width, height = images.names[index], b"", 0, 0
    try:
        content, (width, height) = images.sized(index)
        decode.pixels(content)
        reason = ""
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return Looked(name, len(content), hashlib.sha256(content).hexdigest(), width, height, reason)


def check(data_dir: str, processes: int) -> int:
    """Look at all images, compare with the manifest that is there, write it anew; return the exit status."""
    images = images_of(data_dir)
    found = list(each(functools.partial(look, images), range(len(images)), len(images), "checking", processes))
    bad = [one for one in found if one.reason]
    path = Path(data_dir, MANIFEST)
    differences = compare(path, found) if path.exists() else []
    write_rows(Path(data_dir, BAD), ["path", "reason"], ([printable(one.name), printable(one.reason)] for one in bad))
    if not path.exists():
        rows = ([printable(one.name), one.size, one.digest, one.width, one.height] for one in found)
        write_rows(path, ["path", "bytes", "sha256", "width", "height"], rows)
    total = sum(one.size for one in found)
    print(f"{len(found)} images, {total / 1e9:.3f} GB, {len(bad)} bad: {os.path.join(data_dir, BAD)}")
    for line in differences:
        print(line, file=sys.stderr)
    if differences:
        print(f"{len(differences)} differences from {path}: if they are meant, remove it and check again", file=sys.stderr)
    return 1 if bad or differences else 0


def compare(path: Path, found: list[Looked]) -> list[str]:
    """Return a line for each changed, missing and new image. Raises Refused for a manifest that cannot be read."""
    before = {row.get("path"): row.get("sha256") for row in read_rows(path)}
    now = {printable(one.name): one.digest for one in found}
    lines = [f"changed: {name}" for name in now if name in before and before[name] != now[name]]
    lines += [f"missing: {name}" for name in before if name not in now]
    return lines + [f"new: {name}" for name in now if name not in before]
