"""Packed shards hold the same bytes in the same order, are read by webdataset itself, and a killed
packing goes on.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from common import DATA, ROOT
from rig import make_images

import data
import prepare
from datasets import folder
from datasets.images import FileImages
from preparation import pack as packing
from preparation.sources import Origin

CONTAINERS = DATA / "containers"
# Run where this repository is not on the path: our datasets/ hides another library's.
READER = """
import hashlib, json, sys
sys.path = [place for place in sys.path if place not in ("", sys.argv[1])]
import webdataset
found = []
for sample in webdataset.WebDataset(sys.argv[2:], shardshuffle=False, empty_check=False):
    (image,) = [sample[kind] for kind in sample if kind in ("jpg", "png", "webp", "bmp", "gif")]
    found.append([hashlib.sha256(image).hexdigest(), int(sample["cls"])])
print(json.dumps(found))
"""


def pack(where: Path | str, out: Path, *more: str) -> None:
    prepare.main(["pack", "--data_dir", str(where), "--out", str(out), *more])


def held(images: FileImages) -> list[list[object]]:
    return [
        [hashlib.sha256(images.read(index)).hexdigest(), int(label)]
        for index, label in enumerate(images.labels)
    ]


def opened(kind: str, where: Path, part: str) -> FileImages:
    images = data.open_images(kind, str(where), part)
    assert isinstance(images, FileImages)
    return images


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with names that shards cannot have as they are."""
    place = make_images(tmp_path / "d", 24)
    inner = place / "train" / "class 0"
    (inner / "sub").mkdir()
    for name, copy in (("a.b.c.jpg", "0"), ("sub/0.jpg", "3"), ("0.JPEG", "6"), ("é.jpe", "9")):
        (inner / name).write_bytes((inner / f"{copy}.jpg").read_bytes() + b" ")
    return place


def test_packed_images_are_the_folders_in_its_order(place: Path, tmp_path: Path) -> None:
    pack(place, tmp_path / "s", "--shard", "10kB")
    for part in ("train", "test"):
        own, packed = opened("folder", place, part), opened("shards", tmp_path / "s", part)
        assert held(packed) == held(own)
        assert packed.classes == own.classes
    assert len(list((tmp_path / "s").glob("train-*.tar"))) > 3
    assert max(path.stat().st_size for path in (tmp_path / "s").glob("*.tar")) <= 10_000 + 10_240


def test_webdataset_reads_what_is_packed(place: Path, tmp_path: Path) -> None:
    pack(place, tmp_path / "s", "--shard", "10kB")
    paths = [str(path) for path in sorted((tmp_path / "s").glob("train-*.tar"))]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER, str(ROOT), *paths],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == held(opened("folder", place, "train"))


@pytest.mark.parametrize("name", ["wds-json", "hf-classlabel", "hf-textlabel"])
def test_other_containers_are_packed_too(name: str, tmp_path: Path) -> None:
    kind = "shards" if name.startswith("wds") else "parquet"
    pack(CONTAINERS / name, tmp_path / "s")
    for part in ("train", "test"):
        own, packed = opened(kind, CONTAINERS / name, part), opened("shards", tmp_path / "s", part)
        assert held(packed) == held(own)
        assert packed.classes == own.classes


def test_images_without_labels_are_packed_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(CONTAINERS / "hf-classlabel", tmp_path / "s")
    assert "test: 4 images, 4 of them without a label" in capsys.readouterr().out
    with tarfile.open(tmp_path / "s" / "test-000000.tar") as archive:
        assert [name[-4:] for name in archive.getnames()] == [".jpg"] * 4


def test_packing_twice_changes_nothing(place: Path, tmp_path: Path) -> None:
    pack(place, tmp_path / "s", "--shard", "10kB")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.tar")}
    pack(place, tmp_path / "s", "--shard", "10kB")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.tar")} == before


def test_a_packing_that_was_killed_goes_on(tmp_path: Path) -> None:
    place, out = make_images(tmp_path / "d", 300), tmp_path / "s"
    whole = tmp_path / "whole"
    pack(place, whole, "--shard", "10kB")
    command = [sys.executable, str(ROOT / "prepare.py"), "pack", "--data_dir", str(place)]
    command += ["--out", str(out), "--shard", "10kB"]
    kills = 0
    for delay in (0.02, 0.05, 0.1, 0.2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        while not list(out.glob(f"train-{5 * kills:06d}.tar")) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    assert kills >= 1
    assert subprocess.run(command, stdout=subprocess.PIPE).returncode == 0
    names = [path.name for path in sorted(whole.iterdir())]
    assert [path.name for path in sorted(out.iterdir())] == names
    for name in names:
        if name.endswith(".tar"):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_a_kill_left_of_the_first_files_is_no_one_elses(place: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in ("..packed.json.4711.tmp", ".classes.txt.4711.tmp", ".val-000000.tar.4711.tmp"):
        (tmp_path / "s" / name).write_bytes(b"half")
    pack(place, tmp_path / "s")
    assert len(opened("shards", tmp_path / "s", "train")) == 28
    assert not list((tmp_path / "s").glob("*.tmp"))


def refused(where: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit) as ended:
        pack(where, out, *more)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_shards_of_other_images_are_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(place, tmp_path / "s")
    before = (tmp_path / "s" / "train-000000.tar").read_bytes()
    (place / "train" / "class 1" / "new.jpg").write_bytes(b"x")
    assert "has shards of other images (train-000000.tar)" in refused(place, tmp_path / "s", capsys)
    assert (tmp_path / "s" / "train-000000.tar").read_bytes() == before
    notes = tmp_path / "mine"
    notes.mkdir()
    (notes / "thesis.txt").write_text("x")
    assert "is not empty, it has thesis.txt: choose another --out" in refused(place, notes, capsys)
    assert [path.name for path in notes.iterdir()] == ["thesis.txt"]


def test_packing_into_its_own_source_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (place, place / "packed"):
        assert "must be apart: choose another --out" in refused(place, out, capsys)
    assert not (place / "packed").exists()


def test_the_run_that_is_advised_fits_what_is_there(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(place / "train")
    pack(place, tmp_path / "s")
    assert "--test --retrain FILE" in capsys.readouterr().out


def test_a_table_is_not_written_over_another(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.csv"
    own.write_text(f"path,label,photographer\n{place}/train/class 0/0.jpg,a,me\n")
    for source in (["--labels", str(own)], ["--data_dir", str(place)]):
        with pytest.raises(SystemExit) as ended:
            prepare.main(["index", *source, "--to", "table", "--out", str(own)])
        assert ended.value.code == 2
    assert "photographer" in own.read_text()
    capsys.readouterr()


def test_files_beside_each_other_have_lists_of_their_own(tmp_path: Path) -> None:
    for name in ("wds-cls", "wds-json"):
        pack(CONTAINERS / name, tmp_path / name)
        prepare.main(
            [
                *("check", "--data_dir", str(tmp_path / name / "train-000000.tar")),
                *("--out", str(tmp_path / f"lists {name}"), "--nThreads", "0"),
            ]
        )
        (tmp_path / name / "train-000000.tar").rename(tmp_path / f"{name}-train.tar")
    for name in ("wds-cls", "wds-json"):
        prepare.main(
            ["check", "--data_dir", str(tmp_path / f"{name}-train.tar"), "--nThreads", "0"]
        )
        assert (tmp_path / f"{name}-train.tar.manifest.csv").exists()


def test_an_image_that_cannot_be_read_ends_the_packing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "train" / "class 1" / "1.jpg"
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert "cannot pack" in refused(place, tmp_path / "s", capsys)
    assert not list((tmp_path / "s").glob("*.tar"))


@pytest.mark.parametrize("size", ["400", "0MB", "MB", "-3MB", "1TB"])
def test_a_wrong_size_is_refused(
    size: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"'{size}' is not a size, for example 400MB" in refused(
        place, tmp_path / "s", capsys, f"--shard={size}"
    )


# --- a table of any source, and what else reads any source


def test_a_table_is_written_of_any_source(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.csv"
    prepare.main(["index", "--data_dir", str(place), "--to", "table", "--out", str(out)])
    assert "28 images train, 6 images val" in capsys.readouterr().out
    own = folder.open_folder(str(place), "train")
    found = data.open_images("table", str(place), "train", labels=str(out))
    assert held(found) == held(own)  # type: ignore[arg-type]
    where = str(CONTAINERS / "hf-classlabel")
    prepare.main(["index", "--data_dir", where, "--to", "table", "--out", str(out)])
    lines = out.read_text().splitlines()
    assert lines[:2] == [
        "file_name,label,split",
        "data/train-00000-of-00002.parquet/train_0.JPEG,school bus,train",
    ]
    assert lines[-1] == "data/test-00000-of-00001.parquet/test_3.JPEG,,test"
    assert "does not lead to them" in capsys.readouterr().out


def test_an_order_that_a_table_would_not_have_is_written_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_images(tmp_path / "d", 12)
    for part in ("train", "val"):
        for number, name in enumerate(("10", "9", "8")):
            (place / part / f"class {number}").rename(place / part / name)
    out = tmp_path / "t.csv"
    prepare.main(["index", "--data_dir", str(place), "--to", "table", "--out", str(out)])
    assert f"--classes {tmp_path / 't.classes.txt'}" in capsys.readouterr().out
    assert (tmp_path / "t.classes.txt").read_text() == "10\n8\n9\n"


@pytest.mark.parametrize("name", ["wds-cls", "hf-cifar100form", "table/labels.csv"])
def test_any_source_is_described_checked_and_shrunk(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = "--labels" if name.endswith(".csv") else "--data_dir"
    named = [where, str(CONTAINERS / name)]
    prepare.main(["info", *named])
    said = capsys.readouterr().out
    assert "train: " in said
    assert f"a run: python main.py --dataset {Origin(*reversed_if(named)).kind} " in said
    prepare.main(["check", *named, "--out", str(tmp_path / "lists"), "--nThreads", "0"])
    assert ", 0 bad" in capsys.readouterr().out
    prepare.main(
        ["shrink", *named, "--out", str(tmp_path / "small"), "--size", "24", "--nThreads", "0"]
    )
    shrunk = folder.open_folder(str(tmp_path / "small"), "train")
    train = Origin(*reversed_if(named)).parts()["train"]
    counts = [np.bincount(images.labels).tolist() for images in (shrunk, train)]
    assert sorted(counts[0]) == sorted(counts[1])
    assert set(shrunk.classes) == set(train.classes)


def reversed_if(named: list[str]) -> tuple[str | None, str | None]:
    """Return data_dir and labels of a command line."""
    return (named[1], None) if named[0] == "--data_dir" else (None, named[1])


def test_own_temporary_names_are_told_from_others() -> None:
    assert packing.OWN_TEMPORARY.fullmatch(".train-000012.tar.4711.tmp")
    assert not packing.OWN_TEMPORARY.fullmatch(".mine.tar.4711.tmp")
