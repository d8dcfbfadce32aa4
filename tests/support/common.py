"""Places that tests look in."""

import contextlib
import io
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import opts
from base.errors import Refused, with_way_out
from report.record import EpochRecord

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "samples"


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def typed(content: bytes) -> io.TextIOWrapper:
    """Return a standard input of these bytes, whose encoding takes no others than its own."""
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="strict")


def epoch_record(**values: Any) -> EpochRecord:
    """Return a line of the log with these values, all others 1."""
    fields: dict[str, Any] = dict.fromkeys(EpochRecord.__dataclass_fields__, 1.0)
    return EpochRecord(**(fields | values))


@contextlib.contextmanager
def refused_with(pattern: str) -> Iterator[None]:
    """Expect Refused whose message, as main.py shows it, has this pattern."""
    with pytest.raises(Refused) as caught:
        yield
    shown = with_way_out(str(caught.value), caught.value.limit, opts.WAYS_OUT)
    assert re.search(pattern, shown, re.S), shown


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail what takes longer: a loop that never ends is a failure, not a test run that hangs."""

    def late(number: int, frame: object) -> None:
        pytest.fail(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
