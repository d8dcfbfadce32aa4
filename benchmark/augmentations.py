"""Milliseconds that each augmentation takes for a batch, on one core or on a GPU."""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import augmentation
import utils
from augmentation import AUGMENTATIONS, MIX, WINDOW
from base.text import print_table
from benchmark import timing
from transforms import Pipeline

CHAIN = "flip,jitter:0.4,lighting,erase"  # a whole photometric pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128, help="images (default: 128)")
    parser.add_argument("--size", type=int, default=32, help="pixels a side (default: 32)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--repetitions", type=int, default=30, help="of each (default: 30)")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    if min(arguments.batch, arguments.size, arguments.repetitions) < 1:
        parser.error("--batch, --size and --repetitions: 1 at least")
    torch.set_num_threads(1)
    utils.keep_memory()
    names = [name for name, entry in AUGMENTATIONS.items() if entry.stage not in (WINDOW, MIX)]
    images = torch.randint(
        0, 256, (arguments.batch, 3, arguments.size, arguments.size), dtype=torch.uint8
    )
    images = images.to(arguments.device)
    figures = {text: milliseconds(text, images, arguments.repetitions) for text in [*names, CHAIN]}
    shape = f"{arguments.batch} x 3 x {arguments.size} x {arguments.size}"
    print_table(
        [
            [f"{shape}, {arguments.device}", "ms"],
            *([name, f"{value:.3f}"] for name, value in figures.items()),
        ]
    )
    timing.write(arguments.json, {"milliseconds": figures, "shape": shape})


def milliseconds(text: str, images: torch.Tensor, repetitions: int) -> float:
    """Return the median over repetitions, the draws included."""
    size = images.shape[-1]
    pipeline = Pipeline(augmentation.parse(text), size, size, seed=1)
    indices = np.arange(len(images))
    times = []
    for number in range(repetitions + 3):
        started = time.perf_counter()
        pipeline.apply_steps(images, pipeline.draw_uniforms(number, indices))
        if images.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[3:])


if __name__ == "__main__":
    main()
