"""Places that tests look in."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import opts
from base.errors import Refused, with_way_out

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "samples"


@contextlib.contextmanager
def refused_with(pattern: str) -> Iterator[None]:
    """Expect Refused whose message, as main.py shows it, has this pattern."""
    with pytest.raises(Refused) as caught:
        yield
    shown = with_way_out(str(caught.value), caught.value.limit, opts.WAYS_OUT)
    assert re.search(pattern, shown, re.S), shown
