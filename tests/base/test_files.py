"""What is written is whole or not there; what is no regular file is neither read nor replaced."""

import io
import os
import stat
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from common import within

from base.errors import Refused
from base.files import (
    absent,
    begins_with,
    has_arrays,
    is_our_picture,
    read_bytes,
    read_text,
    refuse_foreign,
    refuse_target,
    replacing,
    set_aside,
    whole_file,
    write_rows,
)


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "deep" / "table.csv", tmp_path / "table.csv"
    real.parent.mkdir()
    link.symlink_to(real)
    for content in (["1"], ["2"]):
        write_rows(link, ["a"], [content])
        assert link.is_symlink()
        assert real.read_text() == f"a\n{content[0]}\n"
    assert [path.name for path in real.parent.iterdir()] == ["table.csv"]


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not a regular file"):
        write_rows("/dev/null", ["a"], [["1"]])
    write_rows("/dev/null", ["a"], [["1"]], named=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert not [path for path in Path("/dev").iterdir() if path.name.startswith(".null")]


def test_a_pipe_gets_what_is_written(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    write_rows(pipe, ["a", "b"], [["1", "2"]], named=True)
    reader.join(10)
    assert heard == ["a,b\n1,2\n"]
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines(["new", 3])  # type: ignore[list-item]
    assert path.read_text() == "old"
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "none" / "a.txt"):
        pass
    # The message names the file that was meant, not the temporary one.
    assert caught.value.filename == str(tmp_path / "none" / "a.txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("mask", "wanted"), [(0o000, 0o666), (0o022, 0o644), (0o077, 0o600)])
def test_permissions_follow_the_umask_and_stay_private_until_then(
    mask: int, wanted: int, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "new") as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        kept = tmp_path / "kept"
        kept.write_text("x")
        kept.chmod(0o640)
        with whole_file(kept) as file:
            file.write("y")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == wanted
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


def test_targets_are_looked_at_beforehand(tmp_path: Path) -> None:
    source, link = tmp_path / "best.pt", tmp_path / "link.pt"
    source.write_text("weights")
    link.symlink_to(source)
    for target in (source, link, tmp_path / "." / "best.pt"):
        with pytest.raises(Refused, match="is the file that is read"):
            refuse_target(target, source)
    with pytest.raises(Refused, match="is a folder"):
        refuse_target(tmp_path, source)
    with pytest.raises(Refused, match="there is no folder"):
        refuse_target(tmp_path / "none" / "x", source)
    refuse_target("/dev/null", source)
    refuse_target(tmp_path / "new", source)


def test_only_regular_files_of_some_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            read_bytes(path)
    (tmp_path / "long").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="more than the 99 bytes"):
        read_bytes(tmp_path / "long", 99)
    assert len(read_bytes(tmp_path / "long", 100)) == 100
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfname")
    assert read_text(tmp_path / "marked") == "name"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The system's error has no name; what the user asked for has."""
    with pytest.raises(OSError) as caught:
        write_rows("/dev/full", ["a"], [["1"]], named=True)
    assert caught.value.filename == "/dev/full"


def test_a_small_file_is_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"abc")
    tracemalloc.start()
    try:
        assert read_bytes(path, 1 << 30) == b"abc"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_whose_size_is_not_told_is_read_whole() -> None:
    # Linux says 0 of all below /proc.
    text = read_bytes("/proc/self/status", 1 << 20)
    assert text.startswith(b"Name:")
    assert b"voluntary_ctxt_switches" in text
    with pytest.raises(ValueError, match="more than the 10 bytes allowed"):
        read_bytes("/proc/self/status", 10)


def test_a_file_of_more_than_256_mebibytes_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    # It takes no room on the disk.
    os.truncate(path, (256 << 20) + 1)
    with pytest.raises(ValueError, match="268435456"):
        read_text(path)


SIGNED = b"\x89PNG\r\n\x1a\n...tEXtSoftware\0multi-gpu-torch..."


def arrays(*names: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.zeros(2) for name in names})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("is_ours", "content", "refused"),
    [
        (is_our_picture, SIGNED, False),
        (is_our_picture, b"", False),
        (is_our_picture, SIGNED.replace(b"multi-gpu-torch", b"Matplotlib"), True),
        (is_our_picture, b"\xff\xd8" + SIGNED, True),
        (is_our_picture, b"path,class\n", True),
        (has_arrays("a", "b"), arrays("b", "a"), False),
        (has_arrays("a", "b"), arrays("a"), True),
        (has_arrays("a", "b"), arrays("a", "b", "c"), True),
        (has_arrays("a", "b"), arrays("a", "b")[:50], True),
        (has_arrays("a", "b"), SIGNED, True),
        (begins_with(["a", "b"]), b"a,b\n1,2\n", False),
        (begins_with(["a", "b"]), b"a,b", False),
        (begins_with(["a", "b"]), b"a,b,c\n1,2,3\n", True),
        (begins_with(["a", "b"]), b"1,2\na,b\n", True),
        (begins_with(["a", "b"]), "a,b\r\n\xe9".encode("latin-1"), False),
        (begins_with(["a", "b"]), b"PK\x03\x04\0\0", True),
    ],
)
def test_a_file_takes_the_place_of_its_like_alone(
    is_ours: Callable[[Path], bool], content: bytes, refused: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    refuse_target(path, is_ours=is_ours)
    path.write_bytes(content)
    (tmp_path / "link").symlink_to("x")
    for name in (path, tmp_path / "link"):
        if refused:
            with pytest.raises(
                Refused, match="is there, and not known as this program's: move it away"
            ):
                refuse_target(name, is_ours=is_ours)
        else:
            refuse_target(name, is_ours=is_ours)
    refuse_target("/dev/null", is_ours=is_ours)


def test_what_is_set_aside_keeps_all_that_was_before(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(3):
        path.write_text(str(number))
        set_aside(path)
    found = {place.name: place.read_text() for place in tmp_path.iterdir()}
    assert found == {"log.damaged": "0", "log.damaged-2": "1", "log.damaged-3": "2"}


def test_what_cannot_be_looked_at_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert absent(tmp_path / "no", "folder ") == f"there is no folder {tmp_path / 'no'}"
    assert absent("a\0b") == "there is no a\0b"
    (tmp_path / "file").write_text("")
    assert absent(tmp_path / "file" / "x") == f"there is no {tmp_path / 'file' / 'x'}"

    def denied(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", denied)
    assert absent("/priv/d") == "cannot look at /priv/d: Permission denied"


def test_a_pipe_in_a_list_s_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.csv")
    with within(5), pytest.raises(Refused, match="is not of this program"):
        refuse_foreign(tmp_path / "list.csv", ["a", "b"])
