"""What cannot be right in somebody's containers, tables and metadata is refused by its place and
name, and what stands beside it and is right is read.
"""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from common import DATA, refused_with
from PIL import Image

import data
from datasets import dbcollection
from datasets.images import FileImages


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def tar(folder: Path, members: list[tuple[str, bytes]], name: str = "train-0.tar") -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as archive:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder


def opened(kind: str, where: Path | None, part: str = "train", **settings: Any) -> FileImages:
    images = data.open_images(kind, None if where is None else str(where), part, **settings)
    assert isinstance(images, FileImages)
    return images


def labels_of(images: FileImages) -> list[str]:
    return [images.classes[label] for label in images.labels]


SHARDS: dict[str, tuple[list[tuple[str, bytes]], dict[str, str], str]] = {
    "a file twice": (
        [("a.png", png()), ("a.cls", b"0"), ("a.png", png(1))],
        {},
        r"train-0\.tar: sample a has two files \.png",
    ),
    "two images": (
        [("a.png", png()), ("a.jpg", png()), ("a.cls", b"0")],
        {},
        r"train-0\.tar: sample a has \.png and \.jpg.*--column image=NAME",
    ),
    "no text": (
        [("a.png", png()), ("a.cls", b"\xff\xfe\xfd")],
        {},
        r"train-0\.tar: a\.cls is no text in UTF-8",
    ),
    "a long label": (
        [("a.png", png()), ("a.cls", b"1" * (2 << 20))],
        {},
        r"train-0\.tar: a\.cls has 2097152 bytes: too many for a label",
    ),
    "no JSON": (
        [("a.png", png()), ("a.json", b"{")],
        {"label": "json.label"},
        r"train-0\.tar: a\.json is no JSON",
    ),
    "a number without a name": (
        [("a.png", png()), ("a.cls", b"2"), ("classes.txt", b"")],
        {},
        r"train-0\.tar: label 2 has no name among 2 class names",
    ),
    "an unknown name": (
        [("a.png", png()), ("a.cls", b"cow")],
        {},
        r"train-0\.tar: label 'cow' is none of its 2 class names",
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_cannot_be_right_is_refused_by_its_sample(name: str, tmp_path: Path) -> None:
    members, columns, pattern = SHARDS[name]
    where = tar(tmp_path / "s", [member for member in members if member[0] != "classes.txt"])
    if "class names" in pattern:
        (where / "classes.txt").write_text("cat\ndog\n")
    with refused_with(pattern):
        opened("shards", where, columns=columns)


@pytest.mark.parametrize(("text", "line"), [("cat\n\ndog\n", 2), ("", 1), ("cat\n  \n", 2)])
def test_class_names_are_a_name_a_line(text: str, line: int, tmp_path: Path) -> None:
    where = tar(tmp_path / "s", [("a.png", png()), ("a.cls", b"0")])
    (where / "classes.txt").write_text(text)
    with refused_with(rf"classes\.txt: line {line} has no name of a class"):
        opened("shards", where)


def test_shards_need_a_place_and_each_once(tmp_path: Path) -> None:
    with refused_with(r"a folder of \.tar files.*is needed: give --data_dir DIR"):
        opened("shards", None)
    with refused_with(r"a folder with \.parquet files is needed: give --data_dir DIR"):
        opened("parquet", None)
    with refused_with(r"a table of images and labels is needed: give --labels FILE"):
        opened("table", None)
    where = tar(tmp_path / "s", [("a.png", png()), ("a.cls", b"0")])
    with refused_with(r"names \S*train-0\.tar twice"):
        opened("shards", where / "train-{0,0}.tar")


def test_labels_of_shards_are_read_however_they_are_written(tmp_path: Path) -> None:
    members = [("folder/", b"")]
    written = {"a": 1.0, "b": "1", "c": 0, "d": True}
    for name, label in written.items():
        members += [(f"{name}.png", png()), (f"{name}.jpg", b"no image")]
        members += [(f"{name}.json", json.dumps({"what": {"kind": label}}).encode())]
    members += [("e.png", png()), ("e.jpg", b""), ("e.json", b'{"what": {}}')]
    members += [("f.png", png()), ("f.jpg", b"")]
    where = tar(tmp_path / "s", [member for member in members if member[1] or member[0] == "e.jpg"])
    columns = {"image": ".PNG", "label": "json.what.kind"}
    del written["d"]
    images = opened("shards", where, columns=columns, skip=True)
    assert labels_of(images)[:3] == ["1", "1", "0"]
    assert len(images) == 4
    assert images.read(0) == png()
    # A label that Python's JSON reads as true is its name.
    assert labels_of(images)[3] == "True"
    with refused_with("--column label=NAME"):
        opened("shards", where, columns=columns)


def parquet(where: Path, names: list[str] | None, name: str = "train-0.parquet") -> Path:
    """Write two images labelled 0 and 1, with the hub's class names."""
    where.mkdir(exist_ok=True)
    struct = [{"bytes": png(level), "path": f"{level}.png"} for level in (0, 9)]
    table = pyarrow.table({"picture": struct, "label": [0, 1]})
    if names is not None:
        feature = {"label": {"names": names, "_type": "ClassLabel"}}
        about = {"info": {"features": feature}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pyarrow.parquet.write_table(table, where / name)
    return where


def test_parquet_files_of_one_set_have_one_list_of_names(tmp_path: Path) -> None:
    where = parquet(tmp_path / "p", ["cat", "dog"])
    parquet(where, None, "train-1.parquet")
    images = opened("parquet", where)
    assert labels_of(images) == ["cat", "dog", "cat", "dog"]
    assert images.read(1) == png(9)
    parquet(where, ["dog", "cat"], "train-2.parquet")
    with refused_with(r"train-0\.parquet and \S*train-2\.parquet have different class names"):
        opened("parquet", where)


def test_names_of_older_parquet_files_are_by_number(tmp_path: Path) -> None:
    where = parquet(tmp_path / "p", {"1": "dog", "0": "cat"})  # type: ignore[arg-type]
    assert labels_of(opened("parquet", where)) == ["cat", "dog"]
    # What is no list of names names nothing.
    where = parquet(tmp_path / "q", [1, 2])  # type: ignore[list-item]
    assert labels_of(opened("parquet", where)) == ["0", "1"]


def test_a_parquet_file_that_changes_is_noticed(tmp_path: Path) -> None:
    where = parquet(tmp_path / "p", ["cat", "dog"])
    images = opened("parquet", where)
    parquet(where, ["cat", "dog", "cow"])
    worker = pickle.loads(pickle.dumps(images))
    with pytest.raises(ValueError, match="changed since it was opened: start again"):
        worker.read(1)


def table(folder: Path, text: str | bytes) -> Path:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(png())
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


TABLES = {
    "a column that is not there": (
        "image,label\na.png,cat\n",
        {"label": "kind"},
        r"labels\.csv has no column 'kind', it has .*--column",
    ),
    "a name that two columns have": (
        "image,Kind,KIND\na.png,cat,dog\n",
        {"label": "kind"},
        r"labels\.csv has no column 'kind'",
    ),
    "packed": (b"\x1f\x8b\x08\x00rest", {}, r"labels\.csv is compressed by gzip: unpack it"),
    "only bad rows": ("image,label\nno.png,cat\n", {"skip": "1"}, r"labels\.csv has no image left"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_right_is_refused(name: str, tmp_path: Path) -> None:
    text, columns, pattern = TABLES[name]
    path = table(tmp_path, text)
    skip = bool(columns.pop("skip", ""))
    with refused_with(pattern):
        opened("table", tmp_path, "all", labels=str(path), columns=columns, skip=skip)


@pytest.mark.parametrize("label", ["kind", "Kind", "KIND"])
def test_a_column_is_found_by_its_name_in_any_case(label: str, tmp_path: Path) -> None:
    path = table(tmp_path, "file,Kind,other\na.png,cat,1\nb.png,dog,2\n")
    columns = {"image": "FILE", "label": label}
    images = opened("table", tmp_path, "all", labels=str(path), columns=columns)
    assert labels_of(images) == ["cat", "dog"]


def test_a_column_is_found_by_its_own_case_first(tmp_path: Path) -> None:
    path = table(tmp_path, "image,KIND,kind\na.png,1,cat\nb.png,2,dog\n")
    images = opened("table", tmp_path, "all", labels=str(path), columns={"label": "kind"})
    assert labels_of(images) == ["cat", "dog"]


def _fewer_labels(file: h5py.File) -> None:
    fields = "train/object_fields"
    names = np.array([list(b"images\0\0"), list(b"colours\0")], np.uint8)
    del file[fields]
    file[fields] = names
    ids = file["train/object_ids"][:, :2]
    del file["train/object_ids"]
    file["train/object_ids"] = ids
    labels = file["train/labels"][:]
    del file["train/labels"]
    file["train/labels"] = labels[:7]


def _replaced(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        value = change(file[name][()])
        del file[name]
        file[name] = value

    return spoil


def _far(ids: np.ndarray) -> np.ndarray:
    ids[3] = 10_000
    return ids


def _group(file: h5py.File) -> None:
    del file["train/object_ids"]
    file.create_group("train/object_ids")


METADATA: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "too few columns": (
        _replaced("train/object_ids", lambda ids: ids[:, :1]),
        "train/object_ids and object_fields do not fit",
    ),
    "a row too many": (
        _replaced("train/object_ids", _far),
        r"train/object_ids names row 10000 of images, which has 100",
    ),
    "images of another kind": (
        _replaced("train/images", lambda images: images.astype(np.int32)),
        r"train/images is int32 of shape \(100, 32, 32, 3\): images are uint8",
    ),
    "images of two sides": (
        _replaced("train/images", lambda images: images[:, :, 0, 0]),
        r"train/images is uint8 of shape \(100, 32\): images are uint8",
    ),
    "images of four colours": (
        _replaced("train/images", lambda images: np.repeat(images, 2, 3)[..., :4]),
        r"train/images is uint8 of shape \(100, 32, 32, 4\)",
    ),
    "numbers with a point": (
        _replaced("train/object_ids", lambda ids: ids.astype(np.float32)),
        "train/object_ids holds float32, packed by filters .*no data of dbcollection",
    ),
    "a group": (_group, "train/object_ids is no dataset"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_cannot_be_right_is_refused_by_its_place(name: str, tmp_path: Path) -> None:
    spoil, pattern = METADATA[name]
    path = tmp_path / "classification.h5"
    shutil.copy(DATA / "dbcollection" / "cifar10" / "classification.h5", path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with refused_with(pattern):
        dbcollection.open_part("cifar10", str(path), None, "train", "ram")


@pytest.mark.parametrize("told", [True, False])
def test_names_beside_the_files_win_over_titles_within(told: bool, tmp_path: Path) -> None:
    members = []
    for name, label, title in (("a", 0, "house cat"), ("b", 1, ""), ("c", 1, "hound")):
        about = json.dumps({"label_name": title} if title else {}).encode()
        members += [(f"{name}.png", png()), (f"{name}.cls", str(label).encode())]
        members += [(f"{name}.json", about)]
    where = tar(tmp_path / "s", members)
    if told:
        (where / "classes.txt").write_text("cat\ndog\n")
    images = opened("shards", where)
    assert images.classes == (["cat", "dog"] if told else ["house cat", "hound"])
    assert images.labels.tolist() == [0, 1, 1]
