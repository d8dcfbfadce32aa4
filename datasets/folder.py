"""A folder of images: data_dir/train/<class>/* and data_dir/val/<class>/* (or test/), and ImageNet
in that form.

The rule: a class is a folder directly below train or val, classes are sorted by name. Its images
are all files below it, however deep, that end in .jpg, .jpeg, .png, .webp or .bmp in any case.
Hidden files and folders (a leading dot) and __MACOSX are left out.
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
IMAGENET_PLACES = ("./data/ilsvrc2012", "~/.cache/multi-gpu-torch/ilsvrc2012")


def open_folder(
    data_dir: str | None,
    part: str,
    *,
    classes: list[str] | None = None,
    val_share: float | None = None,
    seed: int = 0,
    split_file: Path | None = None,
    index: Path | None = None,
) -> FileImages:
    """Open one part of a folder.

    classes: those of the training part, whose numbers a test part then takes.

    val_share: data_dir holds the class folders themselves, of which this share is tested on
    (`datasets.split`); seed and split_file belong to it. index: a folder that keeps listings.
    Raises Refused where the folder, a class or its images are missing.
    """
    if data_dir is None:
        needed = "a folder with train/<class>/* and val/<class>/* is needed"
        raise Refused(needed, limit="data_dir")
    if not Path(data_dir).is_dir():
        raise Refused(f"there is no folder {data_dir}")
    if val_share is not None:
        return _side_of(data_dir, part, val_share, seed, split_file)

    root = find_part(data_dir, part)
    if root is None:
        names = " or ".join(f"{name}/" for name in PARTS[part])
        wanted = f"put images in {data_dir}/{PARTS[part][0]}/<class>/"
        limit = "no split" if part == "train" else ""
        raise Refused(f"{data_dir} has no folder {names}: {wanted}", limit=limit)

    # Images beside train/ would be left out without a word.
    for name in class_folders(data_dir):
        if name in SETS or next(image_files(os.path.join(data_dir, name), name), None) is None:
            continue
        both = f"both {os.path.basename(root)}/ and images in {name}/"
        raise Refused(f"{data_dir} holds {both}: move one of them away")

    return list_images(root, classes, index, within=data_dir)


def _side_of(
    data_dir: str, part: str, share: float, seed: int, split_file: Path | None
) -> FileImages:
    """Open one side of a split of the class folders in data_dir."""
    if find_part(data_dir, "train") or find_part(data_dir, "test"):
        message = f"{data_dir} has a split of its own, train/ and val/"
        raise Refused(message, limit="own split")

    images = list_images(data_dir, None)
    names = list(images.names)
    test = split(names, images.labels, share, seed, split_file)
    chosen = np.flatnonzero(test if part == "test" else ~test)
    own = Names([names[index] for index in chosen])
    return FileImages(own, images.labels[chosen], images.classes, data_dir)


def ilsvrc2012(
    data_dir: str | None,
    part: str,
    *,
    classes: list[str] | None = None,
    index: Path | None = None,
    **_: object,
) -> FileImages:
    """Open ImageNet as a folder. Raises Refused, with the ways to get it, where there is none."""
    places = [data_dir] if data_dir else [os.path.expanduser(p) for p in IMAGENET_PLACES]
    for place in places:
        root = find_part(place, part)
        if root is not None:
            return list_images(root, classes, index, within=place)

    looked = " and ".join(f"{place}/{PARTS[part][0]}" for place in places)
    wanted = "put its images in DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG"
    raise Refused(f"no ImageNet found, looked in {looked}: {wanted}", limit="no ImageNet")


def find_part(data_dir: str, part: str) -> str | None:
    """Return the folder of one part, None where there is none."""
    for name in PARTS[part]:
        if Path(data_dir, name).is_dir():
            return os.path.join(data_dir, name)
    return None


def list_images(
    root: str, classes: list[str] | None, index: Path | None = None, within: str = ""
) -> FileImages:
    """List the images of all class folders below `root`.

    index: a folder that keeps listings; within: of FileImages.

    Raises Refused.
    """
    found = class_folders(root)
    _refuse_classes(found, classes, root)
    kept = None
    if index is not None:
        kept = index / f"index-{key(os.path.realpath(root)):016x}.npz"

    def scan(name: str, scanned: listing.Scanned) -> list[str]:
        return sorted(image_files(os.path.join(root, name), name, scanned=scanned))

    listed = listing.list_classes(root, found, scan, kept)
    empty = np.flatnonzero(listed.counts == 0)
    if len(empty):
        name = os.path.join(root, found[empty[0]])
        raise Refused(f"{name} has no image ({', '.join(ENDINGS)}): add some or remove it")

    classes = found if classes is None else list(classes)
    numbers = {name: label for label, name in enumerate(classes)}
    labels = np.repeat(np.array([numbers[name] for name in found], np.int64), listed.counts)
    return FileImages(listed.names, labels, classes, root, within=within)


def _refuse_classes(found: list[str], classes: list[str] | None, root: str) -> None:
    """Raise Refused for class folders that cannot be trained on, or that training lacks."""
    if not found:
        raise Refused(f"{root} has no class folders: put images in {root}/<class>/")
    if len(found) < 2 and classes is None:
        raise Refused(f"{root} has one class only, '{found[0]}': a classifier needs at least 2")

    # One folder on some disks, two on others.
    seen: dict[str, str] = {}
    for name in found:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            pair = f"'{other}' and '{name}'"
            raise Refused(f"{root} has classes {pair}, which differ in case only: rename one")

    unknown = sorted(set(found) - set(classes)) if classes is not None else []
    if unknown:
        more = f"'{unknown[0]}' ({len(unknown)} such)"
        raise Refused(f"{root} has a class that training lacks: {more}")


def class_folders(root: str) -> list[str]:
    """Return the sorted names of the class folders directly below `root`."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if _is_folder(e) and not left_out(e.name))


def image_files(
    path: str,
    relative: str,
    above: tuple[str, ...] = (),
    scanned: listing.Scanned | None = None,
) -> Iterator[str]:
    """Yield the images below `path`, as paths that begin with `relative`, in no order.

    Raises Refused for a loop.

    scanned: gets every folder that is scanned, as it is called in the paths, with its mtime.
    """
    # Only a folder above itself is a loop; two links to one folder are not.
    real = os.path.realpath(path)
    if real in above:
        raise Refused(f"{path} is a link to a folder above it: remove it")
    if scanned is not None:
        scanned.append((relative, listing.stamp(path)))
    with os.scandir(path) as entries:
        for entry in entries:
            if left_out(entry.name):
                continue
            name = f"{relative}/{entry.name}"
            if _is_folder(entry):
                yield from image_files(entry.path, name, (*above, real), scanned)
            elif entry.name.lower().endswith(ENDINGS):
                yield name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it says so
        return False


def left_out(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
