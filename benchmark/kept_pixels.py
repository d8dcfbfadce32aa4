"""How far windows of kept pixels are from those of the files, in grey levels; and what an epoch of
them leaves in memory.

    python benchmark/kept_pixels.py --data_dir D --images 1000
"""

import argparse
import resource
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import augmentation
import data
import utils
from base.errors import clear_errors
from base.text import print_table
from benchmark import timing
from datasets.images import FileImages
from loading import decode_once
from loading.plan import Plan
from preparation.sources import Origin
from transforms import Pipeline

BATCH, SCALED, SIDE = 128, 256, 224
# Augmentations of a way, and the shorter side that is kept.
WAYS = {
    "crop": ("crop,flip", SCALED),
    "test": ("none", SCALED),
    "resizedcrop, kept at 256": ("resizedcrop,flip", 256),
    "resizedcrop, kept at 280": ("resizedcrop,flip", 280),
    "resizedcrop, kept at 375": ("resizedcrop,flip", 375),
}
CPU = torch.device("cpu")


def difference(images: FileImages, steps: str, size: int, threads: int) -> dict[str, float]:
    """Return mean and largest difference of a pixel, and the mean of the worst image."""
    pipeline = Pipeline(augmentation.parse(steps), SCALED, SIDE, seed=2)
    plan = Plan(len(images), BATCH, 2, True)
    scaling = pipeline.scaling(size)
    kept, _ = decode_once.in_memory(images, scaling, plan.pool, threads=threads, skip=False)
    files = data.make_loader(images, pipeline, plan, CPU, workers=threads)
    ours = data.KeptLoader(kept, pipeline, plan, CPU, threads=threads)
    means, worst = [], 0
    for one, other in zip(files.epoch(0), ours.epoch(0), strict=True):
        apart = (one.images.int() - other.images.int()).abs()
        means += apart.float().mean((1, 2, 3)).tolist()
        worst = max(worst, int(apart.max()))
    return {"mean": float(np.mean(means)), "worst_image": max(means), "worst_pixel": worst}


def growth(images: FileImages, epochs: int, threads: int) -> float:
    """Return the KiB by which the most that this process takes grows in so many epochs."""
    pipeline = Pipeline(augmentation.parse("crop,flip"), SCALED, SIDE, seed=2)
    plan = Plan(len(images), BATCH, 2, True)
    kept, _ = decode_once.in_memory(
        images, pipeline.scaling(), plan.pool, threads=threads, skip=False
    )
    loader = data.KeptLoader(kept, pipeline, plan, CPU, threads=threads)
    peaks = []
    for epoch in range(epochs):
        for _ in loader.epoch(epoch):
            pass
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    # The first epochs bring the pixels into this process's map.
    return peaks[-1] - peaks[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="folder with train/")
    parser.add_argument("--images", type=int, default=1000, help="of them (default: 1000)")
    parser.add_argument("--epochs", type=int, default=50, help="for memory (default: 50)")
    parser.add_argument("--nThreads", type=int, default=2, help="that read (default: 2)")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    utils.keep_memory()
    with clear_errors():
        images = Origin(arguments.data_dir).parts(labelled=True)["train"]
        count = min(arguments.images, len(images))
        images = images.chosen(np.linspace(0, len(images) - 1, count).astype(np.int64))
        figures: dict[str, Any] = {
            name: difference(images, steps, size, arguments.nThreads)
            for name, (steps, size) in WAYS.items()
        }
        rows = [["grey levels apart", "mean", "worst image", "worst pixel"]]
        for name, found in figures.items():
            rows.append([name, *(f"{value:.2f}" for value in found.values())])
        print_table(rows)
        grown = growth(images, arguments.epochs, arguments.nThreads)
        print(f"memory grew by {grown} KiB from epoch 3 to {arguments.epochs}")
        timing.write(arguments.json, {"images": count, "apart": figures, "grown_kib": grown})


if __name__ == "__main__":
    main()
