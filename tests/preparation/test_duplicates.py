"""What prepare.py check says of images that are there twice."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare
from datasets import folder
from preparation import duplicates
from preparation.check import check_one
from preparation.duplicates import Seen
from preparation.sources import Piece


def see(name: str, side: int, label: str, digest: str, look: int = -1, pixels: int = 100) -> Seen:
    return Seen(name, side, label, digest, look, pixels)


def test_the_same_file_is_a_leak_a_doubt_or_a_waste() -> None:
    images = [
        see("train/a/1", 0, "a", "x"),
        see("train/a/2", 0, "a", "x"),
        see("train/b/3", 0, "b", "x"),
        see("val/a/4", 1, "a", "x"),
        see("val/a/5", 1, "a", "y"),
    ]
    found = [(pair.kind, pair.second) for pair in duplicates.find(images)]
    assert found == [("leak", "val/a/4"), ("two classes", "train/b/3"), ("twice", "train/a/2")]


def test_near_looks_are_those_that_differ_in_few_bits() -> None:
    draws = np.random.default_rng(1)
    looks = [int(value) for value in draws.integers(0, 1 << 63, 300)]
    # Some that differ in 0 to 6 bits, anywhere.
    for number in range(60):
        flipped = draws.choice(64, number % 7, replace=False)
        looks.append(looks[number] ^ sum(1 << int(bit) for bit in flipped))
    images = [see(str(n), 0, "a", str(n), look) for n, look in enumerate(looks)]
    expected = {
        (str(a), str(b), (looks[a] ^ looks[b]).bit_count())
        for a in range(len(looks))
        for b in range(a + 1, len(looks))
        if (looks[a] ^ looks[b]).bit_count() <= duplicates.NEAR_BITS
    }
    found = {(pair.first, pair.second, pair.bits) for pair in duplicates.find(images)}
    assert found == expected
    assert len(expected) >= 40


def test_only_looks_with_a_stretch_in_common_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """All with all would take hours for a million images."""
    sizes: list[int] = []
    monkeypatch.setattr(duplicates, "_compare", lambda bucket, *_: sizes.append(len(bucket)))
    draws = np.random.default_rng(2)
    looks = [int(value) for value in draws.integers(0, 1 << 63, 4000)]
    duplicates.find([see(str(n), 0, "a", str(n), look) for n, look in enumerate(looks)])
    assert sum(size * (size - 1) // 2 for size in sizes) < 4000 * 3999 / 2 / 100


@pytest.mark.parametrize("side", [20, 64, 127, 300])
def test_a_look_is_the_perceptual_hash(side: int, photographs: list[np.ndarray]) -> None:
    imagehash = pytest.importorskip("imagehash")
    pixels = photographs[0][: side + 5, :side]
    image = Image.fromarray(pixels)
    # Of a large one every few pixels are one first.
    factor = max(1, side // duplicates.LOOKED_AT)
    wanted = imagehash.phash(image.reduce(factor) if factor > 1 else image)
    assert duplicates.look_of(pixels) == int(str(wanted), 16)


def test_a_hundred_blank_pages_are_no_pairs() -> None:
    images = [see(str(n), 0, "a", str(n), 0) for n in range(100)]
    assert duplicates.find(images) == []
    assert len(duplicates.find(images[:2])) == 1


def test_few_images_and_small_ones_are_told() -> None:
    images = [see(f"a{n}", 0, "a", f"a{n}", pixels=1000) for n in range(40)]
    images += [see(f"b{n}", 0, "b", f"b{n}", pixels=1000) for n in range(40)]
    images += [see("c0", 0, "c", "c0", pixels=60)]
    lines = duplicates.remarks(images)
    assert lines == [
        "few images: class c has 1, the middle one 40",
        "small: 1 images have less than 1/16 of the middle one's pixels, the first is c0",
    ]
    assert duplicates.remarks([]) == []


def test_a_check_finds_leaks_and_other_sizes_of_an_image(
    photographs: list[np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("imagehash")
    root = tmp_path / "d"
    for name in ("train/china", "train/flower", "val/china", "val/flower"):
        (root / name).mkdir(parents=True)
    for label, pixels in zip(("china", "flower"), photographs, strict=True):
        Image.fromarray(pixels).save(root / "train" / label / "a.jpg", quality=90)
        turned = Image.fromarray(np.ascontiguousarray(pixels[::-1]))
        turned.save(root / "val" / label / "b.jpg", quality=90)
    # One on both sides, one again in another size and quality, under another class.
    shutil.copy(root / "train" / "china" / "a.jpg", root / "val" / "china" / "a.jpg")
    small = Image.fromarray(photographs[1]).resize((320, 213))
    small.save(root / "train" / "china" / "small.jpg", quality=70)
    prepare.main(["check", "--data_dir", str(root), "--nThreads", "1"])
    said = capsys.readouterr().out
    assert "1 on both sides (a test is easier for it), 1 in two classes" in said
    assert "only equal files were compared" not in said
    monkeypatch.setattr(duplicates, "_imagehash", lambda: None)
    prepare.main(["check", "--data_dir", str(root), "--nThreads", "1"])
    without = capsys.readouterr().out
    assert "only equal files were compared: pip install imagehash" in without
    assert "1 on both sides (a test is easier for it): " in without
    monkeypatch.undo()
    prepare.main(["check", "--data_dir", str(root), "--nThreads", "1"])
    with open(root / "duplicates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["bits"] == "-1") for row in rows] == [
        ("leak", True),
        ("two classes", False),
    ]
    assert {rows[0]["first"], rows[0]["second"]} == {"train/china/a.jpg", "val/china/a.jpg"}
    assert {rows[1]["first"], rows[1]["second"]} == {
        "train/china/small.jpg",
        "train/flower/a.jpg",
    }


def test_an_image_that_cannot_be_read_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "bad.jpg").write_bytes(b"no image")
    images = folder.list_images(str(tmp_path / "train"), ["a"])
    found = check_one([Piece(images, images.names)], (0, 0))
    assert (found.width, found.height, found.look) == (0, 0, -1)
    assert found.reason.startswith("not a JPEG")
