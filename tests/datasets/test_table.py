"""A table of images gives the folder's images and labels whatever its form, and wrong rows are said
by their numbers.
"""

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from common import refused_with
from rig import make_images

from datasets import folder, table
from datasets.classes import chosen
from datasets.images import FileImages


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of 12 training and 3 test images of 3 classes."""
    return make_images(tmp_path / "d", 12)


def listed(place: Path) -> list[dict[str, str]]:
    """Return a row for each image, in no order."""
    files = sorted(place.rglob("*.jpg"))
    rows = [
        {
            "file_name": str(path.relative_to(place)),
            "label": path.parent.name,
            "split": path.parent.parent.name,
        }
        for path in files
    ]
    return [rows[index] for index in np.random.default_rng(1).permutation(len(rows))]


def write(path: Path, rows: list[dict[str, str]], separator: str = ",", **more: Any) -> str:
    with path.open("w", newline="", **more) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def opened(labels: str, part: str = "train", where: Path | None = None, **more: Any) -> FileImages:
    return table.open_table(None if where is None else str(where), part, labels=labels, **more)


def same_images(found: FileImages, other: FileImages) -> None:
    assert found.classes == other.classes
    assert found.labels.tolist() == other.labels.tolist()
    paths = [[os.path.realpath(i.path(n)) for n in range(len(i))] for i in (found, other)]
    assert paths[0] == paths[1]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_in_any_order_is_the_folder(
    separator: str, encoding: str, place: Path, tmp_path: Path
) -> None:
    labels = write(tmp_path / "t.csv", listed(place), separator, encoding=encoding)
    for part in ("train", "test"):
        same_images(opened(labels, part, place), folder.open_folder(str(place), part))


def test_columns_have_other_names_and_paths_are_absolute_or_windows(
    place: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "Species": row["label"],
            "fold": row["split"].upper(),
            "Path": str(place / row["file_name"]),
        }
        for row in listed(place)
    ]
    rows[0]["Path"] = rows[0]["Path"].replace("/", "\\")
    labels = write(tmp_path / "t.tsv", rows, "\t")
    images = opened(labels, columns={"label": "Species"})
    same_images(images, folder.open_folder(str(place), "train"))


def test_paths_begin_at_the_table_unless_a_folder_is_named(place: Path) -> None:
    labels = write(place / "t.csv", listed(place))
    same_images(opened(labels), folder.open_folder(str(place), "train"))


def test_a_parquet_table_is_read(place: Path, tmp_path: Path) -> None:
    rows = listed(place)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    same_images(opened(str(path), where=place), folder.open_folder(str(place), "train"))


def test_number_labels_are_in_their_order(place: Path, tmp_path: Path) -> None:
    rows = listed(place)
    for row in rows:
        row["label"] = {"class 0": "10", "class 1": "9", "class 2": "100"}[row["label"]]
    images = opened(write(tmp_path / "t.csv", rows), where=place)
    assert images.classes == ["9", "10", "100"]
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_table_without_parts_is_split(place: Path, tmp_path: Path) -> None:
    rows = listed(place)
    for row in rows:
        # Numbers of folds say nothing of what is tested on.
        row["split"] = "3"
    labels = write(tmp_path / "t.csv", rows)
    with refused_with("has no images to train on .*give --valShare 0.1"):
        opened(labels, where=place)
    sides = [opened(labels, part, place, val_share=0.2, seed=1) for part in ("train", "test")]
    assert [len(side) for side in sides] == [12, 3]
    assert len(opened(labels, "all", place)) == 15


def wrong(rows: list[dict[str, str]], what: str) -> None:
    if what == "missing":
        rows[2]["file_name"] = "train/class 0/gone.jpg"
    if what == "doubled":
        rows.append(dict(rows[0]))
    if what == "unlabelled":
        rows[1]["label"] = ""
    if what == "without image":
        rows[1]["file_name"] = ""
    if what == "other class":
        rows.append(rows[0] | {"label": "class 1" if rows[0]["label"] != "class 1" else "class 2"})
    if what == "other part":
        rows.append(rows[0] | {"split": "val" if rows[0]["split"] == "train" else "train"})


@pytest.mark.parametrize(
    ("what", "message", "lost"),
    [
        ("missing", r"1 whose file is missing: row 4 \(train/class 0/gone.jpg\)", 1),
        ("doubled", r"1 doubled: row 14", 0),
        ("unlabelled", r"1 without a label: row 3", 1),
        ("without image", r"1 without an image: row 3", 1),
        ("other class", r"2 with another class for one file: row 2, 14", 1),
        ("other part", r"2 with another part for one file: row 2, 14", 1),
    ],
)
def test_wrong_rows_are_said_by_their_numbers(
    what: str, message: str, lost: int, place: Path, tmp_path: Path
) -> None:
    rows = [row for row in listed(place) if row["split"] == "train"]
    wrong(rows, what)
    labels = write(tmp_path / "t.csv", rows)
    with refused_with(f"has wrong rows: {message}.*--badImages skip"):
        opened(labels, where=place)
    images = opened(labels, where=place, skip=True)
    assert len(images) == 12 - lost
    assert sum(images.left_out.values()) == (2 if "other" in what else 1)
    numbers = {name: label for label, name in enumerate(images.classes)}
    for index, label in enumerate(images.labels):
        assert numbers[Path(images.path(index)).parent.name] == label


def test_a_row_of_too_few_columns_is_wrong(place: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "t.csv", listed(place))
    with open(labels, "a") as file:
        file.write("only one\n\n")
    with refused_with("1 with too few columns: row 17"):
        opened(labels, where=place)


def test_a_row_of_no_part_is_refused_or_left_out(place: Path, tmp_path: Path) -> None:
    rows = listed(place)
    rows[3]["split"], rows[7]["split"] = "holdout", ""
    labels = write(tmp_path / "t.csv", rows)
    with refused_with("2 whose part is none of train, val and test: row 5, 9 .*--badImages skip"):
        opened(labels, where=place)
    sides = [opened(labels, part, place, skip=True) for part in ("train", "test")]
    assert sum(map(len, sides)) == 13


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        ("file_name,label\na,b\n".encode("utf-16"), "UTF-16 or no text: save it as CSV in UTF-8"),
        ("file_name,label\na,b\n".encode("utf-16-le"), "UTF-16 or no text"),
        ("file_name,label\na,caf\xe9\n".encode("latin-1"), r"not in UTF-8 \(line 2\): save it"),
        (b'file_name,label\n"a,b\n', "no table that can be read"),
        (b"one,two\na,b\n", "no column of images, it has one, two: name it with --column"),
        (b"path,kind\na,b\n", "no column of labels, it has path, kind: name it with --column"),
        (b"path,Path,label\na,a,b\n", "has two columns 'path'"),
    ],
)
def test_what_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with refused_with(message):
        opened(str(tmp_path / "t.csv"))
    with refused_with("cannot read .*gone.csv: No such file"):
        opened(str(tmp_path / "gone.csv"))


def test_forms_of_other_programs_are_read(place: Path, tmp_path: Path) -> None:
    """Excel's first line, blank lines, a bar, a space before a quote, whole numbers as floats."""
    rows, path = listed(place), tmp_path / "t.csv"
    own = folder.open_folder(str(place), "train")
    heading = ["file_name", "label", "split"]

    def text(form: str, separator: str, label: str = "{}") -> str:
        lines = [separator.join(heading)]
        for row in rows:
            cells = [row["file_name"], label.format(row["label"]), row["split"]]
            lines.append(separator.join(cells))
        return form.format("\n".join(lines) + "\n")

    for form, separator in (("sep=;\n{}", ";"), ("\n\n{}", ","), ("{}", "|")):
        path.write_text(text(form, separator))
        same_images(opened(str(path), where=place), own)
    path.write_text(text("{}", ",", ' "{}, big"'))
    assert opened(str(path), where=place).classes == [f"class {k}, big" for k in range(3)]
    for row in rows:
        row["label"] = {"class 0": "10.0", "class 1": "9.0", "class 2": "2.0"}[row["label"]]
    path.write_text(text("{}", ","))
    assert opened(str(path), where=place).classes == ["2", "9", "10"]


@pytest.mark.parametrize("label", ["NA", "NaN", "-1.0", "null"])
def test_a_label_that_says_none_is_none(label: str, place: Path, tmp_path: Path) -> None:
    rows = [row for row in listed(place) if row["split"] == "train"]
    rows[4]["label"] = label
    with refused_with("1 without a label: row 6"):
        opened(write(tmp_path / "t.csv", rows), where=place)


def test_a_comma_that_is_not_quoted_joins_no_classes(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    files = sorted((place / "train" / "class 0").iterdir())[:2]
    path.write_text(f"path,split,label\n{files[0]},train,crane, bird\n{files[1]},train,crane, b\n")
    with refused_with("2 with too many columns .*: row 2, 3"):
        opened(str(path))


@pytest.mark.parametrize("kind", ["category", "bool", "float"])
def test_parquet_tables_of_pandas_are_read(kind: str, place: Path, tmp_path: Path) -> None:
    rows = listed(place)
    labels = [int(row["label"][-1]) for row in rows]
    columns: dict[str, Any] = {
        "file_name": [row["file_name"] for row in rows],
        "split": pyarrow.array([row["split"] for row in rows]).dictionary_encode(),
        "label": {
            "category": pyarrow.array([row["label"] for row in rows]).dictionary_encode(),
            "bool": pyarrow.array([label > 0 for label in labels]),
            "float": pyarrow.array([float(label) for label in labels]),
        }[kind],
    }
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    images = opened(str(path), where=place)
    assert len(images) == 12
    assert len(images.classes) == (2 if kind == "bool" else 3)


def test_addresses_and_folders_are_no_files_of_a_table(place: Path, tmp_path: Path) -> None:
    rows = [row for row in listed(place) if row["split"] == "train"]
    rows[0]["file_name"], rows[1]["file_name"] = "https://host/a.jpg", "train"
    with refused_with("1 whose image lies at an address.*: row 2.*1 whose file is missing: row 3"):
        opened(write(tmp_path / "t.csv", rows), where=place)


def test_a_label_of_thousands_of_digits_is_a_name(place: Path, tmp_path: Path) -> None:
    rows = [row for row in listed(place) if row["split"] == "train"]
    rows[0]["label"] = "1" * 5000
    for row in rows[1:]:
        row["label"] = "2"
    assert len(opened(write(tmp_path / "t.csv", rows), where=place).classes) == 2


def test_a_table_that_is_written_is_read_again(place: Path, tmp_path: Path) -> None:
    parts = {
        word: folder.open_folder(str(place), part)
        for word, part in (("train", "train"), ("val", "test"))
    }
    path = tmp_path / "t.csv"
    table.write(path, parts, str(place))
    for word, part in (("train", "train"), ("val", "test")):
        same_images(opened(str(path), part, place), parts[word])


# --- classes


@pytest.fixture
def images(place: Path) -> FileImages:
    return folder.open_folder(str(place), "train")


def names_by_path(images: FileImages) -> dict[str, str]:
    return {images.path(index): images.classes[label] for index, label in enumerate(images.labels)}


def test_some_classes_are_trained_on_in_the_order_that_is_asked_for(images: FileImages) -> None:
    found = chosen(images, "class 2,class 0", None)
    assert found.classes == ["class 2", "class 0"]
    assert found.left_out == {"of other classes": 4}
    assert names_by_path(found) == {
        path: name for path, name in names_by_path(images).items() if name != "class 1"
    }


def test_a_file_names_classes_whose_names_hold_commas(images: FileImages, tmp_path: Path) -> None:
    images.classes = ["tank, suit", "b", "c"]
    (tmp_path / "c.txt").write_text("c\ntank, suit\n\n")
    found = chosen(images, str(tmp_path / "c.txt"), None)
    assert (found.classes, len(found)) == (["c", "tank, suit"], 8)
    with refused_with("cannot read .*gone.txt: No such file"):
        chosen(images, str(tmp_path / "gone.txt"), None)


def test_classes_are_joined_renamed_and_left_out(images: FileImages, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("class,to\nclass 0,pet\nclass 2,pet\nclass 1,zebra\n")
    found = chosen(images, None, str(path))
    assert found.classes == ["pet", "zebra"]
    was, now = names_by_path(images), names_by_path(found)
    assert now == {path: "zebra" if name == "class 1" else "pet" for path, name in was.items()}
    path.write_text("class 1,\n")
    assert set(names_by_path(chosen(images, None, str(path))).values()) == {"class 0", "class 2"}


@pytest.mark.parametrize(
    ("choice", "rows", "message"),
    [
        ("class 0,klass 1", None, "no class 'klass 1'; did you mean 'class 1'"),
        ("class 0", None, "not two or more names: class 0"),
        ("class 0,class 0", None, "not two or more names"),
        (None, "class 0,a\nklass 1,b\n", "row 2 names a class 'klass 1' that .* lacks"),
        (None, "class 0,a\nclass 0,b\n", "names the class 'class 0' twice"),
        (None, "Class 0,a\nclass 1,a\n", "row 1 names a class 'Class 0' that .* lacks"),
        (None, "class 0\n", "row 1 is not two columns"),
        (None, "", "row 1 is not two columns"),
        (None, "class 0,a\nclass 1,a\nclass 2,a\n", "not two or more names: a"),
    ],
)
def test_wrong_choices_are_refused(
    choice: str | None, rows: str | None, message: str, images: FileImages, tmp_path: Path
) -> None:
    path = tmp_path / "r.csv"
    path.write_text(rows or "")
    with refused_with(message):
        chosen(images, choice, str(path) if rows is not None else None)


@pytest.mark.parametrize("escapes", [False, True])
def test_a_name_that_is_no_text_is_refused_or_escaped(escapes: bool, tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.jpg")
    images = FileImages([name, "b.jpg"], np.array([0, -1]), ["x", "y"], str(tmp_path))
    out = tmp_path / "t.csv"
    if not escapes:
        with refused_with("is no name in UTF-8: rename it"):
            table.write(out, {"train": images}, str(tmp_path))
        assert not out.exists()
        return
    table.write(out, {"train": images}, str(tmp_path), escapes=True)
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[1:] == [["a\\udcff.jpg", "x", "train"], ["b.jpg", "", "train"]]
