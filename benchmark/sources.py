"""The same images in every kind of source: how fast each is read, how long a start takes, and what
a worker holds; beside the loaders of webdataset and of the datasets library.

The images of a folder are packed into tar shards, a Parquet file in row groups of 100 as the
datasets library writes them, and a .zip file, in a temporary folder; a table and dbcollection's
HDF5 file name the files themselves. The pipeline is that of benchmark/imagenet.py. The groups of
"parquet, few kept" are kept up to 16 MB a worker: so it is where images are many more than memory
holds. --cold drops the files from the system's cache before each pass.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow
import pyarrow.parquet

import data
from base.errors import Refused, clear_errors
from base.text import print_table
from benchmark import imagenet, timing
from datasets import parquet, table
from datasets.images import FileImages
from preparation import index as indexing
from preparation.pack import pack
from preparation.sources import Origin

GROUP = 100
FEW = 16 << 20
PEERS = {"webdataset": "shards", "datasets": "parquet"}


def make(folder: Path, out: Path, shard: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Pack the images of a folder's train/ into every kind; return what opens each: the data set's
    name, and the settings of its opener.
    """
    train = Origin(str(folder)).parts()["train"]
    alone = out / "folder"
    alone.mkdir()
    (alone / "train").symlink_to(os.path.realpath(train.where))
    pack(Origin(str(alone)), str(out / "shards"), shard)
    with zipfile.ZipFile(out / "photos.zip", "w") as archive:
        for index, name in enumerate(train.names):
            archive.writestr(f"train/{name}", train.read(index))
    write_parquet(train, out / "parquet")
    table.write(out / "table.csv", {"train": train}, str(folder))
    indexing.index(str(folder), str(out / "index.h5"))
    where: dict[str, tuple[str, dict[str, Any]]] = {
        "folder": ("folder", {"data_dir": str(folder)}),
        "table": ("table", {"data_dir": str(folder), "labels": str(out / "table.csv")}),
        "shards": ("shards", {"data_dir": str(out / "shards")}),
        "parquet": ("parquet", {"data_dir": str(out / "parquet")}),
        "zip": ("folder", {"data_dir": str(out / "photos.zip")}),
    }
    settings = {"storage": "disk", "source": str(out / "index.h5")}
    return where | {"HDF5 index": ("", {"data_dir": str(folder), **settings})}


def write_parquet(images: FileImages, out: Path) -> None:
    out.mkdir()
    rows = range(len(images))
    structs = [{"bytes": images.read(row), "path": images.name(row)} for row in rows]
    labels = pyarrow.array(images.labels.tolist())
    rows_table = pyarrow.table({"image": pyarrow.array(structs), "label": labels})
    path = out / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(rows_table, path, row_group_size=GROUP)


def opened(name: str, settings: dict[str, Any], index: Path | None = None) -> FileImages:
    more = {"index": index} if index is not None and name in ("folder", "shards", "parquet") else {}
    images = data.open_images(name, part="train", **settings, **more)
    assert isinstance(images, FileImages)
    return images


def start(name: str, settings: dict[str, Any], index: Path) -> float:
    """Return the seconds that it takes to open a source, with whatever is kept of it."""
    started = time.perf_counter()
    opened(name, settings, index)
    return time.perf_counter() - started


SHARDS = 147  # as webdataset's ImageNet has them
OPEN = """
import resource, sys, time
sys.path.insert(0, sys.argv[1])
import data
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
images = data.open_images("shards", sys.argv[2], "train", index=Path(sys.argv[2], "kept"))
seconds = time.perf_counter() - started
print(len(images), seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def many(place: Path, samples: int) -> dict[str, Any]:
    """Return how long it takes to open so many tiny samples the first time, and with what is kept,
    each in a process of its own, and the megabytes that are added at most.
    """
    photo = b"\xff\xd8\xff" + bytes(700)
    for shard in range(SHARDS):
        with tarfile.open(place / f"train-{shard:06d}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for number in range(shard * samples // SHARDS, (shard + 1) * samples // SHARDS):
                label = number * 1000 // samples
                for kind, content in (("jpg", photo), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"n{label:08d}/n{label:08d}_{number}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    found: dict[str, Any] = {}
    for name in ("first", "later"):
        command = [sys.executable, "-c", OPEN, str(Path(__file__).parents[1]), str(place)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found[name] = {"seconds": float(said[1]), "megabytes": float(said[2])}
        found["samples"] = int(said[0])
    print_table([["open", "seconds", "MB at most"], *_opened_rows(found)])
    return found


def _opened_rows(found: dict[str, Any]) -> list[list[str]]:
    pairs = [(name, found[name]) for name in ("first", "later")]
    return [[name, f"{one['seconds']:.2f}", f"{one['megabytes']:.0f}"] for name, one in pairs]


def one_pass(images: FileImages, arguments: argparse.Namespace, held: list[float]) -> list[float]:
    """Return the seconds a batch; add the megabytes that a worker holds to `held`."""
    if arguments.cold:
        drop(images)

    def batches() -> Any:
        for number, batch in enumerate(imagenet.ours(images, arguments, train=True)):
            yield batch
            if number == len(images) // imagenet.BATCH:
                held.append(max(map(private_megabytes, workers()), default=0.0))

    return imagenet.measure(batches, arguments.batches)


def few_kept(images: FileImages, arguments: argparse.Namespace) -> list[float]:
    """Return the seconds a batch where few row groups are kept."""
    usual, parquet.MAX_CACHE = parquet.MAX_CACHE, FEW
    try:
        return one_pass(images, arguments, [])
    finally:
        parquet.MAX_CACHE = usual


def workers() -> list[int]:
    """Return the processes of this one's children that have children's memory of their own."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in text.split()]


def private_megabytes(pid: int) -> float:
    """Return what a process does not share with the one that forked it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return kilobytes / 1024


def drop(images: FileImages) -> None:
    """Ask the system to forget what it has read of the images."""
    packed = getattr(images.packed, "paths", None)
    for path in packed or (images.path(index) for index in range(len(images))):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def peer(name: str, root: Path, arguments: argparse.Namespace) -> list[float]:
    """Return the seconds a batch of another library's loader."""
    script = str(Path(__file__).parent / "peers" / f"{name}_loader.py")
    command = [sys.executable, script, str(root), str(arguments.nThreads), str(arguments.epochs)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise Refused(f"{name} cannot be measured: {last}")
    return [float(result.stdout.split()[-1])]


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--data_dir", help="folder with train/ (default: a made-up one)")
    parser.add_argument("--nThreads", type=int, default=2, help="workers (default: 2)")
    parser.add_argument("--epochs", type=int, default=2, help="a repetition (default: 2)")
    parser.add_argument("--batches", type=int, default=1000, help="at most (default: 1000)")
    parser.add_argument("--repetitions", type=int, default=3, help="alternating (default: 3)")
    parser.add_argument("--augment", default="crop,flip", help="(default: crop,flip)")
    parser.add_argument("--shard", type=int, default=40, help="megabytes of a shard (default: 40)")
    about = "measure an index of so many samples in 147 shards instead"
    parser.add_argument("--many", type=int, metavar="SAMPLES", help=about)
    parser.add_argument("--cold", action="store_true", help="read from the disk in each pass")
    parser.add_argument("--peer", nargs="+", default=[], choices=tuple(PEERS))
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    with clear_errors(), tempfile.TemporaryDirectory() as scratch:
        if arguments.many:
            timing.write(arguments.json, many(Path(scratch), arguments.many))
            return
        if arguments.data_dir is None:
            imagenet.make(Path(scratch, "made"))
        folder = Path(arguments.data_dir or Path(scratch, "made"))
        (out := Path(scratch, "out")).mkdir()
        run(make(folder, out, arguments.shard * 10**6), out, arguments)


def run(
    sources: dict[str, tuple[str, dict[str, Any]]], out: Path, arguments: argparse.Namespace
) -> None:
    """Measure all, alternating; show and write the figures."""
    starts = {
        name: [start(*source, out / f"kept {name}") for _ in range(3)]
        for name, source in sources.items()
    }
    held: dict[str, list[float]] = {name: [] for name in sources}
    ways: dict[str, Callable[[], list[float]]] = {
        name: partial(one_pass, opened(*source), arguments, held[name])
        for name, source in sources.items()
    }
    few = opened(*sources["parquet"])
    ways["parquet, few kept"] = partial(few_kept, few, arguments)
    for name in arguments.peer:
        ways[name] = partial(peer, name, out / PEERS[name], arguments)
    runs = timing.alternate(ways, arguments.repetitions)
    base = timing.summary(runs["folder"])["seconds_per_batch"]
    figures: dict[str, dict[str, Any]] = {}
    for name, found in runs.items():
        seconds = timing.summary(found)["seconds_per_batch"]
        figures[name] = {
            "images_per_second": imagenet.BATCH / seconds,
            "of_the_folder": base / seconds,
            "runs": found,
        }
        if name in starts:
            figures[name] |= {"first_start": starts[name][0], "later_start": min(starts[name][1:])}
            figures[name]["worker_megabytes"] = max(held[name], default=None)
    print_table(rows(figures))
    timing.write(arguments.json, {"cold": arguments.cold, "figures": figures})


def rows(figures: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the figures as rows of text."""
    found = [["source", "images/s", "of the folder", "first start s", "later s", "MB a worker"]]
    for name, figure in figures.items():
        cells = [f"{figure['images_per_second']:.0f}", f"x {figure['of_the_folder']:.2f}"]
        for key, form in (
            ("first_start", ".3f"),
            ("later_start", ".3f"),
            ("worker_megabytes", ".0f"),
        ):
            value = figure.get(key)
            cells.append("" if value is None else f"{value:{form}}")
        found.append([name, *cells])
    return found


if __name__ == "__main__":
    main()
