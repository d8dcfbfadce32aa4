"""How a program begins: output that ends nothing, and signals that end it in one line.

Standard output may be closed, full, read no more, or of an encoding that lacks a name.
"""

import errno
import io
import os
import signal
import sys
from typing import TextIO, cast

from base.errors import Failed, asked_to_stop, leave_at_once


def begin() -> None:
    """Make output last, and signals end the process at once: nothing was begun yet.

    Called once, before torch is imported.
    """
    steady()
    refuse_no_place()
    for number in asked_to_stop():
        signal.signal(number, leave_at_once)
    # It asks a run to save, and nothing is there to save yet.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Lasting(io.FileIO):
    """A stream that goes to nowhere from its first failure on. problem: what failed."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.title = name
        self.problem: OSError | None = None

    def write(self, data: "bytes | memoryview") -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.problem = error
            _redirect(self.fileno())
            # Who closed a pipe has read enough; a full disk is worth a line.
            if error.errno != errno.EPIPE and self.title == "standard output":
                print(f"{_told(self)}: continuing without it", file=sys.stderr, flush=True)
            return len(data)


def steady() -> None:
    """Make standard output and error of this process last; called once, as a program starts."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file that is opened would be the standard output.
            _redirect(descriptor)
    sys.stdout = _stream(1, "standard output", sys.stdout)
    sys.stderr = _stream(2, "standard error", sys.stderr)


def refuse_no_place() -> None:
    """End the process where its working folder is gone: no relative path leads anywhere then."""
    try:
        os.getcwd()
    except FileNotFoundError:
        print("the working folder was removed: change to another one", file=sys.stderr, flush=True)
        sys.exit(2)


def is_lost() -> bool:
    """True where nobody can read the standard output any more."""
    return _problem() is not None


def refuse_lost() -> None:
    """Raise Failed where what was printed is lost, but for a pipe whose reader had enough."""
    sys.stdout.flush()
    problem = _problem()
    if problem is not None and problem.errno != errno.EPIPE:
        raise Failed(f"standard output: {problem.strerror}")


def _problem() -> OSError | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.problem if isinstance(raw, Lasting) else None


def _told(stream: Lasting) -> str:
    assert stream.problem is not None
    return f"{stream.title}: {stream.problem.strerror}"


def _stream(descriptor: int, name: str, before: TextIO | None) -> TextIO:
    """Return what replaces a standard stream; what its encoding lacks is escaped."""
    raw = Lasting(descriptor, name)
    at_once = bool(getattr(before, "write_through", False))
    return cast(
        TextIO,
        io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=before.encoding if before is not None else "utf-8",
            errors="backslashreplace",
            line_buffering=descriptor == 2 or raw.isatty(),
            write_through=at_once,
        ),
    )


def _redirect(descriptor: int) -> None:
    """Make a descriptor lead to nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
