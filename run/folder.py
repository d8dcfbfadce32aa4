"""A run's folder: its lock, what may be removed from it, and the record of what the run is."""

import contextlib
import fcntl
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import numpy
import torch
import torchvision

from base.archive import State
from base.errors import Refused
from base.files import write_json
from training.ranks import Ranks

RECORD = "options.json"


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
            self.file = open(self.path, "a+")
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
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self.file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


def prepare_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless it is resumed or will be removed.

    Sweeps what dead runs left half-written.
    """
    if not (resume or overwrite) and (folder / RECORD).exists():
        raise Refused(f"{folder} already holds a run", limit="holds a run")
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def clear_folder(folder: Path) -> None:
    """Remove the run that is in the folder, all but the lock."""
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_empty(folder: Path) -> None:
    """Remove a run's folder in which nothing was written, and the two above it where they are
    empty.
    """
    (folder / "lock").unlink(missing_ok=True)
    for path in (folder, *folder.parents[:2]):
        with contextlib.suppress(OSError):
            path.rmdir()


def record(folder: Path, options: State, environment: State, split: Path | None) -> None:
    """Write options.json: from here on the folder holds a run.

    split: the file of its split, to be copied.
    """
    if split is not None:
        shutil.copy(split, folder / "split.csv")
    # For whoever finds the folder in a year.
    about = {
        "command": shlex.join(sys.argv),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": _commit(),
    }
    write_json(folder / RECORD, {"options": options, **about, **environment})


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
