"""Copy images to folders, the large ones made smaller, once, so that every later epoch reads and
decodes less.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch

from augmentation.resize import resize
from base.errors import Refused, reason_of
from base.files import refuse_foreign, write_rows
from base.text import printable
from datasets import decode
from datasets.images import Names
from preparation.check import BAD, BAD_HEADING
from preparation.each import each
from preparation.sources import PARTS, Origin, Piece, items_of, names_by_class


class Options(NamedTuple):
    """size: shorter side at most, pixels; quality: of the JPEGs; processes: that work; turn: as
    EXIF's orientation says, which a copy otherwise keeps.
    """

    size: int
    quality: int
    processes: int
    turn: bool = False


class Copied(NamedTuple):
    """One image: its name, bytes before and after, and why it was left out, or ""."""

    name: str
    before: int
    after: int
    reason: str


def shrink(origin: Origin, out: str, options: Options) -> int:
    """Copy all images to folders in out; return the exit status. What is there already stays.

    Raises Refused where the two folders are one or hold each other.
    """
    target = Path(out).resolve()
    source = Path(origin.where).resolve()
    if source == target or source in target.parents or target in source.parents:
        raise Refused(f"{out} and {origin.where} must be apart", limit="out")

    refuse_foreign(target / BAD, BAD_HEADING)
    pieces = origin.pieces() if origin.kind == "folder" else _sorted_out(origin)
    items = items_of(pieces)
    work = functools.partial(copy_one, pieces, str(target), options)
    found = list(each(work, items, len(items), "shrinking", options.processes))
    bad = [image for image in found if image.reason]
    target.mkdir(parents=True, exist_ok=True)
    rows = ([printable(image.name), printable(image.reason)] for image in bad)
    write_rows(target / BAD, BAD_HEADING, rows)

    before, after = sum(image.before for image in found), sum(image.after for image in found)
    megabytes = f"{before / 1e6:.1f} MB became {after / 1e6:.1f} MB"
    print(f"{len(items) - len(bad)} images, {megabytes} in {out}; {len(bad)} bad ones left out")

    for image in bad[:5]:
        print(f"bad: {printable(image.name)}: {printable(image.reason)}", file=sys.stderr)
    return 1 if bad else 0


def _sorted_out(origin: Origin) -> list[Piece]:
    """Return the images of each part with the names that they get in folders of classes.

    Raises Refused for images without a class.
    """
    pieces = []
    for part, images in origin.parts(labelled=True).items():
        above = "" if part == "all" else f"{PARTS[part]}/"
        # What a file is decoded as is decided by its content, not by its ending.
        names = [f"{above}{key}{ending or '.jpg'}" for key, ending in names_by_class(images)]
        pieces.append(Piece(images, Names(names)))
    return pieces


def copy_one(
    pieces: Sequence[Piece], target: str, options: Options, item: tuple[int, int]
) -> Copied:
    """Copy one image, unless its copy is there. item: its piece, and the image in that."""
    (images, names), index = pieces[item[0]], item[1]
    name = names[index]
    path = os.path.join(target, name)

    try:
        if os.path.exists(path):
            return Copied(name, images.status(index)[0], os.path.getsize(path), "")
        content, _ = images.sized(index)
        smaller = smaller_file(content, options.size, options.quality, turn=options.turn)
    except (OSError, ValueError) as error:
        return Copied(name, 0, 0, reason_of(error))

    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # Not synced one by one: a copy that a crash spoils is made again.
    temporary = os.path.join(folder, f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(smaller)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return Copied(name, len(content), len(smaller), "")


def smaller_file(content: bytes, size: int, quality: int, *, turn: bool = False) -> bytes:
    """Return the image as JPEG with a shorter side of `size` pixels, or as it is where it is not
    larger.

    turn: as EXIF's orientation says; without it the copy carries the same orientation. Raises
    ValueError with the reason, also for a bad image that would be copied as it is.
    """
    width, height = decode.size(content, turn=turn)
    orientation = decode.orientation(content)
    # Also for what is copied as it is: a bad image is not copied.
    pixels = decode.pixels(content, turn=turn)
    shorter = min(width, height)
    if shorter <= size and (orientation == 1 or not turn):
        return content

    if shorter > size:
        planes = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        scaled = (size * height // shorter, size * width // shorter)
        small = resize(planes, scaled, "bicubic")[0].permute(1, 2, 0)
        pixels = np.ascontiguousarray(small.numpy())
    encoded = simplejpeg.encode_jpeg(pixels, quality, colorsubsampling="420")
    return encoded if turn or orientation == 1 else decode.with_orientation(encoded, orientation)
