"""What a folder of images holds, and what a run would do with it."""

import collections
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from base.errors import reason_of
from base.files import read_rows
from base.text import printable
from datasets import DATASETS, decode, folder
from datasets.images import FileImages, Limits
from preparation.check import MANIFEST

# Files whose headers are read, evenly over all.
MAX_HEADERS = 2000


@dataclass
class Sizes:
    """What is known of some images: width and height in pixels, bytes, formats, and what is bad."""

    sides: list[tuple[int, int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    formats: collections.Counter[str] = field(default_factory=collections.Counter)
    bad: list[str] = field(default_factory=list)


def describe(root: str, limits: Limits) -> None:
    """Print a folder's classes, counts, sizes and formats, and what a run would do with it.

    Raises Refused.
    """
    parts = [part for part in ("train", "test") if folder.find_part(root, part)]
    command = f"python main.py --dataset folder --data_dir {root}"
    if not parts:
        _print_part("all", folder.list_images(root, None), limits)
        print(f"a run: {command} --valShare 0.1")
        return

    classes = None
    for part in parts:
        images = folder.open_folder(root, part, classes=classes)
        classes = classes or images.classes
        _print_part(part, images, limits)

    if "test" not in parts:
        way = "add one, or name the train folder with --valShare 0.1"
        print(f"a run: refused, for there is no {root}/val/: {way}")
        return

    source = DATASETS["folder"]
    crop = f"{source.cropSize} x {source.cropSize}"
    print(f"a run: {command}")
    print(f"  scales the shorter side to {source.imageSize} pixels, takes {crop}, {source.augment}")


def _print_part(part: str, images: FileImages, limits: Limits) -> None:
    """Print what one part holds."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    low, high = int(counts.argmin()), int(counts.argmax())
    smallest, largest = (f"{printable(images.classes[k])} ({counts[k]})" for k in (low, high))
    print(f"{part}: {len(images)} images in {len(images.classes)} classes")
    print(f"  smallest class: {smallest}; largest: {largest}")

    images.limits = limits
    found = _from_manifest(images) or _from_headers(images)
    if found.sides:
        shorter = np.array(found.sides).min(1)
        looked = len(found.sides) + len(found.bad)
        spread = f"{shorter.min()} to {shorter.max()}, median {int(np.median(shorter))}"
        size = f"{np.mean(found.lengths) / 1000:.0f} kB a file on average"
        print(f"  of {looked} looked at: shorter side {spread} pixels; {size}")
    if found.formats:
        names = (f"{name} {count}" for name, count in found.formats.most_common())
        print("  formats: " + ", ".join(names))
    for line in found.bad[:5]:
        print(f"  bad: {printable(line)}", file=sys.stderr)


def _from_manifest(images: FileImages) -> Sizes | None:
    """Return what `prepare.py check` found, None where it was not run."""
    where = Path(images.where)
    for place, prefix in ((where, ""), (where.parent, f"{where.name}/")):
        if not (place / MANIFEST).exists():
            continue
        rows = {row["path"]: row for row in read_rows(place / MANIFEST)}
        found = Sizes()
        for name in images.names:
            row = rows.get(prefix + name)
            if row is not None and int(row["width"]):
                found.sides.append((int(row["width"]), int(row["height"])))
                found.lengths.append(int(row["bytes"]))
        return found

    return None


def _from_headers(images: FileImages) -> Sizes:
    """Read headers, evenly over all files."""
    found = Sizes()
    count = min(len(images), MAX_HEADERS)

    for index in np.linspace(0, len(images) - 1, count).astype(int).tolist():
        try:
            content, size = images.sized(index)
            found.formats[decode.kind(content)] += 1
            found.sides.append(size)
            found.lengths.append(len(content))
        except (OSError, ValueError) as error:
            found.bad.append(f"{images.path(index)}: {reason_of(error)}")

    return found
