"""How a program ends: refusals and failures of one line, with the right exit status."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from base.text import printable


class Refused(ValueError):
    """A wrong call or bad input: one line on stderr, exit status 2.

    The message names the value and the place. limit: a short name of what was in the way, where an
    option can change it; only the program that was started knows which of its options that is
    (`clear_errors`).
    """

    def __init__(self, message: str, *, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class Failed(RuntimeError):
    """A run that cannot continue: one line on stderr, exit status 1. limit: as of Refused."""

    def __init__(self, message: str, *, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class OverLimit(ValueError):
    """An image that is not read: it is beyond a limit. limit: "pixels", "bytes" or "links"."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


# What asks a program to end. SIGALRM, SIGUSR2 and SIGXCPU are a scheduler's warnings.
STOPPING = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGXCPU, signal.SIGUSR2, signal.SIGALRM),
)


# What a machine may run out of: room on a disk, open files, memory, processes.
SCARCE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
}


class Interrupted(BaseException):
    """A signal asked the program to end. Not an Exception: nothing takes it for a bad file."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


def asked_to_stop() -> list[signal.Signals]:
    """Return the signals that end this program: all, but SIGHUP under nohup, which ignores it."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if not (ignored and number == signal.SIGHUP)]


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """End the process at a signal: nothing was begun yet."""
    name = signal.Signals(number).name
    line = f"{Path(sys.argv[0]).name}: stopped by {name}: nothing was begun\n"
    os.write(2, line.encode(errors="backslashreplace"))
    os._exit(128 + number)


def _interruptible() -> None:
    """Make signals raise Interrupted from here on: what is half-written is then cleaned up."""
    for number in asked_to_stop():
        if signal.getsignal(number) is leave_at_once:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    # The second one does not wait for what is being cleaned up.
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(number)


@contextlib.contextmanager
def clear_errors(ways_out: Mapping[str, str] | None = None) -> Iterator[None]:
    """End the process with one line and the right status, unless the cause is our own bug.

    ways_out: what this program's user can do about a limit, by its name.
    """
    _interruptible()
    try:
        yield
    except Interrupted as error:
        _exit(str(error), error.status, "")
    except (Refused, Failed) as error:
        _exit(
            with_way_out(str(error), error.limit, ways_out), 2 if isinstance(error, Refused) else 1
        )
    except OSError as error:
        if error.filename is not None:
            _exit(f"{error.filename}: {error.strerror}", 2)
        # The machine's limits, which no file is to blame for.
        if error.errno not in SCARCE:
            raise
        if lacks_processes(error):
            _exit(f"{NO_MORE_PROCESSES}: end others, or raise it", 1)
        more = ": raise `ulimit -n`" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
        _exit(f"{error.strerror or error}{more}", 1)
    except RuntimeError as error:
        if lacks_processes(error):
            _exit(f"{NO_MORE_PROCESSES}: end others, or raise it", 1)
        # torch's words for the same.
        if "Too many open files" not in str(error):
            raise
        _exit("too many open files: raise `ulimit -n`, or lower the number of workers", 1)


NO_MORE_PROCESSES = "this user may start no more processes and threads (`ulimit -u`)"


def lacks_processes(error: Exception) -> bool:
    """Return whether the system refused to start a process or a thread."""
    if isinstance(error, OSError):
        return error.errno == errno.EAGAIN
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def with_way_out(message: str, limit: str, ways_out: Mapping[str, str] | None) -> str:
    """Return the message with what can be done about its limit, where this program has a way."""
    way = (ways_out or {}).get(limit)
    return f"{message}: {way}" if way else message


def reason_of(error: Exception) -> str:
    """Return why a file could not be read, without its path."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def _exit(message: str, status: int, kind: str = "error: ") -> None:
    print(f"{Path(sys.argv[0]).name}: {kind}{printable(message)}", file=sys.stderr, flush=True)
    sys.exit(status)
