"""How a program ends: refusals and failures of one line, with the right exit status."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from base.text import printable


class Refused(ValueError):
    """A wrong call or bad input: one line on stderr, exit status 2. The message names the value and the way out."""


class Failed(RuntimeError):
    """A run that cannot go on: one line on stderr, exit status 1."""


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """End the process with one line and the right status where the cause is not our own bug."""
    try:
        yield
    except (Refused, Failed) as error:
        print(f"{Path(sys.argv[0]).name}: error: {printable(error)}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, Refused) else 1)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{Path(sys.argv[0]).name}: error: {printable(error.filename)}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(2)
