"""Images that are there twice, or nearly: within the training side, and on both sides, where they
make a test easier than it is; and what is far from the rest.
"""

import functools
import importlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

DUPLICATES = "duplicates.csv"
HEADING = ["kind", "bits", "first", "second"]
# Bits of 64 that two perceptual hashes may differ in: what another size or quality changes.
NEAR_BITS = 4
# Pixels of the shorter side that a look is taken from, at least.
LOOKED_AT = 160
# Images of one look beyond which it is no look: black, or a blank page.
MAX_ALIKE = 50
# A class with less than this share of the middle class's images is told.
FEW_SHARE = 0.1
# Times fewer pixels than the middle image's.
SMALL_TIMES = 16


class Seen(NamedTuple):
    """What is known of one image: name, side (a number), class, SHA-256, perceptual hash (-1 where
    there is none), pixels.
    """

    name: str
    side: int
    label: str
    digest: str
    look: int
    pixels: int


class Pair(NamedTuple):
    """Two images that are one, or nearly. kind: "leak" on two sides, "two classes", or "twice";
    bits: that their looks differ in, -1 where the files are the same.
    """

    kind: str
    bits: int
    first: str
    second: str


def look_of(pixels: np.ndarray) -> int:
    """Return the perceptual hash of an image, 64 bits; -1 where its library is missing.

    pixels: (H, W, 3) uint8.
    """
    library = _imagehash()
    if library is None:
        return -1
    image = Image.fromarray(pixels)
    # The hash is of 32 x 32 pixels: its own filter over all of a photograph takes as long as
    # decoding it.
    image = image.reduce(max(1, min(image.size) // LOOKED_AT))
    bits = library.phash(image).hash.ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


@functools.cache
def _imagehash() -> ModuleType | None:
    """Return the library, None where it is missing: looked for once, not an image."""
    try:
        return importlib.import_module("imagehash")
    except ImportError:
        return None


def find(images: Sequence[Seen]) -> list[Pair]:
    """Return the pairs, leaks first: each image with the first one that it is the same as."""
    pairs: dict[tuple[int, int], int] = {}
    groups: dict[str, list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        groups[image.digest].append(number)
    for group in groups.values():
        pairs |= {(group[0], other): -1 for other in group[1:]}
    # One of each group stands for all of it.
    firsts = [group[0] for group in groups.values() if images[group[0]].look >= 0]
    pairs |= _near([images[number].look for number in firsts], firsts)

    found = [
        Pair(_kind(images[a], images[b]), bits, images[a].name, images[b].name)
        for (a, b), bits in pairs.items()
    ]
    order = {"leak": 0, "two classes": 1, "twice": 2}
    return sorted(found, key=lambda pair: (order[pair.kind], pair.bits, pair.first, pair.second))


def _kind(one: Seen, other: Seen) -> str:
    if one.side != other.side:
        return "leak"
    return "twice" if one.label == other.label else "two classes"


def _near(looks: Sequence[int], numbers: Sequence[int]) -> dict[tuple[int, int], int]:
    """Return the pairs of numbers whose looks differ in few bits, with how many."""
    # Of NEAR_BITS + 1 stretches of bits one is the same in both: only those with one in common are
    # compared.
    edges = np.linspace(0, 64, NEAR_BITS + 2).astype(int)
    pairs: dict[tuple[int, int], int] = {}
    for start, end in itertools.pairwise(edges):
        buckets: dict[int, list[int]] = defaultdict(list)
        for place, look in enumerate(looks):
            buckets[(look >> int(start)) & ((1 << int(end - start)) - 1)].append(place)
        for bucket in buckets.values():
            _compare(bucket, looks, numbers, pairs)
    alike: dict[int, int] = defaultdict(int)
    for first, second in pairs:
        alike[first] += 1
        alike[second] += 1
    return {pair: bits for pair, bits in pairs.items() if max(alike[n] for n in pair) <= MAX_ALIKE}


def _compare(
    bucket: Sequence[int],
    looks: Sequence[int],
    numbers: Sequence[int],
    pairs: dict[tuple[int, int], int],
) -> None:
    """Add the pairs of one bucket."""
    values = np.array([looks[place] for place in bucket], np.uint64)
    for row, place in enumerate(bucket):
        bits = _ones(values[row + 1 :] ^ values[row])
        for offset in np.flatnonzero(bits <= NEAR_BITS).tolist():
            other = bucket[row + 1 + offset]
            pairs[numbers[place], numbers[other]] = int(bits[offset])


def _ones(values: np.ndarray) -> np.ndarray:
    """Return how many bits are set in each of (N,) uint64."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(1)


def remarks(images: Sequence[Seen]) -> list[str]:
    """Return a line for each class of few images, and one for images far smaller than the rest."""
    counts: dict[str, int] = defaultdict(int)
    # The training side is the first.
    for image in images:
        if image.side == 0 and image.label:
            counts[image.label] += 1
    lines = []
    middle = float(np.median(list(counts.values()))) if counts else 0.0
    for label, count in sorted(counts.items()):
        if count < FEW_SHARE * middle:
            lines.append(f"few images: class {label} has {count}, the middle one {middle:g}")
    sizes = np.array([image.pixels for image in images if image.pixels], np.int64)
    if len(sizes):
        typical = int(np.median(sizes))
        small = [i.name for i in images if 0 < i.pixels * SMALL_TIMES < typical]
        if small:
            told = f"{len(small)} images have less than 1/{SMALL_TIMES} of the middle one's pixels"
            lines.append(f"small: {told}, the first is {small[0]}")
    return lines
