"""Fifty epochs with 1 % bad images, and 10,000 malformed decodes, with 256 files at most: memory,
files and threads stay.
"""

import contextlib
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bad_images import spoil
from changed_files import image_bytes, mutated

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import (
    Child,
    batches_in_shared_memory,
    image_options,
    make_images,
    readers,
    scratch,
    script,
)

from datasets import decode
from transforms import Window

IMAGES = 500


def used(pid: int) -> tuple[int, int, int]:
    """Return what a process holds: resident bytes of its own, open files, threads."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    own = (int(pages[1]) - int(pages[2])) * resource.getpagesize()
    files = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            # Batches on their way come and go, and the sockets that bring them.
            way = os.readlink(f"/proc/{pid}/fd/{name}")
            files += not way.startswith(("/dev/shm/torch_", "socket:"))
    return own, files, len(os.listdir(f"/proc/{pid}/task"))


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


def epochs(count: int, base: Path, pick: random.Random) -> dict[str, Any]:
    images = make_images(base / "images", IMAGES)
    for path in pick.sample(sorted((images / "train").rglob("*.jpg")), IMAGES // 100):
        spoil(path, pick)
    arguments = [
        "--nEpochs",
        str(count),
        "--nThreads",
        "2",
        "--badImages",
        "skip",
        "--snapshot",
        "0",
        "--saveEvery",
        "10m",
    ]
    child = Child([*image_options(base / "run", images), *arguments, "--logger", "none"], few_files)
    steps = -(-IMAGES // 16)
    seen: list[list[tuple[int, int, int]]] = []
    for epoch in (max(1, count // 5), count - 1):
        while child.alive() and child.steps < epoch * steps + 3:
            time.sleep(0.005)
        seen.append([used(pid) for pid in (child.pid, *readers(child.pid))])
    status = child.wait(600)
    grown = max(after[0] - before[0] for before, after in zip(*seen, strict=True))
    thousands = IMAGES * (count - 1 - max(1, count // 5)) / 1000
    return {
        "epochs": count,
        "ended_well": status == 0,
        "MiB_per_1000_images": round(grown / 2**20 / thousands, 4),
        "more_files": max(after[1] - before[1] for before, after in zip(*seen, strict=True)),
        "more_threads": max(after[2] - before[2] for before, after in zip(*seen, strict=True)),
        "peak_MiB_of_a_worker": round(max(worker[0] for worker in seen[1][1:]) / 2**20, 1),
    }


def decodes(count: int, pick: random.Random) -> dict[str, Any]:
    """Decode malformed files here; the first tenth fills caches."""
    whole = [image_bytes("jpeg"), image_bytes("png")]
    before = refused = 0
    for number in range(count):
        data = mutated(whole[number % 2], pick)
        try:
            width, height = decode.size(data, 1 << 20)
            box = np.array([0.0, 0, min(width, 16), min(height, 16)])
            decode.read_windows(data, box, Window(box, 16, headroom=1))
        except ValueError:
            refused += 1
        if number == count // 10:
            before, files, _ = used(os.getpid())
    after, now, _ = used(os.getpid())
    grown = (after - before) / 2**20 / (0.9 * count / 1000)
    return {
        "decodes": count,
        "refused": refused,
        "MiB_per_1000_decodes": round(grown, 4),
        "files_left_open": now - files,
    }


def run(trials: int = 50, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    shared = batches_in_shared_memory()
    with scratch() as base:
        found = epochs(trials, base, pick) | decodes(200 * trials, pick)
    return found | {"left_in_shared_memory": len(batches_in_shared_memory() - shared)}


if __name__ == "__main__":
    script("11 soak", run, 50)
