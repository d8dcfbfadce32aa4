"""Files that are whole or not there at all, and tables of text."""

import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from base.errors import Refused


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str], mode: str = "w", check: Callable[[Path], None] | None = None
) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` only once it is complete, on the disk and passes
    `check`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=2) + "\n")


def write_rows(
    path: str | os.PathLike[str], heading: list[str], rows: Iterable[Iterable[object]]
) -> None:
    """Write a CSV file, whole or not at all."""
    with whole_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heading)
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a heading. Raises Refused."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise Refused(f"cannot read {path}: {error}: remove it, it is then written anew") from None
