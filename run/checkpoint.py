"""What a run saves and how it resumes: the newest checkpoint that verifies, and writing beside the
training.

A checkpoint is written to a temporary file, flushed, synced, read back, renamed, and only then are
older ones removed: whatever instant a process or machine dies at, a whole checkpoint is there.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from base import archive
from base.archive import Damaged, Plain, State
from base.arguments import Every
from base.errors import Failed, Refused
from base.text import printable
from report.record import EpochRecord
from run import schema


@dataclass
class Progress:
    """How far a run is.

    epoch, batch: the next ones, from 0; step: updates done; history: of finished epochs.

    sums: of the part of the epoch that is done. best: the best test top-1 so far, in percent.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    history: list[EpochRecord] = field(default_factory=list)
    sums: dict[str, torch.Tensor] | None = None

    def to_plain(self) -> State:
        return self.__dict__ | {"history": [record.to_json() for record in self.history]}

    @classmethod
    def from_plain(cls, plain: State) -> "Progress":
        history = [EpochRecord.from_json(values) for values in plain["history"]]
        return cls(**plain | {"history": history})


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: where it lies, what network it is of, what its bits depend on,
    and the rest.

    spec: the network's, as plain values; parts: the states of network and updater, by name; images:
    fingerprints of those it was trained on, {} in older files.
    """

    path: Path
    spec: State
    settings: State
    progress: Progress
    parts: State
    images: State = field(default_factory=dict)


def newest(folder: Path) -> Saved | None:
    """Return the newest checkpoint that verifies, None where there is none.

    Damaged ones are named on stderr.

    Raises Refused where there are some and all are damaged: a restart would remove what can perhaps
    be mended.
    """
    found = steps(folder)
    # The newest may be damaged: each older one is tried, and each refusal named.
    for path in reversed(found):
        try:
            return _read(path)
        except (Damaged, OSError) as error:
            reason = str(error)
            if isinstance(error, OSError):
                reason = f"cannot read {path}: {error.strerror}"
            older = ": trying the one before" if path != found[0] else ""
            print(f"{printable(reason)}{older}", file=sys.stderr, flush=True)
    if found:
        message = f"none of the {len(found)} checkpoints in {folder} can be read"
        raise Refused(message, limit="checkpoints")

    return None


def _read(path: Path) -> Saved:
    """Read a run's checkpoint. Raises Damaged, OSError."""
    value = archive.read(path)
    if wrong := schema.problem(value):
        raise Damaged(f"{path} is no checkpoint that fits: {wrong}")
    parts = {"network": value["network"], "updater": value["updater"]}
    progress = Progress.from_plain(value["progress"])
    images = value.get("images") or {}
    return Saved(path, value["model"], value["settings"], progress, parts, images)


def steps(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    found = [
        path for path in folder.glob("step-*.pt") if path.stem[5:].isdecimal() and not path.is_dir()
    ]
    return sorted(found, key=lambda path: int(path.stem[5:]))


class HostMemory:
    """A copy of nested tensors in host memory that is kept: copying into it again is 40 times
    faster than a clone.
    """

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def take(self, value: Plain) -> Plain:
        """Return `value` with every tensor copied. The copies hold until the next call."""
        copied = self._take(value, "")
        # From a GPU all copies go to pinned memory at once: they are waited for together.
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copied

    def _take(self, value: Plain, name: str) -> Plain:
        if isinstance(value, torch.Tensor):
            return self._copy(value, name)
        if isinstance(value, dict):
            return {key: self._take(item, f"{name}/{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._take(item, f"{name}/{index}") for index, item in enumerate(value)]
        return value

    def _copy(self, value: torch.Tensor, name: str) -> torch.Tensor:
        kept = self.kept.get(name)
        if kept is None or _layout(kept) != _layout(value):
            pinned = value.is_cuda
            kept = torch.empty_like(value, device="cpu", pin_memory=pinned)
            self.kept[name] = kept
        return kept.copy_(value.detach(), non_blocking=value.is_cuda)


def _layout(value: torch.Tensor) -> tuple[object, ...]:
    return value.shape, value.dtype, value.stride()


class Interval:
    """When the next checkpoint is due."""

    def __init__(self, every: Every) -> None:
        self.every = every
        self.last_time = time.monotonic()
        self.last_step = 0

    def due(self, step: int) -> bool:
        if self.every.steps is not None:
            return step - self.last_step >= self.every.steps
        assert self.every.minutes is not None
        return time.monotonic() - self.last_time >= 60 * self.every.minutes

    def reset(self, step: int) -> None:
        """A checkpoint of `step` is being written."""
        self.last_time = time.monotonic()
        self.last_step = step


class Saver:
    """Writes one checkpoint at a time in a thread, keeps the newest `keep`, and survives one
    failure in a row.
    """

    def __init__(self, folder: Path, keep: int = 3, every: Every | None = None) -> None:
        self.folder, self.keep = folder, keep
        self.interval = Interval(every or Every(None, 10.0))
        self.memory = HostMemory()
        self.thread: threading.Thread | None = None
        self.failures = 0
        self.problem: str | None = None
        # Old ones, which cannot be removed. Said once.
        self.leaves = False

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def save(self, step: int, value: Plain, also: Callable[[State], None] | None = None) -> None:
        """Copy `value` to host memory; in the background, call `also` with the copy and then write
        it.

        Waits for a write that is still under way. Raises Failed where the last two in a row failed.
        """
        # One write at a time: two would share the copies in memory.
        self.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        copy = self.memory.take(value)
        arguments = (step, copy, also)
        self.thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self.thread.start()

    def _write(self, step: int, value: Plain, also: Callable[[State], None] | None) -> None:
        path = self.folder / f"step-{step}.pt"
        try:
            # A run that resumed from such weights could never recover.
            if (name := non_finite(value)) is not None:
                raise Damaged(f"{name} is not finite")
            if also is not None:
                also(value)
            # It is read back and verified before it takes its name, and only then are older ones
            # removed.
            archive.write(path, value)
            self.failures = 0
        except (OSError, RuntimeError, Damaged) as error:
            self.failures += 1
            left = room_left(self.folder)
            self.problem = f"cannot save {path}: {_cause(error)}; {left}"
            return
        # A damaged one of a later step, which the run could not resume from, counts for none.
        before = [old for old in steps(self.folder) if int(old.stem[5:]) <= step]
        try:
            for old in before[: -self.keep]:
                old.unlink(missing_ok=True)
        except OSError as error:
            # The new one is there: nothing is lost by an old one that stays.
            if not self.leaves:
                what = f"cannot remove {old}, which --keep {self.keep} leaves out"
                self.problem = f"{what}: {_cause(error)}"
            self.leaves = True

    def wait(self) -> None:
        """Wait for the write under way and report a failure.

        Raises Failed at the second in a row.
        """
        self.join()
        self.report()

    def join(self) -> None:
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def report(self) -> None:
        """Report a failure since the last call. Raises Failed at the second in a row."""
        if self.busy or self.problem is None:
            return
        problem, self.problem = self.problem, None
        # One failure may be a disk that was full for a moment; two mean that the run is no longer
        # safe.
        if self.failures > 1:
            raise Failed(f"{problem}: failed twice in a row, stopping; {self.what_is_left()}")

        goes_on = ": training continues" if self.failures else ""
        message = f"{problem}{goes_on}; {self.what_is_left()}"
        print(message, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Wait for the last write: what was trained must be there. Raises Failed if it is not."""
        self.join()
        # Without a failure it is an old one that stays.
        if self.problem is not None and self.failures:
            problem, self.problem = self.problem, None
            raise Failed(f"{problem}: what was trained since is lost; {self.what_is_left()}")
        self.report()

    def what_is_left(self) -> str:
        """Say which checkpoint is there, whatever went wrong since."""
        left = [path for path in steps(self.folder) if path.is_file()]
        return f"{left[-1]} is intact" if left else "no checkpoint was saved before"


def non_finite(value: Plain, name: str = "") -> str | None:
    """Return the name of a tensor with a NaN or an infinity, None where all are finite."""
    if isinstance(value, torch.Tensor):
        finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
        return None if finite else name
    if not isinstance(value, dict):
        return None
    for key, part in value.items():
        # Progress holds metrics, which may be anything.
        if key != "progress":
            bad = non_finite(part, f"{name}.{key}" if name else str(key))
            if bad is not None:
                return bad

    return None


def room_left(folder: Path) -> str:
    """Return what a file system has left, in words: bytes, or no name for another file."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return "nothing is free there"
    # Some file systems count no inodes.
    if found.f_files and not found.f_favail:
        return "no inode is free there: remove files, however small"
    return f"{found.f_bavail * found.f_frsize} bytes are free there"


def _cause(error: Exception) -> str:
    """Return the first system error behind `error`; torch hides a full disk behind "unexpected
    pos".
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return "the disk is full" if "unexpected pos" in str(error) else str(error).splitlines()[0]
