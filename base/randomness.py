"""Numbered randomness: every random number is a pure function of (seed, epoch, index, column,
stream).

There is no generator object and no state, so a number does not depend on which process asks for it,
in what order, in batches of what size, or on where a run was stopped. The hash is SplitMix64
(Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195), vectorised over uint64 in NumPy; the order
of an epoch is a Feistel network over it.
"""

import zlib

import numpy as np
import torch

# 2^64 / golden ratio, the increment of SplitMix64.
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_ROUNDS = 6


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of uint64 in which every input bit moves about half of
    the output bits.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: int | str) -> int:
    """Hash integers and names, in their order, to one uint64."""
    state = 0
    for part in parts:
        number = (
            zlib.crc32(part.encode("utf-8", "surrogateescape")) if isinstance(part, str) else part
        )
        state = _mix_one((state ^ (number & _MASK)) + _GOLDEN & _MASK)
    return state


def _mix_one(x: int) -> int:
    """Do what `mix` does for one Python integer, for which NumPy takes ten times as long."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def bits(seed: int, epoch: int, indices: np.ndarray, columns: int, stream: str = "") -> np.ndarray:
    """Return (N, columns) uint64 random bits for the images `indices`, (N,) integers."""
    start = np.uint64(key(seed, epoch, stream))
    rows = mix(np.asarray(indices).astype(np.uint64) * np.uint64(_GOLDEN) ^ start)
    steps = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return mix(rows[:, None] + steps[None, :])


def uniforms(
    seed: int, epoch: int, indices: np.ndarray, columns: int, stream: str = ""
) -> torch.Tensor:
    """Return (N, columns) float32 in [0, 1): the top 24 bits, so that every value is exact and 1 is
    never reached.
    """
    top = bits(seed, epoch, indices, columns, stream) >> np.uint64(40)
    return torch.from_numpy(top.astype(np.float32) * np.float32(2.0**-24))


def shuffled(
    positions: np.ndarray, count: int, seed: int, epoch: int, stream: str = "order"
) -> np.ndarray:
    """Return the images, (N,) int64, at `positions` of a keyed bijection of [0, count).

    Six Feistel rounds permute [0, 4^h) with 4^h >= count; a result outside [0, count) is permuted
    again until it is inside (cycle walking), which keeps it a bijection. Memory is O(N) for any
    count up to 2^62.
    """
    # Half of the bits that count needs, rounded up: the domain is at most four times too large.
    half = (max(count - 1, 1).bit_length() + 1) // 2
    keys = [np.uint64(key(seed, epoch, stream, number)) for number in range(_ROUNDS)]
    result = np.array(positions, np.uint64)
    outside = np.arange(len(result))

    # On average fewer than four rounds: at least a quarter of the domain is inside.
    while len(outside):
        result[outside] = _feistel(result[outside], half, keys)
        outside = outside[result[outside] >= np.uint64(count)]

    return result.astype(np.int64)


def _feistel(numbers: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> shift, numbers & low
    for round_key in keys:
        left, right = right, left ^ (mix(right + np.uint64(_GOLDEN) ^ round_key) & low)
    return (left << shift) | right
