"""Names and probabilities for images: `python predict.py best.pt photo.jpg folder/`.

A weights file or a checkpoint is enough: it carries network, class names, sizes, mean and
deviation. An image that cannot be read is named, the others are predicted, and the exit status is
1.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from base import process
from base.arguments import LIMIT_WAYS, Parser, add_limit_options, is_address, path_of

BATCH = 32
# Images on a sheet.
SHEET = 48


def build_parser() -> Parser:
    """Return the command line's parser. Nothing that it needs imports torch."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="predict.py", description=__doc__, formatter_class=plain)
    about = "weights (best.pt, model_5.pt) or a checkpoint"
    parser.add_argument("file", type=path_of, help=about)
    parser.add_argument(
        "images",
        nargs="+",
        help="images, folders, .zip, .tar or .parquet files of images, or - for paths on "
        "standard input",
    )
    parser.add_argument("--top", type=int, default=5, help="classes an image (default: 5)")
    about = "also write path, rank, class, probability to this file"
    parser.add_argument("--csv", type=path_of, help=about)
    about = f"draw the first {SHEET} images with their names to this PNG"
    parser.add_argument("--sheet", type=path_of, help=about)
    about = (
        "turn photographs as their EXIF orientation says: apply, or ignore (default: the weights')"
    )
    parser.add_argument("--exif", choices=("ignore", "apply"), help=about)
    add_limit_options(parser)
    return parser


if __name__ == "__main__":
    process.begin()
    # --help and wrong options answer here, before torch is imported.
    build_parser().parse_args()

import numpy as np
import torch
from torch import Tensor

import model
from base.errors import Refused, clear_errors, with_way_out
from base.files import refuse_target, write_rows
from base.text import printable
from datasets import folder, listing, parquet, shards, zipped
from datasets.braces import expand
from datasets.images import FileImages, Limits
from datasets.parts import unlabelled
from datasets.remote import holds
from loading.plan import Plan
from loading.workers import Reader, Task
from transforms import Pipeline


class Prediction(NamedTuple):
    """What became of one image.

    ranking: class names and probabilities, the most probable first, empty for an image that cannot
    be read; image: (3, S, S) uint8, what the network saw; reason: why it cannot be read.
    """

    path: str
    ranking: list[tuple[str, float]]
    image: Tensor | None
    reason: str


def sources(arguments: Iterable[str], limits: Limits) -> Iterator[FileImages]:
    """Yield the images to predict, argument by argument: files, folders, what holds many, and for
    `-` the paths on standard input.
    """
    # Whoever names a file means what it links to.
    named = Limits(limits.bytes, limits.pixels, links=True)
    for argument in arguments:
        path = os.path.expanduser(argument)
        if containers := _containers(path):
            for container in containers:
                yield _in_container(container, limits)
            continue
        if zipped.is_folder(path):
            yield _in_folder(path, limits)
            continue
        paths = _listed_paths() if argument == "-" else iter([path])
        while batch := list(itertools.islice(paths, BATCH)):
            yield _unlabelled(batch, "", named)


def _listed_paths() -> Iterator[str]:
    """Yield the paths on standard input, of lists made on any system."""
    for line in sys.stdin or ():
        path = line.rstrip("\r\n").removeprefix("\ufeff")
        if path.strip():
            yield os.path.expanduser(path)


def _in_folder(path: str, limits: Limits) -> FileImages:
    """Return all images below a folder. Raises Refused where there are none."""
    root = path.rstrip("/") or "/"
    scan = listing.Scan()
    names = sorted(folder.image_files(root, ".", scan=scan))
    left_out = listing.told(scan.left_out)
    if not names:
        raise Refused(f"{root} has no image ({', '.join(folder.ENDINGS)}){left_out}")
    if left_out:
        print(f"{printable(root)}{left_out}", file=sys.stderr)
    images = _unlabelled([name.removeprefix("./") for name in names], root, limits)
    archive = zipped.zip_of(root)
    if archive is not None:
        images.packed = zipped.Zip(archive[0])
        images.rows = images.packed.rows_of(archive[1], images.names)
    return images


def _containers(path: str) -> list[str]:
    """Return the tar or Parquet files that a path, a pattern or an address names, or of which a
    folder is full; none for anything else. Raises Refused.
    """
    for ending in (".tar", ".parquet"):
        if is_address(path) and holds(path, ending):
            return shards.find(path, ending, None)[1]
        if os.path.isdir(path):
            files = [file for file in shards.files_below(path) if file.lower().endswith(ending)]
            if files and not folder.has_images(path):
                return sorted(files)
        elif path.lower().endswith(ending):
            return expand(path)
    return []


def _in_container(path: str, limits: Limits) -> FileImages:
    """Return all images in a tar or Parquet file, whatever its name and their labels.

    Raises Refused.
    """
    kind = shards.KIND if path.lower().endswith(".tar") else parquet.KIND
    images = unlabelled(path, kind)
    images.limits = limits
    return images


def _unlabelled(names: list[str], where: str, limits: Limits) -> FileImages:
    return FileImages(names, np.zeros(len(names), np.int64), [""], where, limits)


@torch.inference_mode()
def predict(
    network: model.Network, images: FileImages, top: int, exif: str | None = None
) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order, with its `top` most probable classes.

    exif: "apply" or "ignore" its orientation; None: as the weights were trained.
    """
    spec = network.spec
    images.turn = (exif or spec.exif) == "apply"
    pipeline = Pipeline([], spec.image_size, spec.crop_size, interpolation=spec.interpolation)
    plan = Plan(len(images), BATCH)
    reader = Reader(images, pipeline, plan, finishes=False)
    names = spec.display_names or spec.classes

    for batch_index in range(len(plan)):
        pixels, indices, bad = reader[Task(0, batch_index)]
        scores = network(pixels).softmax(1) if len(pixels) else pixels
        found = {
            index: Prediction(images.path(index), _ranking(row, names, top), image, "")
            for index, row, image in zip(indices.tolist(), scores, pixels, strict=True)
        }
        for image in bad:
            reason = with_way_out(image.reason, image.limit, LIMIT_WAYS)
            found[image.index] = Prediction(image.path, [], None, reason)
        # In the order in which they were named, bad ones among the others.
        yield from (found[index] for index in sorted(found))


def _ranking(scores: Tensor, names: tuple[str, ...], top: int) -> list[tuple[str, float]]:
    values, labels = scores.topk(min(top, len(names)))
    return [(names[k], v) for v, k in zip(values.tolist(), labels.tolist(), strict=True)]


def _refuse_targets(arguments: argparse.Namespace) -> None:
    """Raise Refused where a file to write is one that is read, or cannot be written."""
    targets = [path for path in (arguments.csv, arguments.sheet) if path]
    if len(targets) == 2 and os.path.realpath(targets[0]) == os.path.realpath(targets[1]):
        raise Refused(f"--csv and --sheet both name {targets[0]}: name two files")
    for path in targets:
        refuse_target(path, arguments.file)
        for named in map(os.path.expanduser, arguments.images):
            is_image = path.lower().endswith(folder.ENDINGS) and os.path.exists(path)
            if not os.path.isdir(named):
                refuse_target(path, named)
            elif is_image and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(named)):
                raise Refused(f"{path} is an image that is read: name another to write")


def draw_sheet(predictions: list[Prediction], path: Path) -> None:
    """Draw images with their most probable class."""
    from report import pictures

    images, titles = [], []

    for prediction in predictions:
        if prediction.image is not None:
            images.append(prediction.image.permute(1, 2, 0).numpy())
            name, score = prediction.ranking[0]
            file, shown = pictures.shortened(Path(prediction.path).name), pictures.shortened(name)
            titles.append(f"{file}\n{100 * score:.1f} % {shown}")
    if images:
        pictures.sheet(np.stack(images), titles, path, named=True)


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        parser.error("argument --top: at least 1")
    megabytes, megapixels = arguments.maxMegabytes, arguments.maxMegapixels
    limits = Limits(megabytes << 20, megapixels * 10**6, arguments.followLinks)

    needs_output = not (arguments.csv or arguments.sheet)

    with clear_errors(LIMIT_WAYS):
        _refuse_targets(arguments)
        network = model.load(arguments.file)
        rows: list[list[object]] = []
        shown: list[Prediction] = []
        failed = False
        every = sources(arguments.images, limits)
        for found in itertools.chain.from_iterable(
            predict(network, i, arguments.top, arguments.exif) for i in every
        ):
            # `| head` has read enough.
            if needs_output and process.is_lost():
                break
            path = printable(found.path)
            if not found.ranking:
                failed = True
                print(f"{path}: {printable(found.reason)}", file=sys.stderr)
                continue
            ranking = [(printable(name), score) for name, score in found.ranking]
            print(f"{path}: " + ", ".join(f"{name} {score:.2%}" for name, score in ranking))
            rows += [[path, rank, *pair] for rank, pair in enumerate(ranking, 1)]
            if arguments.sheet and len(shown) < SHEET:
                shown.append(found)

        if arguments.csv:
            write_rows(arguments.csv, ["path", "rank", "class", "probability"], rows, named=True)
        if arguments.sheet:
            draw_sheet(shown, Path(arguments.sheet))
        if needs_output:
            process.refuse_lost()

    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
