"""Names and probabilities for images: `python predict.py best.pt photo.jpg folder/`.

A line each image; of several, on a terminal, a table of the classes that they are taken for.

A weights file or a checkpoint is enough: it carries network, class names, sizes, mean and
deviation. An image that cannot be read is named, the others are predicted, and the exit status is
1.
"""

from base import process

if __name__ == "__main__":
    # Before anything else: a signal ends even the imports below in one line.
    process.begin()

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from base.arguments import LIMIT_WAYS, Parser, add_limit_options, path_of

# Images on a sheet, and on one of explanations.
SHEET, EXPLAINED = 48, 12


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
        "compare with the labels: write the images taken for another class to this CSV, the "
        "least probable label first; IMAGES is then a folder of class folders or parts, a table, "
        "shards or Parquet files, and --sheet draws these images"
    )
    parser.add_argument("--mistakes", type=path_of, help=about)
    about = "write paths and features, what the last layer gets, (N, F) float32, to this .npz file"
    parser.add_argument("--embed", type=path_of, help=about)
    about = (
        "list the images most like this one, by the cosine of their features; --sheet draws them"
    )
    parser.add_argument("--similar", type=path_of, help=about)
    parser.add_argument("-k", type=int, default=9, help="with --similar: images (default: 9)")
    about = f"draw where the network looked (Grad-CAM) in the first {EXPLAINED} images to this PNG"
    parser.add_argument("--explain", type=path_of, help=about)
    about = "take the mean of each image and its mirror image"
    parser.add_argument("--flipTest", action="store_true", help=about)
    about = (
        "turn photographs as their EXIF orientation says: apply, or ignore (default: the weights')"
    )
    parser.add_argument("--exif", choices=("ignore", "apply"), help=about)
    add_limit_options(parser)
    return parser


if __name__ == "__main__":
    # --help and wrong options answer here, before torch is imported.
    build_parser().parse_args()

import numpy as np
import torch
from torch import Tensor

import model
from base.errors import Failed, Refused, clear_errors, with_way_out
from base.files import begins_with, has_arrays, is_our_picture, refuse_target
from base.text import printable
from datasets import given
from datasets.images import FileImages, Limits
from loading import seen
from models import explain
from report import predictions, tables
from report.predictions import Prediction


@torch.inference_mode()
def predict(
    network: model.Network,
    images: FileImages,
    top: int,
    exif: str | None = None,
    *,
    mirrored: bool = False,
) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order, with its `top` most probable classes.

    exif: "apply" or "ignore" its orientation; None: as the weights were trained. mirrored: the mean
    over each image and its mirror image.
    """
    names = network.spec.display_names or network.spec.classes
    for pixels, indices, bad in seen.batches(network.spec, images, exif):
        found: dict[int, Prediction] = {}
        if len(pixels):
            scores, own = _scores(network, pixels, mirrored=mirrored)
            if not scores.isfinite().all():
                raise Failed("the network's scores are not finite: its weights are too large")
            for index, row, features in zip(indices.tolist(), scores, own, strict=True):
                values, labels = row.topk(min(top, len(names)))
                ranking = [
                    (names[label], value)
                    for label, value in zip(labels.tolist(), values.tolist(), strict=True)
                ]
                path = images.path(index)
                found[index] = Prediction(path, ranking, "", images, index, row, features)
        for image in bad:
            reason = with_way_out(image.reason, image.limit, LIMIT_WAYS)
            found[image.index] = Prediction(image.path, [], reason, images, image.index)
        # In the order in which they were named, bad ones among the others.
        yield from (found[index] for index in sorted(found))


def _scores(network: model.Network, pixels: Tensor, *, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Return probabilities, (N, K), and features, (N, F)."""
    last = model.weight_layers(network)[-1]
    own, logits = explain.features(network, last, pixels)
    scores = logits.softmax(1)
    if mirrored:
        other, logits = explain.features(network, last, pixels.flip(3))
        own, scores = (own + other) / 2, (scores + logits.softmax(1)) / 2
    return scores, own


def pixels_of(spec: model.Spec, found: Sequence[Prediction], exif: str | None) -> Tensor:
    """Return what the network saw of images, (n, 3, S, S) uint8."""
    read = []
    for prediction in found:
        image = prediction.source.chosen(np.array([prediction.index]))
        read += [pixels for pixels, _, _ in seen.batches(spec, image, exif)]
    return torch.cat(read)


def whole_of(spec: model.Spec, found: Sequence[Prediction], exif: str | None) -> Tensor | None:
    """Return all of these images, black beside, as large; None where the network saw all."""
    if spec.fit != "crop":
        return None
    return pixels_of(replace(spec, fit="pad", image_size=spec.crop_size), found, exif)


# What is written with each option: true for what was written with it before.
WRITTEN = {
    "csv": begins_with(predictions.RANKINGS),
    "sheet": is_our_picture,
    "mistakes": begins_with(tables.MISTAKES),
    "embed": has_arrays(*predictions.FEATURES),
    "explain": is_our_picture,
}


def _targets(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the files to write, by their options."""
    return {f"--{name}": path for name in WRITTEN if (path := getattr(arguments, name))}


def _refuse_targets(arguments: argparse.Namespace) -> None:
    """Raise Refused where a file to write is one that is read, or cannot be written."""
    targets = _targets(arguments)
    places: dict[str, str] = {}
    for name, path in targets.items():
        other = places.setdefault(os.path.realpath(path), name)
        if other != name:
            raise Refused(f"{other} and {name} both name {path}: name two files")
    for path in targets.values():
        for read in (arguments.file, arguments.similar):
            if read:
                refuse_target(path, read)
    for argument in arguments.images:
        if argument != "-":
            given.refuse_written_over(targets.values(), argument)
    for name, path in targets.items():
        refuse_target(path, is_ours=WRITTEN[name.removeprefix("--")])


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    for name, option in (("top", "--top"), ("k", "-k")):
        if getattr(arguments, name) < 1:
            parser.error(f"argument {option}: at least 1")
    if arguments.mistakes and (len(arguments.images) > 1 or arguments.images == ["-"]):
        parser.error("--mistakes takes one folder, table or container of labelled images")
    if arguments.mistakes and arguments.similar:
        parser.error("--mistakes and --similar each have a sheet of their own: give one of them")

    with clear_errors(LIMIT_WAYS):
        _refuse_targets(arguments)
        network = model.load(arguments.file)
        failed = run(network, arguments)
    sys.exit(1 if failed else 0)


def run(network: model.Network, arguments: argparse.Namespace) -> bool:
    """Predict, print and write what is asked for; return True where an image cannot be read."""
    megabytes, megapixels = arguments.maxMegabytes, arguments.maxMegapixels
    limits = Limits(megabytes << 20, megapixels * 10**6, arguments.followLinks)
    settings = arguments.top, arguments.exif
    mirrored = arguments.flipTest

    wanted = None
    if arguments.similar:
        source = next(given.sources([arguments.similar], limits))
        if len(source) > 1 or source.where:
            raise Refused(f"--similar {arguments.similar}: name one image file")
        wanted = next(predict(network, source, *settings, mirrored=mirrored))
        if wanted.reason:
            raise Refused(f"{wanted.path}: {wanted.reason}")
    every: Iterable[FileImages] = given.sources(arguments.images, limits)
    if arguments.mistakes:
        every = [given.labelled(arguments.images[0], list(network.spec.classes), limits)]

    targets = _targets(arguments)
    needs_output, failed = not targets, False
    found: list[Prediction] = []

    def predicted() -> Iterator[Prediction]:
        for images in every:
            given.refuse_among(targets.values(), images)
            yield from predict(network, images, *settings, mirrored=mirrored)

    for prediction in predicted():
        # `| head` has read enough.
        if needs_output and process.is_lost():
            break
        path = printable(prediction.path)
        if prediction.reason:
            failed = True
            print(f"{path}: {printable(prediction.reason)}", file=sys.stderr)
            continue
        # What compares all images says so in the end.
        if not (arguments.mistakes or arguments.similar):
            ranking = [f"{printable(name)} {score:.2%}" for name, score in prediction.ranking]
            print(f"{path}: {', '.join(ranking)}")
        found.append(prediction)

    if found:
        _write(network, arguments, found, wanted)
    elif targets:
        told = ", ".join(targets.values())
        print(f"no image could be read: {told} not written", file=sys.stderr)
    if needs_output:
        process.refuse_lost()
    return failed


def _write(
    network: model.Network,
    arguments: argparse.Namespace,
    found: list[Prediction],
    wanted: Prediction | None,
) -> None:
    """Write the files that are asked for, and what is said of all images."""
    shown, titles = found[:SHEET], None
    compares = arguments.mistakes or arguments.similar
    # A program that reads the lines of images finds nothing else among them.
    if len(found) > 1 and not compares and sys.stdout.isatty():
        print("\n" + predictions.summary(found))
    if arguments.csv:
        predictions.write_rankings(found, arguments.csv)
    if arguments.embed:
        count, width = predictions.write_features(found, arguments.embed)
        print(f"{count} x {width} features: {arguments.embed}")
    if arguments.mistakes:
        names = network.spec.display_names or network.spec.classes
        mistakes = predictions.Mistakes(found, names)
        count = mistakes.write(arguments.mistakes)
        print(f"{count} of {len(found)} images are taken for another class: {arguments.mistakes}")
        shown, titles = mistakes.first(SHEET)
    if wanted is not None:
        close = predictions.nearest(wanted, found, arguments.k)
        for cosine, prediction in close:
            print(f"{cosine:.4f} {printable(prediction.path)}")
        shown = [wanted, *(prediction for _, prediction in close)]
        marks = ["this one", *(f"{cosine:.4f}" for cosine, _ in close)]
        titles = predictions.titles_of(shown, marks)
    if arguments.sheet and shown:
        images = pixels_of(network.spec, shown, arguments.exif)
        whole = whole_of(network.spec, shown, arguments.exif) if arguments.mistakes else None
        titles = titles or predictions.titles_of(shown)
        predictions.draw(images, titles, arguments.sheet, whole=whole)
    if arguments.explain:
        _explain(network, found[:EXPLAINED], arguments)


def _explain(
    network: model.Network, shown: list[Prediction], arguments: argparse.Namespace
) -> None:
    """Draw where the network looked. Raises Refused where it has no positions."""
    images = pixels_of(network.spec, shown, arguments.exif)
    try:
        maps = explain.heatmaps(network, images)
    except ValueError as error:
        raise Refused(f"--explain: {network.spec.net_type}: {error}") from None
    predictions.draw(images, predictions.titles_of(shown), arguments.explain, maps)


if __name__ == "__main__":
    main()
