"""Tar shards, Parquet files, .zip files and tables give the images, names and labels that others
wrote into them, and what is wrong with one is said by its name.

tests/samples/containers holds files that webdataset 1.0.2 and datasets 5.2.0 wrote, and what is in
them in expected.csv.
"""

import csv
import hashlib
import io
import os
import pickle
import shutil
import stat
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from common import DATA, refused_with
from PIL import Image
from rig import make_images

import data
from base.errors import Refused
from datasets import containers, parquet, parts, shards
from datasets import zipped as zip_files
from datasets.braces import expand
from datasets.images import FileImages, Limits

CONTAINERS = DATA / "containers"
KINDS = {"wds": "shards", "hf": "parquet", "tab": "table"}


def expected() -> dict[str, dict[str, list[tuple[str, int, str]]]]:
    """Return what each container holds, by split: SHA-256, label, class name of each image."""
    found: dict[str, dict[str, list[tuple[str, int, str]]]] = defaultdict(dict)
    with (CONTAINERS / "expected.csv").open() as file:
        for row in csv.DictReader(file):
            image = row["sha256"], int(row["label"]), row["class_name"]
            found[row["container"]].setdefault(row["split"], []).append(image)
    return found


def opened(kind: str, where: Path | str | None, part: str, **settings: Any) -> FileImages:
    images = data.open_images(kind, None if where is None else str(where), part, **settings)
    assert isinstance(images, FileImages)
    return images


def held(images: FileImages) -> list[tuple[str, int, str]]:
    return [
        (hashlib.sha256(images.read(index)).hexdigest(), int(label), images.classes[label])
        for index, label in enumerate(images.labels)
    ]


@pytest.mark.parametrize("name", sorted(expected()))
def test_what_others_wrote_is_read_as_they_wrote_it(name: str) -> None:
    splits = expected()[name]
    kind, where = KINDS[name.split("-")[0][:3].rstrip("-")], CONTAINERS / name
    settings: dict[str, Any] = {}
    if kind == "table":
        settings["labels"] = str(where / "labels.csv")
    train = opened(kind, where, "train", **settings)
    assert sorted(held(train)) == sorted(splits["train"])
    tested = next(split for split in ("val", "validation", "test") if split in splits)
    test = opened(kind, where, "test", classes=train.classes, **settings)
    assert sorted(held(test)) == sorted(splits[tested])


def test_images_keep_their_names_and_order() -> None:
    shards = opened("shards", CONTAINERS / "wds-cls", "train")
    assert [shards.name(0), shards.name(14)] == [
        "train-000000.tar/train_00000.jpg",
        "train-000001.tar/train_00014.png",
    ]
    rows = opened("parquet", CONTAINERS / "hf-classlabel", "train")
    assert rows.name(0) == "data/train-00000-of-00002.parquet/train_0.JPEG"
    unnamed = opened("parquet", CONTAINERS / "hf-cifar100form", "train")
    assert unnamed.name(7) == "cifar100/train-00000-of-00001.parquet/7"


def test_labels_that_are_not_published_are_refused_and_the_others_named() -> None:
    with refused_with("test_0.JPEG has no label .4 of 4 .*labels are there for train, val"):
        opened("parquet", CONTAINERS / "hf-classlabel", "other")


def test_a_column_is_chosen_by_its_name() -> None:
    coarse = opened(
        "parquet", CONTAINERS / "hf-cifar100form", "train", columns={"label": "coarse_label"}
    )
    assert coarse.classes == ["water", "land"]
    with refused_with("has no column 'fine', it has img, fine_label, coarse_label.*--column"):
        opened("parquet", CONTAINERS / "hf-cifar100form", "train", columns={"label": "fine"})


def test_a_copy_for_a_worker_reads_the_same() -> None:
    for kind, name in (("shards", "wds-json"), ("parquet", "hf-textlabel")):
        images = opened(kind, CONTAINERS / name, "train")
        assert held(pickle.loads(pickle.dumps(images))) == held(images)


# --- numbers of patterns


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b{1..2}}c", ["ac", "b1c", "b2c"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{a}", ["a"]),
        ("{3..1}", []),
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


def test_braces_without_an_end_and_too_many_names_are_refused() -> None:
    with refused_with("a-{0..3: a brace is not closed"):
        expand("a-{0..3")
    with refused_with("names more than 1000000 files"):
        expand("{0..99999999}")


# --- shards


def tar(path: Path, files: dict[str, bytes | tarfile.TarInfo], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **more) as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def samples(**labels: bytes) -> dict[str, bytes]:
    """Return the files of some samples with a label in .cls each."""
    files = {}
    for number, (name, label) in enumerate(labels.items()):
        files |= {f"{name}.jpg": jpeg(number), f"{name}.cls": label}
    return files


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_are_read(form: int, tmp_path: Path) -> None:
    long = "d" * 90 + "/" + ("e" * 90 if form != tarfile.USTAR_FORMAT else "e" * 40)
    name = f"{long}/café" if form != tarfile.USTAR_FORMAT else f"{long}/cafe"
    tar(tmp_path / "train.tar", {f"{name}.jpg": jpeg(), f"{name}.cls": b"1"}, format=form)
    images = opened("shards", tmp_path, "train")
    assert images.name(0) == f"train.tar/{name}.jpg"
    assert images.read(0) == jpeg()
    assert images.labels.tolist() == [1]


def test_a_label_stands_in_cls_json_txt_or_the_folder(tmp_path: Path) -> None:
    files = {
        "a.jpg": jpeg(0),
        "a.cls": b"dog\n",
        "b.jpg": jpeg(1),
        "b.json": b'{"label": "cat"}',
        "c.jpg": jpeg(2),
        "c.txt": b"eel",
        "fox/d.jpg": jpeg(3),
    }
    tar(tmp_path / "train.tar", files)
    images = opened("shards", tmp_path, "train")
    assert [images.classes[label] for label in images.labels] == ["dog", "cat", "eel", "fox"]
    assert images.classes == ["cat", "dog", "eel", "fox"]


def test_a_label_within_json_is_found_by_its_column(tmp_path: Path) -> None:
    known = b'{"label": 3, "meta": {"kind": 1, "title": "bird"}}'
    tar(tmp_path / "train.tar", {"a.jpg": jpeg(), "a.cls": b"0", "a.json": known})
    columns = {"label": "json.meta.kind", "name": "json.meta.title"}
    images = opened("shards", tmp_path, "train", columns=columns)
    assert (images.labels.tolist(), images.classes) == ([1], ["0", "bird"])
    assert opened("shards", tmp_path, "train").labels.tolist() == [0]


def test_class_names_stand_in_a_file_beside_the_shards(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", samples(a=b"1", b=b"0"))
    (tmp_path / "classes.txt").write_text("crane\ncrane\n")
    images = opened("shards", tmp_path, "train")
    # ImageNet has two cranes: they stay apart.
    assert (images.labels.tolist(), images.classes) == ([1, 0], ["crane (0)", "crane (1)"])
    (tmp_path / "classes.txt").write_text("only one\n")
    with refused_with("label 1 has no name among 1 class names"):
        opened("shards", tmp_path, "train")


def test_one_label_with_two_names_is_refused(tmp_path: Path) -> None:
    files = {}
    for number, title in enumerate(("cat", "dog")):
        known = f'{{"label": 0, "class_name": "{title}"}}'.encode()
        files |= {f"{number}.jpg": jpeg(number), f"{number}.json": known}
    tar(tmp_path / "train.tar", files)
    with refused_with("label 0 is called 'cat' and 'dog'"):
        opened("shards", tmp_path, "train")


def test_members_keep_their_names(tmp_path: Path) -> None:
    files = {"./x/a.JPEG": jpeg(0), "./x/a.CLS": b"0", "b.Jpg": jpeg(1), "b.cls": b"1"}
    tar(tmp_path / "train.tar", files)
    images = opened("shards", tmp_path, "train")
    assert list(images.names) == ["train.tar/x/a.JPEG", "train.tar/b.Jpg"]


def test_shards_without_an_image_say_what_is_in_them(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", {"a.npy": b"x", "a.cls": b"0"})
    with refused_with("has no image; left out: 1 samples without an image"):
        opened("shards", tmp_path, "train")


def test_what_is_no_sample_is_left_out_and_counted(tmp_path: Path) -> None:
    files = samples(a=b"0", b=b"1") | {"c.json": b"{}", "README": b"x", "__meta.json": b"{}"}
    tar(tmp_path / "train.tar", files)
    images = opened("shards", tmp_path, "train")
    assert len(images) == 2
    assert images.left_out == {"samples without an image": 1, "files of no sample": 2}


def test_a_sample_without_a_label_is_refused_or_left_out(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", samples(a=b"0", b=b"-1", c=b"1"))
    with refused_with("train.tar/b.jpg has no label: .*--column label=NAME.*--badImages skip"):
        opened("shards", tmp_path, "train")
    images = opened("shards", tmp_path, "train", skip=True)
    assert held(images) == held(images.chosen(np.arange(2)))
    assert [images.read(0), images.read(1)] == [jpeg(0), jpeg(2)]
    assert images.left_out == {"without a label": 1}


def special(kind: bytes, name: str = "b.jpg") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_pipes_in_shards_are_refused(kind: bytes, tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", {"a.jpg": jpeg(), "a.cls": b"0", "b.jpg": special(kind)})
    with refused_with("train.tar: b.jpg is a (link|special)"):
        opened("shards", tmp_path, "train")


def test_a_sparse_file_in_a_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"")
    os.truncate(tmp_path / "b.jpg", 1 << 20)
    if os.system(f"tar -C {tmp_path} --sparse -cf {tmp_path}/train.tar b.jpg"):
        pytest.skip("no GNU tar")
    with refused_with("b.jpg is a special or sparse file"):
        opened("shards", tmp_path, "train")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_a_cut_shard_is_named_with_its_last_sample(kept: float, tmp_path: Path) -> None:
    path = tar(tmp_path / "train.tar", samples(a=b"0", b=b"1", c=b"0", d=b"1"))
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: int(len(content) * kept)])
    with refused_with(r"train.tar is cut off or damaged after .*: fetch or pack it again"):
        opened("shards", tmp_path, "train")


def test_a_spoilt_header_is_no_end(tmp_path: Path) -> None:
    path = tar(tmp_path / "train.tar", samples(a=b"0", b=b"1"))
    content = bytearray(path.read_bytes())
    at = content.index(b"b.jpg")
    content[at + 150] ^= 0xFF
    path.write_bytes(content)
    with refused_with("cut off or damaged after a.cls"):
        opened("shards", tmp_path, "train")


def test_a_compressed_shard_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w:gz") as archive:
        archive.addfile(special(tarfile.DIRTYPE, "x"))
    with refused_with("is compressed by gzip, unpack it"):
        opened("shards", tmp_path, "train")


def test_parts_are_words_of_the_names(tmp_path: Path) -> None:
    for name in ("my-train-0", "trainval", "imagenet_validation_3"):
        tar(tmp_path / f"{name}.tar", samples(**{name.replace("-", "_"): b"0", "z": b"1"}))
    assert opened("shards", tmp_path, "train").name(0).startswith("my-train-0.tar/")
    assert opened("shards", tmp_path, "test").name(0).startswith("imagenet_validation_3.tar/")
    tar(tmp_path / "train_of_test.tar", samples(a=b"0"))
    with refused_with("train_of_test.tar is called train and test: rename it"):
        opened("shards", tmp_path, "train")


def test_a_pattern_names_shards_and_missing_ones_are_named(tmp_path: Path) -> None:
    for number in range(3):
        name = f"train-{number}.tar"
        tar(tmp_path / name, samples(**{f"s{number}": b"0", f"t{number}": b"1"}))
    assert len(opened("shards", tmp_path / "train-{0..1}.tar", "train")) == 4
    with refused_with(r"there is no .*train-3.tar \(2 of 5 are missing\)"):
        opened("shards", tmp_path / "train-{0..4}.tar", "train")
    with refused_with("has no images to test on .*give --valShare 0.1"):
        opened("shards", tmp_path, "test")


def test_shards_without_a_test_part_are_split(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", samples(**{f"s{n}": str(n % 2).encode() for n in range(40)}))
    sides = [
        opened("shards", tmp_path, part, val_share=0.25, seed=1, split_file=tmp_path / "split.csv")
        for part in ("train", "test")
    ]
    assert [len(side) for side in sides] == [30, 10]
    both = [image for side in sides for image in held(side)]
    assert len(set(both)) == 40


def test_the_kept_index_is_that_of_the_shards_as_they_are(tmp_path: Path) -> None:
    path = tar(tmp_path / "d" / "train-0.tar", samples(a=b"0", b=b"1"))
    tar(tmp_path / "d" / "train-1.tar", samples(c=b"1"))
    scanned: list[str] = []

    def open_again() -> FileImages:
        scanned.clear()
        return opened("shards", tmp_path / "d", "train", index=tmp_path / "kept")

    original = parts.contents_of

    def counted(paths: Any, scan: Callable[[str], Any], *more: Any) -> Any:
        return original(paths, lambda path: scanned.append(path) or scan(path), *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "contents_of", counted)
        first = held(open_again())
        assert len(scanned) == 2
        assert held(open_again()) == first
        assert not scanned
        tar(path, samples(a=b"1", b=b"0"))
        assert [label for _, label, _ in held(open_again())] == [1, 0, 1]
        assert scanned == [str(path)]
        # Spoilt, it is made anew.
        (kept,) = (tmp_path / "kept").iterdir()
        kept.write_bytes(kept.read_bytes()[:-200])
        assert len(open_again()) == 3
        assert len(scanned) == 2


def test_a_shard_that_changes_under_a_run_is_never_read_wrongly(tmp_path: Path) -> None:
    path = tar(tmp_path / "train.tar", samples(a=b"0", b=b"1"))
    images = opened("shards", tmp_path, "train")
    tar(path, samples(longer_name=b"0", b=b"1", c=b"0"))
    with pytest.raises(ValueError, match=r"train.tar changed since it was opened"):
        images.read(0)


def test_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_OPEN", 3)
    for number in range(8):
        tar(tmp_path / f"train-{number}.tar", samples(**{f"s{number}": str(number % 2).encode()}))
    images = opened("shards", tmp_path, "train")
    before = len(os.listdir("/proc/self/fd"))
    assert [images.read(index % 8) for index in range(20)] == [jpeg()] * 20
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_large_image_in_a_container_is_beyond_the_limit(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", samples(a=b"0", b=b"1"))
    images = opened("shards", tmp_path, "train")
    images.limits = Limits(bytes=100)
    with pytest.raises(ValueError, match="more than the 100 allowed"):
        images.read(0)


def test_a_shard_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.tar")
    with refused_with("train.tar is not a regular file"):
        opened("shards", tmp_path, "train")


# --- Parquet


def rows(path: Path, images: list[bytes | None], labels: Any, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = pyarrow.array([{"bytes": content, "path": None} for content in images])
    table = pyarrow.table({"image": structs, "label": pyarrow.array(labels)})
    pyarrow.parquet.write_table(table, path, **more)
    return path


def test_parquet_images_are_read_by_number_in_any_order(tmp_path: Path) -> None:
    contents = [jpeg(number) for number in range(23)]
    rows(tmp_path / "train.parquet", contents, [n % 3 for n in range(23)], row_group_size=4)
    images = opened("parquet", tmp_path, "train")
    order = np.random.default_rng(1).permutation(23).tolist()
    assert [images.read(index) for index in order] == [contents[index] for index in order]
    assert images.read(3, 10) == contents[3][:10]


def test_few_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [jpeg(number) for number in range(20)]
    rows(tmp_path / "train.parquet", contents, [n % 2 for n in range(20)], row_group_size=2)
    monkeypatch.setattr(parquet, "MAX_CACHE", 6 * len(contents[0]))
    images = opened("parquet", tmp_path, "train")
    for index in range(20):
        assert images.read(index) == contents[index]
    packed = images.packed
    assert isinstance(packed, parquet.Rows)
    assert 1 <= len(packed._groups) <= 3


def test_parquet_says_once_what_reading_costs(tmp_path: Path) -> None:
    rows(tmp_path / "train.parquet", [jpeg(n) for n in range(12)], [n % 2 for n in range(12)])
    packed = opened("parquet", tmp_path, "train").packed
    assert packed is not None
    assert "an image costs its row group of 12 images" in packed.remark()
    assert "prepare.py pack" in packed.remark()


def test_rows_without_bytes_are_bad_images(tmp_path: Path) -> None:
    rows(tmp_path / "train.parquet", [jpeg(), None, jpeg(1)], [0, 1, 1])
    images = opened("parquet", tmp_path, "train")
    with pytest.raises(ValueError, match="no bytes of an image"):
        images.read(1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"image": ["a"], "label": [0]}, "column image is string, not bytes of images"),
        ({"words": ["a"], "label": [0]}, "has no column of images .*it has words, label"),
        ({"image": [b"a"], "label": [1.5]}, "a label is float"),
        ({"image": [b"a"], "kind": [1]}, "has no label: the columns are image, kind: name it"),
    ],
)
def test_other_columns_are_refused_by_name(table: Any, message: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    with refused_with(message):
        opened("parquet", tmp_path, "train")


@pytest.mark.parametrize(
    "labels",
    [
        pyarrow.array(["b", "a", "b"]).dictionary_encode(),
        pyarrow.array([1, 0, 1], pyarrow.uint16()),
        pyarrow.array([1.0, 0.0, 1.0]),
        pyarrow.array(["b", "a", "b"], pyarrow.large_string()),
    ],
)
def test_labels_of_any_type_are_read(labels: Any, tmp_path: Path) -> None:
    table = pyarrow.table({"image": [jpeg(n) for n in range(3)], "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "train-00000-of-00001-0a1b2c3d.parquet")
    images = opened("parquet", tmp_path, "train")
    assert images.labels.tolist() == [1, 0, 1]
    assert images.read(2) == jpeg(2)


def test_a_row_without_a_label_among_others_is_refused_or_left_out(tmp_path: Path) -> None:
    table = {"image": [jpeg(n) for n in range(4)], "label": [0, None, 1, 0]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    with refused_with("train.parquet/1 has no label.*--badImages skip"):
        opened("parquet", tmp_path, "train")
    images = opened("parquet", tmp_path, "train", skip=True)
    assert [images.read(index) for index in range(3)] == [jpeg(0), jpeg(2), jpeg(3)]
    assert images.labels.tolist() == [0, 1, 0]


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing more")
    with refused_with("train.parquet is no Parquet file that can be read"):
        opened("parquet", tmp_path, "train")


def test_a_missing_library_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(containers, "import_module", gone)
    with refused_with(r"pip install -e '.\[parquet\]'"):
        opened("parquet", CONTAINERS / "hf-textlabel", "train")
    # Files at an address are not copied first: it may be for nothing.
    monkeypatch.setattr(parquet, "find", lambda *_: pytest.fail("it looked for files"))
    with refused_with(r"pip install -e '.\[parquet\]'"):
        opened("parquet", "https://example.org/train.parquet", "train")


@pytest.mark.parametrize("kind", ["parquet", "shards"])
def test_images_that_are_called_the_same_stay_apart(kind: str, tmp_path: Path) -> None:
    """As the hub has them, whose rows keep the last part of a path alone."""
    contents, labels = [jpeg(n) for n in range(30)], [n % 2 for n in range(30)]
    place = tmp_path / "d"
    place.mkdir()
    if kind == "parquet":
        structs = [{"bytes": content, "path": "image.jpg"} for content in contents]
        table = pyarrow.table({"image": structs, "label": labels})
        pyarrow.parquet.write_table(table, place / "train.parquet")
    else:
        with tarfile.open(place / "train.tar", "w") as archive:
            for content, label in zip(contents, labels, strict=True):
                for name, data_ in (("a.jpg", content), ("a.cls", b"%d" % label), ("x", b"")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data_)
                    archive.addfile(member, io.BytesIO(data_))
                # Another sample between them, so that the next one begins anew.
                archive.addfile(tarfile.TarInfo("b.txt"))
    split = {"val_share": 0.3, "seed": 1, "split_file": tmp_path / "split.csv"}
    sides = [opened(kind, place, part, **split) for part in ("train", "test", "train")]
    assert [len(side) for side in sides] == [22, 8, 22]
    digests = [{digest for digest, *_ in held(side)} for side in sides]
    assert not digests[0] & digests[1]
    assert digests[0] == digests[2]
    assert len(set(sides[0].names)) == 22


def test_two_configurations_are_not_mixed(tmp_path: Path) -> None:
    for name in ("default", "small"):
        rows(tmp_path / "d" / name / "train" / "0000.parquet", [jpeg(0), jpeg(1)], [0, 1])
        rows(tmp_path / "d" / name / "test" / "0000.parquet", [jpeg(2), jpeg(3)], [0, 1])
    with refused_with("the same images may lie in default/train/, small/train/: name one"):
        opened("parquet", tmp_path / "d", "train")
    for part in ("train", "test"):
        assert len(opened("parquet", tmp_path / "d" / "small", part)) == 2


def test_digits_that_are_texts_or_folders_are_names(tmp_path: Path) -> None:
    rows(tmp_path / "p" / "train.parquet", [jpeg(0), jpeg(1), jpeg(2)], ["2019", "2020", "2019"])
    assert opened("parquet", tmp_path / "p", "train").classes == ["2019", "2020"]
    tar(tmp_path / "s" / "train.tar", {"10/a.jpg": jpeg(0), "9/b.jpg": jpeg(1)})
    assert opened("shards", tmp_path / "s", "train").classes == ["10", "9"]


def test_a_json_that_says_no_class_leaves_it_to_the_folder(tmp_path: Path) -> None:
    files = {
        "cat/a.jpg": jpeg(0),
        "cat/a.json": b'{"width": 3}',
        "dog/b.jpg": jpeg(1),
        "dog/b.json": b'{"label": -1}',
    }
    tar(tmp_path / "train.tar", files)
    # Of the second it says that there is none.
    with refused_with("dog/b.jpg has no label"):
        opened("shards", tmp_path, "train")
    images = opened("shards", tmp_path, "train", skip=True)
    assert [images.classes[label] for label in images.labels] == ["cat"]


def test_class_names_beside_shards_one_folder_below_are_found(tmp_path: Path) -> None:
    tar(tmp_path / "d" / "tars" / "train.tar", samples(a=b"0", b=b"1.0"))
    (tmp_path / "d" / "tars" / "classes.txt").write_text("cat\ndog\n")
    images = opened("shards", tmp_path / "d", "train")
    assert (images.classes, images.labels.tolist()) == (["cat", "dog"], [0, 1])


def test_compressed_shards_in_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar.gz").write_bytes(b"x")
    with refused_with("train-0.tar.gz is compressed: unpack it"):
        opened("shards", tmp_path, "train")


def test_rows_of_paths_alone_are_refused_at_once(tmp_path: Path) -> None:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    structs = pyarrow.array([{"bytes": None, "path": f"/d/{n}.jpg"} for n in range(2)], kind)
    table = pyarrow.table({"image": structs, "label": [0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with refused_with("no bytes of an image, at most its path: name the files"):
        opened("parquet", tmp_path, "train")


# --- .zip


def zipped(path: Path, folder: Path, method: int = zipfile.ZIP_STORED, above: str = "") -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{above}{file.relative_to(folder)}")
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("above", ["", "photos/"])
def test_a_zip_file_is_read_as_the_folder_is(method: int, above: str, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "d", 12)
    (folder / "train" / "class 0" / "notes.txt").write_text("x")
    path = zipped(tmp_path / "d.zip", folder, method, above)
    for part in ("train", "test"):
        own, packed = opened("folder", folder, part), opened("folder", path, part)
        assert held(packed) == held(own)
        assert list(packed.names) == list(own.names)
        assert packed.left_out == own.left_out
        assert packed.read(1, 7) == own.read(1, 7)


def test_facts_of_images_in_containers_are_theirs(tmp_path: Path) -> None:
    """By these a resumed run knows that its images are others."""
    folder = make_images(tmp_path / "d", 6)
    path = zipped(tmp_path / "d.zip", folder, zipfile.ZIP_STORED, "")
    own, packed = (opened("folder", place, "train").facts for place in (folder, path))
    assert packed.sizes.tolist() == own.sizes.tolist()
    assert packed.missing == own.missing == 0
    place = shutil.copytree(CONTAINERS / "wds-cls", tmp_path / "shards")
    for number, file in enumerate(sorted(place.glob("train-*.tar"))):
        os.utime(file, (number, 1000 + number))
    shards = opened("shards", place, "train")
    assert len(set(shards.facts.times.tolist())) == len(list(place.glob("train-*.tar"))) > 1
    for number, time in enumerate(shards.facts.times.tolist()):
        assert time == os.stat(shards.path(number).partition(".tar")[0] + ".tar").st_mtime_ns
    lengths = [len(shards.read(number)) for number in range(len(shards))]
    assert shards.facts.sizes.tolist() == lengths


def test_what_is_no_folder_is_not_scanned(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.zip", make_images(tmp_path / "d", 3), zipfile.ZIP_STORED, "")
    (name,) = zip_files.tree(str(path)).folders["train/class 0"]
    for other in (tmp_path / "none", path / "none", path / "train" / "class 0" / name):
        with pytest.raises(NotADirectoryError):
            zip_files.scan(str(other))
        assert not zip_files.is_folder(str(other))
    assert zip_files.is_folder(str(path / "train" / "class 0"))


def test_a_zip_of_class_folders_is_split(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "d", 24)
    path = zipped(tmp_path / "d.zip", folder / "train")
    sides = [
        opened("folder", where, "train", val_share=0.2, seed=1)
        for where in (folder / "train", path)
    ]
    assert held(sides[0]) == held(sides[1])


def member(name: str, **more: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("/a/b.jpg"), "'/a/b.jpg' is not a name within a folder"),
        (member("a/../../b.jpg"), "is not a name within a folder"),
        (member("C:/a/b.jpg"), "is not a name within a folder"),
        (member("a/b.jpg", external_attr=(stat.S_IFLNK | 0o777) << 16), "is a link"),
        (member("a/b.jpg", compress_type=zipfile.ZIP_LZMA), "packed by method 14"),
    ],
)
def test_hostile_members_are_refused(info: Any, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr(info, jpeg())
    with refused_with(message):
        opened("folder", tmp_path / "d.zip", "all")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.jpg", jpeg())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with refused_with("is encrypted: pack it without a password"):
        opened("folder", path, "all")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a/b.jpg", jpeg())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/b.jpg", jpeg(1))
    with refused_with("there are two 'a/b.jpg'"):
        opened("folder", tmp_path / "d.zip", "all")


def test_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/1.jpg", "b/1.jpg"):
            archive.writestr(name, bytes(1 << 20))
    images = opened("folder", path, "all")
    images.limits = Limits(bytes=1000)
    with pytest.raises(ValueError, match="more than the 1000 allowed"):
        images.read(0)
    # A size that its bytes cannot have.
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (0x7FFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    with refused_with("declares 2147483647 bytes, more than it can hold"):
        opened("folder", path, "all")


def test_members_on_the_same_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/1.jpg", "b/1.jpg"):
            archive.writestr(name, jpeg())
    content = bytearray(path.read_bytes())
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = bytes(4)
    path.write_bytes(content)
    with refused_with("no .zip file that can be read|lie on the same bytes"):
        opened("folder", path, "all")


def test_changed_bytes_of_a_member_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/1.jpg", "b/1.jpg"):
            archive.writestr(name, jpeg())
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    images = opened("folder", path, "all")
    with pytest.raises(ValueError, match="CRC-32"):
        images.read(0)


def test_names_in_utf_8_that_say_so_or_not_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("café", "木"):
            archive.writestr(f"{name}/1.jpg", jpeg())
    wanted = opened("folder", path, "all").classes
    content = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = content.find(sign)
        while at >= 0:
            content[at + place + 1] &= ~8
            at = content.find(sign, at + 1)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert opened("folder", path, "all").classes == wanted == ["café", "木"]


def test_what_is_no_zip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.zip").write_bytes(b"PK and nothing")
    with refused_with("d.zip is no .zip file that can be read"):
        opened("folder", tmp_path / "d.zip", "train")
    (tmp_path / "d.rar").write_bytes(b"Rar!")
    with refused_with("d.rar is neither a folder nor a .zip file"):
        opened("folder", tmp_path / "d.rar", "train")


def test_a_folder_of_containers_names_the_way_to_read_them(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", samples(a=b"0", b=b"1"))
    with refused_with("it has .tar files: give --dataset shards"):
        opened("folder", tmp_path, "train")
    with pytest.raises(Refused, match=r"has no \.parquet file"):
        opened("parquet", tmp_path, "train")


def test_a_part_that_is_not_there_is_told_with_those_that_are() -> None:
    for found, told in ((["train", "train"], "it has train"), ([], "it has nothing")):
        with refused_with(f"shelf has no images to test on .*{told}"):
            parts.choose_part(found, "test", "shelf")
    with refused_with("it has images of no part"):
        parts.choose_part([""], "test", "shelf")


def test_names_that_are_repeated_get_their_numbers() -> None:
    assert containers.unique(["a", "b", "a", "c"]) == ["0/a", "b", "2/a", "c"]
    assert containers.unique(["a", "b"]) == ["a", "b"]


def test_an_image_of_one_shard_lies_in_it(tmp_path: Path) -> None:
    shutil.copy(CONTAINERS / "wds-cls" / "train-000000.tar", tmp_path / "train-0.tar")
    images = opened("shards", tmp_path / "train-0.tar", "train")
    assert images.path(0).startswith(f"{tmp_path}/train-0.tar/")
    assert all(name.startswith("train-0.tar/") for name in images.names)


def test_an_index_that_was_made_in_another_way_is_not_used(tmp_path: Path) -> None:
    """By other columns the labels are others."""
    paths = [str(path) for path in sorted((CONTAINERS / "wds-cls").glob("train-*.tar"))]
    contents = [shards.KIND.scan(path) for path in paths]
    kept = tmp_path / "index.npz"
    stamps = [(os.path.getsize(path), 2) for path in paths]
    containers._write(kept, "column a", paths, stamps, contents)
    found = containers._read(kept, "column a")
    assert [len(held.names) for _, held in found.values()] == [len(c.names) for c in contents]
    assert containers._read(kept, "column b") == {}
