"""Names and probabilities for images: `python predict.py best.pt photo.jpg folder/ [--top 5] [--csv OUT] [--sheet OUT.png]`.

A weights file or a checkpoint is enough: it carries network, class names, sizes, mean and deviation. An image that cannot be
read is named, the others go on, and the exit status is 1.
"""

import argparse
import csv
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import model
from base.arguments import Parser
from base.errors import clear_errors
from base.files import whole_file
from base.text import printable
from datasets import decode, folder
from transforms import Pipeline

BATCH = 32
SHEET = 48  # images on a sheet
Ranking = list[tuple[str, float]]  # class names and probabilities, the most probable first


def paths_of(arguments: Iterable[str]) -> Iterator[str]:
    """Yield image paths: those given, those below folders, and for `-` those on standard input, a line each."""
    for argument in arguments:
        if argument == "-":
            yield from (line.rstrip("\n") for line in sys.stdin)
        elif os.path.isdir(argument):
            yield from sorted(folder.image_files(argument, argument.rstrip("/")))
        else:
            yield argument


def read(path: str, pipeline: Pipeline) -> torch.Tensor:
    """Return what the network sees of one file, (3, S, S) uint8. Raises OSError, ValueError."""
    with open(path, "rb") as file:
        content = file.read()
    width, height = decode.size(content)
    window = pipeline.windows(np.array([width]), np.array([height]), 0, np.array([0]))
    return decode.windows(
        content, window.box[0], window.size, whole=window.whole, headroom=window.headroom, interpolation=pipeline.interpolation
    )


@torch.inference_mode()
def predictions(
    network: model.Network, paths: Iterable[str], top: int
) -> Iterator[tuple[str, Ranking | str, torch.Tensor | str]]:
    """Yield each path with its most probable classes and what the network saw, or with the reason why it cannot be read."""
    spec = network.spec
    pipeline = Pipeline([], spec.imageSize, spec.cropSize, interpolation=spec.interpolation)
    every = iter(paths)
    while batch := list(itertools.islice(every, BATCH)):
        images: dict[str, torch.Tensor | str] = {}
        for path in batch:
            try:
                images[path] = read(path, pipeline)
            except (OSError, ValueError) as error:
                images[path] = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        good = [path for path in images if isinstance(images[path], torch.Tensor)]
        scores: Any = network(torch.stack([images[path] for path in good])).softmax(1) if good else []  # type: ignore[misc]
        found = dict(zip(good, scores, strict=True))
        for path in batch:
            reason = images[path]
            yield path, reason if isinstance(reason, str) else ranked(found[path], spec.titles or spec.classes, top), reason


def ranked(probabilities: torch.Tensor, classes: tuple[str, ...], top: int) -> Ranking:
    values, places = probabilities.topk(min(top, len(classes)))
    return [(classes[place], value) for value, place in zip(values.tolist(), places.tolist(), strict=True)]


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="weights (best.pt, model_5.pt) or a checkpoint")
    parser.add_argument("images", nargs="+", help="images, folders, or - for paths on standard input")
    parser.add_argument("--top", type=int, default=5, help="classes an image (default: 5)")
    parser.add_argument("--csv", help="also write path, rank, class, probability to this file")
    parser.add_argument("--sheet", help=f"draw the first {SHEET} images with their names to this PNG")
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        parser.error("argument --top: 1 at least")
    with clear_errors():
        network = model.load(arguments.file)
        rows, failed = [], 0
        seen: list[tuple[np.ndarray, str, tuple[str, float]]] = []
        for path, result, image in predictions(network, paths_of(arguments.images), arguments.top):
            if isinstance(result, str):
                failed += 1
                print(f"{printable(path)}: {printable(result)}", file=sys.stderr)
                continue
            shown = ", ".join(f"{printable(name)} {probability:.2%}" for name, probability in result)
            print(f"{printable(path)}: {shown}")
            if arguments.sheet and len(seen) < SHEET and isinstance(image, torch.Tensor):
                seen.append((image.permute(1, 2, 0).numpy(), path, result[0]))
            rows += [[printable(path), rank, printable(name), value] for rank, (name, value) in enumerate(result, 1)]
        if arguments.csv:
            with whole_file(arguments.csv) as file:
                csv.writer(file, lineterminator="\n").writerows([["path", "rank", "class", "probability"], *rows])
        if seen:
            from report import pictures

            shortened = pictures.shortened
            titles = [f"{shortened(Path(path).name)}\n{100 * value:.1f} % {shortened(name)}" for _, path, (name, value) in seen]
            pictures.sheet(np.stack([image for image, _, _ in seen]), titles, Path(arguments.sheet))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
