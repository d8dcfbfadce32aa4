"""A folder of images: data_dir/train/<class>/* and data_dir/val/<class>/* (or test/), also within a
.zip file; and ImageNet in that form.

The rules stand in docs/datasets.md, "A folder of your own". In short: a class is a folder directly
below a part, its name in Unicode's composed form; its images are all files below it that have an
image's ending; what is left out is counted.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from base.errors import Refused
from base.files import absent
from base.randomness import key
from datasets import listing, zipped
from datasets.images import FileImages, Limits, composed, refuse_unknown
from datasets.parts import TEST, TRAIN, VAL, WORDS, NoPart
from datasets.split import side_of
from datasets.zipped import Zip, zip_of

# Of a folder, on the disk or in a .zip file.
Entry = os.DirEntry[str] | zipped.Entry

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png"),
    *(".webp", ".bmp", ".gif", ".tif", ".tiff"),
)
# What systems and tools put beside photographs. Hidden folders are left out too.
SYSTEMS = {"@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"}
# Part -> names of its folder, in lower case, in the order in which they are looked for. other: what
# is not tested on where there are both.
PARTS = {"train": (TRAIN,), "test": (VAL, TEST), "other": (TEST,)}
PART_NAMES = set(WORDS)
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
    limits: Limits | None = None,
) -> FileImages:
    """Open one part of a folder.

    part: "train", "test", "other" (test/ where val/ is tested on), or "all": the class folders of
    data_dir itself where it has no parts, else as "test".

    classes: those of the training part, whose numbers a test part then takes. val_share: the share
    of the training images that is tested on (`datasets.split`), where there is no test part; seed
    and split_file belong to it. index: a folder that keeps listings. Raises Refused where the
    folder, a class or its images are missing.
    """
    if data_dir is None:
        needed = "a folder with train/<class>/* and val/<class>/* is needed"
        raise Refused(needed, limit="data_dir")
    if not zipped.is_folder(data_dir):
        raise Refused(_no_folder(data_dir))
    if zip_of(data_dir) is None:
        _refuse_containers(data_dir)
    # Two folders for one part are refused whichever part is asked for.
    for other in PARTS:
        find_part(data_dir, other)
    if val_share is not None:
        return _side_of(data_dir, part, val_share, seed, split_file, index, classes, limits)

    root = find_part(data_dir, "test" if part == "all" else part)
    if root is None and part == "all" and find_part(data_dir, "train") is None:
        root = unwrapped(data_dir)
    if root is None:
        raise _no_part(data_dir, part)
    return list_images(root, classes, index, within=data_dir)


def _no_folder(data_dir: str) -> str:
    """Return what is said of a data_dir that is no folder."""
    if not os.path.lexists(data_dir):
        return absent(data_dir, "folder ")
    return f"{data_dir} is neither a folder nor a .zip file of class folders"


def _refuse_containers(data_dir: str) -> None:
    """Raise Refused for a folder whose images lie in files of another data set's kind."""
    with os.scandir(data_dir) as entries:
        endings = {os.path.splitext(e.name)[1].lower() for e in entries if not e.is_dir()}
    if folders_in(data_dir):
        return
    found = f"{data_dir} has no class folders"
    if ".tar" in endings:
        raise Refused(f"{found}, it has .tar files", limit="shards")
    if ".parquet" in endings:
        raise Refused(f"{found}, it has .parquet files", limit="parquet")


def _no_part(data_dir: str, part: str) -> Refused:
    """Return the error for a part that is not there."""
    if part == "all":
        part = "test"
    names = " or ".join(f"{name[0]}/" for name in PARTS[part])
    found = f"{data_dir} has no folder {names} with class folders"
    root = unwrapped(data_dir)
    flat = [
        f"{name}/"
        for name in folders_in(root)
        if name.lower() in PART_NAMES and not is_part(os.path.join(root, name))
    ]
    if flat:
        found += f" (in {', '.join(flat)} images lie side by side)"
    wanted = f"put images in {data_dir}/{PARTS[part][0][0]}/<class>/"
    return NoPart(f"{found}: {wanted}", limit="" if part == "other" else "no split")


def _side_of(
    data_dir: str,
    part: str,
    share: float,
    seed: int,
    split_file: Path | None,
    index: Path | None,
    classes: list[str] | None,
    limits: Limits | None,
) -> FileImages:
    """Open one side of a split of train/, or of the class folders in data_dir."""
    tested = find_part(data_dir, "test")
    if tested:
        message = f"{data_dir} has a split of its own, {os.path.basename(tested)}/"
        raise Refused(message, limit="own split")

    root = find_part(data_dir, "train") or unwrapped(data_dir)
    # The classes of both sides: one may lack some.
    images = list_images(root, classes, index, within=data_dir)
    images.limits = limits or images.limits
    return side_of(images, part, share, seed, split_file)


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
        root = find_part(place, "test" if part == "all" else part)
        if root is not None:
            return list_images(root, classes, index, within=place)
    if part == "all" and data_dir and class_folders_of(data_dir):
        return open_folder(data_dir, part, classes=classes, index=index)

    names = PARTS["test" if part == "all" else part][0][0]
    looked = " and ".join(f"{place}/{names}" for place in places)
    wanted = "put its images in DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG"
    raise Refused(f"no ImageNet found, looked in {looked}: {wanted}", limit="no ImageNet")


def class_folders_of(data_dir: str) -> bool:
    """True for a folder of class folders, which has no parts."""
    root = unwrapped(data_dir)
    has_parts = any(find_part(data_dir, part) for part in ("train", "test"))
    return zipped.is_folder(root) and not has_parts and bool(folders_in(root))


def find_part(data_dir: str, part: str) -> str | None:
    """Return the folder of one part, None where there is none. Raises Refused for two."""
    root = unwrapped(data_dir)
    if not zipped.is_folder(root):
        return None
    folders = folders_in(root)
    for names in PARTS[part]:
        found = [
            name for name in folders if name.lower() in names and is_part(os.path.join(root, name))
        ]
        if len(found) > 1:
            both = " and ".join(f"{name}/" for name in found)
            raise Refused(f"{root} has {both} for the same images: move one of them away")
        if found:
            return _innermost(os.path.join(root, found[0]), names)
    return None


def _innermost(path: str, names: tuple[str, ...]) -> str:
    """Pass through a part that holds nothing but a part of the same name."""
    inner = folders_in(path)
    while len(inner) == 1 and inner[0].lower() in names and is_part(os.path.join(path, inner[0])):
        path = os.path.join(path, inner[0])
        inner = folders_in(path)
    return path


def is_part(path: str) -> bool:
    """True for a folder with class folders; one with images and none below is a class itself."""
    inner = folders_in(path)
    if not inner or not _holds_images(path):
        return bool(inner)
    return any(has_images(os.path.join(path, name)) for name in inner)


def unwrapped(data_dir: str) -> str:
    """Return the folder in which parts or classes lie: one folder around everything is passed
    through.
    """
    seen = set()
    while zipped.is_folder(data_dir) and os.path.realpath(data_dir) not in seen:
        seen.add(os.path.realpath(data_dir))
        folders = folders_in(data_dir)
        if len(folders) != 1 or _holds_images(data_dir):
            break
        inner = os.path.join(data_dir, folders[0])
        if not _holds_parts(inner):
            is_alone = folders[0].lower() in PART_NAMES and is_part(inner)
            # A part alone, or a class alone.
            if is_alone or not folders_in(inner) or _holds_images(inner):
                break
        data_dir = inner
    return data_dir


def _holds_parts(path: str) -> bool:
    """True where a part lies directly in `path`."""
    return any(
        name.lower() in PART_NAMES and is_part(os.path.join(path, name))
        for name in folders_in(path)
    )


def left_alone(data_dir: str, tested: str = "test") -> list[str]:
    """Return the folders beside the parts in use that hold images, which nobody reads.

    tested: the part that is tested on.
    """
    root = unwrapped(data_dir)
    used = [find_part(data_dir, part) for part in ("train", tested)]
    if not any(used):
        return []
    taken = [os.path.realpath(path) for path in used if path]
    others = [os.path.join(root, name) for name in folders_in(root)]
    return [
        os.path.basename(path)
        for path in others
        if not any(f"{part}/".startswith(f"{os.path.realpath(path)}/") for part in taken)
        and _seems_to_have_images(path)
    ]


def _seems_to_have_images(path: str) -> bool:
    """As has_images, of a folder that nobody reads: one that cannot be read has none."""
    try:
        return has_images(path)
    except (OSError, Refused):
        return False


def list_images(
    root: str,
    classes: list[str] | None,
    index: Path | None = None,
    within: str = "",
) -> FileImages:
    """List the images of all class folders below `root`.

    classes: names whose numbers the labels are, of which some may have no image here; index: a
    folder that keeps listings; within: of FileImages.

    Raises Refused.
    """
    left_out: Counter[str] = Counter()
    found = class_folders(root, left_out)
    _refuse_classes(list(found), classes, root)
    kept = None
    archive = zip_of(root)
    if index is not None and archive is None:
        kept = index / f"index-{key(os.path.realpath(root)):016x}.npz"

    def scan(folders: str, record: listing.Scan) -> list[str]:
        return sorted(
            name
            for folder in folders.split("/")
            for name in image_files(os.path.join(root, folder), folder, scan=record)
        )

    # One class may have two folders, called the same in two of Unicode's forms.
    joined = ["/".join(folders) for folders in found.values()]
    listed = listing.list_classes(root, joined, scan, kept)
    for counts in listed.left_out:
        left_out.update(counts)

    if classes is None:
        _refuse_empty(root, joined, listed)

    every = list(found) if classes is None else list(classes)
    numbers = {composed(name): label for label, name in enumerate(every)}
    own = np.array([numbers[name] for name in found], np.int64)
    labels = np.repeat(own, listed.counts)
    images = FileImages(listed.names, labels, every, root, within=within, left_out=left_out)
    if archive is not None:
        images.packed = Zip(archive[0])
        images.rows = images.packed.rows_of(archive[1], listed.names)
    if kept is not None and images.facts.missing and listed.was_kept:
        # Files were removed although their folder seems unchanged: it is listed anew.
        kept.unlink(missing_ok=True)
        return list_images(root, classes, index, within)
    return images


def _refuse_empty(root: str, folders: list[str], listed: listing.Listing) -> None:
    """Raise Refused for a class without an image."""
    empty = np.flatnonzero(listed.counts == 0)
    if len(empty):
        name = os.path.join(root, folders[empty[0]])
        inside = listing.told(listed.left_out[empty[0]])
        raise Refused(f"{name} has no image ({', '.join(ENDINGS)}){inside}: add some or remove it")


def _refuse_classes(found: list[str], classes: list[str] | None, root: str) -> None:
    """Raise Refused for class folders that cannot be trained on, or that training lacks."""
    if not found:
        raise Refused(f"{root} has no class folders: put images in {root}/<class>/")
    if classes is None:
        _refuse_few(found, root)

    # One folder on some disks, two on others.
    twins: dict[str, list[str]] = {}
    for name in found:
        twins.setdefault(name.casefold(), []).append(name)
    same = [f"'{name}'" for names in twins.values() if len(names) > 1 for name in names]
    if same:
        names = ", ".join(same)
        raise Refused(f"{root} has classes {names}, which differ in case only: rename them")

    refuse_unknown(found, classes or found, root)


def _refuse_few(found: list[str], root: str) -> None:
    if len(found) < 2:
        raise Refused(f"{root} has one class only, '{found[0]}': a classifier needs at least 2")
    # In a part they are classes; side by side they are parts whose images nobody has sorted.
    is_inside = os.path.basename(root).lower() in PART_NAMES
    if not is_inside and all(name.lower() in PART_NAMES for name in found):
        names = " and ".join(f"{name}/" for name in found)
        raise Refused(f"{root} has images side by side in {names}: put them in <class>/ folders")


def class_folders(root: str, left_out: Counter[str] | None = None) -> dict[str, list[str]]:
    """Return the classes below `root`, sorted, each with the names of its folders.

    left_out: gets what lies beside them.
    """
    classes: dict[str, list[str]] = {}
    for name in folders_in(root, left_out):
        classes.setdefault(composed(name), []).append(name)
    return dict(sorted(classes.items()))


def folders_in(root: str, left_out: Counter[str] | None = None) -> list[str]:
    """Return the sorted names of the folders directly below `root` that are anyone's own.

    left_out: gets what else is there.
    """
    left_out = Counter() if left_out is None else left_out
    names = []
    with _scan(root) as entries:
        for entry in entries:
            is_folder = _is_folder(entry)
            if is_folder and not is_system(entry.name):
                names.append(entry.name)
            else:
                kind = kind_left_out(entry.name, is_folder)
                left_out[kind or "beside the classes"] += 1
    return sorted(names)


def image_files(
    path: str,
    relative: str,
    above: tuple[str, ...] = (),
    scan: listing.Scan | None = None,
) -> Iterator[str]:
    """Yield the images below `path`, as paths that begin with `relative`, in no order.

    Raises Refused for a loop.

    scan: gets every folder that is scanned, as it is called in the paths, and what is left out.
    """
    # Only a folder above itself is a loop; two links to one folder are not.
    real = os.path.realpath(path)
    if real in above:
        raise Refused(f"{path} is a link to a folder above it: remove it")
    if scan is not None:
        scan.folders.append((relative, listing.stamp(path)))
    with _scan(path) as entries:
        for entry in entries:
            name = entry.name
            is_folder = _is_folder(entry)
            # The usual case first: there may be millions.
            if not is_folder and name.lower().endswith(ENDINGS) and name[0] != ".":
                yield f"{relative}/{name}"
            elif kind := kind_left_out(name, is_folder):
                if scan is not None:
                    scan.left_out[kind] += 1
            else:
                yield from image_files(entry.path, f"{relative}/{name}", (*above, real), scan)


def has_images(path: str) -> bool:
    """True where an image lies below `path`, however deep."""
    return next(image_files(path, "."), None) is not None


def _holds_images(path: str) -> bool:
    """True where an image lies directly in `path`."""
    with _scan(path) as entries:
        return any(not _is_folder(e) and not kind_left_out(e.name, False) for e in entries)


def kind_left_out(name: str, is_folder: bool) -> str:
    """Return what a file or folder of this name is counted as if left out, "" where it is not."""
    if is_folder:
        return f"{name}/" if is_system(name) else ""
    if name.startswith("."):
        return "hidden"
    ending = os.path.splitext(name)[1].lower()
    return "" if ending in ENDINGS else ending or "without ending"


def is_system(name: str) -> bool:
    """True for a folder that is hidden, or a system's own."""
    return name.startswith(".") or name in SYSTEMS


def _scan(path: str) -> AbstractContextManager[Iterator[Entry]]:
    """As os.scandir, also of a folder within a .zip file."""
    try:
        return os.scandir(path)
    except NotADirectoryError:
        return zipped.scan(path)


def _is_folder(entry: Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it says so
        return False
