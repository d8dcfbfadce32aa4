"""What the benchmarks share: alternating repetitions, medians."""

import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from base.arguments import core_count


def seconds_per_batch(batches: Iterable[Any], most: int, skip: int = 1) -> list[float]:
    """Return the seconds between batches, without the first `skip`, up to `most` of them."""
    times = []
    last = None
    for number, _ in enumerate(islice(iter(batches), most + skip)):
        now = time.perf_counter()
        if last is not None and number >= skip:
            times.append(now - last)
        last = now
    return times


def alternate(
    ways: dict[str, Callable[[], list[float]]], repetitions: int
) -> dict[str, list[list[float]]]:
    """Run each way in turn, `repetitions` times, so that a drift of the machine falls on all of
    them.
    """
    results: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, way in ways.items():
            results[name].append(way())
    return results


def summary(runs: list[list[float]]) -> dict[str, float]:
    """Return mean, min, max, total of all batches, and the median over repetitions of their means,
    in seconds.
    """
    every = [value for run in runs for value in run]
    return {
        "seconds_per_batch": statistics.median(statistics.mean(run) for run in runs),
        "mean": statistics.mean(every),
        "min": min(every),
        "max": max(every),
        "total": sum(every),
        "batches": len(every),
    }


def machine() -> dict[str, Any]:
    """Return what a figure was measured on and with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "device": device,
        "cores": core_count(),
        "torch": str(torch.__version__),
        "time": time.strftime("%Y-%m-%d"),
    }


def write(path: str | None, value: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(machine() | value, indent=1) + "\n")
