"""Get data sets ready ahead of a run: fetch and verify the published ones; look at, check, shrink,
index your own.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from base import process
from base.arguments import LIMIT_WAYS, Parser, add_limit_options, core_count, whole_number
from base.errors import Refused, clear_errors

FETCHED = ("mnist", "fashionmnist", "cifar10", "cifar100")
IMAGES = "folder with train/ and val/, or with class folders"
STAYS = "what is there already stays"
# Arguments in which ~ means the home folder.
PATHS = ("data_dir", "out", "tars")
WAYS_OUT = LIMIT_WAYS | {
    "data_dir": "give --data_dir DIR",
    "out": "choose another --out",
    "lists": "name a folder for the lists with --out",
    "partial": "run this again, or give --expect for a partial set",
}


Commands = Any  # argparse's subparsers, whose class is private


def fetch(arguments: argparse.Namespace) -> None:
    """Fetch a published data set, or verify that it is there and whole."""
    data = import_module("data")
    for part in ("train", "test"):
        images = data.open_images(arguments.command, arguments.data_dir, part)
        counts = f"{len(images)} images, {len(images.classes)} classes"
        print(f"{arguments.command} {part}: {counts}, in {images.where}")
    verify = import_module("preparation.verify").verify
    print(verify(arguments.command, Path(images.where)))


def info(arguments: argparse.Namespace) -> None:
    import_module("preparation.info").describe(arguments.data_dir, _limits(arguments))


def check(arguments: argparse.Namespace) -> int:
    checking = import_module("preparation.check")
    limits, out = _limits(arguments), arguments.out
    return checking.check(arguments.data_dir, arguments.nThreads, limits, out)


def shrink(arguments: argparse.Namespace) -> int:
    shrinking = import_module("preparation.shrink")
    turn = arguments.exif == "apply"
    options = shrinking.Options(arguments.size, arguments.quality, arguments.nThreads, turn)
    return shrinking.shrink(arguments.data_dir, arguments.out, options, _limits(arguments))


def index(arguments: argparse.Namespace) -> None:
    indexing = import_module("preparation.index")
    indexing.index(arguments.data_dir, arguments.out, register=arguments.register)


def repack(arguments: argparse.Namespace) -> None:
    import_module("preparation.index").repack(arguments.data_dir, arguments.out)


def imagenet(arguments: argparse.Namespace) -> None:
    unpacking = import_module("preparation.imagenet")
    unpacking.prepare(arguments.tars, arguments.out, arguments.expect)


def _limits(arguments: argparse.Namespace) -> Any:
    """Return datasets.images.Limits as the command line has them."""
    limits = import_module("datasets.images").Limits
    megabytes, megapixels = arguments.maxMegabytes, arguments.maxMegapixels
    return limits(megabytes << 20, megapixels * 10**6, arguments.followLinks)


def _expected(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in text.split(":"))
    if len(numbers) != 3 or not all(numbers):
        example = "CLASSES:TRAIN:VAL, for example 100:128000:5000"
        raise argparse.ArgumentTypeError(f"'{text}' is not {example}")
    return numbers


def build_parser() -> Parser:
    """Return the parser with all commands. Nothing that it needs imports torch."""
    parser = Parser(prog="prepare.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in FETCHED:
        command = _add(commands, name, fetch, f"fetch and verify {name}")
        command.add_argument("--data_dir", help="folder (default: ~/.cache/multi-gpu-torch)")
    _add_folder_commands(commands)
    _add_file_commands(commands)
    return parser


def _add(
    commands: Commands, name: str, run: Callable[..., Any], about: str, data_dir: str = ""
) -> argparse.ArgumentParser:
    """Add one command. data_dir: help of its --data_dir, "" where it has none that is needed."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, allow_abbrev=False
    )
    command.set_defaults(run=run)
    if data_dir:
        command.add_argument("--data_dir", required=True, help=data_dir)
    return command


def _add_folder_commands(commands: Commands) -> None:
    """Add what looks at a folder of images."""
    about = "what a folder holds and what a run would do with it"
    add_limit_options(_add(commands, "info", info, about, IMAGES))

    about = "decode every image; keep SHA-256s, and tell later what changed"
    command = _add(commands, "check", check, about, IMAGES)
    _add_threads(command)
    where = "folder for the lists (default: that of the images)"
    command.add_argument("--out", help=where)
    add_limit_options(command)

    about = "copy a folder with its large images made smaller"
    command = _add(commands, "shrink", shrink, about, IMAGES)
    command.add_argument("--out", required=True, help=f"folder for the copy; {STAYS}")
    side = "shorter side at most, pixels (default: 256)"
    command.add_argument("--size", type=whole_number(1, 65535), default=256, help=side)
    quality = "of the JPEGs (default: 90)"
    command.add_argument("--quality", type=whole_number(1, 100), default=90, help=quality)
    turning = "apply: turn photographs as their EXIF orientation says; ignore: keep it"
    command.add_argument("--exif", choices=("ignore", "apply"), default="ignore", help=turning)
    _add_threads(command)
    add_limit_options(command)


def _add_threads(command: argparse.ArgumentParser) -> None:
    cores = core_count()
    about = "processes (default: the cores)"
    command.add_argument("--nThreads", type=whole_number(0, 4096), default=cores, help=about)


def _add_file_commands(commands: Commands) -> None:
    """Add what writes dbcollection's files, and what unpacks ImageNet."""
    about = "write dbcollection's HDF5 file for a folder"
    command = _add(commands, "index", index, about, "folder with train/ and val/")
    command.add_argument("--out", required=True, help="the .h5 file")
    command.add_argument("--register", metavar="NAME", help="name it so in ~/dbcollection.json too")

    about = "rewrite an .h5 file of arrays with one image a chunk"
    command = _add(commands, "repack", repack, about, "the .h5 file")
    command.add_argument("--out", required=True, help="the new .h5 file")

    about = "ImageNet 2012 from its archives to train/<wnid>/ and val/<wnid>/"
    command = _add(commands, "imagenet", imagenet, about)
    archives = "folder of the three archives, or of what they were unpacked to"
    command.add_argument("--tars", required=True, help=archives)
    command.add_argument("--out", required=True, help=f"folder for train/ and val/; {STAYS}")
    partial = "counts of a partial set, whose MD5s are not compared"
    name = "CLASSES:TRAIN:VAL"
    command.add_argument("--expect", type=_expected, metavar=name, help=partial)


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    with clear_errors(WAYS_OUT):
        for name in PATHS:
            if getattr(arguments, name, None):
                setattr(arguments, name, os.path.expanduser(getattr(arguments, name)))
        if arguments.run not in (fetch, imagenet):
            _refuse_missing(arguments)
        status = arguments.run(arguments)
        process.refuse_lost()
        if status:
            sys.exit(status)


def _refuse_missing(arguments: argparse.Namespace) -> None:
    """Raise Refused where --data_dir is not what the command reads."""
    path = Path(arguments.data_dir)
    if not path.exists():
        raise Refused(f"there is no {path}")
    if arguments.run is not repack and not path.is_dir():
        raise Refused(f"{path} is no folder")


if __name__ == "__main__":
    process.begin()
    main()
