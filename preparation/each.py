"""Do something to every image of a folder in many processes, with a progress bar."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from datasets import folder
from datasets.images import FileImages, Limits
from loading.workers import shorten_socket_paths

# Files a process takes at a time.
CHUNK = 16
Item = TypeVar("Item")
Result = TypeVar("Result")


def images_of(data_dir: str, limits: Limits) -> FileImages:
    """Return all images of a folder, of train/ and val/ or of class folders; names are relative to
    it. Raises Refused.
    """
    found = [folder.find_part(data_dir, part) for part in ("train", "test", "other")]
    # test/ is the other part only where val/ is there too.
    parts = list(dict.fromkeys(path for path in found if path)) or [folder.unwrapped(data_dir)]

    names: list[str] = []
    left_out: Counter[str] = Counter()
    for path in parts:
        part = os.path.relpath(path, data_dir)
        prefix = "" if part == "." else f"{part}/"
        images = folder.list_images(path, list(folder.class_folders(path)))
        names += [f"{prefix}{name}" for name in images.names]
        left_out.update(images.left_out)

    labels = np.zeros(len(names), np.int64)
    return FileImages(names, labels, [""], data_dir, limits, left_out=left_out)


def _start() -> None:
    """Begin a process. Ctrl-C and a closed terminal are the main process's to answer, which then
    ends this one.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


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
        with context.Pool(processes, _start) as pool:
            for result in pool.imap(work, items, CHUNK):
                yield result
                bar.update()
