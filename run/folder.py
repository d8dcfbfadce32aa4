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
from typing import Any

import numpy
import torch
import torchvision

from base.errors import Refused
from base.files import write_json
from training.ranks import Ranks


def _remove_empty(folder: Path) -> None:
    (folder / "lock").unlink(missing_ok=True)
    for place in (folder, *folder.parents[:2]):
        with contextlib.suppress(OSError):
            place.rmdir()


def record(folder: Path, options: dict[str, Any], settings: dict[str, Any], split: Path | None) -> None:
    """Write options.json: from here on the folder holds a run. split: the file that keeps its split, to be copied."""
    if split is not None:
        shutil.copy(split, folder / "split.csv")
    about = {"command": shlex.join(sys.argv), "time": time.strftime("%Y-%m-%d %H:%M:%S %z"), "commit": _commit()}
    write_json(folder / "options.json", {"options": options, **about, **settings})


def _commit() -> str | None:
    """Return the git commit of this code, None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError):
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stdout.strip() or None
    return None


class Lock:
    """One writer a run folder. The lock is the process's own: forked workers do not hold it, death releases it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.file: Any = None

    def __enter__(self) -> "Lock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+")
        except OSError as error:
            raise Refused(f"cannot write to {self.path.parent}: {error.strerror}: choose another --expDir or --expID") from None
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            raise Refused(f"{self.path.parent} is in use by {holder}: wait for it, or choose another --expID") from None
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self.file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def prepare_folder(folder: Path, *, go_on: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless it goes on or will be removed. Sweeps what dead runs left half-written."""
    if not (go_on or overwrite) and (folder / "options.json").exists():
        raise Refused(
            f"{folder} already holds a run: go on with --continue, remove it with --overwrite, or name another by --expID"
        )
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def clear_folder(folder: Path) -> None:
    """Remove the run that is in the folder, all but the lock."""
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def environment(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Return what a run's bits depend on, its options aside."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} {name}", "threads": torch.get_num_threads(), "ranks": ranks.world,
        "torch": str(torch.__version__), "torchvision": str(torchvision.__version__), "numpy": str(numpy.__version__),
    }  # fmt: skip
