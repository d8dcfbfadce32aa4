"""A folder of images: data_dir/train/<class>/* and data_dir/val/<class>/* (or test/), and ImageNet in that form.

The rule: a class is a folder directly below train or val, classes are sorted by name. Its images are all files below
it, however deep, that end in .jpg, .jpeg, .png, .webp or .bmp in any case. Hidden files and folders (a leading dot)
and __MACOSX are left out.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from base.errors import Refused
from base.randomness import key
from datasets import listing
from datasets.images import FileImages, Names
from datasets.split import split

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
PARTS = {"train": ("train",), "test": ("val", "test")}
SETS = ("train", "val", "test")
IMAGENET = (
    "no ImageNet found, looked in {looked}: put its images in DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG and give "
    "--data_dir DIR; to start now without it: python main.py --dataset mnist"
)


def folder(
    data_dir: str | None, part: str, *, classes: list[str] | None = None,
    val_share: float | None = None, seed: int = 0, split_file: Path | None = None, index: Path | None = None,
) -> FileImages:  # fmt: skip
    """Open one part of a folder. classes: those of the training part, whose numbers a test part then takes.

    val_share: data_dir holds the class folders themselves, of which this share is tested on (`datasets.split`); seed and
    split_file belong to it. index: a folder that keeps listings. Raises Refused where the folder, a class or its images are
    missing.
    """
    if data_dir is None:
        raise Refused("--dataset folder needs --data_dir: a folder with train/<class>/* and val/<class>/*")
    if val_share is not None:
        return _part_of(data_dir, part, val_share, seed, split_file)
    root = find_part(data_dir, part)
    if not Path(data_dir).is_dir():
        raise Refused(f"there is no folder {data_dir}")
    if root is None:
        names = " or ".join(f"{name}/" for name in PARTS[part])
        hint = ", or give --valShare 0.1 to split its class folders" if part == "train" else ""
        raise Refused(f"{data_dir} has no folder {names}: put images in {data_dir}/{PARTS[part][0]}/<class>/{hint}")
    beside = [name for name in class_folders(data_dir) if name not in SETS]
    for name in beside:
        if next(image_files(os.path.join(data_dir, name), name), None):
            raise Refused(f"{data_dir} holds both {os.path.basename(root)}/ and images in {name}/: move one of them away")
    return list_images(root, classes, index, within=data_dir)


def _part_of(data_dir: str, part: str, share: float, seed: int, split_file: Path | None) -> FileImages:
    """Open one side of a split of the class folders in data_dir."""
    if not Path(data_dir).is_dir():
        raise Refused(f"there is no folder {data_dir}")
    if find_part(data_dir, "train") or find_part(data_dir, "test"):
        raise Refused(f"{data_dir} has a split of its own, train/ and val/: leave out --valShare")
    images = list_images(data_dir, None)
    names = list(images.names)
    test = split(names, images.labels, share, seed, split_file)
    chosen = np.flatnonzero(test if part == "test" else ~test)
    return FileImages(Names([names[place] for place in chosen]), images.labels[chosen], images.classes, data_dir)


def ilsvrc2012(
    data_dir: str | None, part: str, *, classes: list[str] | None = None, index: Path | None = None, **_: object
) -> FileImages:
    """Open ImageNet as a folder. Raises Refused, with the ways to get it, where there is none."""
    tried = [data_dir] if data_dir else ["./data/ilsvrc2012", os.path.expanduser("~/.cache/multi-gpu-torch/ilsvrc2012")]
    for place in tried:
        root = find_part(place, part)
        if root is not None:
            return list_images(root, classes, index, within=place)
    names = " and ".join(f"{place}/{PARTS[part][0]}" for place in tried)
    raise Refused(IMAGENET.format(looked=names))


def find_part(data_dir: str, part: str) -> str | None:
    """Return the folder of one part, None where there is none."""
    return next((os.path.join(data_dir, name) for name in PARTS[part] if Path(data_dir, name).is_dir()), None)


def list_images(root: str, classes: list[str] | None, index: Path | None = None, within: str = "") -> FileImages:
    """List the images of all class folders below `root`. index: a folder that keeps listings; within: as of FileImages.

    Raises Refused.
    """
    found = class_folders(root)
    if not found:
        raise Refused(f"{root} has no class folders: put images in {root}/<class>/")
    if len(found) < 2 and classes is None:
        raise Refused(f"{root} has one class only, '{found[0]}': a classifier needs 2 at least")
    _refuse_twins(found, root)
    unknown = sorted(set(found) - set(classes)) if classes is not None else []
    if unknown:
        raise Refused(f"{root} has a class that training lacks: '{unknown[0]}' ({len(unknown)} such)")
    classes = found if classes is None else classes
    kept = index / f"index-{key(os.path.realpath(root)):016x}.npz" if index is not None else None
    listed = listing_of(root, found, kept)
    empty = np.flatnonzero(listed.counts == 0)
    if len(empty):
        raise Refused(f"{os.path.join(root, found[empty[0]])} has no image ({', '.join(ENDINGS)}): add some or remove it")
    places = {name: place for place, name in enumerate(classes)}
    labels = np.repeat(np.array([places[name] for name in found], np.int64), listed.counts)
    return FileImages(listed.names, labels, list(classes), root, within=within)


def listing_of(root: str, classes: list[str], kept: Path | None) -> listing.Listing:
    """Return the images of these class folders, scanning only those that the kept listing does not know as they are."""
    before = listing.read(kept, root) if kept is not None else None
    known = {}
    if before is not None:
        same = listing.unchanged(root, before[1])
        if before[0] == classes and same.all():
            return before[1]
        known = {name: (place, part) for place, (name, part) in enumerate(zip(before[0], listing.parts(before[1]), strict=True))
                 if same[place]}  # fmt: skip
    blobs, lengths, counts = [], [], []
    folders: list[str] = []
    stamps: list[int] = []
    owners: list[int] = []
    for number, name in enumerate(classes):
        if name in known and before is not None:
            place, part = known[name]
            own = before[1].names
            blobs.append(own.slice(part))
            lengths.append(np.diff(own.ends[part.start : part.stop], prepend=own.ends[part.start - 1] if part.start else 0))
            mine = np.flatnonzero(before[1].owners == place).tolist()
            scanned = [(before[1].folders[folder], int(before[1].stamps[folder])) for folder in mine]
        else:
            scanned = []
            names = Names(sorted(image_files(os.path.join(root, name), name, seen=scanned)))
            blobs.append(names.blob)
            lengths.append(np.diff(names.ends, prepend=0))
        counts.append(len(lengths[-1]))
        folders += [folder for folder, _ in scanned]
        stamps += [when for _, when in scanned]
        owners += [number] * len(scanned)
    ends = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    every = Names.of(np.concatenate(blobs), ends)
    result = listing.Listing(every, np.array(counts), folders, np.array(stamps, np.int64), np.array(owners, np.int64))
    if kept is not None:
        listing.write(kept, root, classes, result)
    return result


def _refuse_twins(names: list[str], root: str) -> None:
    """Raise Refused for classes whose names differ in case only: one folder on some disks, two on others."""
    seen: dict[str, str] = {}
    for name in names:
        if name.casefold() in seen:
            raise Refused(f"{root} has classes '{seen[name.casefold()]}' and '{name}', which differ in case only: rename one")
        seen[name.casefold()] = name


def class_folders(root: str) -> list[str]:
    """Return the sorted names of the class folders directly below `root`."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry) and not left_out(entry.name))


def image_files(
    path: str, relative: str, above: tuple[str, ...] = (), seen: list[tuple[str, int]] | None = None
) -> Iterator[str]:
    """Yield the images below `path`, as paths that begin with `relative`, in no order. Raises Refused for a loop.

    seen: gets every folder that is scanned, as it is called in the paths, with its mtime.
    """
    real = os.path.realpath(path)
    if real in above:
        raise Refused(f"{path} is a link to a folder above it: remove it")
    if seen is not None:
        seen.append((relative, listing.stamp(path)))
    with os.scandir(path) as entries:
        for entry in entries:
            if left_out(entry.name):
                continue
            name = f"{relative}/{entry.name}"
            if _is_folder(entry):
                yield from image_files(entry.path, name, (*above, real), seen)
            elif entry.name.lower().endswith(ENDINGS):
                yield name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it says so
        return False


def left_out(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
