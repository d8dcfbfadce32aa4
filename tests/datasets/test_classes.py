"""Classes that one side has and the other lacks are named, a few of them."""

import re

import pytest

from base.errors import Refused
from datasets.images import refuse_unknown


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
