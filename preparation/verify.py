"""Whether the files of a published data set are the published ones."""

import hashlib
from pathlib import Path

from base.errors import Refused
from base.fetch import digest_of
from datasets import arrays, cifar

FETCH = "remove it, it is then fetched again"


def verify(name: str, folder: Path) -> str:
    """Compare the files in `folder` with the hashes of the data set's publisher; return what was
    found. Raises Refused for one that is another.
    """
    if name == "mnist":
        digests = {file: (digest, "sha256") for file, digest in arrays.MNIST_SHA256.items()}
    elif name == "fashionmnist":
        digests = {file: (digest, "md5") for file, digest in arrays.FASHION_MD5.items()}
    else:
        digests = {file: (digest, "md5") for file, digest in _cifar_md5(name).items()}

    compared = 0
    for file, (digest, kind) in digests.items():
        path = arrays.idx_file(folder, file) if "idx" in file else folder / file
        if path is None or not path.is_file():
            continue
        found = _digest(path, file, kind)
        if found != digest:
            raise Refused(f"{path} has {kind} {found}, not {digest}: {FETCH}")
        compared += 1
    if not compared:
        return "no file is in the form whose hashes are published: nothing was compared"
    return f"{compared} of {len(digests)} files compared with the published hashes: all equal"


def _digest(path: Path, name: str, kind: str) -> str:
    """Return a file's hash, of what is in it where it is packed and the hash is of the content."""
    if path.suffix == ".gz" and not name.endswith(".gz"):
        return hashlib.new(kind, arrays.unpacked(path)).hexdigest()
    return digest_of(path, kind)


def _cifar_md5(name: str) -> dict[str, str]:
    """Return each file's MD5, as torchvision publishes them."""
    from torchvision.datasets import CIFAR10, CIFAR100

    published = CIFAR10 if name == "cifar10" else CIFAR100
    what = cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100
    lists = [*published.train_list, *published.test_list]
    return {str(file): str(md5) for file, md5 in lists} | {what.meta: published.meta["md5"]}
