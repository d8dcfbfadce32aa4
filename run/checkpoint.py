"""What a run saves and how it goes on: durable files, the newest that verifies, writing beside the training.

A checkpoint is one torch.save zip of plain values and tensors. It is written to a temporary file, flushed, synced,
read back, renamed, and only then are older ones removed: whatever instant a process or machine dies at, a whole
checkpoint is there.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from base.archive import Damaged, read, write
from base.errors import Failed, Refused
from base.text import printable

CONTENT = {"progress", "network", "updater", "model", "settings"}  # of a run's checkpoint


class Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


@dataclass
class Progress:
    """How far a run is. epoch, batch: the next ones, from 0; step: updates done; history: finished epochs' log lines.

    sums: of the part of the epoch that is done. best: the best test top-1 so far, in percent.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Any] | None = None


def newest(folder: Path) -> tuple[Path, Any] | None:
    """Return the newest checkpoint that verifies, None where there is none. Damaged ones are named on stderr.

    Raises Refused where there are some and all are damaged: starting anew would remove what can perhaps be mended.
    """
    found = steps(folder)
    for path in reversed(found):
        try:
            value = read(path)
            if not isinstance(value, dict) or not value.keys() >= CONTENT:
                raise Damaged(f"{path} is no checkpoint of a run")
            return path, value
        except (Damaged, OSError) as error:
            reason = f"cannot read {path}: {error.strerror}" if isinstance(error, OSError) else error
            print(f"{printable(reason)}{': trying the one before' if path != found[0] else ''}", file=sys.stderr, flush=True)
    if found:
        raise Refused(f"none of the {len(found)} checkpoints in {folder} can be read: start anew with --overwrite")
    return None


def steps(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step-*.pt") if path.stem[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.stem[5:]))


class HostCopy:
    """A copy of nested tensors in host memory that is kept: copying into it again is 40 times faster than a clone."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def take(self, value: Any, name: str = "") -> Any:
        """Return `value` with every tensor copied. The copies hold until the next call."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value, name)
        if isinstance(value, dict):
            return {key: self.take(item, f"{name}/{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.take(item, f"{name}/{place}") for place, item in enumerate(value)]
        return value

    def _tensor(self, value: torch.Tensor, name: str) -> torch.Tensor:
        kept = self.kept.get(name)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype or kept.stride() != value.stride():
            kept = self.kept[name] = torch.empty_like(value, device="cpu")
        return kept.copy_(value.detach())


class Saver:
    """Writes one checkpoint at a time in a thread, keeps the newest `keep`, and survives one failure in a row."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep
        self.host = HostCopy()
        self.thread: threading.Thread | None = None
        self.failures = 0
        self.problem: str | None = None

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def save(self, step: int, value: Any, also: Callable[[Any], None] | None = None) -> None:
        """Copy `value` to host memory; in the background, call `also` with the copy and then write it.

        Waits for a write that is still under way. Raises Failed where the last two in a row failed.
        """
        self.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        copy = self.host.take(value)
        self.thread = threading.Thread(target=self._write, args=(step, copy, also), name="checkpoint")
        self.thread.start()

    def _write(self, step: int, value: Any, also: Callable[[Any], None] | None) -> None:
        path = self.folder / f"step-{step}.pt"
        try:
            if (name := non_finite(value)) is not None:
                raise Damaged(f"{name} is not finite")
            if also is not None:
                also(value)
            write(path, value)
            self.failures = 0
        except (OSError, RuntimeError, Damaged) as error:
            self.failures += 1
            self.problem = f"cannot save {path}: {_cause(error)}; {free_bytes(self.folder)} bytes are free there"
            return
        for old in steps(self.folder)[: -self.keep]:
            old.unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait for the write under way and tell of a failure. Raises Failed at the second in a row."""
        self.join()
        self.report()

    def join(self) -> None:
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def report(self) -> None:
        """Tell of a failure since the last call. Raises Failed at the second in a row."""
        if self.busy or self.problem is None:
            return
        problem, self.problem = self.problem, None
        if self.failures > 1:
            raise Failed(f"{problem}: the second time in a row, so the run stops; the checkpoint before is whole")
        print(f"{problem}: training goes on; the checkpoint before is whole", file=sys.stderr, flush=True)


def non_finite(value: Any, name: str = "") -> str | None:
    """Return the name of a tensor of weights with a NaN or an infinity, None where all are finite."""
    if isinstance(value, torch.Tensor):
        return None if not value.is_floating_point() or bool(torch.isfinite(value).all()) else name
    if isinstance(value, dict):
        parts = ((f"{name}.{key}" if name else str(key), part) for key, part in value.items() if key != "progress")
        return next((bad for key, part in parts if (bad := non_finite(part, key)) is not None), None)
    return None


def free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _cause(error: Exception) -> str:
    """Return the first system error behind `error`; torch hides a full disk behind "unexpected pos"."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return "the disk is full" if "unexpected pos" in str(error) else str(error).splitlines()[0]


class Interval:
    """Every so many steps, or so many minutes: `500`, `10m`."""

    def __init__(self, text: str) -> None:
        self.minutes = float(text[:-1]) if text.endswith("m") else None
        self.steps = None if text.endswith("m") else int(text)
        self.last, self.last_step = time.monotonic(), 0

    def due(self, step: int) -> bool:
        if self.steps is not None:
            return step - self.last_step >= self.steps
        assert self.minutes is not None
        return time.monotonic() - self.last >= 60 * self.minutes

    def reset(self, step: int) -> None:
        """A checkpoint of `step` is being written."""
        self.last, self.last_step = time.monotonic(), step
