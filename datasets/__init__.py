"""The table of data sets.

One line adds one. Nothing here imports torch: `python main.py --help` reads this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A data set's opener, as "module:function" below this package, and the defaults of a run on
    it.

    The opener is called as function(data_dir, part, classes=..., **settings) with part "train" or
    "test" (then with the training part's class names), of image files also "all" and "other", and
    returns images as `datasets.images` describes them. imageSize and cropSize are in pixels.
    """

    opener: str
    imageSize: int
    cropSize: int
    nEpochs: int
    augment: str
    about: str
    # Image files of the user's own: --valShare can split them, what was found is kept, and the
    # number of images decides the batch and the epochs.
    own: bool = False


# The Torch7 suite's pipeline for photographs.
PHOTOS = "crop,flip,jitter:0.4"
# A mirrored digit is another digit.
DIGITS = "pad:2,crop"
CLOTHES = "pad:2,crop,flip"
# What published CIFAR results use.
SMALL = "pad:4,crop,flip"

DATASETS = {
    "ilsvrc2012": Source(
        "folder:ilsvrc2012", 256, 224, 55, PHOTOS, "ImageNet 2012: data_dir/train and data_dir/val"
    ),
    "folder": Source(
        "folder:open_folder",
        256,
        224,
        55,
        PHOTOS,
        "a folder or .zip file of your own: data_dir/train/<class>/*.jpg",
        own=True,
    ),
    "table": Source(
        "table:open_table",
        256,
        224,
        55,
        PHOTOS,
        "image files by a table: --labels F.csv",
        own=True,
    ),
    "shards": Source(
        "shards:open_shards",
        256,
        224,
        55,
        PHOTOS,
        "tar files of webdataset: data_dir/train-000000.tar",
        own=True,
    ),
    "parquet": Source(
        "parquet:open_parquet",
        256,
        224,
        55,
        PHOTOS,
        "Parquet files of the Hugging Face hub: data_dir/train-00000-of-00001.parquet",
        own=True,
    ),
    "mnist": Source("arrays:mnist", 28, 28, 10, DIGITS, "handwritten digits, fetched by pip"),
    "fashionmnist": Source(
        "arrays:fashionmnist", 28, 28, 20, CLOTHES, "clothes, in MNIST's format"
    ),
    "cifar10": Source("cifar:cifar10", 32, 32, 60, SMALL, "photographs of 10 kinds of things"),
    "cifar100": Source("cifar:cifar100", 32, 32, 60, SMALL, "photographs of 100 kinds of things"),
    "synthetic": Source(
        "synthetic:synthetic", 256, 224, 2, "crop,flip", "made-up images with a learnable label"
    ),
}
