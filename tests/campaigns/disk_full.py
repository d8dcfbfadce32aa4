"""Let saves fail (full disk, size limit, read-only, fsync): the checkpoint before loads, nothing
half-written stays.
"""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import Child, checkpoint, finish, options, run_folder, scratch, script

MIB = 1 << 20


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount 4 MiB of memory as a disk; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-R", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Use up the disk but for `leave` bytes."""
    free = shutil.disk_usage(folder).free - leave
    if free > 0:
        (folder / "filler").write_bytes(bytes(free))


def limit_files(size: int) -> Callable[[], None]:
    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return before


def fail_fsync(after: int) -> Callable[[], None]:
    def before() -> None:
        real, calls = os.fsync, [0]

        def failing(descriptor: int) -> None:
            calls[0] += 1
            if calls[0] > after and os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tmp"):
                raise OSError(errno.EIO, "Input/output error")
            real(descriptor)

        os.fsync = failing

    return before


def check(folder: Path, child: Child, step: int) -> dict[str, bool]:
    """Look at what a run that failed to save has left."""
    checkpoints = run_folder(folder) / "checkpoints"
    said = child.text()
    found = checkpoint.newest(checkpoints)
    if child.status != 1 or not said.count("bytes are free"):
        print(child.status, said[-600:])
    return {
        "failed_clearly": child.wait() == 1 and "Traceback" not in said,
        "named": str(run_folder(folder)) in said and "bytes are free" in said,
        "loads": found is not None and found.progress.step >= step,
        "clean": not list(folder.rglob("*.tmp")),
    }


def one(
    folder: Path, spoil: Callable[[], None], before: Callable[[], None] | None
) -> dict[str, bool]:
    """Train an epoch, spoil the disk, train on until the saves fail."""
    finish(options(folder, "--nEpochs", "1", "--snapshot", "0"))
    step = checkpoint.newest(run_folder(folder) / "checkpoints").progress.step
    spoil()
    child = Child(
        options(folder, "--continue", "--saveEvery", "1", "--nEpochs", "40", "--snapshot", "0"),
        before,
    )
    child.wait()
    return check(folder, child, step)


def run(trials: int = 30, seed: int = 1, root: bool | None = None) -> dict[str, Any]:
    pick = random.Random(seed)
    root = os.geteuid() == 0 if root is None else root
    total: dict[str, int] = {}
    kinds = (["full disk", "read-only"] if root else []) + ["size limit", "fsync"]
    for trial in range(trials):
        kind = kinds[trial % len(kinds)] if trial % 2 else kinds[0]
        with scratch() as base:
            if kind == "full disk":
                with small_disk(base / "disk") as disk:
                    leave = pick.randrange(0, 60_000)
                    result = one(disk, lambda disk=disk, leave=leave: fill(disk, leave), None)  # type: ignore[misc]
            elif kind == "read-only":
                with small_disk(base / "disk") as disk:
                    result = one(disk, lambda: None, remount)
            else:
                spoiled = (
                    limit_files(pick.randrange(4_000, 20_000))
                    if kind == "size limit"
                    else fail_fsync(pick.randrange(8))
                )
                result = one(base, lambda: None, spoiled)
        if not all(result.values()):
            print(kind, result)
        for name, good in {**result, "all": all(result.values())}.items():
            total[name] = total.get(name, 0) + good
    return {"trials": trials, **total, "kinds": kinds}


def remount() -> None:
    """Turn the folder of checkpoints read-only at the third step, as a kernel does that has met an
    error.
    """
    from run.run import Run

    real = Run.after_step

    def after_step(self: Run, sums: Any) -> None:
        real(self, sums)
        if self.progress.step == 16:
            self.saver.wait()
            folder = str(self.saver.folder)
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)

    Run.after_step = after_step  # type: ignore[method-assign]


if __name__ == "__main__":
    script("4 disk full", run, 30)
