"""Do something to every image in many processes, with a progress bar."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import Pool
from types import FrameType
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from loading.starts import quiet_tracker, shorten_socket_paths

# Files a process takes at a time.
CHUNK = 16
# Seconds after which processes that do not end are told so again.
AGAIN = 0.2
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Work:
    """What a process does to each item: it is sent once, not with every item."""

    do: Callable[[Any], Any]


def _start(work: Callable[[Any], Any]) -> None:
    """Begin a process. Ctrl-C and a closed terminal are the main process's to answer, which then
    ends this one.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # As the main process ends this one: what is half-written is removed first.
    signal.signal(signal.SIGTERM, _end)
    torch.set_num_threads(1)
    _Work.do = work


def _end(number: int, frame: FrameType | None) -> None:
    # It is sent again until this process is gone: what is half-written is removed all the same.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _do(item: Any) -> Any:
    return _Work.do(item)


def each(
    work: Callable[[Item], Result], items: Iterable[Item], total: int, title: str, processes: int
) -> Iterator[Result]:
    """Yield work(item) of every item, in order."""
    with tqdm(total=total, desc=title, unit=" images", leave=False, disable=None) as bar:
        if processes < 2:
            for item in items:
                yield work(item)
                bar.update()
            return

        shorten_socket_paths()
        quiet_tracker()
        context = multiprocessing.get_context("forkserver")
        pool = context.Pool(processes, _start, (work,))
        try:
            for result in pool.imap(_do, items, CHUNK):
                yield result
                bar.update()
            pool.close()
        except BaseException:
            _end_all(pool)
            raise
        finally:
            pool.join()


def _end_all(pool: Pool) -> None:
    """End the processes in the midst of their work.

    Python answers a signal between two of its steps. A process that got it just before it began to
    wait for work would wait for ever: the signal is repeated.
    """
    workers: list[Any] = list(pool._pool)  # type: ignore[attr-defined]
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(AGAIN):
            for worker in workers:
                worker.terminate()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    pool.terminate()
    pool.join()
    over.set()
    thread.join()
