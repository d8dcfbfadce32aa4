"""Names of many files in one, as shells and webdataset have it: D/{train,val}-{000..146}.tar."""

import re
from collections.abc import Iterator

from base.errors import Refused

# Files that one pattern may name.
MAX_FILES = 1_000_000
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str) -> list[str]:
    """Return all names of a pattern, in its order; {a,b} and {000..146} may hold each other.

    Raises Refused for a brace that is not closed, or for too many names.
    """
    names: list[str] = []
    for name in _expanded(pattern, pattern):
        names.append(name)
        if len(names) > MAX_FILES:
            raise Refused(f"{pattern} names more than {MAX_FILES} files")
    return names


def _expanded(text: str, pattern: str) -> Iterator[str]:
    start = text.find("{")
    if start < 0:
        yield text
        return
    end, commas, depth = start, [start], 0
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            break
        if text[end] == "," and depth == 1:
            commas.append(end)
    if depth:
        raise Refused(f"{pattern}: a brace is not closed")
    inside = [text[a + 1 : b] for a, b in zip(commas, [*commas[1:], end], strict=True)]
    choices: Iterator[str] = iter(inside)
    match = RANGE.fullmatch(inside[0]) if len(inside) == 1 else None
    if match:
        choices = _numbers(match[1], match[2])
    for choice in choices:
        for middle in _expanded(choice, pattern):
            for rest in _expanded(text[end + 1 :], pattern):
                yield text[:start] + middle + rest


def _numbers(first: str, last: str) -> Iterator[str]:
    """Yield the numbers of a range, as long as its first with leading zeros."""
    for number in range(int(first), int(last) + 1):
        yield str(number).zfill(len(first))
