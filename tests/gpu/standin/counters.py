"""Reads the counters of the stand-in, which was preloaded into this process."""

import ctypes
from typing import NamedTuple

# What the device is given to do, copies included.
OPERATIONS = (
    *("launch", "library", "d2d", "memset"),
    *("h2d_pageable", "h2d_pinned", "d2h_pinned", "d2h_pageable"),
)


class Count(NamedTuple):
    """Calls of one kind since the start, the bytes of all, and of the largest."""

    calls: int
    bytes: int
    largest: int


def counts() -> dict[str, Count]:
    """Return the counters by name."""
    library = ctypes.CDLL(None)
    library.fake_counter.restype = ctypes.c_char_p
    found = {}
    for number in range(library.fake_counters()):
        values = [ctypes.c_long() for _ in range(3)]
        name = library.fake_counter(number, *(ctypes.byref(value) for value in values))
        found[name.decode()] = Count(*(value.value for value in values))
    return found


def operations(before: dict[str, Count], after: dict[str, Count]) -> int:
    """Return what the device was given to do between two readings."""
    return sum(after[name].calls - before[name].calls for name in OPERATIONS)
