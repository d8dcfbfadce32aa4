"""Data loading from image files: the Torch7 suite's table for your own folder, and how far it is
from the limit.

The pipeline is the Torch7 suite's: shorter side 256, random crop of 224, flip; the centre in
testing. disk reads each file's name from an HDF5 index batch by batch, ram has the names in memory;
the images are files for both. With --decoded their pixels are kept, and read once before they are
timed. The limit is what as many processes do that decode the same files and
nothing else. Without --data_dir a small folder of made-up textures with ILSVRC's byte sizes is
written to a temporary folder, so that this runs anywhere.
"""

import argparse
import io
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

import augmentation
import data
import utils
from base.arguments import core_count
from base.errors import Refused, clear_errors
from base.text import print_table
from benchmark import timing
from datasets import dbcollection, decode
from datasets.images import FileImages
from loading import decode_once
from loading.pixel_folder import PixelFolder
from loading.plan import Batch, Plan
from preparation import index as indexing
from preparation.sources import Origin
from transforms import Pipeline

BATCH, SCALED, SIDE = 128, 256, 224
# Passes over kept pixels for one over files.
KEPT_EPOCHS = 5
MADE = {"train": 512, "val": 256}  # images of the made-up folder


def ours(images: FileImages, arguments: argparse.Namespace, *, train: bool) -> Iterator[Any]:
    """Yield uint8 batches as they reach the device."""
    steps = augmentation.parse(arguments.augment if train else "none")
    pipeline = Pipeline(steps, SCALED, SIDE, seed=2)
    plan = Plan(len(images), BATCH, 2, train)
    source = data.make_loader(
        images, pipeline, plan, torch.device("cpu"), workers=arguments.nThreads, start_method="fork"
    )
    for epoch in range(arguments.epochs):
        yield from source.epoch(epoch)


class Keeping:
    """Yields batches of kept pixels, which are decoded as they are asked for first.

    kind: ram or disk; scratch: folder for the latter.
    """

    def __init__(self, images: FileImages, kind: str, scratch: Path) -> None:
        self.images = images
        self.kind = kind
        self.scratch = scratch
        self.loader: data.KeptLoader | None = None

    def __call__(self, arguments: argparse.Namespace, *, train: bool) -> Iterator[Any]:
        if self.loader is None:
            self.loader = self._decode(arguments, train=train)
            for _ in self.loader.epoch(0):
                pass
        for epoch in range(1, 1 + arguments.epochs * KEPT_EPOCHS):
            yield from self.loader.epoch(epoch)

    def _decode(self, arguments: argparse.Namespace, *, train: bool) -> data.KeptLoader:
        images, threads = self.images, arguments.nThreads
        steps = augmentation.parse(arguments.augment if train else "none")
        pipeline = Pipeline(steps, SCALED, SIDE, seed=2)
        plan = Plan(len(images), BATCH, 2, train)
        scaling = pipeline.scaling(round(1.25 * SIDE))
        given = images, scaling, plan.pool
        if self.kind == "disk":
            folder = PixelFolder(*given, self.scratch, threads=threads, skip=False)
            kept = folder.keep()
        else:
            kept, _ = decode_once.in_memory(*given, threads=threads, skip=False)
        cpu = torch.device("cpu")
        return data.KeptLoader(kept, pipeline, plan, cpu, threads=threads)


def decoding_once(
    images: FileImages, arguments: argparse.Namespace, scratch: Path, *, train: bool
) -> list[float]:
    """Return the seconds a batch that decoding all images into a folder takes."""
    steps = augmentation.parse(arguments.augment if train else "none")
    scaling = Pipeline(steps, SCALED, SIDE).scaling(round(1.25 * SIDE))
    pool = np.arange(len(images))
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        started = time.perf_counter()
        threads = arguments.nThreads
        PixelFolder(images, scaling, pool, Path(place), threads=threads, skip=False).keep()
        return [(time.perf_counter() - started) / len(images) * BATCH]


def theirs(images: FileImages, arguments: argparse.Namespace, *, train: bool) -> Iterator[Any]:
    """Yield batches of the usual loader: PIL, torchvision's transforms, float32, normalised."""
    from torchvision import transforms as v1
    from torchvision.datasets import ImageFolder

    steps: list[Any] = [v1.Resize(SCALED)]
    steps += [v1.RandomCrop(SIDE), v1.RandomHorizontalFlip()] if train else [v1.CenterCrop(SIDE)]
    if train and "resizedcrop" in arguments.augment:
        steps = [v1.RandomResizedCrop(SIDE), v1.RandomHorizontalFlip()]
    steps += [v1.ColorJitter(0.4, 0.4, 0.4)] if train and "jitter" in arguments.augment else []
    steps += [v1.ToTensor(), v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    source = torch.utils.data.DataLoader(
        ImageFolder(images.where, v1.Compose(steps)),
        BATCH,
        shuffle=train,
        num_workers=arguments.nThreads,
        persistent_workers=arguments.nThreads > 0,
        multiprocessing_context="fork" if arguments.nThreads else None,
    )
    for _ in range(arguments.epochs):
        yield from source


def outside(name: str, python: str, root: str, arguments: argparse.Namespace) -> list[float]:
    """Return the seconds a batch of a loader that needs an environment of its own."""
    loader, *more = name.split("-")
    script = str(Path(__file__).parent / "peers" / f"{loader}_loader.py")
    more += ["resizedcrop"] if "resizedcrop" in arguments.augment else []
    command = [python, script, root, str(arguments.nThreads), str(arguments.epochs), *more]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Refused(
            f"{name} cannot be measured: "
            f"{(result.stderr.strip().splitlines() or ['it says nothing'])[-1]}"
        )
    return [float(result.stdout.split()[-1])]


def ceiling(images: FileImages, processes: int) -> list[float]:
    """Return the seconds a batch that so many processes take which only decode."""
    shares = [range(start, len(images), max(1, processes)) for start in range(max(1, processes))]
    context = multiprocessing.get_context("fork")
    with context.Pool(len(shares), utils.keep_memory) as pool:
        pool.map(partial(_decode, images), [share[:8] for share in shares])
        started = time.perf_counter()
        pool.map(partial(_decode, images), shares, chunksize=1)
        return [(time.perf_counter() - started) / len(images) * BATCH]


def _decode(images: FileImages, share: range) -> None:
    for index in share:
        decode.pixels(images.read(index))


def make(root: Path) -> None:
    """Write textures of 500 x 375 pixels with about ILSVRC's 110 kB a file."""
    noise = np.random.default_rng(1)
    for part, count in MADE.items():
        for number in range(count):
            coarse = Image.fromarray(noise.integers(0, 256, (24, 32, 3), np.uint8)).resize(
                (500, 375), Image.Resampling.BICUBIC
            )
            pixels = np.asarray(coarse, np.int16) + noise.integers(-9, 10, (375, 500, 1), np.int16)
            buffer = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
            path = root / part / f"class {number % 4}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_dir",
        help="folder with train/ and val/, a .zip file of them, or a "
        "folder of tar or Parquet files (default: a made-up one)",
    )
    parser.add_argument("--nThreads", type=int, default=2, help="processes that read (default: 2)")
    parser.add_argument(
        "--batches", type=int, default=1000, help="of 128, a repetition (default: 1000)"
    )
    parser.add_argument(
        "--epochs", type=int, default=2, help="of the folder at most, a repetition (default: 2)"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="alternating (default: 3)")
    parser.add_argument(
        "--augment", default="crop,flip", help="training augmentations (default: crop,flip)"
    )
    parser.add_argument(
        "--decoded",
        nargs="+",
        default=[],
        choices=("ram", "disk"),
        metavar="KIND",
        help="measure kept pixels too: ram, disk or both",
    )
    parser.add_argument(
        "--peer",
        nargs="+",
        default=[],
        metavar="NAME",
        help="measure in the same run: torchvision, and dali=PYTHON and "
        "ffcv=PYTHON, where PYTHON is that of an environment which has it (see benchmark/peers)",
    )
    parser.add_argument(
        "--tune", action="store_true", help="find the best number of processes instead"
    )
    parser.add_argument("--plot", help="picture of the figures")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    utils.keep_memory()
    with clear_errors(), tempfile.TemporaryDirectory() as scratch:
        if arguments.data_dir is None:
            make(Path(scratch))
        arguments.index = Path(scratch, "index.h5")
        (tune if arguments.tune else run)(arguments, arguments.data_dir or scratch)


def run(arguments: argparse.Namespace, root: str) -> None:
    """Measure ours beside the others, alternating; show and write the figures."""
    runs = timing.alternate(ways_to_read(arguments, root), arguments.repetitions)
    figures = {name: timing.summary(found) for name, found in runs.items()}
    limits = {
        part: BATCH / figures.pop(f"{part} decoding")["seconds_per_batch"]
        for part in ("train", "test")
    }
    for name, figure in figures.items():
        part, seconds = name.split()[0], figure["seconds_per_batch"]
        figure["images_per_second"] = BATCH / seconds
        figure["share_of_decoding"] = BATCH / seconds / limits[part]
        figure["ours_is_faster_by"] = seconds / figures[f"{part} ram"]["seconds_per_batch"]

    print_table(table(figures, arguments.nThreads))
    print(
        f"decoding alone: {limits['train']:.0f} images/s (train), {limits['test']:.0f} (test), "
        f"{arguments.nThreads} processes"
    )
    timing.write(arguments.json, {"figures": figures, "decoding_images_per_second": limits})
    if arguments.plot:
        rates = {name: figure["images_per_second"] for name, figure in figures.items()}
        bars(arguments.plot, rates, "images/s")


def ways_to_read(arguments: argparse.Namespace, root: str) -> dict[str, Callable[[], list[float]]]:
    """Return what is measured, each by the name of its row."""
    ways: dict[str, Callable[[], list[float]]] = {}
    origin = Origin(root)
    parts = origin.parts(labelled=True)
    for part in ("train", "test"):
        if part not in parts:
            raise Refused(f"{root} has no images to {part} on")
        images = parts[part]
        # A folder alone has files of its own, which others can read too.
        in_files = origin.kind == "folder" and images.packed is None
        sources = {}
        if in_files:
            sources["disk"] = partial(ours, indexed(root, arguments.index, part))
        sources["ram"] = partial(ours, images)
        if in_files and "torchvision" in arguments.peer:
            sources["torchvision"] = partial(theirs, images)
        for kind in arguments.decoded:
            keeping: Any = Keeping(images, kind, Path(arguments.index).parent)
            sources[f"decoded {kind}"] = keeping
        if arguments.decoded:
            once = partial(decoding_once, images, arguments, Path(arguments.index).parent)
            ways[f"{part} decoding once"] = partial(once, train=part == "train")
        for kind, source in sources.items():
            batches = partial(source, arguments, train=part == "train")
            # What is fast is measured for longer.
            most = arguments.batches * (KEPT_EPOCHS if kind.startswith("decoded") else 1)
            ways[f"{part} {kind}"] = partial(measure, batches, most)
        # The most that any reader can reach.
        ways[f"{part} decoding"] = partial(ceiling, images, arguments.nThreads)

    for name, _, python in (peer.partition("=") for peer in arguments.peer if "=" in peer):
        ways[f"train {name}"] = partial(outside, name, python, root, arguments)
    return ways


def table(figures: dict[str, Any], processes: int) -> list[list[str]]:
    """Return the figures as rows of text."""
    heads = ["s a batch", "min", "max", "images/s", "a core", "of decoding", "ram is"]
    rows = [["batch of 128", *heads]]
    for name, figure in figures.items():
        rate = figure["images_per_second"]
        cells = [f"{figure[key]:.4f}" for key in ("seconds_per_batch", "min", "max")]
        cells += [f"{rate:.0f}", f"{rate / max(1, processes):.0f}"]
        cells += [f"{figure['share_of_decoding']:.0%}", f"x {figure['ours_is_faster_by']:.2f}"]
        rows.append([name, *cells])
    return rows


def tune(arguments: argparse.Namespace, root: str) -> None:
    """Try numbers of processes, show what each gives and recommend the smallest that is within 3 %
    of the best.
    """
    images = Origin(root).parts(labelled=True)["train"]
    cores = core_count()
    numbers = sorted({1, 2, 3, 4, 6, 8, 12, 16, cores, 2 * cores} & set(range(1, 2 * cores + 1)))
    ways = {}
    for number in numbers:
        own = argparse.Namespace(**{**vars(arguments), "nThreads": number})
        ways[str(number)] = partial(
            measure, partial(ours, images, own, train=True), arguments.batches
        )
    found = timing.alternate(ways, arguments.repetitions)
    rates = {
        name: BATCH / timing.summary(runs)["seconds_per_batch"] for name, runs in found.items()
    }
    best = max(rates.values())
    rows = [[name, f"{rate:.0f}", "#" * round(40 * rate / best)] for name, rate in rates.items()]
    print_table([["--nThreads", "images/s", ""], *rows])
    chosen = next(name for name, rate in rates.items() if rate > 0.97 * best)
    print(
        f"recommended here: --nThreads {chosen} (training needs some of the {cores} cores too, "
        "where it is on the CPU)"
    )
    timing.write(arguments.json, {"images_per_second": rates, "recommended": int(chosen)})
    if arguments.plot:
        bars(arguments.plot, rates, "images/s by --nThreads")


def bars(path: str, values: dict[str, float], title: str) -> None:
    """Draw figures as bars."""
    from matplotlib.figure import Figure

    from report import pictures

    figure = Figure(figsize=(8, 1 + 0.4 * len(values)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(values), list(values.values()), color=pictures.BLUE)
    axes.bar_label(drawn, [f"{value:.0f}" for value in values.values()], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    pictures.save(figure, Path(path))


def indexed(root: str, path: Path, part: str) -> FileImages:
    """Return the folder's images as an HDF5 index names them."""
    if not path.exists():
        indexing.index(root, str(path))
    found = dbcollection.open_part("", str(path), root, part, "disk")
    assert isinstance(found, FileImages)
    return found


def measure(batches: Any, most: int) -> list[float]:
    """Return the mean seconds a batch of one pass, from the second batch on: workers give batches
    in bursts.
    """
    started, count, images = None, 0, 0
    for batch in batches():
        size = len(batch.images if isinstance(batch, Batch) else batch[0])
        if started is None:
            started = time.perf_counter()
            continue
        count, images = count + 1, images + size
        if count == most:
            break
    assert started is not None
    return [(time.perf_counter() - started) / max(images, 1) * BATCH]


if __name__ == "__main__":
    main()
