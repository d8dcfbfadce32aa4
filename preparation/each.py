"""Do something to every image in many processes, with a progress bar."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from loading.workers import shorten_socket_paths

# Files a process takes at a time.
CHUNK = 16
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
        context = multiprocessing.get_context("forkserver")
        with context.Pool(processes, _start, (work,)) as pool:
            for result in pool.imap(_do, items, CHUNK):
                yield result
                bar.update()
