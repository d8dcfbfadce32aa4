"""What became of the images between two starts of a run, from facts that are known."""

import numpy as np
import pytest

from datasets.changes import Facts, _compare, fingerprints
from datasets.images import FileImages, Names

FIRST, SECOND = "train/a/1.jpg", "train/a/2.jpg"
WAS: dict[str, Facts] = {FIRST: ("train", "a", 10, 100), SECOND: ("train", "a", 11, 101)}


@pytest.mark.parametrize(
    ("path", "fact", "counts"),
    [
        (SECOND, ("train", "a", 11, 101), {}),
        (SECOND, ("train", "b", 11, 101), {"with another class": 1}),
        (SECOND, ("test", "a", 11, 101), {"on another side of the split": 1}),
        (SECOND, ("train", "a", 12, 101), {"with another size or time": 1}),
        (SECOND, ("train", "a", 11, 102), {"with another size or time": 1}),
        # Nothing is said of what was not looked at.
        (SECOND, ("train", "a", -1, -1), {}),
        # A moved file is known by its name, size and time.
        ("train/c/2.jpg", ("train", "a", 11, 101), {"renamed": 1}),
        ("train/b/2.jpg", ("train", "b", 11, 101), {"with another class": 1}),
        ("val/a/2.jpg", ("test", "a", 11, 101), {"on another side of the split": 1}),
        ("train/b/2.jpg", ("train", "b", 12, 101), {"images added": 1, "removed": 1}),
        ("train/b/2.jpg", ("train", "b", 11, 102), {"images added": 1, "removed": 1}),
        ("train/a/3.jpg", ("train", "a", 11, 101), {"images added": 1, "removed": 1}),
    ],
)
def test_what_became_of_an_image(path: str, fact: Facts, counts: dict[str, int]) -> None:
    found = _compare(WAS, {FIRST: WAS[FIRST], path: fact})
    assert {what: count for what, count in found.items() if count} == counts


def test_images_of_one_name_move_one_by_one() -> None:
    was: dict[str, Facts] = {f"{n}/x.jpg": ("train", "a", 5, 6) for n in range(3)}
    now: dict[str, Facts] = {f"{n}/x.jpg": ("train", "a", 5, 6) for n in range(10, 15)}
    found = _compare(was, now)
    assert {what: count for what, count in found.items() if count} == {
        "images added": 2,
        "renamed": 3,
    }


def test_what_was_not_looked_at_is_not_taken_for_moved() -> None:
    """Of more than 50,000 images many have no size and no time: all of one name are alike."""
    was: dict[str, Facts] = {"train/a/1.jpg": ("train", "a", -1, -1)}
    found = _compare(was, {"train/b/1.jpg": ("train", "b", -1, -1)})
    assert {what: count for what, count in found.items() if count} == {
        "images added": 1,
        "removed": 1,
    }


def test_a_fingerprint_is_of_names_and_labels_in_their_order() -> None:
    def listing(names: list[str], labels: list[int], classes: list[str] | None = None) -> str:
        held = FileImages(Names(names), np.array(labels), classes or ["x", "y"], "/nowhere")
        return fingerprints({"train": held})["train"]["listing"]

    own = listing(["a", "b"], [0, 1])
    assert listing(["a", "b"], [0, 1]) == own
    others = [
        (["b", "a"], [0, 1]),
        (["a", "c"], [0, 1]),
        # The same bytes, divided elsewhere.
        (["ab", ""], [0, 1]),
        (["a", "b"], [1, 0]),
        (["a", "b"], [0, 1], ["x", "z"]),
    ]
    assert own not in {listing(*other) for other in others}
