"""Work on many images ends, whatever happens to its processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import util
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


def marked(folder: Path, number: int) -> int:
    """Leave a file as this process begins, and another one some time after its work is done."""
    own = folder / f"{os.getpid()} began"
    if not own.exists():
        own.touch()
        util.Finalize(None, mark_end, (folder, os.getpid()), exitpriority=1)
    return number


def mark_end(folder: Path, pid: int) -> None:
    time.sleep(1.5)
    (folder / f"{pid} ended").touch()


def test_processes_that_have_done_all_end_in_their_own_time(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    assert sum(each.each(partial(marked, tmp_path), range(40), 40, "x", 2)) == sum(range(40))
    assert set(multiprocessing.active_children()) <= before
    names = sorted(path.name for path in tmp_path.iterdir())
    began = {name.split()[0] for name in names if name.endswith("began")}
    assert began
    assert names == sorted(f"{pid} {what}" for pid in began for what in ("began", "ended"))


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
