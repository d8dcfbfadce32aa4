"""Do something to every image of a folder in many processes, with a progress bar."""

import csv
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from base.errors import Refused
from base.files import whole_file
from datasets import folder
from datasets.images import FileImages

AT_ONCE = 16  # files a process takes at a time


def images_of(data_dir: str) -> FileImages:
    """Return all images of a folder, of train/ and val/ or of class folders; names are relative to it. Raises Refused."""
    parts = [path for part in ("train", "test") if (path := folder.find_part(data_dir, part))]
    if not parts:
        return folder.list_images(data_dir, None)
    names: list[str] = []
    for path in parts:
        names += [f"{os.path.basename(path)}/{name}" for name in folder.list_images(path, None).names]
    labels = torch.zeros(len(names), dtype=torch.int64).numpy()
    return FileImages(names, labels, [""], data_dir)


def each(work: Callable[[Any], Any], items: Iterable[Any], total: int, title: str, processes: int) -> Iterator[Any]:
    """Yield work(item) of every item, in order."""
    with tqdm(total=total, desc=title, unit=" images", leave=False, disable=None) as bar:
        if processes < 2:
            for item in items:
                yield work(item)
                bar.update()
            return
        with multiprocessing.get_context("forkserver").Pool(processes, torch.set_num_threads, (1,)) as pool:
            for result in pool.imap(work, items, AT_ONCE):
                yield result
                bar.update()


def write_rows(path: Path, heading: list[str], rows: Iterable[list[Any]]) -> None:
    with whole_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([heading, *rows])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return a table's rows. Raises Refused."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise Refused(f"cannot read {path}: {error}: remove it, it is then written anew") from None
