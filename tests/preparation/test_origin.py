"""What prepare.py takes for one set of images."""

from typing import Any

import pytest

from preparation.sources import _same


def part(where: str, *names: str) -> Any:
    class Part:
        def __len__(self) -> int:
            return len(names)

    made: Any = Part()
    made.where, made.names = where, names
    return made


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (part("d", "a", "b", "c"), True),
        (part("e", "a", "b", "c"), False),
        (part("d", "a", "c"), False),
        (part("d", "x", "b", "c"), False),
        (part("d", "a", "b", "x"), False),
    ],
)
def test_a_part_that_was_opened_twice_is_one(other: Any, same: bool) -> None:
    assert _same(part("d", "a", "b", "c"), other) is same
