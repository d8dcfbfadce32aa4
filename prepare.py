"""Get data sets ready ahead of a run: fetch and verify the published ones, look at a folder of your own."""

import argparse
import collections
import os
import sys
from pathlib import Path

import numpy as np

import data
import utils
from datasets import DATASETS, decode, folder
from datasets.images import FileImages
from datasets.split import TEST
from opts import Parser
from utils import Refused, printable

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


def describe(part: str, images: FileImages) -> None:
    """Print what one part holds."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    low, high = int(counts.argmin()), int(counts.argmax())
    print(f"{part}: {len(images)} images in {len(images.classes)} classes")
    smallest, largest = (f"{printable(images.classes[label])} ({counts[label]})" for label in (low, high))
    print(f"  smallest class: {smallest}; largest: {largest}")
    formats: collections.Counter[str] = collections.Counter()
    sizes, lengths, bad = [], [], []
    for index in np.linspace(0, len(images) - 1, min(len(images), LOOKED_AT)).astype(int).tolist():
        try:
            content = images.read(index)
            sizes.append(decode.size(content))
            lengths.append(len(content))
            formats[decode.kind(content)] += 1
        except (OSError, ValueError) as error:
            bad.append(f"{images.path(index)}: {error}")
    if sizes:
        shorter = np.array(sizes).min(1)
        spread = f"{shorter.min()} to {shorter.max()}, median {int(np.median(shorter))}"
        looked = len(sizes) + len(bad)
        print(f"  of {looked} looked at: shorter side {spread} pixels; {np.mean(lengths) / 1000:.0f} kB a file on average")
        print("  formats: " + ", ".join(f"{name} {count}" for name, count in formats.most_common()))
    for line in bad[:5]:
        print(f"  bad: {printable(line)}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="prepare.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in FETCHED:
        command = commands.add_parser(name, help=f"fetch and verify {name}")
        command.add_argument("--data_dir", help="folder (default: ~/.cache/multi-gpu-torch)")
        command.set_defaults(run=fetch)
    command = commands.add_parser("info", help="what a folder holds and what a run would do with it")
    command.add_argument("--data_dir", required=True, help="folder with train/ and val/, or with class folders")
    command.set_defaults(run=info)
    arguments = parser.parse_args(argv)
    with utils.clear_errors():
        if arguments.data_dir:
            arguments.data_dir = os.path.expanduser(arguments.data_dir)
        if arguments.run is info and not Path(arguments.data_dir).is_dir():
            raise Refused(f"there is no folder {arguments.data_dir}")
        arguments.run(arguments)


if __name__ == "__main__":
    main()
