"""Write what tells of images without holding them: dbcollection's form of an ILSVRC file for a
folder, and a table for images of any kind. Rewrite array files one image a chunk.
"""

import fcntl
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from base.errors import Failed, Refused
from base.files import (
    SOFTWARE,
    is_special,
    read_text,
    refuse_foreign,
    refuse_target,
    replacing,
    whole_file,
    write_json,
)
from base.text import printable
from datasets import dbcollection, folder, hdf5, table
from datasets.images import FileImages
from preparation.sources import PARTS, Origin, run_with

# What HDF5 1.8 and all later ones read.
LIBVER = ("earliest", "v108")


def index(data_dir: str, out: str, *, register: str | None = None) -> None:
    """Write `out` for data_dir/train and data_dir/val. register: name it so in ~/dbcollection.json.

    Raises Refused.
    """
    classes = None
    parts = {}
    for part, group in (("train", "train"), ("test", "val")):
        if folder.find_part(data_dir, part):
            images = folder.open_folder(data_dir, part, classes=classes)
            classes = classes or images.classes
            parts[group] = images
    if "train" not in parts:
        raise Refused(f"{data_dir} has no folder train/: put images in {data_dir}/train/<class>/")

    def fill(file: h5py.File) -> None:
        for group, images in parts.items():
            _fill(file.create_group(group), images, data_dir)

    if register:
        _refuse_taken(register, out)
    _write(Path(out), fill)
    print(
        f"{out}: "
        + ", ".join(f"{len(images)} images in {group}" for group, images in parts.items())
    )
    if register:
        add(register, out, data_dir)


def write_table(origin: Origin, out: str) -> None:
    """Write a table of all images; beside it their classes, where a table would number them
    otherwise. Raises Refused.
    """
    refuse_target(out, origin.labels or "")
    refuse_foreign(Path(out), table.HEADING)
    parts = origin.parts()
    root = origin.data_dir or os.path.dirname(origin.where) or "."
    images = next(iter(parts.values()))
    names = f"{os.path.splitext(out)[0]}.classes.txt"
    numbered = not table.in_usual_order(images.classes)
    if numbered and os.path.lexists(names) and not _names(names, images.classes):
        raise Refused(f"{names} is there, with other classes: move it away, or name another --out")
    words = {"" if part == "all" else PARTS[part]: images for part, images in parts.items()}
    table.write(out, words, root)
    more = ""
    if numbered:
        with whole_file(names) as file:
            file.write("".join(f"{name}\n" for name in images.classes))
        more = f" --classes {shlex.quote(names)}"
    counts = ", ".join(f"{len(images)} images {part}".strip() for part, images in words.items())
    print(f"{out}: {counts}")
    if images.packed is not None:
        print("the images lie in containers: the table tells of them, and does not lead to them")
        return
    where = f" --data_dir {shlex.quote(root)}"
    run = f"python main.py --dataset table --labels {shlex.quote(out)}{where}{more}"
    print(f"a run: {run}{run_with(parts)}")


def _names(path: str, classes: list[str]) -> bool:
    """True for a file of these names, in any order."""
    try:
        return sorted(read_text(path).splitlines()) == sorted(classes)
    except (OSError, ValueError):
        return False


def _refuse_taken(name: str, out: str) -> None:
    """Raise Refused where dbcollection knows another file by that name, and the file is there."""
    place = os.path.expanduser(dbcollection.CACHE_FILE)
    if not os.path.exists(place):
        return
    try:
        before = dbcollection.read_cache(place)[name]["tasks"]["classification"]
        file = before if isinstance(before, str) else before["filename"]
        taken = os.path.exists(file) and os.path.realpath(file) != os.path.realpath(out)
    except (KeyError, TypeError):
        return
    if taken:
        other = f"'{name}' is {file} in {place}"
        raise Refused(f"{other}: register it by another name, or remove that entry")


def _write(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Write an HDF5 file, whole or not at all."""
    refuse_target(path, is_ours=_is_ours)
    if is_special(path):
        raise Refused(f"{path} is no regular file: HDF5 needs one", limit="out")
    try:
        with replacing(path) as temporary, h5py.File(temporary, "w", libver=LIBVER) as file:
            file.attrs["software"] = np.bytes_(SOFTWARE)
            fill(file)
    except OSError as error:
        # HDF5's own words for a full disk are many.
        raise Failed(f"cannot write {path}: {str(error).splitlines()[0]}") from None


def _is_ours(path: Path) -> bool:
    """True for an HDF5 file that says so."""
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("software") == np.bytes_(SOFTWARE))
    except (OSError, RuntimeError):
        return False


def _fill(group: h5py.Group, images: FileImages, data_dir: str) -> None:
    relative = os.path.relpath(images.where, data_dir)
    group["image_filenames"] = encode_strings([f"{relative}/{name}" for name in images.names])
    for name in ("classes", "labels", "descriptions"):
        group[name] = encode_strings(images.classes)
    group["object_fields"] = encode_strings(["image_filenames", "classes"])
    group["object_ids"] = np.stack([np.arange(len(images)), images.labels], 1).astype(np.int32)
    lists = [np.flatnonzero(images.labels == label) for label in np.unique(images.labels)]
    padded = np.full((len(lists), max(map(len, lists), default=0)), -1, np.int32)

    for row, members in zip(padded, lists, strict=True):
        row[: len(members)] = members
    group["list_image_filenames_per_class"] = padded


def encode_strings(strings: list[str]) -> np.ndarray:
    """Return strings as dbcollection stores them: uint8, a NUL-padded row each, one alone as
    (length,).

    Raises Refused.
    """
    try:
        encoded = [string.encode("latin-1") for string in strings]
    except UnicodeEncodeError as error:
        name = printable(error.object)
        latin = "dbcollection's files hold names in Latin-1 only"
        raise Refused(f"{latin}, not '{name}': rename it") from None

    rows = np.zeros((len(encoded), max(map(len, encoded), default=0) + 1), np.uint8)
    for row, string in zip(rows, encoded, strict=True):
        row[: len(string)] = np.frombuffer(string, np.uint8)
    return rows[0] if len(rows) == 1 else rows


def add(name: str, path: str, data_dir: str, cache_file: str | None = None) -> None:
    """Name a file in dbcollection's cache file, keeping what is there. Raises Refused."""
    place = Path(os.path.expanduser(cache_file or dbcollection.CACHE_FILE))
    with place.with_name(f".{place.name}.lock").open("a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        roots = {"root_cache_dir": "", "root_downloads_dir": ""}
        known: dict[str, Any] = {"info": roots, "dataset": {}, "category": {}}
        if place.exists():
            # It is one, or this ends here.
            dbcollection.read_cache(str(place))
            known = json.loads(place.read_text())
        file = os.path.abspath(path)
        categories = ["image_processing", "classification"]
        known["dataset"][name] = {
            "data_dir": os.path.abspath(data_dir),
            "keywords": ["classification"],
            "tasks": {"classification": {"filename": file, "categories": categories}},
            "cache_dir": os.path.dirname(file),
        }
        write_json(place, known)

    command = f"python main.py --dataset {name} --storage disk"
    print(f"{place}: {name}; train on it with: {command}")


def repack(source: str, out: str) -> None:
    """Rewrite an array file with one image a chunk: a random image is then read alone.

    Raises Refused.
    """
    if os.path.realpath(source) == os.path.realpath(out):
        raise Refused(f"{out} is the file itself", limit="out")
    file = hdf5.File(source)
    names: list[str] = []

    def note(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            names.append(name)

    file.handle().visititems(note)
    if not any(name.endswith("/images") for name in names):
        raise Refused(f"{source} holds no arrays of images: only such files gain from this")

    def fill(target: h5py.File) -> None:
        for name in names:
            value = file.read(name)
            chunks = (1, *value.shape[1:]) if name.endswith("/images") and value.ndim > 2 else None
            target.create_dataset(name, data=value, chunks=chunks)

    _write(Path(out), fill)
    print(f"{out}: {os.path.getsize(out) / 1e6:.1f} MB, one image a chunk, not packed")
