"""Change files at random: each is read, or refused by its name and a reason; nothing crashes, hangs
or changes a label.
"""

import io
import json
import os
import pickle
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import checkpoint, finish, options, run_folder, scratch, script, write_set

from base import archive
from base.errors import Refused
from datasets import arrays, cifar, dbcollection
from datasets.folder import open_folder
from loading.plan import Plan
from loading.workers import Reader, Task
from transforms import Pipeline

SHARES = {"jpeg": 10, "png": 10, "idx": 2, "cifar": 2, "hdf5": 2, "checkpoint": 2}
SECONDS, MEMORY = 2.0, 1 << 30  # of one file; what a child may allocate above what it begins with
AT_ONCE = 50  # trials a child


def mutated(whole: bytes, pick: random.Random) -> bytes:
    """Flip bits, replace, remove, repeat or insert bytes, or cut the end off."""
    data = bytearray(whole)
    for _ in range(pick.choice((1, 1, 2, 8))):
        place, length = pick.randrange(max(1, len(data))), pick.choice((1, 2, 4, 64))
        kind = pick.randrange(6)
        if kind == 0 and data:
            data[place] ^= 1 << pick.randrange(8)
        elif kind == 1:
            data[place : place + length] = pick.randbytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place : place + length] = pick.choice((b"\0", b"\xff")) * length
        else:
            del data[place:]
    return bytes(data)


def image_bytes(kind: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def read_image(place: Path) -> str:
    """Read the folder's one training batch as a run does; return why an image is bad."""
    images = open_folder(str(place), "train")
    assert images.labels.tolist() == [0, 1]
    reader = Reader(images, Pipeline([], 20, 16), Plan(2, 2), finishes=True)
    batch, kept, bad = reader[Task(0, 0)]
    assert len(batch) == len(kept)
    assert sorted([*kept.tolist(), *(image.index for image in bad)]) == [0, 1]
    return f"{bad[0].path} {bad[0].index} {bad[0].reason}" if bad else ""


def kinds(base: Path) -> dict[str, tuple[Path, bytes, Callable[[], str]]]:
    """Return, by kind, the file that is changed, its content, and what reads it and tells why it
    was refused.
    """
    found: dict[str, tuple[Path, bytes, Callable[[], str]]] = {}
    for kind in ("jpeg", "png"):
        place = base / kind
        for name in ("a", "b"):
            path = place / "train" / name / f"0.{kind}"
            path.parent.mkdir(parents=True)
            path.write_bytes(image_bytes(kind))
        found[kind] = path, path.read_bytes(), lambda place=place: read_image(place)  # type: ignore[misc]
    path = base / "t10k-images-idx3-ubyte"
    pixels = np.arange(40 * 64, dtype=np.uint8)
    path.write_bytes(
        bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (40, 8, 8)) + pixels.tobytes()
    )
    found["idx"] = path, path.read_bytes(), lambda path=path: none(arrays.read_idx(path, 3))  # type: ignore[misc]
    path = base / "data_batch_1"
    path.write_bytes(
        pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}, 2)
    )
    found["cifar"] = path, path.read_bytes(), lambda path=path: none(cifar.load_pickle(path))  # type: ignore[misc]
    path = base / "set.h5"
    write_set(path)
    found["hdf5"] = path, path.read_bytes(), lambda path=path: stored(path)  # type: ignore[misc]
    finish(options(base / "run", "--nEpochs", "1"))
    path = checkpoint.steps(run_folder(base / "run") / "checkpoints")[-1]
    found["checkpoint"] = path, path.read_bytes(), lambda path=path: none(archive.read(path))  # type: ignore[misc]
    return found


def none(_: object) -> str:
    return ""


def stored(path: Path) -> str:
    images = dbcollection.open_part("set", str(path), None, "train", "ram")
    assert len(images) <= 6
    assert ((images.labels >= 0) & (images.labels < len(images.classes))).all()
    return ""


def child(
    path: Path, whole: bytes, read: Callable[[], str], seeds: range, name: str
) -> list[dict[str, Any]]:
    """Try some changes in a process of its own; return what became of each."""
    report, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        with os.fdopen(write, "w") as out:
            for seed in seeds:
                path.write_bytes(mutated(whole, random.Random(f"{name} {seed}")))
                before = time.process_time()
                what, text = "read", ""
                try:
                    text = read()
                    what = "refused" if text else "read"
                except (Refused, archive.Damaged) as error:
                    what, text = "refused", str(error)
                except MemoryError:
                    what = "memory"
                except Exception as error:
                    what, text = "crashed", repr(error)
                named = what != "refused" or str(path) in text or path.name in text
                slow = time.process_time() - before > SECONDS
                out.write(
                    json.dumps(
                        {
                            "seed": seed,
                            "what": what,
                            "named": named,
                            "slow": slow,
                            "text": text[:200],
                        }
                    )
                    + "\n"
                )
                out.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(report) as lines:
        results = [json.loads(line) for line in lines]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        results.append(
            {
                "seed": seeds[len(results)],
                "what": "signal",
                "named": False,
                "slow": False,
                "text": str(status),
            }
        )
    return results


def run(trials: int = 28_000, seed: int = 1) -> dict[str, Any]:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    counts: dict[str, dict[str, int]] = {}
    examples: list[str] = []
    with scratch() as base:
        for kind, (path, whole, read) in kinds(base).items():
            own = dict.fromkeys(
                ("trials", "read", "refused", "unnamed", "slow", "crashed", "memory", "signal"), 0
            )
            number = max(2, trials * SHARES[kind] // sum(SHARES.values()))
            for start in range(0, number, AT_ONCE):
                seeds = range(seed * 10**6 + start, seed * 10**6 + min(start + AT_ONCE, number))
                for result in child(path, whole, read, seeds, kind):
                    own["trials"] += 1
                    own[result["what"]] += 1
                    own["unnamed"] += not result["named"]
                    own["slow"] += result["slow"]
                    if (
                        result["what"] in ("crashed", "memory", "signal")
                        or not result["named"]
                        or result["slow"]
                    ):
                        examples.append(f"{kind} {result}")
            path.write_bytes(whole)
            counts[kind] = own
    for example in examples[:20]:
        print(example)
    failures = sum(
        own[what]
        for own in counts.values()
        for what in ("unnamed", "slow", "crashed", "memory", "signal")
    )
    return {"trials": sum(own["trials"] for own in counts.values()), "failures": failures} | counts


if __name__ == "__main__":
    script("7 changed files", run, 28_000)
