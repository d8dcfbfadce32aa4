"""Image files: what is bad is named or counted, what was listed is not listed again, what cannot fit is said before."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from base.errors import Refused, clear_errors
from datasets import folder, listing
from loading import workers
from run.run import Run

OPTIONS = [
    "--dataset",
    "folder",
    "--GPU",
    "-1",
    "--imageSize",
    "24",
    "--cropSize",
    "20",
    "--batchSize",
    "8",
    "--nEpochs",
    "2",
]


def spoil(images: Path) -> list[str]:
    """Make 3 training images and a test image bad; return their paths."""
    bad = [
        images / "train" / "class 0" / "0.jpg",
        images / "train" / "class 1" / "4.jpg",
        images / "train" / "class 2" / "5.jpg",
    ]
    bad.append(images / "val" / "class 1" / "1.jpg")
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:300])
    bad[2].write_bytes(b"no image")
    bad[3].write_bytes(b"\xff\xd8\xff" + bytes(50))
    return [str(path) for path in bad]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_bad_images_are_left_out_counted_and_listed(
    images: Path, tmp_path: Path, workers: str
) -> None:
    bad = spoil(images)
    more = [
        "--data_dir",
        str(images),
        "--badImages",
        "skip",
        "--nThreads",
        workers,
        "--expDir",
        str(tmp_path / "runs"),
    ]
    main.main([*OPTIONS, *more])
    run = tmp_path / "runs" / "folder" / "alexnetbn"
    with (run / "bad_images.csv").open() as file:
        assert sorted(row["path"] for row in csv.DictReader(file)) == sorted(bad)
    for line in (run / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert (record["train_left_out"], record["test_left_out"]) == (3, 1)
    with (run / "classes.csv").open() as file:
        assert sum(int(row["images"]) for row in csv.DictReader(file)) == 9 - 1


def test_a_bad_image_ends_a_run_by_default(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = spoil(images)
    with pytest.raises(SystemExit) as stop, clear_errors():
        main.main(
            [
                *OPTIONS,
                "--data_dir",
                str(images),
                "--nThreads",
                "0",
                "--expDir",
                str(tmp_path / "runs"),
            ]
        )
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert any(path in said for path in bad)
    assert "--badImages skip" in said


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


def test_too_little_shared_memory_is_said_before_a_run() -> None:
    with pytest.raises(Refused, match=r"4 processes need 9 MiB .*--shm-size"):
        workers.check_shared_memory(4, 1 << 20, 8 << 20)
    workers.check_shared_memory(4, 1 << 20, 10 << 20)


def test_a_run_that_waits_for_files_says_what_to_change_once() -> None:
    class Told:
        lines: list[str] = []  # noqa: RUF012

        def say(self, line: str) -> None:
            self.lines.append(line)

    run = Run.__new__(Run)
    run.files, run.advised, run.logger = True, False, Told()  # type: ignore[assignment]
    run.advise(
        {"data_seconds": 6.0, "compute_seconds": 0.2}
    )  # the processes' start, not their speed
    for share in (0.05, 0.5, 0.5):
        run.advise({"data_seconds": 60 * share, "compute_seconds": 60 * (1 - share)})
    assert len(Told.lines) == 1
    assert all(word in Told.lines[0] for word in ("50%", "--nThreads", "shrink", "--tune"))


def test_shares_of_labels_match_the_names(images: Path) -> None:
    found = folder.list_images(str(images / "train"), None)
    assert [found.classes[label] for label in found.labels] == [
        name.split("/")[0] for name in found.names
    ]
    assert found.labels.dtype == np.int64
