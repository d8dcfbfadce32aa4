"""Which classes of a data set are trained on: some of them, in an order, joined, renamed."""

import copy
import csv
import io
from collections import Counter

import numpy as np

from base.arguments import nearest
from base.errors import Refused
from base.files import read_text
from base.text import listed, printable
from datasets.images import FileImages, composed

# What the first column is called where a file has a heading.
HEADING = {"class", "name", "label", "from", "old", "was", "category"}


def chosen(images: FileImages, choice: str | None, relabel: str | None) -> FileImages:
    """Return the images of the classes that are asked for.

    choice: class names, `a,b,c` or the path of a file with a name a line, in the order of their
    numbers; relabel: a CSV file of two columns, a class and what it is called from now on, "" to
    leave it out. Several classes that are called the same become one. Raises Refused.
    """
    if choice is None and relabel is None:
        return images
    called = _called(images, relabel)
    there = list(dict.fromkeys(name for name in called.values() if name))
    # Renamed classes are sorted, as folders are.
    wanted = sorted(there) if choice is None else _names(choice)
    known = {composed(name) for name in there}
    unknown = [name for name in wanted if composed(name) not in known]
    if unknown:
        missing = f"has no class '{printable(unknown[0])}'{nearest(unknown[0], there)}"
        way = ""
        if any("," in name for name in there):
            way = ": names that hold a comma stand in a .txt file, a name a line"
        raise Refused(f"{images.where} {missing} (it has {listed(there)}){way}")
    numbers = {composed(name): number for number, name in enumerate(wanted)}
    if len(numbers) < len(wanted) or len(wanted) < 2:
        raise Refused(f"the classes to train on are not two or more names: {listed(wanted)}")
    own = np.array([numbers.get(composed(called[name]), -1) for name in images.classes], np.int64)
    labels = own[images.labels]
    kept = np.flatnonzero(labels >= 0)
    part = images.chosen(kept) if len(kept) < len(images) else copy.copy(images)
    part.labels, part.classes = labels[kept], wanted
    part.left_out = dict(images.left_out)
    if len(kept) < len(images):
        part.left_out["of other classes"] = len(images) - len(kept)
    return part


def _called(images: FileImages, relabel: str | None) -> dict[str, str]:
    """Return what each class is called from now on. Raises Refused."""
    called = {name: name for name in images.classes}
    if relabel is None:
        return called
    by_composed = {composed(name): name for name in images.classes}
    for number, (name, now) in enumerate(_rows(relabel), 1):
        own = by_composed.get(composed(name))
        if own is None and number == 1 and name.lower() in HEADING:
            continue
        if own is None:
            hint = nearest(name, images.classes)
            missing = f"row {number} names a class '{printable(name)}' that {images.where} lacks"
            raise Refused(f"{relabel}: {missing}{hint}")
        called[own] = composed(now)
    return called


def _rows(path: str) -> list[tuple[str, str]]:
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise Refused(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    rows = [row for row in rows if any(row)]
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 2), None)
    if wrong or not rows:
        raise Refused(f"{path}: row {wrong or 1} is not two columns, a class and its new name")
    names = [composed(name) for name, _ in rows]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise Refused(f"{path} names the class '{printable(twice[0])}' twice")
    return [(name.strip(), now.strip()) for name, now in rows]


def _names(choice: str) -> list[str]:
    """Return the names that are asked for: a file's lines, or parts between commas."""
    if choice.lower().endswith(".txt"):
        try:
            lines = read_text(choice).splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise Refused(f"cannot read {choice}: {reason}") from None
        return [composed(line.strip()) for line in lines if line.strip()]
    return [composed(name.strip()) for name in choice.split(",")]
