"""What one process of a run holds: its folder under lock, its answers to signals, the processes that read for it."""

import fcntl
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from utils import Refused
from workers import end_workers

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The run was asked to stop and has saved what it did. Its status is 128 + the signal's number."""


class Signals:
    """SIGTERM, SIGINT: save and stop; a second one: stop now. SIGUSR1: save and go on.

    Until `armed` nothing is there to save, so the first one stops at once.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self.armed = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        handlers: dict[int, Callable[[int, FrameType | None], None]] = dict.fromkeys(STOPPING, self._on_stop)
        handlers[signal.SIGUSR1] = self._on_save
        self.before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self.armed and self.stop is None:
            self.stop = number
            return
        end_workers()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


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
