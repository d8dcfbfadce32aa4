"""A run's folder: its lock, what may be removed from it, and the record of what the run is."""

import contextlib
import errno
import fcntl
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy
import torch
import torchvision

from base.archive import State
from base.errors import Refused
from base.files import write_json
from base.text import listed
from training.ranks import Ranks

RECORD = "options.json"
# What is left by what trains nothing.
TESTS = ("test.json", "findLR.csv")
# All names that a run writes, in its folder and in checkpoints/. Nothing else is ever removed.
NAMES = (
    r"lock|options\.json|log\.(jsonl|csv)|full_train\.log(\.damaged(-\d+)?)?|test\.json"
    r"|curves\.png|(first|test)_batch\.png|report\.html|confusion(_\d+)?\.png"
    r"|findLR\.(png|csv)|mistakes\.(png|csv)|(images|left_out)\.npz|classes\.csv|confusion\.csv"
    r"|bad_images\.csv|split\.csv"
    r"|best\.pt|model(_\d+)?\.pt|step-\d+\.pt"
)
OWN = re.compile(rf"{NAMES}|events\.out\.tfevents\..*")
OWN_TEMPORARY = re.compile(rf"\.({NAMES})\.\d+\.tmp")
# What a lock says of who holds it.
HOLDER = re.compile(rb"process \d+ on ")


class Lock:
    """One writer a run folder.

    The lock is the process's own: forked workers do not hold it, death releases it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.file: IO[str] | None = None

    def __enter__(self) -> "Lock":
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(self.path):
                _refuse_files_of_others(folder)
            elif not _is_lock(self.path):
                raise Refused(f"{self.path} is no lock of a run: move it away", limit="folder")
            flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            self.file = open(os.open(self.path, flags, 0o600), "r+")
        except OSError as error:
            raise Refused(f"cannot write to {folder}: {error.strerror}", limit="folder") from None

        try:
            # Not flock: on network disks only this kind reaches other machines.
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            raise Refused(f"{folder} is in use by {holder}", limit="in use") from None

        # Who holds the lock writes down who it is, for the message of whoever comes second.
        try:
            self.file.truncate(0)
            self.file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self.file.flush()
        except OSError as error:
            raise Refused(f"cannot write to {folder}: {error.strerror}", limit="folder") from None
        return self

    def is_lost(self) -> bool:
        """True where the folder was removed or moved, or its lock file replaced: someone else may
        hold that one.
        """
        if self.file is None:
            return False
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except OSError as error:
            # Of anything else a network disk recovers.
            return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


def _is_lock(path: Path) -> bool:
    """True for a lock of a run, or the empty file of one that was killed as it began."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(64)
    return not begin or HOLDER.match(begin) is not None


def _refuse_files_of_others(folder: Path) -> None:
    """Raise Refused where no run was begun in a folder, and files lie there that one would write
    over.
    """
    if holds_run(folder):
        return
    found = sorted(path.name for path in _written(folder) if OWN.fullmatch(path.name))
    # Someone else has just begun one there.
    if found and "lock" not in found:
        raise Refused(
            f"{folder} holds {listed(found)}, and no run that wrote it: nothing is written over",
            limit="folder",
        )


def prepare_folder(folder: Path, *, resume: bool, overwrite: bool, trains: bool = True) -> None:
    """Refuse a folder that holds a run, unless it is resumed or will be removed.

    One that will be removed must hold nothing but what a run writes. trains: a test, or a test of
    rates, writes over another one, never over a run. Sweeps what dead runs left half-written.
    Raises Refused.
    """
    if not trains and holds_run(folder):
        raise Refused(f"{folder} holds a run, and this is none to train", limit="folder")
    if trains and not overwrite:
        if holds_run(folder):
            if not resume:
                raise Refused(f"{folder} already holds a run", limit="holds a run")
        elif tests := [name for name in TESTS if (folder / name).exists()]:
            raise Refused(f"{folder} holds a test, {tests[0]}", limit="folder")
    if overwrite:
        foreign = sorted(str(path.relative_to(folder)) for path in _foreign(folder))
        if foreign:
            more = "it is not removed with the run"
            raise Refused(
                f"{folder} holds what no run wrote: {listed(foreign)}; {more}", limit="folder"
            )
    for path in _written(folder):
        if OWN_TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def holds_run(folder: Path) -> bool:
    """True where weights or checkpoints lie there, whether or not their options do."""
    if (folder / RECORD).exists() or (folder / "best.pt").exists():
        return True
    return any(folder.glob("checkpoints/step-*.pt"))


def _written(folder: Path) -> list[Path]:
    """Return what lies in a run's folder and in its checkpoints."""
    inner = folder / "checkpoints"
    places = [folder, inner] if inner.is_dir() and not inner.is_symlink() else [folder]
    return [path for place in places for path in place.iterdir()]


def _foreign(folder: Path) -> list[Path]:
    """Return what a run does not write: other names, folders, links."""
    inner = folder / "checkpoints"
    return [
        path
        for path in _written(folder)
        if path.is_symlink()
        or (path.is_dir() and path != inner)
        or not (path == inner or OWN.fullmatch(path.name) or OWN_TEMPORARY.fullmatch(path.name))
    ]


def clear_folder(folder: Path) -> None:
    """Remove the run that is in the folder, all but the lock. What no run wrote stays."""
    foreign = set(_foreign(folder))
    # Its record last: until then it is a run, which can be removed.
    for path in sorted(_written(folder), key=lambda path: path.name == RECORD):
        if path.name != "lock" and path not in foreign and not path.is_dir():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / "checkpoints").rmdir()


def remove_empty(folder: Path, made: list[Path]) -> None:
    """Remove a run's folder in which nothing was written, and those above it that it made."""
    if all(path.name == "lock" for path in _written(folder)):
        (folder / "lock").unlink(missing_ok=True)
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()


def record(
    folder: Path,
    options: State,
    environment: State,
    images: State,
    split: Callable[[Path], None] | None,
) -> None:
    """Write options.json: from here on the folder holds a run. Each start writes it.

    images: their fingerprints; split: writes the table of its split.
    """
    # For whoever finds the folder in a year.
    about = {
        "command": shlex.join(sys.argv),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": _commit(),
        # Of torchrun, the same in each of its restarts.
        "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
    }
    write_json(folder / RECORD, {"options": options, **about, **environment, "images": images})
    if split is not None:
        split(folder / "split.csv")


def _commit() -> str | None:
    """Return the git commit of this code, None where there is none."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError):
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stdout.strip() or None
    return None


def environment(device: torch.device, ranks: Ranks, gpus: int = 1) -> State:
    """Return what a run's bits depend on, its options aside."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    name += f" x {gpus}" if gpus > 1 else ""
    return {
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "ranks": ranks.world,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": str(numpy.__version__),
    }
