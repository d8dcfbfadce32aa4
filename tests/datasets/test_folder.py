"""Folders as people have them: what is found, what it is called, and what is said of the rest."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import odd_data
import pytest
from PIL import Image

from base.errors import Refused
from datasets import changes, folder, listing
from datasets.images import FileImages

OLD = 1_577_836_800  # a time long ago, in seconds


def put(root: Path, *names: str, level: int = 0) -> Path:
    """Write a small PNG, its content by its name and level, at each path."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(path.name.encode()) + 1000 * level
        pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path, "PNG")
    return root


def classes_of(images: FileImages) -> dict[str, int]:
    counts = np.bincount(images.labels, minlength=len(images.classes)).tolist()
    return dict(zip(images.classes, counts, strict=True))


def open_both(root: Path) -> tuple[FileImages, FileImages]:
    train = folder.open_folder(str(root), "train")
    return train, folder.open_folder(str(root), "test", classes=train.classes)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("Train", "Val"),
        ("TRAINING", "valid"),
        ("train", "validation"),
        ("training", "Testing"),
        ("train", "test"),
        ("photos/train", "photos/val"),
        ("train/train", "val/val"),
        ("train/train", "train/val"),
    ],
)
def test_parts_are_understood_by_all_their_names(train: str, test: str, tmp_path: Path) -> None:
    put(tmp_path, *(f"{train}/{name}/{n}.png" for name in ("cat", "dog") for n in range(3)))
    put(tmp_path, f"{test}/cat/0.png", f"{test}/dog/0.png")
    found = [classes_of(images) for images in open_both(tmp_path)]
    assert found == [{"cat": 3, "dog": 3}, {"cat": 1, "dog": 1}]


def test_val_is_tested_on_and_the_rest_left_alone(tmp_path: Path) -> None:
    put(tmp_path, *(f"{p}/{c}/{p}.png" for p in ("train", "val", "test") for c in ("a", "b")))
    put(tmp_path, "raw/x.png", "raw/deep/y.png")
    (tmp_path / "notes").mkdir()
    assert set(open_both(tmp_path)[1].names) == {"a/val.png", "b/val.png"}
    assert set(folder.open_folder(str(tmp_path), "other").names) == {"a/test.png", "b/test.png"}
    assert folder.left_alone(str(tmp_path)) == ["raw", "test"]


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    put(tmp_path, *(f"{p}/{c}/0.png" for p in ("train", "Val", "valid") for c in ("a", "b")))
    for part in ("train", "test"):
        with pytest.raises(Refused, match=r"Val/ and valid/ for the same images"):
            folder.open_folder(str(tmp_path), part)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, *(f"{c}/{n}.png" for c in ("bus", "car", "train") for n in range(4)))
    sides = [
        folder.open_folder(str(tmp_path), part, val_share=0.25, seed=1)
        for part in ("train", "test")
    ]
    assert [classes_of(side) for side in sides] == [
        {"bus": 3, "car": 3, "train": 3},
        {"bus": 1, "car": 1, "train": 1},
    ]
    with pytest.raises(Refused, match="no folder train/ with class folders"):
        folder.open_folder(str(tmp_path), "train")


def test_images_side_by_side_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/0.png", "train/1.png", "val/2.png", "val/3.png")
    with pytest.raises(Refused, match=r"\(in train/, val/ images lie side by side\)"):
        folder.open_folder(str(tmp_path), "train")
    with pytest.raises(Refused, match="images side by side in train/ and val/"):
        folder.open_folder(str(tmp_path), "train", val_share=0.5)


def test_train_alone_is_split(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{c}/{n}.png" for c in ("a", "b") for n in range(10)))
    found = [
        set(folder.open_folder(str(tmp_path), part, val_share=0.2, seed=1).names)
        for part in ("train", "test")
    ]
    assert [len(names) for names in found] == [16, 4]
    assert not found[0] & found[1]


def test_names_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    put(tmp_path, f"train/{nfc}/0.png", "train/dog/0.png", f"val/{nfd}/1.png", f"val/{nfc}/2.png")
    train, test = open_both(tmp_path)
    assert train.classes == [nfc, "dog"]
    assert test.labels.tolist() == [0, 0]


def test_all_names_that_differ_in_case_only_are_named(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{c}/0.png" for c in ("Cat", "cat", "CAT", "dog", "Dog", "emu")))
    with pytest.raises(Refused) as caught:
        folder.open_folder(str(tmp_path), "train")
    assert all(f"'{name}'" in str(caught.value) for name in ("Cat", "cat", "CAT", "dog", "Dog"))
    assert "emu" not in str(caught.value)


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    put(
        tmp_path,
        "cat/0.JPG",
        "cat/1.jfif",
        "cat/2.jpe",
        "cat/3.Tiff",
        "cat/deep/4.gif",
        "dog/5.png",
    )
    put(tmp_path, "cat/@eaDir/0.jpg", "cat/__MACOSX/x.jpg", "cat/.ipynb_checkpoints/x.png")
    put(
        tmp_path,
        "cat/a.heic",
        "cat/b.HEIC",
        "cat/deep/c.txt",
        "cat/none",
        "cat/._0.jpg",
        "stray.png",
    )
    images = folder.list_images(str(tmp_path), None)
    assert classes_of(images) == {"cat": 5, "dog": 1}
    assert images.left_out == {
        ".heic": 2,
        ".txt": 1,
        "without ending": 1,
        "hidden": 1,
        "beside the classes": 1,
        "@eaDir/": 1,
        "__MACOSX/": 1,
        ".ipynb_checkpoints/": 1,
    }
    said = listing.told(images.left_out)
    assert said.startswith("; left out: 2 .heic, 1 .ipynb_checkpoints/")
    assert listing.told({}) == ""


def aged(root: Path, seconds: int = OLD) -> None:
    """Set all folders' mtimes, as archives, container layers and some network disks do."""
    for path, _, _ in os.walk(root):
        os.utime(path, (seconds, seconds))


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders count as unchanged at once, not seconds after their last change."""
    monkeypatch.setattr(listing, "RESTED", -(10**18))


@pytest.mark.usefixtures("rested")
def test_a_kept_listing_sees_what_normalised_times_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, kept = put(tmp_path / "d", "a/0.png", "b/0.png"), tmp_path / "kept"
    aged(root)
    assert len(folder.list_images(str(root), None, kept)) == 2
    # Times and inode stay as they were, as on a disk that has no ctime of its own.
    before = {str(root / name): os.stat(root / name) for name in "ab"}
    put(root, "a/1.png")
    aged(root)
    stat = os.stat

    def unchanged(path, *more, **others):  # type: ignore[no-untyped-def]
        return before.get(str(path)) or stat(path, *more, **others)

    with monkeypatch.context() as patch:
        patch.setattr(listing.os, "stat", unchanged)
        assert len(folder.list_images(str(root), None, kept)) == 3


@pytest.mark.usefixtures("rested")
def test_a_listed_file_that_is_gone_leads_to_a_new_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, kept = put(tmp_path / "d", "a/0.png", "a/1.png", "b/0.png"), tmp_path / "kept"
    folder.list_images(str(root), None, kept)
    (root / "a" / "1.png").unlink()
    # A disk whose folders tell nothing at all.
    monkeypatch.setattr(listing, "_unchanged", lambda _, known: np.ones(len(known.counts), bool))
    assert list(folder.list_images(str(root), None, kept).names) == ["a/0.png", "b/0.png"]


@pytest.mark.usefixtures("rested")
@pytest.mark.parametrize(
    "spoil",
    [
        {"counts": np.array([-1, 3])},
        {"ends": np.array([7, 3])},
        {"ends": np.array([7.0, 14.0])},
        {"blob": np.frombuffer(b"../../1b/0.png", np.uint8)},
        {"blob": np.frombuffer(b"/etc/xxb/0.png", np.uint8)},
        {"stamps": np.zeros((1, 4), np.int64)},
        {"owners": np.array([0, 9])},
        {"left_out": np.array(["{", "{}"])},
        {"format": 99},
    ],
)
def test_a_spoilt_listing_is_made_anew(spoil: dict, tmp_path: Path) -> None:
    root, kept = put(tmp_path / "d", "a/0.png", "b/0.png"), tmp_path / "kept"
    whole = list(folder.list_images(str(root), None, kept).names)
    path = next(kept.iterdir())
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **arrays | spoil)
    assert listing.read(path, str(root)) is None
    assert list(folder.list_images(str(root), None, kept).names) == whole


def side_of(root: Path, kept: Path, share: float = 0.3) -> dict[str, str]:
    """Return the side of each content, by the name of its first file."""
    sides = {}
    for part in ("train", "test"):
        images = folder.open_folder(str(root), part, val_share=share, seed=1, split_file=kept)
        sides |= {Path(name).name: part for name in images.names}
    return sides


def test_a_mended_label_moves_no_image_between_the_sides(tmp_path: Path) -> None:
    root = put(tmp_path / "d", *(f"{c}/{c}{n}.png" for c in ("cat", "dog") for n in range(20)))
    kept = tmp_path / "split.csv"
    before = side_of(root, kept)
    for name in ("cat0.png", "cat7.png", "cat11.png", "cat13.png"):
        (root / "cat" / name).rename(root / "dog" / name)
    assert side_of(root, kept) == before
    # Nor does it without what was kept: content decides, not where it lies.
    moved = put(tmp_path / "e", *(f"{c}/{c}{n}.png" for c in ("cat", "dog") for n in range(20)))
    assert side_of(moved, tmp_path / "other.csv") == before
    (root / "dog" / "dog3.png").rename(root / "dog" / "renamed.png")
    assert side_of(root, kept)["renamed.png"] == before["dog3.png"]


def test_an_older_split_keeps_its_sides(tmp_path: Path) -> None:
    """The form of before knew names alone."""
    root = put(tmp_path / "d", *(f"{c}/{n}.png" for c in ("cat", "dog") for n in range(10)))
    kept = tmp_path / "split.csv"
    names = [f"{c}/{n}.png" for c in ("cat", "dog") for n in range(10)]
    tested = {"cat/4.png", "dog/9.png"}
    rows = "".join(f"{'test' if name in tested else 'train'},{name}\r\n" for name in names)
    kept.write_text("side,image,share 0.1\r\n" + rows)
    for _ in range(2):
        found = folder.open_folder(str(root), "test", val_share=0.1, seed=5, split_file=kept)
        assert set(found.names) == tested
    assert "sha256" in kept.read_text().splitlines()[0]


def test_copies_lie_on_one_side_and_something_is_left_to_train_on(tmp_path: Path) -> None:
    put(tmp_path, *(f"cat/{n}.png" for n in range(30)))
    put(tmp_path, "dog/x.png")
    for number in range(6):
        if number:
            shutil.copy(tmp_path / "dog" / "x.png", tmp_path / "dog" / f"x{number}.png")
        shutil.copy(tmp_path / "cat" / f"{number}.png", tmp_path / "cat" / f"copy{number}.png")
    parts = {
        p: folder.open_folder(str(tmp_path), p, val_share=0.4, seed=2) for p in ("train", "test")
    }
    assert classes_of(parts["train"])["dog"] == 6
    content = {
        part: {images.read(index) for index in range(len(images))} for part, images in parts.items()
    }
    assert not content["train"] & content["test"]


def test_what_changed_among_the_images_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "d"
    put(root, *(f"{p}/{c}/{p}{c}{n}.png" for p in ("train", "val") for c in "ab" for n in range(5)))

    def now() -> dict[str, FileImages]:
        train, test = open_both(root)
        return {"train": train, "test": test}

    before, path = now(), tmp_path / "images.npz"
    prints = changes.fingerprints(before)
    changes.save(path, before, prints)
    assert changes.differences(prints, changes.fingerprints(now()), path, now()) == []

    put(root, "train/a/new.png", "train/b/newer.png", level=1)
    (root / "train/a/traina0.png").rename(root / "train/b/traina0.png")
    (root / "train/a/traina1.png").rename(root / "val/a/traina1.png")
    (root / "val/b/valb0.png").unlink()
    os.utime(root / "train/b/trainb2.png", (OLD, OLD))
    after = changes.fingerprints(now())
    assert changes.differences(prints, after, path, now()) == [
        "2 images added",
        "1 removed",
        "1 with another class",
        "1 on another side of the split",
        "1 with another size or time",
    ]
    path.unlink()
    assert changes.differences(prints, after, path, now()) == [
        "other images to train on",
        "other images to test on",
    ]


def test_random_awkward_folders_are_read_by_the_rules() -> None:
    """The rules of docs/datasets.md, written down a second time, apart from the product."""
    result = odd_data.run(20)
    assert result["wrong"] == 0, result["differences"]
    assert result["answers"] > 200
    assert len(result["refusals"]) >= 5


def test_a_part_has_folders(tmp_path: Path) -> None:
    for name in ("of classes/cat", "of empty classes/cat", "a class", "mixed/cat", "both"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("of classes/cat/1.jpg", "a class/1.jpg", "mixed/1.jpg", "mixed/cat/1.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "both" / "thumbnails").mkdir()
    (tmp_path / "both" / "1.jpg").write_bytes(b"x")
    found = {path.name for path in tmp_path.iterdir() if folder.is_part(str(path))}
    assert found == {"of classes", "of empty classes", "mixed"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["cat/1.jpg", "dog/1.jpg"], ""),
        (["around/cat/1.jpg", "around/dog/1.jpg"], "around"),
        (["a/b/cat/1.jpg", "a/b/dog/1.jpg"], "a/b"),
        (["around/train/cat/1.jpg", "around/val/cat/1.jpg"], "around"),
        # A class alone, and a part alone.
        (["cat/1.jpg"], ""),
        (["train/cat/1.jpg", "train/dog/1.jpg"], ""),
        (["cat/1.jpg", "cat/more/1.jpg"], ""),
    ],
)
def test_one_folder_around_everything_is_passed_through(
    files: list[str], wanted: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert folder.unwrapped(str(tmp_path)).rstrip("/") == str(tmp_path / wanted).rstrip("/")
