"""Do something to every image of a folder in many processes, with a progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from datasets import folder
from datasets.images import FileImages, Limits

# Files a process takes at a time.
CHUNK = 16
Item = TypeVar("Item")
Result = TypeVar("Result")


def images_of(data_dir: str, limits: Limits) -> FileImages:
    """Return all images of a folder, of train/ and val/ or of class folders; names are relative to
    it. Raises Refused.
    """
    parts = [path for part in ("train", "test") if (path := folder.find_part(data_dir, part))]
    if not parts:
        images = folder.list_images(data_dir, None)
        images.limits = limits
        return images

    names: list[str] = []
    for path in parts:
        part = os.path.basename(path)
        names += [f"{part}/{name}" for name in folder.list_images(path, None).names]

    return FileImages(names, np.zeros(len(names), np.int64), [""], data_dir, limits)


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

        context = multiprocessing.get_context("forkserver")
        with context.Pool(processes, torch.set_num_threads, (1,)) as pool:
            for result in pool.imap(work, items, CHUNK):
                yield result
                bar.update()
