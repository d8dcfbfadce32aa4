"""Which images of a source are asked for, and what their labels are: parts by the words of names,
classes by their numbers or names.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from base.errors import Refused
from base.text import listed, printable
from datasets.containers import Contents, Shelf, Texts, contents_of, kept_index
from datasets.images import FileImages, Limits, Names, Packed, composed, relabelled
from datasets.listing import told
from datasets.remote import Cache
from datasets.split import side_of

# Classes that are only numbers: a larger one is no class.
MAX_NUMBER = 100_000
TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
# Words in the name of a folder or container that say which images it holds -> the part.
WORDS = {word: words[0] for words in (TRAIN, VAL, TEST) for word in words}
# Part that is asked for -> those that it can be, the first that is there.
PARTS = {"train": ("train",), "test": ("val", "test"), "other": ("test",)}


@dataclass(frozen=True)
class Wanted:
    """What is asked of a source of image files.

    part: "train", "test" (val before test), "other" (test), or "all": as "test", or all images
    where there are no parts; classes: those of training, whose numbers a test part takes;
    val_share, seed, split_file: of `datasets.split`, where there is no test part; index: a folder
    that keeps what was found; limits: of images; labels: the file of a table; columns: what a user
    calls image, label, split and name; skip: what is wrong with one image leaves it out, instead
    of refusing all; labelled: labels are needed at all; cache: where copies of remote files lie.
    """

    part: str
    classes: list[str] | None = None
    val_share: float | None = None
    seed: int = 0
    split_file: Path | None = None
    index: Path | None = None
    limits: Limits | None = None
    labels: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    skip: bool = False
    labelled: bool = True
    cache: Cache | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of container. scan: from a path to what it holds; make: from a shelf and all places,
    (N, P), to what reads them.
    """

    name: str
    scan: Callable[[str], Contents]
    make: Callable[[Shelf, np.ndarray], Packed]


class NoPart(Refused):
    """The part of the images that is asked for is not there."""


def word_of(name: str, where: str) -> str:
    """Return the part that a name says: "train", "val", "test", or "" where it says none.

    Raises Refused for a name that says two.
    """
    words = re.split(r"[^a-z]+", name.lower())
    found = list(dict.fromkeys(WORDS[word] for word in words if word in WORDS))
    if len(found) > 1:
        raise Refused(f"{where}: {name} is called {' and '.join(found)}: rename it")
    return found[0] if found else ""


def choose_part(found: Sequence[str], part: str, where: str) -> str:
    """Return which of the parts that are there is the one that is asked for, "" for all images
    where there are no parts.

    Raises Refused where there is none.
    """
    if part == "all" and not any(found):
        return ""
    for name in PARTS["test" if part == "all" else part]:
        if name in found:
            return name
    there = listed([name or "images of no part" for name in dict.fromkeys(found)]) or "nothing"
    wanted = " or ".join(PARTS["test" if part == "all" else part])
    limit = "no split" if any(name in found for name in ("train", "")) else ""
    raise NoPart(f"{where} has no images to {_told(part)} ({wanted}), it has {there}", limit=limit)


def _told(part: str) -> str:
    return "train on" if part == "train" else "test on"


def open_part(
    where: str, paths: Sequence[str], kind: Kind, wanted: Wanted, names: Sequence[str] | None
) -> FileImages:
    """Open one part of the images in these containers, of which each holds one part's.

    where: what messages call them all; names: of the classes by number, where they are told apart
    from the images. Raises Refused.
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(word_of(os.path.relpath(path, where), where), []).append(path)
    part = wanted.part
    if wanted.val_share is None:
        chosen = choose_part(list(groups), part, where)
    else:
        tested = next((name for name in PARTS["test"] if name in groups), None)
        if tested:
            raise Refused(f"{where} has a split of its own, {tested}", limit="own split")
        chosen = "train" if "train" in groups else ""

    _refuse_several(where, groups[chosen])
    kept = kept_index(wanted.index, where, f"{kind.name}-{chosen or 'all'}")
    how = json.dumps(sorted(wanted.columns.items()))
    found = contents_of(groups[chosen], kind.scan, kept, how)
    shelf = Shelf(where, groups[chosen], found)
    images = images_on(shelf, kind.make, wanted, names)
    if wanted.val_share is not None:
        images.limits = wanted.limits or images.limits
        images = side_of(images, part, wanted.val_share, wanted.seed, wanted.split_file)
    return images


def unlabelled(path: str, kind: Kind) -> FileImages:
    """Return all images of one container, whatever its name and their labels. Raises Refused."""
    shelf = Shelf(path, [path], [kind.scan(path)])
    images = images_on(shelf, kind.make, Wanted("all", labelled=False), None)
    return dataclasses.replace(images, labels=np.zeros(len(images), np.int64), classes=[""])


def _refuse_several(where: str, paths: Sequence[str]) -> None:
    """Raise Refused where one part lies in two folders, as two configurations of a data set do."""
    folders = sorted({os.path.dirname(path) for path in paths})
    if len(folders) > 1 and os.path.isdir(where):
        names = [f"{os.path.relpath(folder, where)}/" for folder in folders]
        both = f"the same images may lie in {listed(names)}"
        raise Refused(f"{where}: {both}: name one of these folders")


def images_on(
    shelf: Shelf,
    make: Callable[[Shelf, np.ndarray], Packed],
    wanted: Wanted,
    names: Sequence[str] | None,
) -> FileImages:
    """Return the images of containers, with labels by number. Raises Refused."""
    every = shelf.contents
    labels, own = _labels(shelf, names)
    left_out: Counter[str] = sum((held.left_out for held in every), Counter())
    where = shelf.where
    if not sum(len(held.names) for held in every):
        raise Refused(f"{where} has no image{told(left_out)}")
    # Each name is preceded by its container's, relative to where all of them lie.
    folder = where if os.path.isdir(where) else os.path.dirname(where)
    names_in = [
        held.names.below(os.path.relpath(path, folder))
        for path, held in zip(shelf.paths, every, strict=True)
    ]
    full = Names.joined(names_in)
    packed = make(shelf, np.concatenate([held.places for held in every]))
    images = FileImages(full, labels, own, folder, left_out=left_out, packed=packed)
    images.rows = np.arange(len(full))
    lacking = np.flatnonzero(labels < 0)
    if len(lacking) and wanted.labelled:
        first = f"{printable(full[lacking[0]])} has no label"
        if not wanted.skip or len(lacking) == len(full):
            more = f" ({len(lacking)} of {len(full)} have none)" if len(lacking) > 1 else ""
            raise Refused(f"{where}: {first}{more}", limit="labels")
        left_out["without a label"] += len(lacking)
        images = images.chosen(np.flatnonzero(labels >= 0))
    if wanted.classes is None:
        return images
    result = relabelled(images, wanted.classes)
    assert isinstance(result, FileImages)
    return result


def _labels(shelf: Shelf, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """Return each image's class by number, (N,) int64 with -1 for none, and the classes' names."""
    together = Texts(shelf.where)
    parts = []
    for held in shelf.contents:
        pairs = zip(held.texts, held.titles, strict=True)
        own = np.array([together.number(text, title) for text, title in pairs] + [-1], np.int64)
        parts.append(own[held.labels])
    codes = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    texts = list(together.numbers)
    named = any(held.named for held in shelf.contents)
    numbers, found = class_numbers(texts, names, shelf, named=named)
    # Numbers have titles beside them in some containers.
    if names is None and any(together.titles):
        for number, title in zip(numbers, together.titles, strict=True):
            found[number] = title or found[number]
    return np.array([*numbers, -1], np.int64)[codes], distinct(found)


def class_numbers(
    texts: Sequence[str], names: Sequence[str] | None, shelf: Shelf, *, named: bool = False
) -> tuple[list[int], list[str]]:
    """Return the class of each label by number, and the names of all classes.

    Labels that are all numbers are the classes' numbers from 0 on, others are their names, which
    are sorted. names: of the classes in their order, where they are told.

    Raises Refused for a number without a name, or one too large.
    """
    if names is not None:
        known = {composed(name): number for number, name in enumerate(names)}
    if not named and all(re.fullmatch(r"\d{1,18}", text) for text in texts):
        numbers = [int(text) for text in texts]
        highest = max(numbers, default=-1)
        wrong = f"{_holder(shelf, texts[numbers.index(highest)])}: label {highest}" if texts else ""
        if names is not None and highest >= len(names):
            raise Refused(f"{wrong} has no name among {len(names)} class names")
        if highest > MAX_NUMBER:
            raise Refused(f"{wrong} is no number of a class")
        return numbers, list(names or map(str, range(highest + 1)))
    if names is None:
        ordered = sorted({composed(text) for text in texts})
        known = {name: number for number, name in enumerate(ordered)}
        return [known[composed(text)] for text in texts], ordered
    unknown = [text for text in texts if composed(text) not in known]
    if unknown:
        wrong = f"{_holder(shelf, unknown[0])}: label '{unknown[0]}'"
        raise Refused(f"{wrong} is none of its {len(names)} class names")
    return [known[composed(text)] for text in texts], list(names)


def _holder(shelf: Shelf, text: str) -> str:
    """Return the container in which a label stands."""
    pairs = zip(shelf.paths, shelf.contents, strict=True)
    return next(path for path, held in pairs if text in held.texts)


def distinct(names: Sequence[str]) -> list[str]:
    """Return class names of which no two are the same: ImageNet has two cranes."""
    counts = Counter(map(composed, names))
    return [
        f"{name} ({number})" if counts[composed(name)] > 1 else name
        for number, name in enumerate(names)
    ]
