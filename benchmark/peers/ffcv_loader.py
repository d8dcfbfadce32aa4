"""FFCV from its own file, in an environment of its own: see FFCV's manual for how to build it.

    PYTHON benchmark/peers/ffcv_loader.py FOLDER WORKERS EPOCHS [resizedcrop] [raw]

Repacks FOLDER/train first, into a temporary file: JPEG of quality 90, or with raw pixels, 341
pixels the longest side, which are the pixels of a 4:3 image whose shorter side is 256. Without
resizedcrop the centre is cut: FFCV has no random window of one size. Prints the mean seconds a
batch of 128, uint8, over the epochs after the first.
"""

import sys
import tempfile
import time
from pathlib import Path

from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image


class Files:
    def __init__(self, root: Path) -> None:
        self.paths = sorted(root.glob("*/*"))
        self.classes = sorted({path.parent.name for path in self.paths})

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        path = self.paths[index]
        return Image.open(path).convert("RGB"), self.classes.index(path.parent.name)


def main() -> None:
    folder, workers, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    mode = "raw" if "raw" in sys.argv[4:] else "jpg"
    cut = CenterCropRGBImageDecoder((224, 224), 224 / 256)
    if "resizedcrop" in sys.argv[4:]:
        cut = RandomResizedCropRGBImageDecoder((224, 224))
    with tempfile.TemporaryDirectory() as scratch:
        packed = str(Path(scratch, "train.beton"))
        fields = {
            "image": RGBImageField(write_mode=mode, max_resolution=341, jpeg_quality=90),
            "label": IntField(),
        }
        DatasetWriter(packed, fields, num_workers=workers).from_indexed_dataset(
            Files(Path(folder, "train"))
        )
        image = [
            cut,
            RandomHorizontalFlip(),
            ToTensor(),
            ToTorchImage(),
        ]
        loader = Loader(
            packed,
            batch_size=128,
            num_workers=workers,
            order=OrderOption.RANDOM,
            os_cache=True,
            drop_last=True,
            pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
        )
        for _ in loader:
            pass
        start, batches = time.perf_counter(), 0
        for _ in range(epochs - 1):
            batches += sum(1 for _ in loader)
        print((time.perf_counter() - start) / batches)


if __name__ == "__main__":
    main()
