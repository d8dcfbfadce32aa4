"""Work on many images ends, whatever happens to its processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT

from preparation import each

PROGRAM = """
import sys
sys.path[:0] = {paths!r}
if __name__ == "__main__":
    import test_each
    from preparation.each import each
    found = each(test_each.deaf_once, range(64), 64, "x", 2)
    next(found)
    found.close()
    print("ended", flush=True)
"""


def square(number: int) -> int:
    return number * number


def deaf_once(number: int) -> int:
    """Miss one SIGTERM, as a process does that gets it just before it begins to wait."""

    def miss(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, each._end)

    signal.signal(signal.SIGTERM, miss)
    if number >= each.CHUNK:
        time.sleep(3600)
    return number


def test_all_items_come_back_in_order() -> None:
    assert list(each.each(square, range(100), 100, "x", 2)) == [n * n for n in range(100)]


def test_no_process_is_left_when_all_is_done() -> None:
    before = set(multiprocessing.active_children())
    assert sum(each.each(square, range(40), 40, "x", 2)) == sum(n * n for n in range(40))
    assert set(multiprocessing.active_children()) <= before


def test_a_process_that_missed_its_signal_ends_all_the_same() -> None:
    paths = [str(ROOT), str(ROOT / "tests" / "preparation"), str(ROOT / "tests" / "support")]
    program = PROGRAM.format(paths=paths)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=40, cwd=ROOT
    )
    assert result.stdout == "ended\n", result.stderr


LONG = """
import sys
sys.path[:0] = {paths!r}
if __name__ == "__main__":
    import test_each
    from preparation.each import each
    print(sum(each(test_each.square, range(40), 40, "x", 2)))
"""


def test_a_long_folder_for_temporary_files_is_no_hindrance(tmp_path: Path) -> None:
    """The path of a socket may have 108 bytes."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    paths = [str(ROOT), str(ROOT / "tests" / "preparation"), str(ROOT / "tests" / "support")]
    result = subprocess.run(
        [sys.executable, "-c", LONG.format(paths=paths)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(long)},
    )
    assert result.stdout == f"{sum(number * number for number in range(40))}\n", result.stderr
