"""Files that attack whoever reads them: each is refused, with nothing run, nothing foreign read, in
512 MiB and 5 seconds.
"""

import gzip
import io
import json
import os
import pickle
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import scratch, script, write_set

import data
import model
from base import archive
from base.errors import Refused
from datasets import arrays, cifar, dbcollection
from datasets.folder import open_folder
from datasets.images import FileImages
from loading.plan import Plan
from loading.workers import Reader, Task
from transforms import Pipeline

MEMORY, SECONDS = 512 << 20, 5
SECRET = b"the canary's own words"
Payload = tuple[str, Callable[[], Any]]


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def calls(canary: Path) -> list[Call]:
    """Return objects that touch the canary as they are unpickled."""
    touch = f"touch {canary}.touched"
    code = f"open({str(canary) + '.touched'!r}, 'w')"
    return [
        Call(os.system, touch),
        Call(eval, code),
        Call(exec, code),
        Call(open, f"{canary}.touched", "w"),
        Call(subprocess.call, ["touch", f"{canary}.touched"]),
        Call(os.mkdir, f"{canary}.touched"),
        Call(os.rename, str(canary), f"{canary}.touched"),
        Call(torch.save, 1, f"{canary}.touched"),
    ]


def pickles(base: Path, canary: Path) -> Iterator[Payload]:
    ways: dict[str, Callable[[Any, Path], Any]] = {
        "zip": lambda call, path: torch.save({"network": call}, path),
        "plain": lambda call, path: path.write_bytes(pickle.dumps(call)),
    }
    for number, call in enumerate(calls(canary)):
        for name, write in ways.items():
            path = base / f"{name}{number}.pt"
            write(call, path)
            for forced in ("0", "1"):
                yield (
                    f"{path.name} as weights, forced {forced}",
                    lambda p=path, f=forced: unsafe(f, model.load, p),
                )
                yield (
                    f"{path.name} as checkpoint, forced {forced}",
                    lambda p=path, f=forced: unsafe(f, archive.read, p),
                )
        path = base / f"data_batch_{number}"
        path.write_bytes(pickle.dumps({"data": call, "labels": [0]}, 2))
        yield f"{path.name} of CIFAR", lambda p=path: cifar.load_pickle(p)


def unsafe(forced: str, read: Callable[[Any], Any], path: Path) -> Any:
    """Read with the variable set that overrides what is left to torch."""
    if forced == "1":
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    return read(path)


def zips(base: Path) -> Iterator[Payload]:
    torch.save({"network": torch.zeros(8)}, base / "good.pt")
    with zipfile.ZipFile(base / "good.pt") as good:
        entries = {info.filename: good.read(info) for info in good.infolist()}
    names = list(entries)
    changes: dict[str, list[tuple[str, bytes, int]]] = {
        "packed": [(n, entries[n], zipfile.ZIP_DEFLATED) for n in names],
        "bomb": [
            *((n, entries[n], 0) for n in names),
            ("good/data/1", bytes(300 << 20), zipfile.ZIP_DEFLATED),
        ],
        "traversal": [*((n, entries[n], 0) for n in names), ("../../canary", b"x", 0)],
        "absolute": [*((n, entries[n], 0) for n in names), ("/tmp/canary", b"x", 0)],
        "short": [(n, entries[n][:4] if n.endswith("data/0") else entries[n], 0) for n in names],
        "none": [(n, entries[n], 0) for n in names if not n.endswith("data/0")],
    }
    for name, parts in changes.items():
        path = base / f"{name}.pt"
        with zipfile.ZipFile(path, "w") as bad:
            for entry, content, kind in parts:
                bad.writestr(entry, content, kind)
        yield f"zip: {name}", lambda p=path: archive.read(p)


def tars(base: Path, canary: Path) -> Iterator[Payload]:
    kinds = {
        "link": tarfile.SYMTYPE,
        "hard": tarfile.LNKTYPE,
        "fifo": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
    }
    for name, kind in kinds.items():
        path = base / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
            info.type, info.linkname = kind, str(canary)
            tar.addfile(info)
        yield (
            f"tar: {name}",
            lambda p=path, n=name: cifar.unpack(p, base / f"out-{n}", ("data_batch_1",)),
        )


def hdf5s(base: Path, canary: Path) -> Iterator[Payload]:
    whole = base / "whole.h5"
    write_set(whole)
    for place in ("images", "object_ids", "object_fields", "classes"):
        for kind in ("soft", "external", "storage", "virtual", "huge", "text"):
            path = base / f"{kind}-{place}.h5"
            write_set(path)
            with h5py.File(path, "a") as file:
                group = file["train"]
                shape, dtype = group[place].shape, group[place].dtype
                del group[place]
                if kind == "soft":
                    group[place] = h5py.SoftLink(f"/test/{place}")
                elif kind == "external":
                    group[place] = h5py.ExternalLink(str(whole), f"train/{place}")
                elif kind == "storage":
                    group.create_dataset(
                        place, shape, dtype, external=[(str(canary), 0, h5py.h5f.UNLIMITED)]
                    )
                elif kind == "virtual":
                    layout = h5py.VirtualLayout(shape, dtype)
                    layout[...] = h5py.VirtualSource(str(whole), f"train/{place}", shape)
                    group.create_virtual_dataset(place, layout)
                elif kind == "huge":
                    group.create_dataset(
                        place, (1 << 20, 1 << 10, 1 << 10), "u1", chunks=(1, 1 << 10, 1 << 10)
                    )
                else:
                    group.create_dataset(place, data=["a", "b"])
            yield (
                f"HDF5: {kind} {place}",
                lambda p=path: dbcollection.open_part("set", str(p), None, "train", "ram"),
            )


def images(base: Path, canary: Path) -> Iterator[Payload]:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def png(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        packed = zlib.compress(bytes(50 << 20))
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", packed)
            + chunk(b"IEND", b"")
        )

    jpeg = b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff"
    jpeg += b"\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9"
    contents = {
        "png 20000": png(20_000, 20_000),
        "png 2^31": png(2**31 - 1, 2**31 - 1),
        "jpeg 65535": jpeg,
        "svg": b"<svg/>",
        "gif": b"GIF89a",
        "python": b"import os",
    }
    makes: dict[str, Callable[[Path], Any]] = {
        name: lambda p, c=data: p.write_bytes(c) for name, data in contents.items()
    }
    makes |= {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "link to a device": lambda p: os.symlink("/dev/zero", p),
        "link outside": lambda p: os.symlink(canary, p),
        "link to itself": lambda p: os.symlink(p, p),
        "socket": _socket,
        "sparse": _sparse,
    }
    for name, make in makes.items():
        root = base / f"images {name}"
        for label in ("a", "b"):
            (root / "train" / label).mkdir(parents=True)
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16)).save(buffer, "PNG")
            (root / "train" / label / "good.png").write_bytes(buffer.getvalue())
        make(root / "train" / "a" / "bad.jpg")
        yield f"image: {name}", lambda r=root: _read_folder(r)
    outside = base / "outside"
    outside.mkdir()
    (outside / "x.jpg").write_bytes(canary.read_bytes())
    root = base / "images link"
    (root / "train" / "b").mkdir(parents=True)
    (root / "train" / "b" / "good.png").write_bytes(buffer.getvalue())
    os.symlink(outside, root / "train" / "a")
    yield "image: a class that is a link outside", lambda: _read_folder(root)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(here)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10 << 30)


def _read_folder(root: Path) -> Any:
    """Read all images as a run does. Raises Refused for the first bad one."""
    found = open_folder(str(root), "train")
    _, kept, bad = Reader(found, Pipeline([], 16, 16), Plan(len(found), len(found)), finishes=True)[
        Task(0, 0)
    ]
    if bad:
        raise Refused(f"{bad[0].path}: {bad[0].reason}")
    if len(kept) == 2:  # what is no image by its name and kind is not listed at all
        raise Refused("not listed")
    return kept


def others(base: Path) -> Iterator[Payload]:
    sizes = {
        "overflow": (2**32 - 1, 2**32 - 1, 2**32 - 1),
        "more than there is": (10**6, 28, 28),
        "negative": (2**31, 1, 1),
    }
    for name, shape in sizes.items():
        path = base / f"idx {name}"
        path.write_bytes(
            bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in shape) + bytes(100)
        )
        yield f"idx: {name}", lambda p=path: arrays.read_idx(p, 3)
    path = base / "bomb.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    yield "idx: bomb", lambda: arrays.read_idx(path, 3)
    number = json.dumps({"dataset": {"set": {"tasks": {"classification": 7}}}})
    nul = '{"dataset": {"set": {"tasks": {"classification": "a\\u0000b"}}}}'
    texts = {
        "deep": "[" * 200_000,
        "numbers": '{"dataset": 1}',
        "path": number,
        "nul": nul,
        "bytes": "\udcff",
    }
    for name, text in texts.items():
        cache = base / f"{name}.json"
        cache.write_bytes(text.encode("utf-8", "surrogateescape"))
        yield (
            f"JSON: {name}",
            lambda c=cache: dbcollection.open_part("set", str(c), None, "train", "ram"),
        )


def shards(base: Path, canary: Path) -> Iterator[Payload]:
    """Tar files of samples that lead elsewhere or declare what they do not hold."""
    kinds = {
        "link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "fifo": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
        "sparse": tarfile.GNUTYPE_SPARSE,
    }
    for name, kind in kinds.items():
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, str(canary)
        yield f"shard: {name}", _shard(base / f"shard {name}", member)
    large = tarfile.TarInfo("a.jpg")
    large.size = 1 << 40
    yield "shard: larger than its file", _shard(base / "shard large", large)
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    yield "shard: a name larger than its file", _shard(base / "shard long", long)
    place = base / "shard bomb"
    place.mkdir()
    with tarfile.open(place / "train.tar", "w:gz") as tar:
        for number in range(200):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = 1 << 20
            tar.addfile(member, io.BytesIO(bytes(1 << 20)))
    yield "shard: packed bomb", lambda: _read("shards", place)
    fifo = base / "shard pipe"
    fifo.mkdir()
    os.mkfifo(fifo / "train.tar")
    yield "shard: a pipe", lambda: _read("shards", fifo)
    deep = base / "shard deep"
    deep.mkdir()
    with tarfile.open(deep / "train.tar", "w") as tar:
        for name, content in (("a.jpg", b"x"), ("a.json", b"[" * 200_000)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    yield "shard: deep JSON", lambda: _read("shards", deep)


def _shard(place: Path, member: tarfile.TarInfo) -> Callable[[], Any]:
    place.mkdir()
    content = member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    (place / "train.tar").write_bytes(content)
    return lambda: _read("shards", place)


def _read(name: str, where: Path | None, **settings: Any) -> Any:
    """Read all images as a run does. Raises Refused for the first bad one."""
    found = data.open_images(name, None if where is None else str(where), "train", **settings)
    assert isinstance(found, FileImages)
    plan = Plan(len(found), len(found))
    _, kept, bad = Reader(found, Pipeline([], 16, 16), plan, finishes=True)[Task(0, 0)]
    if bad:
        raise Refused(f"{bad[0].path}: {bad[0].reason}")
    return kept


def photo_zips(base: Path, canary: Path) -> Iterator[Payload]:
    """Zip files of class folders that attack."""
    links = {"link": stat.S_IFLNK, "device": stat.S_IFCHR, "pipe": stat.S_IFIFO}
    members = {name: zipfile.ZipInfo("train/a/1.jpg") for name in links}
    for name, kind in links.items():
        members[name].external_attr = (kind | 0o777) << 16
    names = {"absolute": str(canary), "above": "train/a/../../../1.jpg", "drive": "C:/a/1.jpg"}
    members |= {name: zipfile.ZipInfo(text) for name, text in names.items()}
    members["lzma"] = zipfile.ZipInfo("train/a/1.jpg")
    members["lzma"].compress_type = zipfile.ZIP_LZMA
    for name, info in members.items():
        path = base / f"photos {name}.zip"
        with zipfile.ZipFile(path, "w") as photos:
            photos.writestr(info, str(canary))
            photos.writestr("train/b/1.jpg", b"x")
        yield f"photos: {name}", lambda p=path: _read("folder", p)  # type: ignore[misc]
    path = base / "photos bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as photos:
        for name in ("train/a/1.jpg", "train/b/1.jpg"):
            with photos.open(name, "w") as member:
                for _ in range(600):
                    member.write(bytes(1 << 20))
    yield "photos: bomb", lambda: _read("folder", path)
    lying = base / "photos lying.zip"
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    while at >= 0:
        content[at + 24 : at + 28] = (1000).to_bytes(4, "little")
        at = content.find(b"PK\x01\x02", at + 1)
    lying.write_bytes(content)
    yield "photos: a bomb that lies", lambda: _read("folder", lying)


def tables(base: Path, canary: Path) -> Iterator[Payload]:
    """Tables that name what is no photograph."""
    os.mkfifo(base / "a pipe that is named.jpg")
    os.symlink(canary, base / "to canary.jpg")
    named = {
        "device": "/dev/zero",
        "memory": "/proc/self/mem",
        "pipe": str(base / "a pipe that is named.jpg"),
        "folder": str(base),
        "link": "to canary.jpg",
        "canary": str(canary),
    }
    for name, path in named.items():
        table = base / f"table {name}.csv"
        table.write_text(f"path,label,split\n{path},a,train\n{base}/other.jpg,b,train\n")
        yield (
            f"table: {name}",
            lambda t=table: _read("table", None, labels=str(t), skip=True),
        )
    for name, content in {
        "endless field": b"path,label\n" + b"x" * (20 << 20) + b",a\n",
        "many columns": b"path,label" + b",x" * 100_000 + b"\n" + b"a,b" + b",x" * 100_000,
        "bytes": b"path,label\n\xff\xfe,a\n",
    }.items():
        table = base / f"table {name}.csv"
        table.write_bytes(content)
        yield f"table: {name}", lambda t=table: _read("table", None, labels=str(t))
    fifo = base / "a pipe as a table.csv"
    os.mkfifo(fifo)
    yield "table: a pipe itself", lambda: _read("table", None, labels=str(fifo))


def payloads(base: Path, canary: Path) -> list[Payload]:
    makers = (
        pickles(base, canary),
        zips(base),
        tars(base, canary),
        hdf5s(base, canary),
        images(base, canary),
        others(base),
        shards(base, canary),
        photo_zips(base, canary),
        tables(base, canary),
    )
    return [payload for maker in makers for payload in maker]


def attempt(read: Callable[[], Any]) -> tuple[str, float]:
    """Read in a process of its own, with little memory and time; return what became of it, and in
    how long the reading took: all of SECONDS where a signal ended it.
    """
    report, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.alarm(SECONDS)
        started = time.monotonic()
        try:
            found = read()
            what = "READ: " + repr(found)[:100]
        except (Refused, archive.Damaged) as error:
            what = "foreign words" if SECRET.decode() in str(error) else "refused"
        except BaseException as error:
            what = "CRASHED: " + repr(error)[:200]
        took = time.monotonic() - started
        os.write(write, f"{took} {what}".encode("utf-8", "replace"))
        os._exit(0)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(report, "rb") as file:
        seconds, _, what = file.read().decode().partition(" ")
    return (what, float(seconds)) if status == 0 else (f"SIGNAL {-status}", float(SECONDS))


def run(trials: int = 100, seed: int = 1) -> dict[str, Any]:
    """Try every payload, whatever `trials` says, which counts them only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with scratch() as base:
        canary = base / "canary"
        canary.write_bytes(SECRET)
        before = canary.stat().st_mtime_ns
        every = payloads(base, canary)
        results = {name: attempt(read) for name, read in every}
        touched = [
            *base.glob("canary.*"),
            *([] if canary.stat().st_mtime_ns == before else [canary]),
        ]
    bad = {name: result for name, result in results.items() if result[0] != "refused"}
    for name, result in bad.items():
        print(name, result)
    slowest = max(seconds for _, seconds in results.values())
    return {
        "trials": len(every),
        "refused": len(every) - len(bad),
        "canary_touched": len(touched),
        "slowest_seconds": round(slowest, 2),
    }


if __name__ == "__main__":
    script("9 attacks", run, 100)
