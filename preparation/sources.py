"""Images of any kind for `prepare.py`: what a folder, table or archive holds, part by part."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

from base.arguments import is_address
from base.errors import Refused
from base.files import absent
from datasets import DATASETS, folder
from datasets.braces import expand
from datasets.images import FileImages, Limits, Names
from datasets.parts import NoPart
from datasets.remote import Cache, holds
from datasets.shards import files_below
from datasets.zipped import zip_of

# What an opener calls a part -> what the user does.
PARTS = {"train": "train", "test": "val", "other": "test", "all": "images"}
LIMITS = Limits()


class Piece(NamedTuple):
    """Some of the images, and what they are called where all are listed or copied."""

    images: FileImages
    names: Sequence[str]


@dataclass(frozen=True)
class Origin:
    """Where images are looked for.

    data_dir, labels, columns, cache: as of `datasets.parts.Wanted`; limits: of images.
    """

    data_dir: str | None
    labels: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = LIMITS
    cache: Cache | None = None

    # Folders are looked through for it, and addresses asked.
    @functools.cached_property
    def kind(self) -> str:
        """The data set's name for main.py. Raises Refused where there is nothing."""
        if self.labels is not None:
            return "table"
        where = self.data_dir or ""
        for ending, name in ((".tar", "shards"), (".parquet", "parquet")):
            if where.lower().endswith(ending):
                return name
        if is_address(where):
            return "shards" if holds(where, ".tar") or not holds(where, ".parquet") else "parquet"
        if not os.path.exists(where) and zip_of(where) is None:
            expand(where)
            raise Refused(absent(where))
        if os.path.isdir(where):
            return _kind_of_folder(where)
        if zip_of(where) is not None:
            return "folder"
        raise Refused(f"{where} is no folder and no .zip, .tar or .parquet file")

    @property
    def where(self) -> str:
        return self.labels or self.data_dir or "."

    def parts(self, *, labelled: bool = False) -> dict[str, FileImages]:
        """Return the images of each part that is there, by its opener's name; of all where there
        are no parts. Images without a label have -1. Raises Refused.
        """
        found: dict[str, FileImages] = {}
        classes: list[str] | None = None
        for part in ("train", "test", "other", "all"):
            if part == "all" and found:
                break
            try:
                images = self._open(part, classes, labelled=labelled)
            except NoPart:
                if part == "all":
                    raise
                continue
            # test/ is the other part only where val/ is there too.
            if part == "other" and "test" in found and _same(images, found["test"]):
                continue
            images.limits = self.limits
            found[part], classes = images, classes or images.classes
        return found

    def _open(self, part: str, classes: list[str] | None, *, labelled: bool) -> FileImages:
        module, function = DATASETS[self.kind].opener.split(":")
        opener = getattr(import_module(f"datasets.{module}"), function)
        settings: dict[str, Any] = {"classes": classes, "limits": self.limits}
        if self.kind != "folder":
            settings |= {"columns": self.columns, "labels": self.labels, "cache": self.cache}
            settings["labelled"] = labelled
        images = opener(self.data_dir, part, **settings)
        assert isinstance(images, FileImages)
        return images

    def pieces(self) -> list[Piece]:
        """Return the images of each part, for what needs no labels. Raises Refused."""
        if self.kind != "folder":
            return [Piece(images, images.names) for images in self.parts().values()]
        root = str(self.data_dir)
        found = [folder.find_part(root, part) for part in ("train", "test", "other")]
        # test/ is the other part only where val/ is there too.
        paths = list(dict.fromkeys(path for path in found if path)) or [folder.unwrapped(root)]
        pieces = []
        for path in paths:
            part = os.path.relpath(path, root)
            # No class is refused: what one may lack, or have too much, is not asked here.
            images = folder.list_images(path, list(folder.class_folders(path)))
            images.limits = self.limits
            images.within = root
            prefix = "" if part == "." else f"{part}/"
            pieces.append(Piece(images, Names([f"{prefix}{name}" for name in images.names])))
        return pieces


def _kind_of_folder(where: str) -> str:
    """Return what lies in a folder: class folders with images, or containers."""
    inner = [os.path.join(where, name) for name in folder.folders_in(where)]
    for ending, kind in ((".tar", "shards"), (".parquet", "parquet")):
        has_some = any(path.lower().endswith(ending) for path in files_below(where))
        if has_some and not any(folder.has_images(path) for path in inner):
            return kind
    return "folder"


def _same(some: FileImages, others: FileImages) -> bool:
    """True for one part that was opened twice."""
    ends = (0, -1)
    if len(some) != len(others) or some.where != others.where:
        return False
    return all(some.names[at % len(some)] == others.names[at % len(some)] for at in ends)


def run_with(parts: Mapping[str, FileImages]) -> str:
    """Return what main.py needs beside the images, where they are these parts."""
    if "train" not in parts and "all" not in parts:
        return " --test --retrain FILE"
    return "" if "test" in parts else " --valShare 0.1"


def items_of(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """Return the number of its piece, and of the image in it, of each image."""
    return [(at, index) for at, piece in enumerate(pieces) for index in range(len(piece.names))]


def names_by_class(images: FileImages) -> Iterator[tuple[str, str]]:
    """Yield a name for each image in a folder of its class, without its ending, and the ending;
    "" where there is none of an image's.

    Names have no dot but that before the ending, and each is another.
    """
    taken: dict[str, int] = {}
    for name, label in zip(images.names, images.labels.tolist(), strict=True):
        stem, ending = os.path.splitext(os.path.basename(name))
        if ending.lower() not in folder.ENDINGS:
            stem, ending = stem + ending, ""
        above = _as_folder(images.classes[label]) + "/" if label >= 0 else ""
        key = above + (stem.replace(".", "_") or "_")
        count = taken[key] = taken.get(key, 0) + 1
        while count > 1 and f"{key}-{count}" in taken:
            count += 1
        if count > 1:
            taken[key], key = count, f"{key}-{count}"
            taken[key] = 1
        yield key, ending.lower()


def _as_folder(name: str) -> str:
    """Return a class's name as that of a folder which is anyone's own."""
    name = name.replace("/", "_").replace("\0", "_").replace("\n", "_")
    return f"_{name}" if folder.is_system(name) or not name else name
