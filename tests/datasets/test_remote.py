"""Files at an address are copied once, whole, and gone on with where a connection broke off."""

import http.server
import io
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from common import DATA, refused_with, within
from tqdm import tqdm

import data
from base.errors import Refused
from datasets import remote
from datasets.given import sources
from datasets.images import Limits
from datasets.remote import Cache, copies

SHARDS = DATA / "containers" / "wds-cls"


class Server(http.server.ThreadingHTTPServer):
    """Sends files of a folder by ranges. cuts: how many answers break off halfway; sent: bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.cuts = 0
        self.sent = 0
        self.tag = "one"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(last, int(asked[2] or last))
        body = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{self.server.tag}"')
        self.send_header("Content-Length", str(len(body)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        if self.server.cuts and len(body) > 1000:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(SHARDS) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
    # Its sessions close with their loop's next turn.
    fsspec.implementations.http.HTTPFileSystem.clear_instance_cache()


def pattern(server: Server) -> str:
    return f"{server.address}/{{train-{{000000..000001}},val-000000}}.tar"


def cached(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"))


def test_shards_at_an_address_are_those_on_the_disk(server: Server, tmp_path: Path) -> None:
    own = data.open_images("shards", str(SHARDS), "train")
    far = data.open_images("shards", pattern(server), "train", cache=cached(tmp_path))
    assert [far.read(n) for n in range(len(far))] == [own.read(n) for n in range(len(own))]
    assert far.labels.tolist() == own.labels.tolist()


def test_class_names_are_copied_too(server: Server, tmp_path: Path) -> None:
    far = tmp_path / "far"
    shutil.copytree(SHARDS, far)
    (far / "classes.txt").write_text("a\nb\nc\nd\n")
    server.folder = far
    images = data.open_images("shards", pattern(server), "train", cache=cached(tmp_path))
    assert images.classes == ["a", "b", "c", "d"]


def test_a_second_start_copies_nothing(server: Server, tmp_path: Path) -> None:
    first = copies(pattern(server), ".tar", cached(tmp_path))
    total = sum(path.stat().st_size for path in SHARDS.iterdir())
    assert server.sent >= total
    server.sent = 0
    assert copies(pattern(server), ".tar", cached(tmp_path)) == first
    assert server.sent < 1000


def test_a_connection_that_breaks_off_is_gone_on_with(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 20_000)
    server.cuts = 3
    paths = copies(pattern(server), ".tar", cached(tmp_path))
    assert [Path(path).read_bytes() for path in paths] == [
        (SHARDS / Path(path).name).read_bytes() for path in paths
    ]


def test_a_connection_may_break_off_any_number_of_times_while_something_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file over a bad line: only what brings nothing, again and again, is given up."""
    received = remote._receive

    def broken(*more: Any) -> Iterator[int]:
        yield next(iter(received(*more)))
        raise OSError("the cable is out")

    monkeypatch.setattr(remote, "_receive", broken)
    monkeypatch.setattr(remote, "BLOCK", 6000)
    name = "train-000000.tar"
    assert (SHARDS / name).stat().st_size > 6000 * (remote.TRIES + 2)
    (path,) = copies(f"{server.address}/{name}", ".tar", cached(tmp_path))
    assert Path(path).read_bytes() == (SHARDS / name).read_bytes()


def test_what_came_before_a_failure_is_not_fetched_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 20_000)
    received = remote._receive
    blocks = tries = 0

    def broken(*more: Any) -> Iterator[int]:
        nonlocal blocks, tries
        if blocks >= 3:
            tries += 1
            if tries > 20:
                pytest.fail("it tries for ever")
            raise OSError("the cable is out")
        for count in received(*more):
            blocks += 1
            yield count
            if blocks == 3:
                raise OSError("the cable is out")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_receive", broken)
        with (
            within(60),
            refused_with("cannot copy .*train-000000.tar: the cable is out: start again"),
        ):
            copies(pattern(server), ".tar", cached(tmp_path))
    (part,) = (tmp_path / "cache").rglob("*.part")
    there = part.stat().st_size
    assert there >= 60_000
    server.sent = 0
    paths = copies(pattern(server), ".tar", cached(tmp_path))
    total = sum(path.stat().st_size for path in SHARDS.iterdir())
    assert server.sent <= total - there + 20_000
    assert Path(paths[0]).read_bytes() == (SHARDS / "train-000000.tar").read_bytes()


def test_a_file_that_changed_at_its_address_is_copied_anew(server: Server, tmp_path: Path) -> None:
    paths = copies(pattern(server), ".tar", cached(tmp_path))
    Path(paths[0]).write_bytes(bytes(Path(paths[0]).stat().st_size))
    server.tag = "two"
    fsspec.implementations.http.HTTPFileSystem.clear_instance_cache()
    assert copies(pattern(server), ".tar", cached(tmp_path)) == paths
    assert Path(paths[0]).read_bytes() == (SHARDS / "train-000000.tar").read_bytes()


def test_more_than_is_allowed_is_refused_with_the_sum(server: Server, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 100_000)
    with refused_with("copies of 3 files take 0.000236 GB, more than the 0.0001 GB allowed: raise"):
        copies(pattern(server), ".tar", cache)
    assert not (tmp_path / "cache").exists()
    assert server.sent < 1000


def test_a_missing_file_is_named(server: Server, tmp_path: Path) -> None:
    with refused_with(f"cannot read {server.address}/train-7.tar: "):
        copies(f"{server.address}/train-7.tar", ".tar", cached(tmp_path))


def test_without_a_network_the_copies_are_used(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = copies(pattern(server), ".tar", cached(tmp_path))
    server.folder = tmp_path
    fsspec.implementations.http.HTTPFileSystem.clear_instance_cache()
    assert copies(pattern(server), ".tar", cached(tmp_path)) == paths
    assert capsys.readouterr().out.count("cannot be asked for") == 3


@pytest.mark.parametrize("below", ["", "a/", "a/b/"])
@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_other_systems_and_whole_folders_are_read(
    protocol: str, below: str, tmp_path: Path
) -> None:
    """As deep as folders on the disk are."""
    system = fsspec.filesystem(protocol)
    where = f"/{tmp_path.name}" if protocol == "memory" else str(tmp_path / "far")
    system.makedirs(f"{where}/{below}", exist_ok=True)
    for path in SHARDS.iterdir():
        with system.open(f"{where}/{below}{path.name}", "wb") as file:
            file.write(path.read_bytes())
    # Another set, one folder deeper than any of this one.
    system.makedirs(f"{where}/a/b/c", exist_ok=True)
    with system.open(f"{where}/a/b/c/train-000009.tar", "wb") as file:
        file.write((SHARDS / "train-000000.tar").read_bytes())
    address = f"{protocol}://{where}"
    paths = copies(address, ".tar", cached(tmp_path))
    assert [Path(path).name for path in paths] == sorted(path.name for path in SHARDS.glob("*.tar"))
    images = data.open_images("shards", address, "test", cache=cached(tmp_path))
    assert (len(images), images.classes) == (8, ["0", "1", "2", "3"])
    with refused_with("has no .parquet file"):
        copies(address, ".parquet", cached(tmp_path))


def test_shards_at_an_address_are_predicted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = "train-000000.tar", "val-000000.tar"
    there = sources([f"{server.address}/{{train-000000,val-000000}}.tar"], Limits())
    here = sources([str(SHARDS / name) for name in names], Limits())
    assert [len(images) for images in there] == [len(images) for images in here] != []


def test_an_unknown_protocol_and_a_missing_library_are_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused_with("cannot read nowhere://x.tar: Protocol not known"):
        copies("nowhere://x.tar", ".tar", cached(tmp_path))

    def gone(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(remote, "import_module", gone)
    with refused_with(r"pip install -e '.\[remote\]'"):
        copies("memory://x.tar", ".tar", cached(tmp_path))


def test_a_copy_that_was_cut_short_is_seen(server: Server, tmp_path: Path) -> None:
    paths = copies(pattern(server), ".tar", cached(tmp_path))
    os.truncate(paths[1], 1000)
    copies(pattern(server), ".tar", cached(tmp_path))
    assert Path(paths[1]).read_bytes() == (SHARDS / "train-000001.tar").read_bytes()


def test_two_files_of_one_name_do_not_share_a_copy(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for part, content in (("a", b"one"), ("b", b"other")):
        with system.open(f"/{tmp_path.name}/{part}/train.tar", "wb") as file:
            file.write(content)
    paths = copies(f"memory:///{tmp_path.name}/{{a,b}}/train.tar", ".tar", cached(tmp_path))
    assert [Path(path).read_bytes() for path in paths] == [b"one", b"other"]


def test_nothing_is_asked_twice_of_a_dead_server(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(Refused, match=r"cannot read http://127.0.0.1:9/x\.tar"):
        copies("http://127.0.0.1:9/x.tar", ".tar", cached(tmp_path))
    assert time.monotonic() - started < 30


def test_a_server_that_tells_no_size_is_answered_with_the_copy_or_a_line(tmp_path: Path) -> None:
    class Silent:
        def info(self, path: str) -> dict[str, Any]:
            return {"name": path}

    copy = tmp_path / "a.tar"
    with refused_with("its size is not told"):
        remote._described(Silent(), "far/a.tar", copy)
    copy.write_bytes(b"x")
    (tmp_path / f"{remote._beside(copy, 'json').name}").write_text('{"size": 1, "tag": "t"}')
    assert remote._described(Silent(), "far/a.tar", copy) == remote.Remote(
        "far/a.tar", copy, 1, "t"
    )


def test_how_far_a_copy_is_counts_every_byte_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    def bar(total: int, title: str) -> Any:
        bars.append(tqdm(total=total, file=io.StringIO(), mininterval=0))
        return bars[-1]

    monkeypatch.setattr(remote, "bytes_bar", bar)
    monkeypatch.setattr(remote, "BLOCK", 20_000)
    server.cuts = 2
    copies(pattern(server), ".tar", cached(tmp_path))
    assert [one.n for one in bars] == [one.total for one in bars]
    assert sum(one.total for one in bars) == sum(path.stat().st_size for path in SHARDS.iterdir())
