"""Training and test images of a folder that has no split of its own: keyed, stratified, and stable.

In each class the images with the smallest hash of their name are tested on. A split that was made
is kept in a file: an image in it stays on its side, and only new ones are dealt out, so that each
class keeps its share within one image.
"""

import csv
import os
from pathlib import Path

import numpy as np

from base.errors import Refused
from base.files import whole_file
from base.randomness import key

TRAIN, TEST = "train", "test"
MEND = "remove it, the split is then made anew"


def split(
    names: list[str], labels: np.ndarray, share: float, seed: int, kept: Path | None
) -> np.ndarray:
    """Return (N,) bool: True for the images to test on.

    names: relative paths, (N,); labels: (N,); share: of each class that is tested on, in (0, 1);
    kept: the CSV file of the split, read where it is there and written where anything is new.
    Raises Refused for a class with one image.
    """
    before = read(kept, share) if kept is not None else {}
    test = np.zeros(len(names), bool)

    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            least = "at least 2 are needed, one to test on"
            raise Refused(f"the class of {names[members[0]]} has 1 image: {least}")
        wanted = min(len(members) - 1, max(1, round(share * len(members))))
        old = [index for index in members if before.get(names[index]) == TEST]
        new = [index for index in members if names[index] not in before]
        new.sort(key=lambda index: key(seed, names[index]))
        test[[*old, *new[: max(0, wanted - len(old))]]] = True

    if kept is not None and any(name not in before for name in names):
        write(kept, names, test, share)
    return test


def read(path: Path, share: float) -> dict[str, str]:
    """Return each image's side, of a split with the same share; nothing where there is none."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        if rows[:1] != [["side", "image", f"share {share:g}"]]:
            return {}
        sides = {os.fsdecode(name.encode("latin1")): side for side, name in rows[1:]}
    except (UnicodeError, csv.Error, ValueError) as error:
        raise Refused(f"{path} is damaged ({error}): {MEND}") from None
    if not set(sides.values()) <= {TRAIN, TEST}:
        raise Refused(f"{path} is damaged (a side is neither {TRAIN} nor {TEST}): {MEND}")
    return sides


def write(path: Path, names: list[str], test: np.ndarray, share: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["side", "image", f"share {share:g}"])
        # A name's bytes as latin-1 round-trip whatever their encoding is.
        for name, side in zip(names, test, strict=True):
            writer.writerow([TEST if side else TRAIN, os.fsencode(name).decode("latin1")])
