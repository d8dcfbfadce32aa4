"""How a program ends: refusals and failures of one line, with the right exit status."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

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


@contextlib.contextmanager
def clear_errors(ways_out: Mapping[str, str] | None = None) -> Iterator[None]:
    """End the process with one line and the right status, unless the cause is our own bug.

    ways_out: what this program's user can do about a limit, by its name.
    """
    try:
        yield
    except (Refused, Failed) as error:
        _exit(
            with_way_out(str(error), error.limit, ways_out), 2 if isinstance(error, Refused) else 1
        )
    except OSError as error:
        if error.filename is None:
            raise
        _exit(f"{error.filename}: {error.strerror}", 2)


def with_way_out(message: str, limit: str, ways_out: Mapping[str, str] | None) -> str:
    """Return the message with what can be done about its limit, where this program has a way."""
    way = (ways_out or {}).get(limit)
    return f"{message}: {way}" if way else message


def reason_of(error: Exception) -> str:
    """Return why a file could not be read, without its path."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def _exit(message: str, status: int) -> None:
    print(f"{Path(sys.argv[0]).name}: error: {printable(message)}", file=sys.stderr, flush=True)
    sys.exit(status)
