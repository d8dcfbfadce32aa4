"""ImageNet 2012 from its three archives to train/<wnid>/ and val/<wnid>/: counted, resumable,
archives never written to.

A file gets its name only once all of its bytes are there, so a run killed at any instant goes on
where it was.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from base.errors import Failed, Refused
from base.fetch import bytes_bar
from base.files import absent, whole_file, write_json

# Classes, training and test images: arXiv 1409.0575, table 2.
EXPECTED = (1000, 1_281_167, 50_000)
WNID = re.compile(r"n\d{8}")
TRAIN = re.compile(r"(n\d{8})_\d+\.JPEG")
VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
OWN_TEMPORARY = re.compile(
    rf"\.({TRAIN.pattern}|{VAL.pattern}|classes\.csv|\.prepared\.json)(\.\d+)?\.tmp"
)
# Bytes of one image.
MAX_BYTES = 64 << 20
DONE = ".prepared.json"

# A file in an archive or a folder: its name, its bytes, and what reads them.
Stored = tuple[str, int, Callable[[], bytes]]
Bar = Any  # tqdm's


def archives() -> dict[str, tuple[str, str]]:
    """Return name and MD5 of each archive, as torchvision publishes them."""
    from torchvision.datasets.imagenet import ARCHIVE_META

    return ARCHIVE_META


def prepare(tars: str, out: str, expected: tuple[int, int, int] | None) -> None:
    """Unpack all.

    expected: classes, training and test images of a partial set, whose MD5s are then not compared.

    Raises Refused, Failed.
    """
    source, target = Path(tars), Path(out)
    if not source.is_dir():
        raise Refused(absent(tars, "folder "))
    target.mkdir(parents=True, exist_ok=True)
    # What a killed run left half-written, and nothing of anyone else's.
    for path in target.rglob(".*.tmp"):
        if OWN_TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    if expected is None:
        _check_digests(source, target / DONE)
    words, wnids = devkit(source)
    _check_space(source, target)
    _unpack_train(source, target / "train", words)
    _unpack_val(source, target / "val", wnids)

    with whole_file(target / "classes.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["class", "words"], *sorted(words.items())])

    _check_counts(target, expected or EXPECTED)
    os.sync()
    print(f"{out}: train on it with: python main.py --dataset ilsvrc2012 --data_dir {out}")


def find(source: Path, part: str) -> Path | None:
    """Return the archive of a part, or the folder that it was unpacked to; None where neither is
    there.
    """
    name = archives()[part][0]
    folder = source / name.split(".")[0]
    return next((path for path in (source / name, folder) if path.exists()), None)


def _need(source: Path, part: str) -> Path:
    found = find(source, part)
    if found is None:
        name = archives()[part][0]
        raise Refused(
            f"{source} has neither {name} nor a folder {name.split('.')[0]}: get it from "
            "image-net.org"
        )
    return found


def _check_digests(source: Path, done: Path) -> None:
    """Compare each archive's MD5, once. Raises Refused."""
    try:
        known = json.loads(done.read_text())
    except (OSError, ValueError):
        known = {}

    for part, (name, digest) in archives().items():
        path = _need(source, part)
        if path.is_dir():
            continue
        state = [path.stat().st_size, path.stat().st_mtime]
        if known.get(name) == state:
            continue
        found = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file, bytes_bar(path.stat().st_size, f"MD5 of {name}") as bar:
            while block := file.read(1 << 22):
                found.update(block)
                bar.update(len(block))
        if found.hexdigest() != digest:
            wrong = f"{path} has MD5 {found.hexdigest()}, not {digest}"
            raise Refused(f"{wrong}: fetch it again", limit="partial")
        known[name] = state
        write_json(done, known)


def devkit(source: Path) -> tuple[dict[str, str], list[str]]:
    """Return the words of each WNID, and the WNID of each test image in order. Raises Refused."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise Refused("scipy reads the development kit: pip install scipy") from None

    place = _need(source, "devkit")
    try:
        with _devkit_file(place, "meta.mat") as file:
            synsets = loadmat(file, squeeze_me=True)["synsets"]
        leaves = [row for row in synsets if int(row["num_children"]) == 0]
        by_id = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        words = {str(row["WNID"]): str(row["words"]) for row in leaves}
        with _devkit_file(place, "ILSVRC2012_validation_ground_truth.txt") as file:
            wnids = [by_id[int(line)] for line in file.read().split()]
    except (OSError, KeyError, ValueError, TypeError, tarfile.TarError, EOFError) as error:
        raise Refused(
            f"{place} is no development kit of ILSVRC2012: {error!r}: fetch it again"
        ) from None

    wrong = next((wnid for wnid in words if not WNID.fullmatch(wnid)), None)
    if wrong:
        raise Refused(f"{place} has a class '{wrong}', which is no WNID: fetch it again")
    return words, wnids


def _devkit_file(place: Path, name: str) -> BinaryIO:
    """Open one file of the kit, whether it is packed or not. Raises KeyError."""
    if place.is_dir():
        return (place / "data" / name).open("rb")
    with tarfile.open(place) as archive:
        for member in archive:
            if (
                member.isreg()
                and member.name.endswith(f"/data/{name}")
                and member.size <= MAX_BYTES
            ):
                content = archive.extractfile(member)
                assert content is not None
                return io.BytesIO(content.read())

    raise KeyError(name)


def _check_space(source: Path, target: Path) -> None:
    needed = sum(
        path.stat().st_size
        for part in ("train", "val")
        if (path := find(source, part)) and path.is_file()
    )
    there = sum(
        path.stat().st_size for part in ("train", "val") for path in (target / part).glob("*/*")
    )
    free = shutil.disk_usage(target).free
    if needed - there > free:
        wanted = f"{(needed - there) / 1e9:.1f} GB are needed"
        raise Refused(f"{target} has {free / 1e9:.1f} GB free, {wanted}", limit="out")


def _unpack_train(source: Path, target: Path, words: dict[str, str]) -> None:
    place = _need(source, "train")
    size = place.stat().st_size if place.is_file() else 0

    with bytes_bar(size, "train") as bar:
        for wnid, files in _classes(place):
            if wnid not in words:
                raise Refused(
                    f"{place} has a class {wnid} that the development kit lacks: fetch both again"
                )
            for name, length, read in files:
                match = TRAIN.fullmatch(name)
                if not match or match[1] != wnid:
                    raise Refused(
                        f"{place}: {wnid} holds '{name}', which is no training image of it: fetch "
                        "it again"
                    )
                _keep(target / wnid / name, length, read)
                bar.update(length)


def _classes(place: Path) -> Iterator[tuple[str, Iterator[Stored]]]:
    """Yield each class with its files: from the archive of archives, a folder of archives, or a
    folder of folders.
    """
    if place.is_dir():
        for path in sorted(place.iterdir()):
            if path.is_dir():
                yield path.name, _folder(path)
            elif path.suffix == ".tar":
                with _tar(path) as archive:
                    yield path.stem, _members(archive, path)
        return

    with _tar(place) as archive:
        for member in archive:
            if not member.isreg() or not WNID.fullmatch(member.name.removesuffix(".tar")):
                raise Refused(
                    f"{place} holds '{member.name}', which is no class's archive: fetch it again"
                )
            content = archive.extractfile(member)
            with _tar(place, content) as inner:
                yield member.name.removesuffix(".tar"), _members(inner, place)


def _tar(path: Path, content: IO[bytes] | None = None) -> tarfile.TarFile:
    try:
        return (
            tarfile.open(path, "r:")
            if content is None
            else tarfile.open(fileobj=content, mode="r:")
        )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Refused(f"{path} is no whole tar file: {error}: fetch it again") from None


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[Stored]:
    """Yield name, bytes and a reader of each file.

    Raises Refused for anything but regular files: links are not followed.
    """
    try:
        for member in archive:
            if not member.isreg() or "/" in member.name or member.size > MAX_BYTES:
                raise Refused(
                    f"{path} holds '{member.name}', which is no plain image file: fetch it again"
                )
            content = archive.extractfile(member)
            assert content is not None
            yield member.name, member.size, content.read
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Refused(f"{path} is cut off or damaged: {error}: fetch it again") from None


def _folder(path: Path) -> Iterator[Stored]:
    for file in sorted(path.iterdir()):
        if not file.is_file() or file.is_symlink():
            raise Refused(f"{file} is no plain file: remove it")
        yield file.name, file.stat().st_size, file.read_bytes


def _unpack_val(source: Path, target: Path, wnids: list[str]) -> None:
    place = _need(source, "val")
    size = place.stat().st_size if place.is_file() else 0
    with bytes_bar(size, "val") as bar:
        if place.is_dir():
            files: Iterator[Stored] = _folder(place)
            _sort_val(files, place, target, wnids, bar)
            return
        with _tar(place) as archive:
            _sort_val(_members(archive, place), place, target, wnids, bar)


def _sort_val(
    files: Iterator[Stored], place: Path, target: Path, wnids: list[str], bar: Bar
) -> None:
    for name, length, read in files:
        match = VAL.fullmatch(name)
        if not match or not 1 <= int(match[1]) <= len(wnids):
            raise Refused(
                f"{place} holds '{name}', which is none of the {len(wnids)} test images: fetch it "
                "again"
            )
        _keep(target / wnids[int(match[1]) - 1] / name, length, read)
        bar.update(length)


def _keep(path: Path, length: int, read: Callable[[], bytes]) -> None:
    """Write a file whole, unless it is there."""
    if path.exists() and path.stat().st_size == length:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        content = read()
    except tarfile.TarError:
        content = b""
    if len(content) != length:
        raise Refused(f"{path.name} is cut off in its archive: fetch that again")
    temporary.write_bytes(content)
    temporary.replace(path)


def _check_counts(target: Path, expected: tuple[int, int, int]) -> None:
    """Raise Failed unless as many classes and images are there as should be."""
    found = [sum(1 for _ in (target / "train").glob("n*/"))]
    found += [sum(1 for path in (target / part).glob("*/*.JPEG")) for part in ("train", "val")]
    print(f"{found[0]} classes, {found[1]} training and {found[2]} test images")
    if tuple(found) != tuple(expected):
        wanted = "{} classes, {} training and {} test images".format(*expected)
        raise Failed(f"{target} should have {wanted}", limit="partial")
