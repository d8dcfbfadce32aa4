"""A checkpoint is data only, and whole."""

import os
import resource
import signal
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import payloads
import pytest
import torch

from base import archive


@pytest.fixture(autouse=True)
def _own_signals():
    """The campaigns set handlers for children; give back what was there."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_weights_are_only_data_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"network": payloads.Call(os.mkdir, str(tmp_path / "touched"))}, tmp_path / "bad.pt")
    # Not by the error that a warning is in tests.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(payloads.archive.Damaged):
            payloads.archive.read(tmp_path / "bad.pt")
    assert not (tmp_path / "touched").exists()
    assert (
        resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    )  # the limits were the children's alone


def saved(path: Path) -> list[tuple[zipfile.ZipInfo, bytes]]:
    """Write a file of torch.save, and return its entries."""
    torch.save({"weights": torch.arange(100.0)}, path)
    with zipfile.ZipFile(path) as file:
        return [(entry, file.read(entry)) for entry in file.infolist()]


def packed(
    path: Path,
    entries: list[tuple[zipfile.ZipInfo, bytes]],
    name: Callable[[str], str] = str,
    kind: int = zipfile.ZIP_STORED,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        with zipfile.ZipFile(path, "w", kind) as file:
            for entry, content in entries:
                file.writestr(name(entry.filename), content)


def in_directory(path: Path, place: int, value: int) -> None:
    """Change a number of 4 bytes in the zip's directory: of the pickle, which stands first."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + place : start + place + 4] = struct.pack("<I", value)
    path.write_bytes(content)


def test_a_file_of_torch_save_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    entries = saved(path)
    assert torch.equal(archive.read(path)["weights"], torch.arange(100.0))
    # Also where another program packed it anew.
    packed(path, entries)
    assert torch.equal(archive.read(path)["weights"], torch.arange(100.0))


def _twice(path: Path) -> None:
    entries = saved(path)
    packed(path, [*entries, entries[0]])


def _without_pickle(path: Path) -> None:
    packed(path, [one for one in saved(path) if not one[0].filename.endswith("data.pkl")])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a name twice": (_twice, "its entries are not those of torch.save"),
    "no pickle": (_without_pickle, "its entries are not those of torch.save"),
    "packed": (lambda path: packed(path, saved(path), kind=zipfile.ZIP_DEFLATED), "has packed"),
    "a name that leads out": (
        lambda path: packed(path, saved(path), lambda name: f"../{name}"),
        "an entry's name leads out of the file",
    ),
    "a name from the root": (
        lambda path: packed(path, saved(path), lambda name: f"/{name}"),
        "an entry's name leads out of the file",
    ),
    "larger than the file": (
        lambda path: (saved(path), in_directory(path, 24, 1 << 20))[1],
        "its entries are larger than the file",
    ),
    "encrypted": (lambda path: (saved(path), in_directory(path, 8, 1))[1], "packed or encrypted"),
    "cut off": (lambda path: (saved(path), os.truncate(path, 300))[1], "damaged or no checkpoint"),
    "a pipe": (lambda path: os.mkfifo(path), "is not a regular file"),
    "a folder": (lambda path: path.mkdir(), "is not a regular file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_whole_file_of_torch_save_is_damaged(name: str, tmp_path: Path) -> None:
    spoil, words = FAULTS[name]
    path = tmp_path / "a.pt"
    spoil(path)
    for read in (archive.verify, archive.read):
        with pytest.raises(archive.Damaged, match=words) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))


def test_a_pickle_is_as_large_as_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    size = next(len(content) for entry, content in saved(path) if entry.filename.endswith(".pkl"))
    monkeypatch.setattr(archive, "MAX_PICKLE", size)
    archive.verify(path)
    monkeypatch.setattr(archive, "MAX_PICKLE", size - 1)
    with pytest.raises(archive.Damaged, match="its pickle is too large"):
        archive.verify(path)


def test_a_changed_bit_is_named_by_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    content = next(content for entry, content in saved(path) if "data/0" in entry.filename)
    whole = path.read_bytes()
    place = whole.index(content) + 17
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    with pytest.raises(archive.Damaged, match=r"data/0 has a wrong CRC"):
        archive.verify(path)
