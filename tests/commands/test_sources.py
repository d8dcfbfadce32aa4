"""Whatever images lie in, a run on them ends with the same bits, with any number of workers, on
ranks, and when it was killed; and the command line says what does not go together.
"""

import csv
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import rig
from common import DATA
from launch import Launch
from rig import Child, fingerprint, finish, make_images

import opts
import prepare

SOURCES = ("folder", "zip", "table", "shards", "parquet")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return main.py's options for the same images in each kind of source."""
    above = tmp_path_factory.mktemp("sources")
    folder = make_images(above / "d", 48)
    with zipfile.ZipFile(above / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, str(path.relative_to(folder)))
    prepare.main(
        ["index", "--data_dir", str(folder), "--to", "table", "--out", str(above / "t.csv")]
    )
    shuffle_rows(above / "t.csv")
    out = ["--out", str(above / "shards"), "--shard", "10kB"]
    prepare.main(["pack", "--data_dir", str(folder), *out])
    (above / "pq").mkdir()
    for part, name in (("train", "train"), ("val", "validation")):
        files = [p for c in sorted((folder / part).iterdir()) for p in sorted(c.iterdir())]
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        labels = [path.parent.name for path in files]
        table = pyarrow.table({"image": pyarrow.array(images), "label": labels})
        path = above / "pq" / f"{name}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=5)
    return {
        "folder": ["--dataset", "folder", "--data_dir", str(folder)],
        "zip": ["--dataset", "folder", "--data_dir", str(above / "d.zip")],
        "table": [
            "--dataset",
            "table",
            "--labels",
            str(above / "t.csv"),
            "--data_dir",
            str(folder),
        ],
        "shards": ["--dataset", "shards", "--data_dir", str(above / "shards")],
        "parquet": ["--dataset", "parquet", "--data_dir", str(above / "pq")],
    }


def shuffle_rows(path: Path) -> None:
    heading, *rows = list(csv.reader(path.read_text().splitlines()))
    with path.open("w", newline="") as file:
        order = np.random.default_rng(1).permutation(len(rows))
        csv.writer(file).writerows([heading, *(rows[index] for index in order)])


def command(where: list[str], out: Path, *more: str) -> list[str]:
    sizes = ["--augment", "resizedcrop,flip,jitter:0.4", "--logger", "none"]
    return [*rig.OPTIONS, *where, "--expDir", str(out), *sizes, *more]


@pytest.fixture(scope="module")
def wanted(places: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what a run on the folder leaves."""
    out = tmp_path_factory.mktemp("wanted")
    finish(command(places["folder"], out, "--nThreads", "0"))
    return fingerprint(out)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_ends_with_the_same_weights(
    source: str, places: dict[str, list[str]], wanted: str, tmp_path: Path
) -> None:
    finish(command(places[source], tmp_path, "--nThreads", "2"))
    assert fingerprint(tmp_path) == wanted


@pytest.mark.parametrize("source", SOURCES[1:])
def test_a_run_on_any_source_is_killed_and_goes_on(
    source: str, places: dict[str, list[str]], wanted: str, tmp_path: Path
) -> None:
    arguments = command(places[source], tmp_path, "--nThreads", "0", "--saveEvery", "1")
    child = Child(arguments)
    while child.steps < 4:
        assert child.alive(), child.text()
    child.kill()
    child.wait()
    said = finish([*arguments, "--continue"])
    assert "training images changed" not in said
    assert fingerprint(tmp_path) == wanted


@pytest.fixture(scope="module")
def wanted_of_ranks(places: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what a run of two ranks on the folder leaves."""
    return fingerprint_of_ranks(places["folder"], tmp_path_factory.mktemp("ranks"))


def fingerprint_of_ranks(where: list[str], out: Path) -> str:
    launch = Launch(2, command(where, out, "--nThreads", "1", "--syncBN"))
    status, said = launch.wait(), launch.text()
    launch.output.close()
    assert status == 0, said[-2000:]
    return fingerprint(out)


@pytest.mark.campaign
@pytest.mark.parametrize("source", SOURCES[1:])
def test_two_ranks_read_any_source_as_the_folder(
    source: str, places: dict[str, list[str]], wanted_of_ranks: str, tmp_path: Path
) -> None:
    assert fingerprint_of_ranks(places[source], tmp_path) == wanted_of_ranks


def test_classes_are_chosen_in_training_and_testing_alike(
    places: dict[str, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "r.csv").write_text("class 0,pet\nclass 1,pet\n")
    some = ["--relabel", str(tmp_path / "r.csv"), "--nThreads", "0", "--nEpochs", "1"]
    finish(command(places["shards"], tmp_path, *some))
    best = rig.run_folder(tmp_path) / "best.pt"
    test = ["--test", "--retrain", str(best), "--expID", "t"]
    said = finish(command(places["shards"], tmp_path, *some, *test))
    assert "12 of 12 test images" in said
    assert "2 classes" in said


def test_bad_rows_and_samples_are_left_out_on_demand(
    places: dict[str, list[str]], tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        Path(places["table"][3]).read_text() + "train/class 0/gone.jpg,class 0,train\n"
    )
    where = [*places["table"][:3], str(table), *places["table"][4:]]
    assert "1 whose file is missing: row 62" in refused(command(where, tmp_path))
    arguments = command(where, tmp_path, "--nEpochs", "1", "--badImages", "skip")
    assert "left out  1 rows whose file is missing" in finish(arguments)


def refused(arguments: list[str]) -> str:
    child = Child(arguments)
    assert child.wait() == 2, child.text()
    return child.text()


def test_one_class_is_refused_and_numbers_without_images_are_said(tmp_path: Path) -> None:
    for numbers, message in (("00", "one class only, '0'"), ("0224", "2 classes have no training")):
        place = tmp_path / numbers
        place.mkdir()
        for part in ("train", "val"):
            with tarfile.open(place / f"{part}.tar", "w") as archive:
                for number, label in enumerate(numbers):
                    photo = (DATA / "containers" / "table" / "images" / "000.JPG").read_bytes()
                    for name, content in (("jpg", photo), ("cls", label.encode())):
                        member = tarfile.TarInfo(f"{number}.{name}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
        where = ["--dataset", "shards", "--data_dir", str(place)]
        arguments = command(where, tmp_path / "r", "--nEpochs", "1", "--nThreads", "0")
        said = refused(arguments) if numbers == "00" else finish(arguments)
        assert message in said


def test_a_run_leaves_its_split_as_a_table(places: dict[str, list[str]], tmp_path: Path) -> None:
    folder = places["folder"][3]
    where = ["--dataset", "folder", "--data_dir", f"{folder}/train", "--valShare", "0.25"]
    said = finish(command(where, tmp_path / "a", "--nThreads", "0"))
    split = rig.run_folder(tmp_path / "a") / "split.csv"
    with split.open(newline="") as file:
        sides = [row["split"] for row in csv.DictReader(file)]
    trained, tested = sides.count("train"), len(sides) - sides.count("train")
    assert trained > tested > 0
    assert f"split     {trained} images to train on, {tested} to test on: {split}\n" in said
    where = ["--dataset", "table", "--labels", str(split), "--data_dir", f"{folder}/train"]
    finish(command(where, tmp_path / "b", "--nThreads", "0"))
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset table", "--dataset table needs a table: give --labels FILE"),
        ("--dataset folder --labels x.csv", "--labels is of --dataset table, not of folder"),
        ("--dataset folder --column a=b", "'a=b' is not image=NAME"),
        ("--dataset folder --column label=b", "--column is of table, shards, parquet"),
        ("--dataset table --labels x --column label=", "'label=' is not image=NAME"),
        ("--dataset table --labels x --column label=a,label=b", "is not image=NAME"),
        ("--dataset mnist --classes 1,2", "--classes is of folder, table, shards, parquet"),
        ("--dataset mnist --valShare 0.1", "mnist has test images of its own"),
        ("--dataset folder --data_dir s3://b/x", "folder is read from a disk"),
        ("--dataset shards --cacheGB -1", "--cacheGB: '-1' is not a number of at least 0"),
    ],
)
def test_what_does_not_go_together_is_said(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        opts.parse(arguments.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_address_stays_as_it_is_and_paths_hold_from_anywhere() -> None:
    options = opts.parse(["--dataset", "shards", "--data_dir", "https://host/{0..3}.tar"])
    assert options.data_dir == "https://host/{0..3}.tar"
    options = opts.parse(["--dataset", "table", "--labels", "t.csv", "--classes", "c.txt"])
    assert Path(options.labels or "").is_absolute()
    assert Path(options.classes or "").is_absolute()
    assert opts.parse(["--dataset", "folder", "--classes", "a,b.txtx"]).classes == "a,b.txtx"
