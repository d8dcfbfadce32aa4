"""The datasets library's own reading of Parquet files with torch's loader, in a process whose path
lacks this repository, whose folder datasets/ would hide it.

    python benchmark/peers/datasets_loader.py FOLDER WORKERS EPOCHS

FOLDER: with train-*.parquet. The library first turns them into its own Arrow files, in a temporary
folder. Prints the mean seconds a batch of 128, float32 as its users have it, over the epochs after
the first.
"""

import sys
import tempfile
import time

import torch
from usual import STEPS

import datasets


def prepared(rows):
    images = [STEPS(image.convert("RGB")) for image in rows["image"]]
    return {"image": images, "label": rows["label"]}


def main() -> None:
    folder, workers, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        rows = datasets.load_dataset(
            "parquet",
            data_files=f"{folder}/train-*.parquet",
            split="train",
            cache_dir=scratch,
        )
        rows = rows.cast_column("image", datasets.Image()).with_transform(prepared)
        loader = torch.utils.data.DataLoader(
            rows,
            128,
            shuffle=True,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            persistent_workers=workers > 0,
        )
        images, started = 0, 0.0
        for epoch in range(epochs):
            if epoch == 1:
                started = time.perf_counter()
            for batch in loader:
                images += len(batch["label"]) if epoch else 0
        print((time.perf_counter() - started) / images * 128)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
