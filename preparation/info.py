"""What a folder, table or archive of images holds, and what a run would do with it."""

import collections
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from base.arguments import LIMIT_WAYS
from base.errors import OverLimit, Refused, reason_of, with_way_out
from base.files import read_rows, refuse_foreign
from base.text import listed, printable
from datasets import DATASETS, decode, folder, listing
from datasets.images import FileImages, Limits
from preparation.check import HEADING, MANIFEST, shown
from preparation.sources import Origin

# Files whose headers are read, evenly over all.
MAX_HEADERS = 2000


@dataclass
class Sizes:
    """What is known of some images: width and height in pixels, bytes, formats, what is bad, and
    how many carry a turn.
    """

    sides: list[tuple[int, int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    formats: collections.Counter[str] = field(default_factory=collections.Counter)
    bad: list[str] = field(default_factory=list)
    turned: int = 0


def describe(origin: Origin) -> None:
    """Print classes, counts, sizes and formats, and what a run would do with the images.

    Raises Refused.
    """
    kind = origin.kind
    parts = origin.parts()
    for part, images in parts.items():
        _print_part(part, images, origin.limits)

    root = origin.data_dir or ""
    if kind == "folder" and os.path.isdir(root):
        other = folder.find_part(root, "other")
        alone = [
            f"{name}/" for name in folder.left_alone(root) if os.path.join(root, name) != other
        ]
        if alone:
            print(f"beside them: {listed(alone)}: images that are not read")
    command = f"python main.py --dataset {kind}"
    if origin.data_dir is not None:
        command += f" --data_dir {shlex.quote(origin.data_dir)}"
    if origin.labels is not None:
        command += f" --labels {shlex.quote(origin.labels)}"
    if origin.columns:
        columns = ",".join(f"{what}={name}" for what, name in origin.columns.items())
        command += f" --column {shlex.quote(columns)}"
    if "train" not in parts and "all" not in parts:
        print(f"a run: {command} --test --retrain FILE tests weights on it; there is no train/")
        return
    if "test" not in parts:
        why = "" if "all" in parts else ", for there is no val/"
        print(f"a run: {command} --valShare 0.1{why}")
        return

    source = DATASETS[kind]
    crop = f"{source.cropSize} x {source.cropSize}"
    print(f"a run: {command}")
    print(f"  scales the shorter side to {source.imageSize} pixels, takes {crop}, {source.augment}")


def _print_part(part: str, images: FileImages, limits: Limits) -> None:
    """Print what one part holds."""
    labelled = images.labels[images.labels >= 0]
    unlabelled = len(images) - len(labelled)
    more = f", {unlabelled} of them without a label" if unlabelled else ""
    counted = f"{len(images)} images{more} in {len(images.classes)} classes"
    print(f"{part}: {counted}, in {images.where}")
    if len(labelled):
        counts = np.bincount(labelled, minlength=len(images.classes))
        low, high = int(counts.argmin()), int(counts.argmax())
        smallest, largest = (f"{printable(images.classes[k])} ({counts[k]})" for k in (low, high))
        print(f"  smallest class: {smallest}; largest: {largest}")
    if images.left_out:
        print(f"  {listing.told(images.left_out).removeprefix('; ')}")

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
    if found.turned:
        turned = f"{found.turned} of {len(found.sides)} looked at"
        print(f"  EXIF: {turned} carry a turn, which --exif apply follows and the default ignores")
    for line in found.bad[:5]:
        print(f"  bad: {printable(line)}", file=sys.stderr)


def _from_manifest(images: FileImages) -> Sizes | None:
    """Return what `prepare.py check` found, None where it was not run."""
    if images.packed is not None:
        return None
    where = Path(images.where)
    for place, prefix in ((where, ""), (where.parent, f"{where.name}/")):
        if not (place / MANIFEST).exists():
            continue
        found = Sizes()
        try:
            refuse_foreign(place / MANIFEST, HEADING)
            rows = {row["path"]: row for row in read_rows(place / MANIFEST)}
            for name in images.names:
                row = rows.get(shown(prefix + name))
                if row is not None and int(row["width"]):
                    found.sides.append((int(row["width"]), int(row["height"])))
                    found.lengths.append(int(row["bytes"]))
        except (Refused, ValueError, TypeError):  # someone else's, or spoilt: headers are read then
            return None
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
            found.turned += decode.orientation(content) > 1
            found.sides.append(size)
            found.lengths.append(len(content))
        except (OSError, ValueError) as error:
            limit = error.limit if isinstance(error, OverLimit) else ""
            reason = with_way_out(reason_of(error), limit, LIMIT_WAYS)
            found.bad.append(f"{images.path(index)}: {reason}")

    return found
