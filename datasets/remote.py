"""Files at an address (s3://, gs://, https://, hf:// and all that fsspec knows), copied whole to a
folder before they are read.

A copy takes its name when it is whole. What came of one that broke off stays and is gone on with,
as long as the file at the address is the same by its size and ETag.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from base.errors import Refused
from base.fetch import bytes_bar
from base.files import read_text, sync_folder, write_json
from base.randomness import key
from base.text import printable
from datasets.braces import expand

# Copied too where it lies beside the files.
CLASSES = "classes.txt"
# Folders below the one that is named: of a configuration, and of a part.
DEPTH = 2
CACHE = "~/.cache/multi-gpu-torch/remote"
# Bytes that are fetched at a time.
BLOCK = 4 << 20
# Times that a connection may break off one after the other with nothing new; each time less is
# asked for at once.
TRIES = 4
# What of a file's description changes with it, as fsspec's systems call it.
CHANGES = ("etag", "ETag", "md5", "md5Hash", "checksum", "mtime", "LastModified", "last_modified")


@dataclass(frozen=True)
class Cache:
    """Where copies lie, and how many bytes they may take together; None: what the disk has."""

    folder: str = CACHE
    most: int | None = None


@dataclass(frozen=True)
class Remote:
    """A file elsewhere: its path in the file system, where its copy lies, bytes, and what
    changes with it.
    """

    path: str
    copy: Path
    size: int
    tag: str


def copies(data_dir: str, ending: str, cache: Cache) -> list[str]:
    """Return the paths of local copies of all files that an address names, in its order.

    data_dir: an address of one file, of many by braces, or of a folder, whose files of this ending
    are taken. Raises Refused.
    """
    system, paths = _named(data_dir, ending)
    folder = Path(os.path.expanduser(cache.folder))
    place = folder / f"{key(data_dir):016x}"
    # Below what all of their paths begin with: one address may name files of one name.
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    files = [
        _described(system, path, place / _as_path(os.path.relpath(path, above))) for path in paths
    ]
    wanted = files + _names_beside(system, files[0])
    missing = [file for file in wanted if not _is_here(file)]
    _refuse_too_many(files, missing, folder, cache)
    for number, file in enumerate(missing, 1):
        file.copy.parent.mkdir(parents=True, exist_ok=True)
        _copy(system, file, f"{number} of {len(missing)}: {file.copy.name}")
    return [str(file.copy) for file in files]


def holds(data_dir: str, ending: str) -> bool:
    """True for an address at which files of this ending lie."""
    try:
        return bool(_named(data_dir, ending)[1])
    except Refused:
        return False


def _names_beside(system: Any, file: Remote) -> list[Remote]:
    """Return the file of class names beside a file, none where there is none."""
    try:
        path = f"{file.path.rpartition('/')[0]}/{CLASSES}"
        copy = file.copy.with_name(CLASSES)
        return [_described(system, path, copy)] if system.exists(path) else []
    except Exception:  # whatever a system says of a file that it lacks
        return []


def _named(data_dir: str, ending: str) -> tuple[Any, list[str]]:
    """Return the file system of an address, and the paths in it that are named. Raises Refused."""
    try:
        fsspec = import_module("fsspec")
    except ImportError:
        way = "pip install -e '.[remote]'"
        raise Refused(f"fsspec reads {data_dir}: {way}") from None
    try:
        addresses = expand(data_dir)
        system, first = fsspec.core.url_to_fs(addresses[0])
        paths = [first, *(fsspec.core.url_to_fs(address)[1] for address in addresses[1:])]
        if len(paths) == 1 and not paths[0].lower().endswith(ending):
            found = system.find(paths[0], maxdepth=DEPTH + 1)
            paths = sorted(path for path in found if path.lower().endswith(ending))
            if not paths:
                raise Refused(f"{data_dir} has no {ending} file")
    except Refused:
        raise
    # Each system has errors of its own: an unknown protocol, a library that lacks, no network.
    except Exception as error:
        raise Refused(f"cannot read {data_dir}: {_reason(error)}") from None
    return system, paths


def _as_path(name: str) -> str:
    """Return a path that any disk takes: an address may end in a query."""
    return re.sub(r"[^\w./-]", "_", name)


def _described(system: Any, path: str, copy: Path) -> Remote:
    """Return what is to be known of a file; of one that cannot be asked for now, what its copy
    says. Raises Refused where there is neither.
    """
    try:
        told = system.info(path)
        size = told.get("size")
        if size is None:
            raise OSError("its size is not told")
        tag = next((str(told[name]) for name in CHANGES if told.get(name)), "")
        return Remote(path, copy, int(size), tag)
    except Exception as error:
        known = _known(copy)
        if known and copy.exists():
            print(f"{printable(path)} cannot be asked for ({_reason(error)}): its copy is used")
            return Remote(path, copy, int(known["size"]), str(known["tag"]))
        raise Refused(f"cannot read {path}: {_reason(error)}") from None


def _beside(copy: Path, what: str) -> Path:
    return copy.with_name(f".{copy.name}.{what}")


def _known(copy: Path) -> dict[str, Any]:
    """Return what was written down of a file when its copy was begun."""
    try:
        known = json.loads(read_text(_beside(copy, "json")))
        return known if isinstance(known, dict) and {"size", "tag"} <= set(known) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _is_same(file: Remote) -> bool:
    """True where what lies here is of the file as it is at the address now."""
    return _known(file.copy) == {"size": file.size, "tag": file.tag}


def _is_here(file: Remote) -> bool:
    return file.copy.is_file() and file.copy.stat().st_size == file.size and _is_same(file)


def _refuse_too_many(
    files: list[Remote], missing: list[Remote], folder: Path, cache: Cache
) -> None:
    """Raise Refused where the copies have no room."""
    total, needed = sum(file.size for file in files), sum(file.size for file in missing)
    if cache.most is not None and total > cache.most:
        allowed = f"{total / 1e9:.3g} GB, more than the {cache.most / 1e9:.3g} GB allowed"
        raise Refused(f"copies of {len(files)} files take {allowed}", limit="cache")
    there = sum(_size(_beside(file.copy, "part")) for file in missing)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(above).free
    if needed - there > free:
        wanted = f"{(needed - there) / 1e9:.1f} GB are needed"
        raise Refused(f"{folder} has {free / 1e9:.1f} GB free, {wanted}", limit="cache folder")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _copy(system: Any, file: Remote, title: str) -> None:
    """Copy one file, going on with what is there of it. Raises Refused."""
    part = _beside(file.copy, "part")
    if not _is_same(file):
        part.unlink(missing_ok=True)
        file.copy.unlink(missing_ok=True)
        write_json(_beside(file.copy, "json"), {"size": file.size, "tag": file.tag})
    tries = 0
    with bytes_bar(file.size, title) as bar:
        while (have := _size(part)) < file.size:
            bar.update(have - bar.n)
            try:
                for count in _receive(system, file, part, BLOCK >> 2 * tries):
                    bar.update(count)
            # Whatever a system raises when its connection breaks off.
            except Exception as error:
                tries = 0 if _size(part) > have else tries + 1
                if tries == TRIES or isinstance(error, PermissionError):
                    again = "start again, what came is kept"
                    raise Refused(f"cannot copy {file.path}: {_reason(error)}: {again}") from None
    if _size(part) > file.size:
        part.unlink()
        raise Refused(f"{file.path} came with more than its {file.size} bytes: start again")
    part.replace(file.copy)
    sync_folder(part.parent)


def _receive(system: Any, file: Remote, part: Path, block_size: int) -> Iterator[int]:
    """Append what is missing; yield the bytes of each block. Raises anything, or OSError where the
    file ends too early.
    """
    have = _size(part)
    with contextlib.ExitStack() as stack:
        # What is read is kept here, not in memory.
        settings = {"block_size": block_size, "cache_type": "none"}
        source = stack.enter_context(system.open(file.path, "rb", **settings))
        target = stack.enter_context(part.open("ab"))
        if have:
            source.seek(have)
        while have < file.size:
            block = source.read(min(block_size, file.size - have))
            if not block:
                raise OSError(f"cut off after {have} of {file.size} bytes")
            target.write(block)
            target.flush()
            have += len(block)
            yield len(block)
        os.fsync(target.fileno())


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    lines = str(error).splitlines()
    return printable(lines[0] if lines else type(error).__name__)
