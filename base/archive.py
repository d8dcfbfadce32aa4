"""One torch.save file: written whole, verified, read as plain data only."""

import errno
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch

from base.files import whole_file
from base.text import printable

# Of checkpoints and weights files: 2 has fingerprints of the images and the EXIF rule; 1, which has
# not, is read as before. A newer one is refused.
FORMAT = 2
MAX_PICKLE = (
    64 << 20
)  # bytes of the zip's pickle: names and numbers only, the tensors lie beside it


# What zipfile raises for a file that is not whole, or that it cannot read.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, EOFError, NotImplementedError),
    *(RuntimeError, ValueError, OverflowError),
)


# What a checkpoint holds: numbers, text and tensors in dicts and lists.
Plain = Any
State = dict[str, Any]


class Damaged(ValueError):
    """A file that is no whole checkpoint. The message names it."""


def write(path: Path, value: object) -> None:
    """Write `value` so that `path` is either as before or whole and on the disk.

    Raises OSError, RuntimeError.
    """
    with whole_file(path, "wb", check=verify) as file:
        torch.save(value, file)


def refuse_special(path: str | os.PathLike[str]) -> None:
    """Raise Damaged for what is there and is no regular file: a pipe would block, a device never
    end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Damaged(f"{path} is not a regular file")


def verify(path: str | os.PathLike[str]) -> None:
    """Raise Damaged unless `path` is a zip of torch.save with nothing missing, changed or packed.

    torch.load checks no CRC: of 600 files with one bit flipped it read 571 without a word.
    """
    refuse_special(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(entries, os.path.getsize(path))
            damaged = archive.testzip()
    except ZIP_ERRORS as error:
        raise Damaged(f"{path} is damaged or no checkpoint: {error}") from None
    except OSError as error:
        # An offset that leads before the file's begin.
        if error.errno == errno.EINVAL:
            raise Damaged(f"{path} is damaged: an entry lies outside of it") from None
        raise
    if damaged:
        raise Damaged(f"{path} is damaged: {damaged} has a wrong CRC")


def _check_entries(entries: list[zipfile.ZipInfo], length: int) -> None:
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names) or not any(name.endswith("/data.pkl") for name in names):
        raise ValueError("its entries are not those of torch.save")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ValueError("it has packed or encrypted entries")
    if any(".." in name.split("/") or name.startswith("/") for name in names):
        raise ValueError("an entry's name leads out of the file")
    if sum(entry.file_size for entry in entries) > length:
        raise ValueError("its entries are larger than the file")
    if any(entry.file_size > MAX_PICKLE for entry in entries if entry.filename.endswith(".pkl")):
        raise ValueError("its pickle is too large")


def read(path: str | os.PathLike[str]) -> Plain:
    """Return what `write` wrote, on the CPU.

    Raises Damaged, OSError. Nothing in the file is ever run.
    """
    # First: torch.load checks no CRC.
    verify(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # a pickle can fail in any way; each means that this is no checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"{path} is no checkpoint: {printable(reason)}") from None
