"""Classes that one side has and the other lacks are named, a few of them."""

import re

import numpy as np
import pytest

from base.errors import Refused
from datasets.classes import chosen
from datasets.images import FileImages, refuse_unknown, relabelled


@pytest.mark.parametrize("count", [1, 5, 6, 9])
@pytest.mark.parametrize("others", [2, 5, 6])
def test_unknown_classes_are_named_five_of_them(count: int, others: int) -> None:
    known = [f"k{number}" for number in range(others)]
    found = [*known, *(f"u{number}" for number in range(count))]
    with pytest.raises(Refused) as error:
        refuse_unknown(found, known, "val")
    said = str(error.value)
    assert said.startswith(f"val has {'a class' if count == 1 else 'classes'} that training lacks")
    assert re.findall(r"'(u\d)'", said) == [f"u{number}" for number in range(min(count, 5))]
    assert ("and" in said) is (count > 5)
    assert f"and {count - 5} more" in said or count <= 5
    assert re.findall(r"'(k\d)'", said) == known[:5]
    assert said.endswith(", ...") is (others > 5)


def test_names_that_are_written_in_two_ways_are_one() -> None:
    refuse_unknown(["cafe\u0301"], ["caf\u00e9"], "val")


def test_the_same_classes_stay_as_they_are() -> None:
    """Also two that a system writes in two ways: nothing has to be told apart there."""
    classes = ["cafe\u0301", "caf\u00e9"]
    images = FileImages(["a", "b"], np.array([0, 1]), classes, "d")
    assert relabelled(images, list(classes)) is images
    with pytest.raises(Refused, match="two of its classes have one name"):
        relabelled(images, classes[::-1])


def test_other_numbers_of_the_same_classes_are_taken_over() -> None:
    images = FileImages(["a", "b", "c"], np.array([0, 1, -1]), ["x", "y", "unused"], "d")
    found = relabelled(images, ["y", "z", "x"])
    assert found.labels.tolist() == [2, 0, -1]
    assert (images.labels.tolist(), images.classes[0]) == ([0, 1, -1], "x")


def test_classes_keep_their_order_where_nothing_is_chosen() -> None:
    images = FileImages(["a", "b"], np.array([0, 1]), ["zebra", "ant"], "d")
    assert chosen(images, None, None) is images


@pytest.mark.parametrize("choice", ["a", "a,a", "b,b,b"])
def test_a_choice_is_of_two_or_more_names(choice: str) -> None:
    images = FileImages(["1", "2"], np.array([0, 1]), ["a", "b"], "d")
    with pytest.raises(Refused, match="are not two or more names"):
        chosen(images, choice, None)
    assert chosen(images, "b,a", None).labels.tolist() == [1, 0]
