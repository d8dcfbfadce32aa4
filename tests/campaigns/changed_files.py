"""Change files at random: each is read, or refused by its name and a reason; nothing crashes, hangs
or changes a label.
"""

import csv
import functools
import io
import json
import os
import pickle
import random
import resource
import signal
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import checkpoint, finish, options, run_folder, scratch, script, write_set

import data
from base import archive
from base.errors import Refused
from datasets import arrays, cifar, dbcollection
from datasets.folder import open_folder
from datasets.images import FileImages, composed
from loading.plan import Plan
from loading.workers import Reader, Task
from transforms import Pipeline

SHARES = dict.fromkeys(
    ("idx", "cifar", "hdf5", "checkpoint", "shard", "zip", "parquet", "table"), 2
) | {"jpeg": 10, "png": 10}
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
    found |= containers(base)
    path = base / "set.h5"
    write_set(path)
    found["hdf5"] = path, path.read_bytes(), lambda path=path: stored(path)  # type: ignore[misc]
    finish(options(base / "run", "--nEpochs", "1"))
    path = checkpoint.steps(run_folder(base / "run") / "checkpoints")[-1]
    found["checkpoint"] = path, path.read_bytes(), lambda path=path: none(archive.read(path))  # type: ignore[misc]
    return found


def containers(base: Path) -> dict[str, tuple[Path, bytes, Callable[[], str]]]:
    """As `kinds`, of files that hold or name many images: six of two classes."""
    contents = [image_bytes("jpeg") + bytes([number]) for number in range(6)]
    tar, archive_path = base / "shards" / "train-0.tar", base / "photos.zip"
    rows, table = base / "parquet" / "train-0.parquet", base / "images" / "table.csv"
    for path in (tar, rows, table):
        path.parent.mkdir()
    with tarfile.open(tar, "w") as shard, zipfile.ZipFile(archive_path, "w", 8) as photos:
        for number, content in enumerate(contents):
            for name, data in ((f"{number}.jpg", content), (f"{number}.cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
            photos.writestr(f"train/class {number % 2}/{number}.jpg", content)
            (table.parent / f"{number}.jpg").write_bytes(content)
    structs = pyarrow.array([{"bytes": content, "path": None} for content in contents])
    columns = {"image": structs, "label": [number % 2 for number in range(6)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), rows, row_group_size=2)
    lines = [f"{number}.jpg,class {number % 2},train" for number in range(6)]
    table.write_text("\n".join(["file_name,label,split", *lines]) + "\n")

    readers: dict[Path, tuple[str, dict[str, Any], Callable[[FileImages], None]]] = {
        tar: ("shards", {"data_dir": str(tar.parent)}, labels_of_tar),
        archive_path: ("folder", {"data_dir": str(archive_path)}, labels_of_folders),
        rows: ("parquet", {"data_dir": str(rows.parent)}, labels_in_range),
        table: ("table", {"labels": str(table)}, labels_of_table),
    }
    kinds = dict(zip(("shard", "zip", "parquet", "table"), readers, strict=True))
    return {
        kind: (path, path.read_bytes(), functools.partial(read_container, path, *readers[path]))
        for kind, path in kinds.items()
    }


def read_container(
    path: Path, name: str, settings: dict[str, Any], compare: Callable[[FileImages], None]
) -> str:
    """Read all images as a run does; compare the labels with those that another reader finds."""
    settings = {"data_dir": None} | settings
    images = data.open_images(name, part="train", **settings)
    assert isinstance(images, FileImages)
    compare(images)
    count = len(images)
    reader = Reader(images, Pipeline([], 20, 16), Plan(count, count), finishes=True)
    batch, kept, bad = reader[Task(0, 0)]
    assert len(batch) == len(kept)
    assert sorted([*kept.tolist(), *(image.index for image in bad)]) == list(range(count))
    # Named by what they lie in; those of a table by themselves.
    return f"{path} {bad[0].path} {bad[0].reason}" if bad else ""


def labels_in_range(images: FileImages) -> None:
    assert ((images.labels >= 0) & (images.labels < len(images.classes))).all()


def labels_of_tar(images: FileImages) -> None:
    labels_in_range(images)
    with tarfile.open(Path(images.where, "train-0.tar")) as archive:
        for index, label in enumerate(images.labels):
            name = images.name(index).removeprefix("train-0.tar/")
            said = archive.extractfile(name.rpartition(".")[0] + ".cls")
            assert said is not None
            assert images.classes[label] == said.read().decode().strip("\0 \t\r\n\ufeff")


def labels_of_folders(images: FileImages) -> None:
    for index, label in enumerate(images.labels):
        assert composed(images.name(index).split("/")[0]) == images.classes[label]


def labels_of_table(images: FileImages) -> None:
    with Path(images.where, "table.csv").open(newline="") as file:
        heading = next(file)
        separator = max(",;\t", key=heading.count)
        said = {
            os.path.normpath(row[0].strip()): row[1].strip()
            for row in csv.reader(file, delimiter=separator)
            if len(row) > 1
        }
    for index, label in enumerate(images.labels):
        assert composed(said[images.name(index)]) == images.classes[label]


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


def run(trials: int = 36_000, seed: int = 1) -> dict[str, Any]:
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
    script("7 changed files", run, 36_000)
