"""webdataset's own loader over tar shards, in a process whose path lacks this repository.

    python benchmark/peers/webdataset_loader.py SHARDS WORKERS EPOCHS

SHARDS: a folder with train-*.tar. Prints the mean seconds a batch of 128, float32 as its users have
it, over the epochs after the first.
"""

import sys
import time
from pathlib import Path

import torch
import webdataset
from usual import STEPS


def first(pair):
    return pair


def main() -> None:
    folder, workers, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    shards = [str(path) for path in sorted(Path(folder).glob("train-*.tar"))]
    data = (
        webdataset.WebDataset(shards, shardshuffle=100, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg;jpeg;png", "cls")
        .map_tuple(STEPS, first)
        .batched(128)
    )
    loader = webdataset.WebLoader(
        data,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,
    )
    images, started = 0, 0.0
    for epoch in range(epochs):
        if epoch == 1:
            started = time.perf_counter()
        for batch, _ in loader:
            images += len(batch) if epoch else 0
    print((time.perf_counter() - started) / images * 128)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
