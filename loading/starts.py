"""How worker processes start and end, and what they say where they cannot."""

import atexit
import contextlib
import ctypes
import functools
import gc
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import context as contexts
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import torch

from base.errors import NO_MORE_PROCESSES, STOPPING, Failed, Refused, lacks_processes
from loading.deaths import end_workers, print_unless_told
from utils import keep_memory

# Batches a worker has under way: DataLoader's default.
PREFETCHED = 2
# Status of a worker that could not start what hands over its batches.
LACKING = os.EX_TEMPFAIL


class _Quiet:
    """A worker's process that leaves a lack of processes and threads to the main process to tell,
    where multiprocessing prints a traceback.
    """

    def run(self) -> None:
        try:
            super().run()  # type: ignore[misc]
        except (OSError, RuntimeError) as error:
            if not lacks_processes(error):
                raise
            sys.exit(LACKING)


class _Fork(_Quiet, contexts.ForkProcess):
    pass


class _ForkServer(_Quiet, contexts.ForkServerProcess):
    pass


class _Spawn(_Quiet, contexts.SpawnProcess):
    pass


class _ForkContext(contexts.ForkContext):
    Process = _Fork


class _ForkServerContext(contexts.ForkServerContext):
    Process = _ForkServer


class _SpawnContext(contexts.SpawnContext):
    Process = _Spawn


CONTEXTS: dict[str, contexts.BaseContext] = {
    "fork": _ForkContext(),
    "forkserver": _ForkServerContext(),
    "spawn": _SpawnContext(),
}


def context_of(start_method: str) -> contexts.BaseContext:
    """Return what starts workers in this way."""
    context = CONTEXTS[start_method]
    if start_method == "forkserver":
        # The server imports torch once, its forks then start at once.
        context.set_forkserver_preload(["loading.shield", "data"])
    return context


def quiet_tracker() -> None:
    """Let the process that cleans up after this one say nothing where this one is killed.

    It removes the semaphores that a killed process leaves, as it should, and warned of each run
    that was stopped at once. Its interpreter reads the environment as it starts.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    others = os.environ.get("PYTHONWARNINGS", "")
    if quiet not in others:
        os.environ["PYTHONWARNINGS"] = f"{others},{quiet}".lstrip(",")


@functools.cache
def end_feeders_at_exit() -> None:
    """Let no thread that feeds a worker be cut off as this process ends.

    The last to leave a queue removes its semaphores, and tells multiprocessing's tracker: a thread
    that was stopped between the two made it warn of a leak.
    """
    atexit.register(_end_feeders)


def _end_feeders() -> None:
    # Loaders that are left close their queues.
    gc.collect()
    end = time.monotonic() + 1
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(max(0, end - time.monotonic()))


def lacked_processes(workers: list[Any]) -> bool:
    """Return whether one of the workers ended because nothing more could be started."""
    return any(worker.exitcode == LACKING for worker in workers)


def start_worker(_: int) -> None:
    """Shield a worker: a signal to the whole group is the main process's to answer, which then ends
    its workers.
    """
    for number in (*STOPPING, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = print_unless_told
    _end_with_parent()
    _start_threads()
    torch.set_num_threads(1)
    keep_memory()


def _start_threads() -> None:
    """Start the threads that hand over batches and their memory: here the main process is told if
    that cannot be done.
    """
    # Theirs who sends a file descriptor; it stays.
    reading, writing = os.pipe()
    received = resource_sharer.DupFd(reading).detach()
    for descriptor in (reading, writing, received):
        os.close(descriptor)
    # A queue starts its own with the first batch.
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


@contextlib.contextmanager
def enough_processes() -> Iterator[None]:
    """Turn a system that starts no more workers into one line. Raises Failed."""
    try:
        yield
    except (OSError, EOFError, RuntimeError) as error:
        # A server of workers that could not fork ended, and its pipe broke.
        if not (lacks_processes(error) or isinstance(error, (ConnectionError, EOFError))):
            raise
        # Before torch, which would ask them to end while they cannot answer yet.
        end_workers()
        before = sys.unraisablehook
        # torch's half-made iterator, which these frames hold, complains when it goes.
        sys.unraisablehook = lambda _: None
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        sys.unraisablehook = before
        raise lack("the workers") from None


def lack(what: str) -> Failed:
    """Return the error that ends a run where `what` could not start.

    From now on torch's loaders do not say that they start no thread to end by, either.
    """
    sys.unraisablehook = _print_unless_lacking
    return Failed(f"{what} could not start: {NO_MORE_PROCESSES}", limit="workers")


def _print_unless_lacking(unraisable: Any) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, Exception) and lacks_processes(error)):
        sys.__unraisablehook__(unraisable)


# Linux's sys/prctl.h: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Let the system end this process with the one that forked it, however that one ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A server may have ended before. It alone has this module, and its workers from it.
    shield = sys.modules.get("loading.shield")
    if shield is not None and os.getppid() != shield.SERVER:
        # Whatever ended it: the main process tells what it finds.
        os._exit(1)


# Bytes of a socket's path: sockaddr_un's 108, less what multiprocessing adds.
MAX_SOCKET_FOLDER = 60
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def own_modules_first() -> Iterator[None]:
    """Let a server of workers that starts here import this suite's files, not those of the working
    folder or of another installed copy.

    CPython gives the server no sys.path before it imports what is preloaded (github.com/python/
    cpython, issue 117378).
    """
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def shorten_socket_paths() -> None:
    """Let workers' sockets lie in a short folder where TMPDIR is a long one.

    Raises Refused where there is none.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER:
        return
    for short in SHORT_FOLDERS:
        if os.access(short, os.W_OK | os.X_OK):
            tempfile.tempdir = short
            # Made here, where the workers will find it: they would look at TMPDIR again.
            multiprocessing.util.get_temp_dir()
            return
    raise Refused(
        f"TMPDIR {folder} is too long a path for the workers' sockets: name a shorter one"
    )


def check_shared_memory(workers: int, batch: int, free: int | None = None) -> None:
    """Raise Refused where /dev/shm cannot hold the batches under way: a worker would die of a bus
    error.

    batch: bytes of one; each worker has PREFETCHED of them under way, and one is in use.
    """
    if free is None:
        try:
            free = shutil.disk_usage("/dev/shm").free
        except OSError:
            return

    needed = (workers * PREFETCHED + 1) * batch
    # Seen beforehand: a bus error in a worker has no message at all.
    if needed > free:
        raise Refused(
            f"/dev/shm has {free / 2**20:.0f} MiB free, {workers} workers need "
            f"{needed / 2**20:.0f} MiB for their "
            "batches: enlarge it (docker run --shm-size)",
            limit="shared memory",
        )
