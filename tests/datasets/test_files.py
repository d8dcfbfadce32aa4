"""Image files: what is bad is named or counted, what was listed is not listed again, what cannot
fit is said before.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from base.errors import Refused
from datasets import folder, listing


def old(root: Path) -> None:
    """Give all folders an mtime of long ago."""
    for path in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        os.utime(path, (1e9, 1e9))


def scanned(root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """List a folder; return the names of its images and of the classes that were scanned for it."""
    seen: list[str] = []
    scan = folder.image_files

    def watched(path: str, relative: str, *more: object, **named: object):  # type: ignore[no-untyped-def]
        seen.append(relative)
        return scan(path, relative, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(folder, "image_files", watched)
    found = folder.list_images(str(root), None, kept)
    monkeypatch.setattr(folder, "image_files", scan)
    return list(found.names), sorted(set(seen))


def test_only_folders_that_changed_are_listed_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "RESTED", -(10**18))
    root, kept = images / "train", tmp_path / "kept"
    (root / "class 1" / "deep").mkdir()
    Image.new("RGB", (8, 8)).save(root / "class 1" / "deep" / "x.png")
    old(root)
    names, seen = scanned(root, kept, monkeypatch)
    assert {"class 0", "class 1", "class 2"} <= set(seen)
    assert scanned(root, kept, monkeypatch) == (names, [])
    Image.new("RGB", (8, 8)).save(root / "class 1" / "deep" / "y.png")
    (root / "class 2" / "2.jpg").unlink()
    again, seen = scanned(root, kept, monkeypatch)
    assert set(seen) == {"class 1", "class 1/deep", "class 2"}
    assert again == list(folder.list_images(str(root), None).names)
    assert set(again) ^ set(names) == {"class 1/deep/y.png", "class 2/2.jpg"}
    (root / "class 9").mkdir()
    Image.new("RGB", (8, 8)).save(root / "class 9" / "z.png")
    found = folder.list_images(str(root), None, kept)
    assert found.classes[-1] == "class 9"
    assert found.labels[-1] == 3


def test_a_folder_that_changed_just_now_is_not_trusted(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, kept = images / "train", tmp_path / "kept"
    scanned(root, kept, monkeypatch)
    assert scanned(root, kept, monkeypatch)[1] == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_a_damaged_listing_is_made_anew(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    root, kept = images / "train", tmp_path / "kept"
    old(root)
    names, _ = scanned(root, kept, monkeypatch)
    path = next(kept.glob("index-*.npz"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert scanned(root, kept, monkeypatch)[0] == names
    assert listing.read(path, str(tmp_path)) is None  # of another folder


def test_shares_of_labels_match_the_names(images: Path) -> None:
    found = folder.list_images(str(images / "train"), None)
    assert [found.classes[label] for label in found.labels] == [
        name.split("/")[0] for name in found.names
    ]
    assert found.labels.dtype == np.int64


def test_a_spoilt_split_is_named(images: Path, tmp_path: Path) -> None:
    from datasets import folder

    kept = tmp_path / "split.csv"
    for content in (
        b"side,image,share 0.5\nbogus,class 0/1.jpg\n",
        b"\x80\xff",
        b"side,image,share 0.5\ntest\n",
    ):
        kept.write_bytes(content)
        with pytest.raises(Refused, match=r"split\.csv is damaged"):
            folder.open_folder(str(images / "train"), "train", val_share=0.5, split_file=kept)
