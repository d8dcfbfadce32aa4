"""Files that are whole or not there at all, bounded reading, and tables of text."""

import contextlib
import csv
import errno
import functools
import io
import itertools
import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from base.errors import Refused

# Bytes of a text file that a program reads whole: options, logs, tables, listings of paths.
MAX_TEXT = 256 << 20


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str],
    mode: str = "w",
    check: Callable[[Path], None] | None = None,
    *,
    named: bool = False,
) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` only once it is complete, on the disk and passes
    `check`.

    A link is followed, so that it stays one. named: by the user, so that a device or a pipe is
    written to as it is: replacing /dev/null by a file would break the machine. Raises OSError for
    one otherwise: a pipe in a run's folder would block the run for ever.
    """
    encoding = None if "b" in mode else "utf-8"
    if is_special(path):
        if not named:
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with _named(path), open(path, mode, encoding=encoding) as file:
            yield file
        return
    with (
        _named(path),
        replacing(path, check) as temporary,
        open(temporary, mode, encoding=encoding) as file,
    ):
        yield file


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give an error of writing the file's name, which a full disk does not tell."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], check: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Give the path of an empty temporary file, which then replaces `path`, or what a link of that
    name leads to.

    For what writes files by their names; `whole_file` opens one.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        # Nobody else's to read until it has its name.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        if check is not None:
            check(temporary)
        # Some disks have no permissions to set.
        with contextlib.suppress(OSError):
            os.chmod(temporary, _mode_for(target))
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            # Whoever reads the message knows the file by its own name.
            error.filename = str(path)
        raise


def set_aside(path: str | os.PathLike[str]) -> Path:
    """Rename a file that cannot be used, for whoever wants it; return its new name. Raises
    OSError.
    """
    path = Path(path)
    names = itertools.chain([".damaged"], (f".damaged-{number}" for number in itertools.count(2)))
    aside = next(
        place for end in names if not os.path.lexists(place := path.with_name(path.name + end))
    )
    path.rename(aside)
    return aside


def absent(path: str | os.PathLike[str], what: str = "") -> str:
    """Return what is said of a path that leads nowhere, or cannot be looked at. what: "file "."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"cannot look at {path}: {error.strerror}"
    except ValueError:  # of a name with a NUL, which no file has
        pass
    return f"there is no {what}{path}"


def is_special(path: str | os.PathLike[str]) -> bool:
    """True for what is there and is neither a regular file nor a folder: a device, a pipe, a
    socket.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def refuse_foreign(path: Path, heading: list[str]) -> None:
    """Raise Refused where a CSV file of that name is someone else's: its first line is another."""
    if path.exists() and not begins_with(heading)(path):
        raise Refused(f"{path} is not of this program, which would replace it: move it away")


# Bytes of a heading.
MAX_HEADING = 1 << 16
# Stands in each picture that this program writes.
SOFTWARE = "multi-gpu-torch"


def is_our_picture(path: Path) -> bool:
    """True for a PNG file that says so."""
    with path.open("rb") as file:
        begin = file.read(4096)
    return begin.startswith(b"\x89PNG") and f"Software\0{SOFTWARE}".encode() in begin


def has_arrays(*names: str) -> Callable[[Path], bool]:
    """Return what is true for an .npz file of just these arrays."""

    def check(path: Path) -> bool:
        try:
            with zipfile.ZipFile(path) as file:
                return sorted(file.namelist()) == sorted(f"{name}.npy" for name in names)
        except (ValueError, zipfile.BadZipFile, NotImplementedError):
            return False

    return check


def begins_with(heading: Sequence[str]) -> Callable[[Path], bool]:
    """Return what is true for a CSV file whose first line is this."""

    def check(path: Path) -> bool:
        # A pipe would be waited for.
        if not path.is_file():
            return False
        with path.open("rb") as file:
            line = file.readline(MAX_HEADING)
        return line.rstrip(b"\r\n") == ",".join(heading).encode()

    return check


def refuse_target(
    path: str | os.PathLike[str],
    source: str | os.PathLike[str] = "",
    is_ours: Callable[[Path], bool] | None = None,
) -> None:
    """Raise Refused where no file can be written to `path`: said before hours of work, not after.

    source: a file that is read, which must not be written over; is_ours: true for what was written
    so before, which alone is replaced: a slip names a photograph, labels, or weights.
    """
    target = Path(os.path.realpath(path))
    if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
        raise Refused(f"{path} is the file that is read: name another to write")
    if target.is_dir():
        raise Refused(f"{path} is a folder: name a file in it")
    if is_special(path):
        return
    if not target.parent.is_dir():
        raise Refused(f"cannot write {path}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise Refused(f"cannot write {path}: {target.parent} is read-only for this user")
    if is_ours is not None and target.is_file() and target.stat().st_size and not is_ours(target):
        known = "is there, and not known as this program's"
        raise Refused(f"{path} {known}: move it away, or name another to write")


def read_bytes(path: str | os.PathLike[str], most: int = MAX_TEXT) -> bytes:
    """Return what a regular file of at most `most` bytes holds.

    Raises OSError, and ValueError for a pipe, which would block, for a device, which may never end,
    and for a larger file.
    """
    # Not to wait for a pipe's other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        # Not `most` at once: Python sets that much memory aside, which a process may not have.
        content = file.read(min(most, os.fstat(descriptor).st_size) + 1)
        if len(content) <= most and (more := file.read(1)):
            content += more + file.read(most - len(content))
    if len(content) > most:
        raise ValueError(f"more than the {most} bytes allowed")
    return content


def read_text(path: str | os.PathLike[str], most: int = MAX_TEXT) -> str:
    """Return a UTF-8 file's text, with or without a byte order mark. Raises as `read_bytes`."""
    return read_bytes(path, most).decode("utf-8-sig")


def _mode_for(target: Path) -> int:
    """Return the permissions of what is replaced, or those of a new file."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(target.stat().st_mode)
    return 0o666 & ~_umask()


def _umask() -> int:
    """Return this process's umask, which Linux tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return _first_umask()


@functools.cache
def _first_umask() -> int:
    """Return the umask by setting it, once: another thread may be making a file meanwhile."""
    current = os.umask(0o077)
    os.umask(current)
    return current


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
    path: str | os.PathLike[str],
    heading: list[str],
    rows: Iterable[Iterable[object]],
    *,
    named: bool = False,
) -> None:
    """Write a CSV file, whole or not at all. named: as of `whole_file`."""
    with whole_file(path, named=named) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heading)
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a heading. Raises Refused."""
    try:
        return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise Refused(f"cannot read {path}: {error}: remove it, it is then written anew") from None
