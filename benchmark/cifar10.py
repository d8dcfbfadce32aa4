"""Data loading on CIFAR-10: the Torch7 suite's table, and the usual torchvision loader beside it in
the same run.

The pipeline is the Torch7 suite's: bicubic to 48 pixels, random crop of 32, flip, colour jitter
0.4, normalised float32; the centre in testing. `disk` reads the images of each batch from
dbcollection's HDF5 form, `ram` has them in memory. Without --data_dir the images are made up: their
content does not change the time.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
import torch

import augmentation
import data
import utils
from base.errors import clear_errors
from base.text import print_table
from benchmark import timing
from datasets import cifar, dbcollection, synthetic
from datasets.images import ArrayImages
from loading.plan import Plan
from model import Normalise
from preparation.index import LIBVER, encode_strings
from transforms import Pipeline

BATCH, SCALED, SIDE = 128, 48, 32
TRAIN = "crop,flip,jitter:0.4"
UNCACHED = "train disk as packed, without the cache"


def ours(images: Any, train: bool) -> Iterator[torch.Tensor]:
    """Yield batches ready for the first convolution: (128, 3, 32, 32) float32, normalised."""
    steps = augmentation.parse(TRAIN if train else "none")
    pipeline = Pipeline(steps, SCALED, SIDE, seed=2, interpolation="bicubic")
    source = data.make_loader(
        images, pipeline, Plan(len(images), BATCH, 2, train), torch.device("cpu")
    )
    normalise = Normalise()
    for epoch in range(1000):
        for batch in source.epoch(epoch):
            yield normalise(batch.images)


class Pictures(torch.utils.data.Dataset):
    """The usual way: one image at a time through PIL and torchvision's transforms."""

    def __init__(self, images: ArrayImages, train: bool) -> None:
        from torchvision import transforms as v1

        self.pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels
        steps = [v1.Resize(SCALED, v1.InterpolationMode.BICUBIC)]
        steps += (
            [v1.RandomCrop(SIDE), v1.RandomHorizontalFlip(), v1.ColorJitter(0.4, 0.4, 0.4)]
            if train
            else [v1.CenterCrop(SIDE)]
        )
        self.transform = v1.Compose([*steps, v1.ToTensor(), v1.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def theirs(loader: Any) -> Iterator[torch.Tensor]:
    for _ in range(1000):
        yield from loader


def peer(images: ArrayImages, train: bool, workers: int) -> Any:
    return torch.utils.data.DataLoader(
        Pictures(images, train),
        BATCH,
        shuffle=train,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", help="folder of CIFAR-10 (default: made-up images)")
    parser.add_argument(
        "--batches", type=int, default=100, help="batches of 128 a repetition (default: 100)"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="alternating (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="of the usual loader (default: 2)")
    about = "where the time of a training batch in memory goes, in milliseconds, and nothing else"
    parser.add_argument("--stages", action="store_true", help=about)
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one core for ours
    utils.keep_memory()  # as main.py does
    if arguments.stages:
        show_stages(arguments)
        return
    with clear_errors(), tempfile.TemporaryDirectory() as scratch:
        run(arguments, Path(scratch))


def run(arguments: argparse.Namespace, scratch: Path) -> None:
    """Measure disk, RAM and the peer, alternating; show and write the figures."""
    if arguments.data_dir:
        images = cifar.cifar10(arguments.data_dir, "train")
    else:
        images = synthetic.synthetic(None, "train", shape=(10_000, 10, 32))
    kinds = {
        "disk": on_disk(images, scratch, chunks=(1, 32, 32, 3)),
        "disk as packed by dbcollection": on_disk(images, scratch, chunks=True),
        "ram": images,
    }

    ways: dict[str, Callable[[], list[float]]] = {}
    for part in ("train", "test"):
        sources = {kind: partial(ours, source, part == "train") for kind, source in kinds.items()}
        sources["torchvision"] = partial(theirs, peer(images, part == "train", arguments.workers))
        for kind, batches in sources.items():
            ways[f"{part} {kind}"] = partial(measure, batches, arguments.batches)
    runs = timing.alternate(ways, arguments.repetitions)
    figures = {name: timing.summary(found) for name, found in runs.items()}

    # One batch says it: each takes seconds.
    bare = on_disk(images, scratch, chunks=True, cache=False)
    seconds = [timing.seconds_per_batch(ours(bare, True), 1, skip=1)]
    figures[UNCACHED] = timing.summary(seconds)

    labels = {kind: f"{kind}, 1 core" for kind in kinds}
    labels["torchvision"] = f"torchvision, {arguments.workers} workers"
    print_table(table(figures, labels))
    timing.write(arguments.json, {"figures": figures})


def show_stages(arguments: argparse.Namespace) -> None:
    """Measure each part of a batch alone, alternating, beside writing its bytes once."""
    images = synthetic.synthetic(None, "train", shape=(10_000, 10, SIDE))
    stored = images.pixels.permute(0, 2, 3, 1).contiguous()
    indices = np.random.default_rng(1).permutation(len(images))[:BATCH]
    chosen = stored[torch.from_numpy(indices)].permute(0, 3, 1, 2)

    def pipeline(text: str) -> Pipeline:
        return Pipeline(augmentation.parse(text), SCALED, SIDE, interpolation="bicubic")

    cut, whole, normalise = pipeline("crop"), pipeline(TRAIN), Normalise()
    cropped = cut.cut_arrays(chosen, 0, indices)
    ready = normalise(cropped)
    draws = {name: pipeline(name).draw_uniforms(0, indices) for name in ("flip", "jitter:0.4")}

    def step(name: str) -> torch.Tensor:
        return pipeline(name).apply_steps(cropped, draws[name])

    stages: dict[str, Callable[[], Any]] = {
        "choose 128 images": lambda: stored.index_select(0, torch.from_numpy(indices)),
        "resize to 48 and crop": lambda: cut.cut_arrays(chosen, 0, indices),
        "draw random numbers": lambda: whole.draw_uniforms(0, indices),
        "flip": lambda: step("flip"),
        "colour jitter": lambda: step("jitter:0.4"),
        "normalise to float32": lambda: normalise(cropped),
        "copy a float32 batch, for comparison": ready.clone,
    }
    ways = {name: partial(repeated, stage, arguments.batches) for name, stage in stages.items()}
    runs = timing.alternate(ways, arguments.repetitions)
    figures = {name: timing.summary(found) for name, found in runs.items()}
    rows = [["one core", "ms a batch of 128"]]
    rows += [[name, f"{1000 * found['seconds_per_batch']:.3f}"] for name, found in figures.items()]
    print_table(rows)
    timing.write(arguments.json, {"figures": figures})


def repeated(stage: Callable[[], Any], most: int) -> list[float]:
    return timing.seconds_per_batch((stage() for _ in iter(int, 1)), most, skip=5)


def table(figures: dict[str, Any], labels: dict[str, str]) -> list[list[str]]:
    """Return the figures as rows of text. labels: of the kinds."""
    rows = [["Cifar10, seconds a batch of 128", "train", "test", "train / ram", "test / ram"]]
    ram = {part: figures[f"{part} ram"]["seconds_per_batch"] for part in ("train", "test")}
    for kind, label in labels.items():
        seconds = {part: figures[f"{part} {kind}"]["seconds_per_batch"] for part in ram}
        ratios = [f"{seconds[part] / ram[part]:.2f}" for part in ram]
        rows.append([label, *(f"{value:.5f}" for value in seconds.values()), *ratios])

    uncached = figures[UNCACHED]["seconds_per_batch"]
    label = "disk as packed, without the chunk cache, 1 core"
    rows.append([label, f"{uncached:.5f}", "", f"{uncached / ram['train']:.0f}", ""])
    return rows


def measure(batches: Callable[[], Iterator[Any]], most: int) -> list[float]:
    return timing.seconds_per_batch(batches(), most, skip=5)


def on_disk(images: ArrayImages, scratch: Path, *, chunks: Any, cache: bool = True) -> Any:
    """Return the same images read from an HDF5 file of dbcollection's form, batch by batch.

    chunks: of its images.
    """
    path = scratch / f"pixels-{chunks}-{cache}.h5"  # two handles of one file would share its cache
    count = len(images)
    names = encode_strings(images.classes)
    if not path.exists():
        with h5py.File(path, "w", libver=LIBVER) as file:
            group = file.create_group("train")
            pixels = images.pixels.permute(0, 2, 3, 1).numpy()
            packing: dict[str, Any] = (
                {"compression": "gzip", "compression_opts": 4} if chunks is True else {}
            )
            group.create_dataset("images", data=pixels, chunks=chunks, **packing)
            group["classes"], group["labels"] = names, images.labels.astype(np.uint8)
            group["object_fields"] = encode_strings(["images", "labels"])
            group["object_ids"] = np.stack([np.arange(count)] * 2, 1).astype(np.int32)
    found = dbcollection.open_part("cifar10", str(path), None, "train", "disk")
    if not cache:
        found.pixels.file.keep(0)
    return found


if __name__ == "__main__":
    main()
