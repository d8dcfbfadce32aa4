"""NVIDIA DALI on the CPU, in an environment of its own: pip install nvidia-dali-cuda120 numpy.

    PYTHON benchmark/peers/dali_loader.py FOLDER WORKERS EPOCHS [resizedcrop]

Prints the mean seconds a batch of 128, uint8, over the epochs after the first.
"""

import sys
import time
from pathlib import Path

from nvidia.dali import fn, pipeline_def, types


@pipeline_def(batch_size=128, device_id=None, prefetch_queue_depth=2)
def train(folder, resized):
    files, labels = fn.readers.file(file_root=f"{folder}/train", random_shuffle=True)
    if resized:
        images = fn.decoders.image_random_crop(files, device="cpu", output_type=types.RGB)
        images = fn.resize(images, size=(224, 224))
    else:
        images = fn.resize(
            fn.decoders.image(files, device="cpu", output_type=types.RGB), resize_shorter=256
        )
    images = fn.crop_mirror_normalize(
        images,
        crop=(224, 224),
        mirror=fn.random.coin_flip(),
        dtype=types.UINT8,
        output_layout="CHW",
        mean=[0],
        std=[1],
        crop_pos_x=fn.random.uniform(range=(0, 1)),
        crop_pos_y=fn.random.uniform(range=(0, 1)),
    )
    return images, labels


def main() -> None:
    folder, workers, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pipeline = train(folder, "resizedcrop" in sys.argv, num_threads=workers)
    pipeline.build()
    batches = len(list(Path(folder, "train").glob("*/*"))) // 128
    for _ in range(batches):
        pipeline.run()
    start = time.perf_counter()
    for _ in range(batches * (epochs - 1)):
        pipeline.run()[0].as_array()
    print((time.perf_counter() - start) / batches / (epochs - 1))


if __name__ == "__main__":
    main()
