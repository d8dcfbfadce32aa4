"""Lost workers: how a death is noticed, and what is left of them."""

import contextlib
import functools
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from base.errors import Failed, lacks_processes

# Seconds between two looks at the workers while a batch is awaited.
LOOK_AGAIN = 0.5
# Seconds that a stop waits for the batch that is being read.
STOP_AFTER = 1.0
Handler = Callable[[int, FrameType | None], object]
# What who reads from a worker meets where it is gone.
GONE = (ConnectionError, EOFError, FileNotFoundError)


class LostWorker(Failed):
    """A worker is gone; what was trained until then is whole."""


class StopAwaited(Exception):
    """The run was asked to stop while no batch came: what was trained is whole."""


def print_unless_told(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print what a worker or its server did not catch, but for what the main process tells itself:
    it is gone, or nothing more could be started.
    """
    if not issubclass(kind, GONE) and not (isinstance(error, Exception) and lacks_processes(error)):
        sys.__excepthook__(kind, error, trace)


@functools.cache
def quiet_pinning() -> None:
    """Print nothing where torch's thread that pins batches finds a worker gone: the main thread
    tells of it, or has ended the workers itself.
    """
    before = threading.excepthook

    def print_others(given: threading.ExceptHookArgs) -> None:
        pins = given.thread is not None and "_pin_memory_loop" in given.thread.name
        if not (pins and issubclass(given.exc_type, GONE)):
            before(given)

    threading.excepthook = print_others


class WorkerWatch:
    """Turns the death of a worker into an error where the next batch is awaited, and nowhere else.

    torch raises it wherever the main process happens to be, also halfway through a step.
    """

    def __init__(self, torchs: Handler | None = None) -> None:
        # torch's own handler, which knows its workers.
        self.torchs = torchs
        self.waiting = False
        self.pending = False
        # What torch said of a death.
        self.found: str | None = None
        self.deadline = 0.0
        self.began = 0.0
        # Who answered SIGALRM before.
        self.others: Any = None
        self.workers: list[Any] = []
        # True where a signal asked this process, which trains alone, to stop.
        self.stop_asked: Callable[[], bool] = lambda: False

    @classmethod
    def installed(cls) -> "WorkerWatch":
        """Return the one of this process, which begins once torch has set its handler."""
        current = signal.getsignal(signal.SIGCHLD)
        # A second loader of this process finds the watch that the first one installed.
        known = getattr(current, "__self__", None)
        if isinstance(known, cls):
            known._take_alarm()
            return known
        if not callable(current):
            return cls()

        watch = cls(current)
        signal.signal(signal.SIGCHLD, watch._on_death)
        watch._take_alarm()
        return watch

    def _take_alarm(self) -> None:
        """Answer SIGALRM from now on; one that is not our own timer's goes to whoever had it."""
        if getattr(signal.getsignal(signal.SIGALRM), "__self__", None) is not self:
            self.others = signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_death(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        if self.waiting and _is_waiting(frame):
            self._look()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self.waiting and _is_waiting(frame):
            self._look()
            # Those of a fork server are no children of ours: no signal tells of their death.
            gone = [worker.pid for worker in self.workers if not worker.is_alive()]
            if gone:
                raise RuntimeError(f"DataLoader worker (pid {gone[0]}) exited unexpectedly")
            now = time.monotonic()
            if now > self.began + STOP_AFTER and self.stop_asked():
                raise StopAwaited
            if now > self.deadline:
                raise RuntimeError("DataLoader: no batch has come in time")
        elif not self.waiting and callable(self.others):
            self.others(number, frame)

    def _look(self) -> None:
        """Raise RuntimeError if a worker is gone. torch says so once only."""
        if self.found is None and self.pending and self.torchs is not None:
            self.pending = False
            try:
                self.torchs(signal.SIGCHLD, None)
            except RuntimeError as error:
                self.found = str(error)
        if self.found is not None:
            raise RuntimeError(self.found)

    @contextlib.contextmanager
    def guard(self, timeout: int, workers: list[Any]) -> Iterator[None]:
        """Raise RuntimeError in here, if one of the workers has died or dies, or after `timeout`
        seconds and one more; StopAwaited where a stop was asked for and no batch comes.

        DataLoader's own timeout does not help where a worker stops halfway through a message.
        """
        if self.torchs is None:
            yield
            return

        self.waiting, self.workers = True, workers
        self.began = time.monotonic()
        self.deadline = self.began + timeout + 1

        try:
            # A worker that stops for ever sends no signal: the alarm looks again.
            signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN, LOOK_AGAIN)
            self._look()
            yield
        except (RuntimeError, EOFError, OSError):
            self.found = None
            raise
        finally:
            self.waiting = False
            signal.setitimer(signal.ITIMER_REAL, 0)


def _is_waiting(frame: FrameType | None) -> bool:
    """True where Python waits for another process.

    Anywhere else an error would break a constructor, or be lost in a destructor.
    """
    return frame is not None and frame.f_code.co_name in ("select", "_recv", "get", "wait")


def end_workers() -> None:
    """Kill the loader's workers: they ignore the signals that end this process."""
    workers = multiprocessing.active_children()
    # torch takes a worker's death for an error.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # SIGKILL, for they ignore the gentler ones.
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    signal.signal(signal.SIGCHLD, before)
    remove_left([worker.pid for worker in workers])


def remove_left(pids: list[int | None]) -> None:
    """Remove what killed workers left in shared memory, which torch names after them."""
    for pid in pids:
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
            path.unlink(missing_ok=True)
