"""CIFAR-10 and CIFAR-100: Krizhevsky 2009, in the published Python pickles and torchvision's
folders.

A pickle can run any code, so these are read by an unpickler that knows only what such a file needs.
"""

import io
import os
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base.errors import Refused
from base.fetch import digest_of, fetch
from base.files import whole_file
from datasets.arrays import CACHE
from datasets.images import ArrayImages, check_labels

# Of a file of pixels; the largest published one has 155 million.
MAX_BYTES = 256 << 20


Unpickled = Any  # what a pickle holds: checked by who asks for it


@dataclass(frozen=True)
class Published:
    """Where a data set lies and what its files are called."""

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    names: str


SITE = "https://www.cs.toronto.edu/~kriz/"
CIFAR10 = Published(
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels="labels",
    names="label_names",
)
CIFAR100 = Published(
    archive="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    meta="meta",
    labels="fine_labels",
    names="fine_label_names",
)


def cifar10(data_dir: str | None, part: str, *, classes: list[str] | None = None) -> ArrayImages:
    """Open CIFAR-10 below data_dir, where it is fetched to if it is missing. Raises Refused."""
    return _open(CIFAR10, data_dir, part)


def cifar100(data_dir: str | None, part: str, *, classes: list[str] | None = None) -> ArrayImages:
    """Open CIFAR-100 with its 100 fine labels, as `cifar10`."""
    return _open(CIFAR100, data_dir, part)


def _open(what: Published, data_dir: str | None, part: str) -> ArrayImages:
    folder = find(what, Path(os.path.expanduser(data_dir or CACHE)))
    classes = [str(name) for name in _entry(folder / what.meta, what.names, list)]
    pixels, labels = [], []

    for name in what.train if part == "train" else what.test:
        path = folder / name
        data = _entry(path, "data", np.ndarray)
        own = np.asarray(_entry(path, what.labels, list))
        images = data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3 * 32 * 32
        if not images or own.shape != data.shape[:1]:
            found = f"{data.dtype} {data.shape} and {len(own)} labels"
            raise Refused(f"{path} holds {found}: not a CIFAR file; fetch it again")
        check_labels(own, classes, str(path))
        pixels.append(data.reshape(-1, 3, 32, 32))
        labels.append(own.astype(np.int64))

    every = torch.from_numpy(np.concatenate(pixels))
    return ArrayImages(every, np.concatenate(labels), classes, str(folder))


def find(what: Published, root: Path) -> Path:
    """Return the folder with the pickles: below root, root itself, unpacked from the archive there,
    or fetched.
    """
    names = (*what.train, *what.test, what.meta)
    for folder in (root / what.folder, root):
        if all((folder / name).is_file() for name in names):
            return folder

    archive = root / what.archive
    if not archive.exists():
        print(f"fetching {what.archive} to {root}", flush=True)
        fetch(SITE + what.archive, archive, what.md5)
    elif (found := digest_of(archive)) != what.md5:
        wrong = f"{archive} has MD5 {found}, not {what.md5}"
        raise Refused(f"{wrong}: remove it, it is then fetched again")

    unpack(archive, root / what.folder, names)
    return root / what.folder


def unpack(archive: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copy the regular files called `names` out of a tar. Raises Refused."""
    try:
        with tarfile.open(archive) as tar:
            # By their bare names: a path in an archive must lead nowhere.
            members = {Path(member.name).name: member for member in tar if member.isreg()}
            for name in names:
                source = tar.extractfile(members[name])
                assert source is not None
                folder.mkdir(parents=True, exist_ok=True)
                with whole_file(folder / name, "wb") as file:
                    file.write(source.read(MAX_BYTES))
    except (OSError, tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        way = "remove it, it is then fetched again"
        raise Refused(f"cannot unpack {archive}: {error}: {way}") from None


def _entry(path: Path, key: str, kind: type) -> Unpickled:
    value = load_pickle(path)
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise Refused(f"{path} has no '{key}': not a CIFAR file; fetch it again")
    return value[key]


def load_pickle(path: Path) -> Unpickled:
    """Read a pickle of dicts, lists, text, numbers and uint8 arrays.

    Raises Refused; runs nothing of the file.
    """
    try:
        content = path.read_bytes()
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has {len(content)} bytes")
        # latin1, as Python 2 wrote these files.
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a broken pickle can raise anything
        reason = str(error) or type(error).__name__
        raise Refused(f"{path} is no CIFAR file: {reason}: fetch it again") from None


def _reconstruct(kind: type, shape: tuple[int, ...], code: object) -> np.ndarray:
    """Begin an array as NumPy's pickles do: always an empty one, its contents follow."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"it begins an array of shape {shape}")
    return np.ndarray(0, np.uint8)


def _dtype(code: str, *_: object) -> np.dtype:
    if code not in ("u1", "|u1", "i8", "<i8"):
        raise pickle.UnpicklingError(f"it holds an array of type {code!r}")
    return np.dtype(code)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes encoded as {encoding!r}")
    return text.encode("latin1")


# All names that a CIFAR file asks for, and what stands for each.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """Return what the name stands for in a CIFAR file.

        Raises UnpicklingError for all other names.
        """
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return ALLOWED[module, name]
