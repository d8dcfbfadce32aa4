"""What is kept of a folder is used only where all of it fits together."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import listing
from datasets.images import Names
from datasets.listing import ClassListing, Listing, Scan

CLASSES = ["cat", "dog"]


def whole() -> Listing:
    """Two classes: three images in two folders, and one image in one."""
    names = [["cat/a.jpg", "cat/b.jpg", "cat/in/c.jpg"], ["dog/é.jpg"]]
    folders = [[("cat", (1, 2, 3, -1)), ("cat/in", (4, 5, 6, 2))], [("dog", (7, 8, 9, -1))]]
    parts = []
    for own, scanned in zip(names, folders, strict=True):
        held = Names(own)
        scan = Scan(list(scanned), Counter({".txt": len(own)}))  # type: ignore[arg-type]
        parts.append(ClassListing(held.blob, held.lengths(range(len(held))), scan))
    return listing._joined(parts)


def named(*names: str) -> Names:
    return Names(names)


CHANGES: dict[str, Any] = {
    "a count more": {"counts": np.array([3, 2])},
    "a negative count": {"counts": np.array([5, -1])},
    "counts with a point": {"counts": np.array([3.0, 1.0])},
    "a class more": {"counts": np.array([3, 1, 0])},
    "an owner beyond the classes": {"owners": np.array([0, 0, 2])},
    "an owner below them": {"owners": np.array([0, 0, -1])},
    "an owner less": {"owners": np.array([0, 0])},
    "stamps of three numbers": {"stamps": np.zeros((3, 3), np.int64)},
    "a stamp less": {"stamps": np.zeros((2, 4), np.int64)},
    "a folder more": {"folders": ["cat", "cat/in", "dog", "cow"]},
    "left-out files of one class": {"left_out": [Counter()]},
    "a name that leads out": {"names": named("cat/a.jpg", "../b.jpg", "cat/c.jpg", "dog/d.jpg")},
    "a name that ends above": {"names": named("cat/a.jpg", "cat/..", "cat/c.jpg", "dog/d.jpg")},
    "a name from the root": {"names": named("cat/a.jpg", "/b.jpg", "cat/c.jpg", "dog/d.jpg")},
    "a name with a zero": {"names": named("cat/a.jpg", "b\0.jpg", "cat/c.jpg", "dog/d.jpg")},
    "an empty name": {"names": named("cat/a.jpg", "", "cat/c.jpg", "dog/d.jpg")},
    "a byte more": {"names": Names.of(np.zeros(4, np.uint8) + 97, np.array([1, 2, 3, 3]))},
    "bytes of another kind": {"names": Names.of(np.zeros(4, np.int8) + 97, np.array([1, 2, 3, 4]))},
}


def test_a_class_without_images_makes_a_listing_no_less_whole() -> None:
    """It would be made anew at every start."""
    joined = replace(
        whole(),
        counts=np.array([3, 0, 1]),
        folders=["cat", "cat/in", "cow", "dog"],
        owners=np.array([0, 0, 1, 2]),
        stamps=np.ones((4, 4), np.int64),
        left_out=[Counter(), Counter(), Counter()],
    )
    assert listing._is_whole(["cat", "cow", "dog"], joined)


def test_a_whole_listing_is_taken_and_gives_each_class_its_own(tmp_path: Path) -> None:
    kept = whole()
    assert listing._is_whole(CLASSES, kept)
    # Two dots are no way out where they are part of a name.
    dots = named("cat/a..jpg", "cat/..b.jpg", "cat/in/c.jpg", "dog/d.jpg")
    assert listing._is_whole(CLASSES, replace(kept, names=dots))
    cat, dog = kept.of_class(0), kept.of_class(1)
    assert cat.blob.tobytes() == b"cat/a.jpgcat/b.jpgcat/in/c.jpg"
    assert (cat.lengths.tolist(), dog.lengths.tolist()) == ([9, 9, 12], [len("dog/é.jpg".encode())])
    assert [name for name, _ in cat.scanned.folders] == ["cat", "cat/in"]
    assert dog.scanned.folders == [("dog", (7, 8, 9, -1))]
    assert (cat.scanned.left_out, dog.scanned.left_out) == ({".txt": 3}, {".txt": 1})


@pytest.mark.parametrize("change", CHANGES)
def test_a_listing_that_does_not_fit_is_made_anew(change: str, tmp_path: Path) -> None:
    spoilt = replace(whole(), **CHANGES[change])
    assert not listing._is_whole(CLASSES, spoilt)


def test_a_part_of_the_names_is_its_own_bytes() -> None:
    names = named("a", "bb", "ccc")
    assert names.slice(range(1, 3)).tobytes() == b"bbccc"
    assert names.slice(range(1)).tobytes() == b"a"
    for empty in (range(0), range(2, 2), range(3, 3)):
        assert names.slice(empty).tobytes() == b""


def test_the_rarest_kinds_of_left_out_files_are_counted_together() -> None:
    kinds = {f".{letter}": 30 - place for place, letter in enumerate("abcdefghijklmn")}
    said = listing.told(kinds)
    assert said.startswith("; left out: 30 .a, 29 .b, ")
    assert said.endswith("19 .l, 35 of 2 other kinds")
    assert listing.told({".b": 1, ".a": 1, ".c": 2}) == "; left out: 2 .c, 1 .a, 1 .b"
