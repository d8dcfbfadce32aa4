"""Images that are named on a command line: files, folders, what holds many, and lists of paths;
with their labels where they have any.
"""

import codecs
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from base.arguments import is_address
from base.errors import Refused
from base.files import refuse_target
from base.text import printable
from datasets import folder, listing, parquet, shards, table, zipped
from datasets.braces import expand
from datasets.images import FileImages, Limits, relabelled
from datasets.parts import NoPart, unlabelled
from datasets.remote import holds

# Bytes of a line on standard input.
MAX_LINE = 1 << 16
# Paths that are read together.
BATCH = 32
# Endings of a table's file.
TABLES = (".csv", ".tsv")
# Endings of what may be read in a folder.
READ = (*folder.ENDINGS, ".tar", ".parquet", ".zip")


def sources(arguments: Iterable[str], limits: Limits) -> Iterator[FileImages]:
    """Yield the images to predict, argument by argument: files, folders, what holds many, and for
    `-` the paths on standard input.
    """
    # Whoever names a file means what it links to.
    named = Limits(limits.bytes, limits.pixels, links=True)
    for argument in arguments:
        path = os.path.expanduser(argument)
        if path.lower().endswith(TABLES):
            raise Refused(f"{path} is a table: predict.py reads one with --mistakes OUT.csv")
        if containers := _containers(path):
            for container in containers:
                yield _in_container(container, limits)
            continue
        if zipped.is_folder(path):
            yield _in_folder(path, limits)
            continue
        paths = _listed_paths() if argument == "-" else iter([path])
        while batch := list(itertools.islice(paths, BATCH)):
            yield _unlabelled(batch, "", named)


def _listed_paths() -> Iterator[str]:
    """Yield the paths on standard input, of lists made on any system."""
    if sys.stdin is None:
        return
    # Bytes: a name on a disk is of any encoding.
    while line := sys.stdin.buffer.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise Refused(f"standard input has a line of more than {MAX_LINE} bytes, no path")
        path = os.fsdecode(line.rstrip(b"\r\n").removeprefix(codecs.BOM_UTF8))
        if path.strip():
            yield os.path.expanduser(path)


def _in_folder(path: str, limits: Limits) -> FileImages:
    """Return all images below a folder. Raises Refused where there are none."""
    root = path.rstrip("/") or "/"
    scan = listing.Scan()
    names = sorted(folder.image_files(root, ".", scan=scan))
    left_out = listing.told(scan.left_out)
    if not names:
        raise Refused(f"{root} has no image ({', '.join(folder.ENDINGS)}){left_out}")
    if left_out:
        print(f"{printable(root)}{left_out}", file=sys.stderr)
    images = _unlabelled([name.removeprefix("./") for name in names], root, limits)
    archive = zipped.zip_of(root)
    if archive is not None:
        images.packed = zipped.Zip(archive[0])
        images.rows = images.packed.rows_of(archive[1], images.names)
    return images


def _containers(path: str) -> list[str]:
    """Return the tar or Parquet files that a path, a pattern or an address names, or of which a
    folder is full; none for anything else. Raises Refused.
    """
    for ending in (".tar", ".parquet"):
        if is_address(path) and holds(path, ending):
            return shards.find(path, ending, None)[1]
        if os.path.isdir(path):
            files = [file for file in shards.files_below(path) if file.lower().endswith(ending)]
            if files and not folder.has_images(path):
                return sorted(files)
        elif path.lower().endswith(ending):
            return expand(path)
    return []


def _in_container(path: str, limits: Limits) -> FileImages:
    """Return all images in a tar or Parquet file, whatever its name and their labels.

    Raises Refused.
    """
    kind = shards.KIND if path.lower().endswith(".tar") else parquet.KIND
    images = unlabelled(path, kind)
    images.limits = limits
    return images


def _unlabelled(names: list[str], where: str, limits: Limits) -> FileImages:
    return FileImages(names, np.zeros(len(names), np.int64), [""], where, limits)


def labelled(argument: str, classes: list[str], limits: Limits) -> FileImages:
    """Return images with their labels: a folder of class folders or of parts, a .zip file, shards,
    Parquet files, or a table.

    classes: the weights', whose numbers the labels take. Of parts the test part is taken, where
    there is none the training part. Raises Refused.
    """
    path = os.path.expanduser(argument)
    containers = _containers(path)

    def opened(part: str) -> FileImages:
        given: dict[str, Any] = {"classes": classes, "limits": limits}
        if path.lower().endswith(TABLES):
            return table.open_table(None, part, labels=path, **given)
        if containers:
            tar = containers[0].lower().endswith(".tar")
            return (shards.open_shards if tar else parquet.open_parquet)(path, part, **given)
        return folder.open_folder(path, part, **given)

    try:
        images = opened("all")
    except NoPart:
        images = opened("train")
    known = relabelled(images, classes)
    assert isinstance(known, FileImages)
    known.limits = limits
    return known


def refuse_written_over(targets: Iterable[str], argument: str) -> None:
    """Raise Refused where a file to write is one that an argument names: the file itself, a
    container of a pattern or folder, or an image or container that lies in a folder.
    """
    path = os.path.expanduser(argument)
    for target in targets:
        for file in (path, *_containers(path)):
            refuse_target(target, file)
        inside = Path(os.path.realpath(target)).is_relative_to(os.path.realpath(path))
        is_read = target.lower().endswith(READ) and os.path.exists(target)
        if os.path.isdir(path) and inside and is_read:
            raise Refused(f"{target} is an image that is read: name another to write")


def refuse_among(targets: Iterable[str], images: FileImages) -> None:
    """Raise Refused where a file to write is one of these images, as a table or a list names
    them.
    """
    there = {_identity(target): target for target in targets if os.path.exists(target)}
    if not there or images.packed is not None:
        return
    for index in range(len(images)):
        if target := there.get(_identity(images.path(index))):
            raise Refused(f"{target} is an image that is read: name another to write")


def _identity(path: str) -> tuple[int, int]:
    """Return what tells a file from all others, whatever path leads to it; (-1, -1) for none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_dev, status.st_ino
