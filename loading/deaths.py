"""Lost worker processes: how a death is noticed, and what is left of them."""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from base.errors import Failed

LOOK_AGAIN = 0.5  # seconds between two looks at the processes while a batch is awaited


class LostWorker(Failed):
    """A reading process is gone; what was trained until then is whole."""


class Deaths:
    """Turns the death of a reading process into an error where the next batch is awaited, and nowhere else.

    torch raises it wherever the main process happens to be, also halfway through a step.
    """

    def __init__(self, theirs: Any = None) -> None:
        self.theirs = theirs  # torch's handler
        self.waiting = self.pending = False
        self.found: str | None = None  # what torch said of a death
        self.deadline = 0.0

    @classmethod
    def watched(cls) -> "Deaths":
        """Return the one of this process, which begins once torch has set its handler."""
        now = signal.getsignal(signal.SIGCHLD)
        known = getattr(now, "__self__", None)
        if isinstance(known, cls):
            return known
        if not callable(now):
            return cls()
        deaths = cls(now)
        signal.signal(signal.SIGCHLD, deaths._on_death)
        signal.signal(signal.SIGALRM, deaths._on_alarm)
        return deaths

    def _on_death(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        if self.waiting and _waits(frame):
            self._look()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self.waiting and _waits(frame):
            self._look()
            if time.monotonic() > self.deadline:
                raise RuntimeError("DataLoader: no batch has come in time")

    def _look(self) -> None:
        """Raise RuntimeError if a process is gone. torch says so once only."""
        if self.found is None and self.pending:
            self.pending = False
            try:
                self.theirs(signal.SIGCHLD, None)
            except RuntimeError as error:
                self.found = str(error)
        if self.found is not None:
            raise RuntimeError(self.found)

    @contextlib.contextmanager
    def raised(self, timeout: int) -> Iterator[None]:
        """Raise RuntimeError in here, if a process has died or dies, or after `timeout` seconds and one more.

        DataLoader's own timeout does not help where a process stops halfway through a message.
        """
        if self.theirs is None:
            yield
            return
        self.waiting, self.deadline = True, time.monotonic() + timeout + 1
        try:
            signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN, LOOK_AGAIN)
            self._look()
            yield
        except (RuntimeError, EOFError, OSError):
            self.found = None
            raise
        finally:
            self.waiting = False
            signal.setitimer(signal.ITIMER_REAL, 0)


def _waits(frame: FrameType | None) -> bool:
    """True where Python waits for another process: an error within a constructor or destructor would break that or be lost."""
    return frame is not None and frame.f_code.co_name in ("select", "_recv", "get", "wait")


def end_workers() -> None:
    """Kill the loader's processes: they ignore the signals that end this one."""
    processes = multiprocessing.active_children()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes a worker's death for an error
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    signal.signal(signal.SIGCHLD, before)
    remove_left([process.pid for process in processes])


def remove_left(pids: list[int | None]) -> None:
    """Remove what processes that were killed have left in shared memory: torch names it after them, for an instant."""
    for pid in pids:
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
            path.unlink(missing_ok=True)
