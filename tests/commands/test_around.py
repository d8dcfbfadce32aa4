"""Paths, lists, environments and logs as people have them, around a run and beside it."""

import contextlib
import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from common import ROOT
from PIL import Image
from rig import make_images, on_folder

import compare
import main
import opts
import predict
import prepare
from base import archive
from base.errors import clear_errors

QUICK = ["--nEpochs", "1", "--logger", "none", "--netType", "alexnetbn", "--batchSize", "8"]


def said(run, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:  # type: ignore[no-untyped-def]
    """Return status, output and errors of a program in this process."""
    capsys.readouterr()
    status = 0
    try:
        with clear_errors(opts.WAYS_OUT):
            run(arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return status, shown.out, shown.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder, whose files carry the default names."""
    place = tmp_path_factory.mktemp("run")
    images = make_images(place / "d", 24)
    options = [*on_folder(images), *QUICK, "--nEpochs", "3", "--snapshot", "0"]
    main.main([*options, "--expDir", str(place / "runs"), "--expID", "r"])
    return place


def test_home_and_relative_paths_hold_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`~` also where no shell expands it: after a =, and in a recipe that begins with a BOM."""
    home = tmp_path / "home"
    make_images(home / "photos", 12)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    (home / "recipe.txt").write_bytes(
        b"\xef\xbb\xbf--data_dir ~/photos --expDir=~/runs  # all there is\n"
    )
    sizes = ["--dataset", "folder", "--imageSize", "24", "--cropSize", "20", "--nThreads", "0"]
    main.main(["@~/recipe.txt", *sizes, *QUICK, "--GPU", "-1", "--expID", "a"])
    main.main([*sizes, *QUICK, "--GPU", "-1", "--data_dir", "photos", "--expID", "-b c"[1:]])
    record = home / "runs" / "folder" / "a" / "options.json"
    assert json.loads(record.read_text())["options"]["data_dir"] == str(home / "photos")
    relative = json.loads((home / "cache/folder/b c/options.json").read_text())
    assert relative["options"]["data_dir"] == str(home / "photos")

    weights = "~/runs/folder/a/best.pt"
    out = ["--csv", "~/out.csv", "--sheet", "~/sheet.png"]
    assert said(predict.main, [weights, "~/photos/val", *out], capsys)[0] == 0
    assert (home / "out.csv").exists()
    assert (home / "sheet.png").exists()
    assert (
        said(prepare.main, ["check", "--data_dir", "~/photos", "--out", "~/lists"], capsys)[0] == 0
    )
    assert (home / "lists" / "manifest.csv").exists()
    status, *_ = said(compare.main, ["~/runs/folder/a", "--out", "~/curves.png"], capsys)
    assert status == 0
    assert (home / "curves.png").exists()


@pytest.mark.parametrize("name", ["plain", "-dash", "with space"])
def test_the_printed_command_resumes_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--dataset", "synthetic", "--synthetic", "16:2:32", *QUICK, "--GPU", "-1"]
    arguments += ["--imageSize", "32", "--cropSize", "32"]
    main.main([*arguments, f"--expDir=-runs {name}", f"--expID={name}"])
    options = opts.parse([*arguments, f"--expDir=-runs {name}", f"--expID={name}"])
    words = shlex.split(options.resume_command)
    assert words[:2] == ["python", str(ROOT / "main.py")]
    result = subprocess.run([sys.executable, *words[1:]], cwd="/", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "this run has finished its 1 epochs" in result.stdout


@pytest.mark.parametrize(
    "words",
    [["--expDir", "a\nb"], ["--expID", "a\nb"], ["--expID", "a\x1b[31m"], ["--expDir", ""]],
)
def test_names_that_no_line_could_hold_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = said(main.main, ["--dataset", "mnist", *words], capsys)
    assert status == 2
    assert error.count("\n") == 1
    assert "\x1b" not in error


def test_ranks_resume_by_the_command_that_starts_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    command = opts.parse(["--dataset", "mnist"]).resume_command
    assert command.startswith(f"torchrun --nproc-per-node 2 {ROOT / 'main.py'} --dataset mnist")


def test_an_empty_or_wrong_environment_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    arguments = ["--dataset", "synthetic", "--synthetic", "16:2:32", *QUICK, "--GPU", "-1"]
    arguments += ["--imageSize", "32", "--cropSize", "32", "--expDir", str(tmp_path)]
    assert said(main.main, arguments, capsys)[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "two")
    status, _, error = said(main.main, arguments, capsys)
    assert (status, error.count("\n")) == (2, 1)
    assert "WORLD_SIZE is 'two'" in error


def test_a_temporary_folder_of_any_length_does(tmp_path: Path) -> None:
    """The workers' sockets lie in it, whose paths have 108 bytes at most."""
    images = make_images(tmp_path / "d", 12)
    deep = tmp_path / ("long" * 20) / ("longer" * 20)
    deep.mkdir(parents=True)
    sizes = ["--dataset", "folder", "--imageSize", "24", "--cropSize", "20", "--GPU", "-1"]
    options = [*sizes, *QUICK, "--data_dir", str(images), "--expDir", str(tmp_path / "r")]
    for program in (
        ["main.py", *options, "--nThreads", "2"],
        ["prepare.py", "check", "--data_dir", str(images), "--nThreads", "2"],
    ):
        result = subprocess.run(
            [sys.executable, *program],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(deep)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
    assert list(deep.iterdir()) == []


def test_a_file_that_may_not_be_read_is_no_failed_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "d", 12)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(images / "train"))

    monkeypatch.setattr(main, "train", forbidden)
    arguments = [*on_folder(images), *QUICK, "--expDir", str(tmp_path)]
    status, _, error = said(main.main, arguments, capsys)
    assert status == 1
    assert f"{images / 'train'}: Permission denied; resume with" in error
    assert "cannot write" not in error


def test_lists_of_any_system_are_predicted(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = sorted((trained / "d" / "val").rglob("*.jpg"))[:3]
    text = "\ufeff" + "\r\n".join([str(paths[0]), "", str(paths[1]), "   ", str(paths[2])]) + "\r\n"
    (tmp_path / "list").write_text(text, newline="")
    weights = str(trained / "runs" / "folder" / "r" / "best.pt")
    with (tmp_path / "list").open(newline="") as file:
        monkeypatch.setattr(sys, "stdin", file)
        status, output, error = said(predict.main, [weights, "-"], capsys)
    assert (status, error) == (0, "")
    assert [line.split(": ")[0] for line in output.splitlines()] == [str(path) for path in paths]


def test_predicting_nothing_is_an_error_and_targets_are_checked_first(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(trained / "runs" / "folder" / "r" / "best.pt")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.heic").write_bytes(b"x")
    status, _, error = said(predict.main, [weights, str(tmp_path / "none")], capsys)
    assert status == 2
    assert "has no image (.jpg" in error
    assert "left out: 1 .heic" in error
    photo = str(next((trained / "d" / "val").rglob("*.jpg")))
    before = Path(weights).read_bytes()
    for option in ("--csv", "--sheet"):
        for target in (str(tmp_path), str(tmp_path / "x" / "y"), weights):
            status, output, error = said(predict.main, [weights, photo, option, target], capsys)
            assert (status, output, error.count("\n")) == (2, "", 1)
    assert Path(weights).read_bytes() == before


@pytest.mark.parametrize("kind", ["folders", "heic", "classes", "test"])
def test_a_side_without_an_image_to_test_on_is_refused_before_training(
    kind: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, more = make_images(tmp_path / "d", 12), []
    for path in (images / "val").rglob("*.jpg"):
        if kind != "classes" or path.parent.name != "class 2":
            path.unlink()
            if kind == "heic":
                path.with_suffix(".heic").write_bytes(b"x")
    if kind == "classes":
        more = ["--classes", "class 0,class 1"]
    if kind == "test":
        weights = str(trained / "runs" / "folder" / "r" / "best.pt")
        more = ["--test", "--retrain", weights, "--part", "val"]
    command = [*on_folder(images, *more), "--netType", "alexnetbn", "--nEpochs", "1"]
    status, output, error = said(main.main, [*command, "--expDir", str(tmp_path / "r")], capsys)
    assert (status, error.count("\n")) == (2, 1)
    assert "no image" in error
    assert "finished" not in output
    assert not list((tmp_path / "r").glob("folder/alexnetbn*"))


@pytest.mark.parametrize("kind", ["onnx", "pt2", "safetensors"])
def test_an_export_never_costs_its_source(
    kind: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import export

    weights = tmp_path / "best.pt"
    weights.write_bytes((trained / "runs" / "folder" / "r" / "best.pt").read_bytes())
    (tmp_path / "link.pt").symlink_to(weights)
    before = weights.read_bytes()
    for target in (str(weights), str(tmp_path / "link.pt"), ".", str(tmp_path), "/dev/null"):
        status, _, error = said(export.main, [str(weights), "--to", kind, target], capsys)
        assert (status, error.count("\n")) == (2, 1), (target, error)
    assert weights.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "link.pt"}


def test_tables_are_of_the_best_epoch_and_say_so(trained: Path, tmp_path: Path) -> None:
    images = trained / "d"
    options = [*on_folder(images), "--batchSize", "8", "--nEpochs", "4", "--LR", "0.02"]
    main.main([*options, "--expDir", str(tmp_path), "--expID", "r"])
    run = tmp_path / "folder" / "r"
    record = archive.read(run / "best.pt")["record"]
    rows = list(csv.DictReader((run / "classes.csv").read_text().splitlines()))
    assert {row["epoch"] for row in rows} == {str(record["epoch"])}
    recalls = [float(row["recall"]) * int(row["images"]) for row in rows]
    right = sum(recalls) / sum(int(row["images"]) for row in rows)
    assert right == pytest.approx(record["test_top1"], abs=0.1)
    confusion = list(csv.reader((run / "confusion.csv").read_text().splitlines()))
    assert confusion[0][0] == f"true class, epoch {record['epoch']}"
    counts = np.array([row[1:] for row in confusion[1:]], int)
    assert 100 * counts.trace() / counts.sum() == pytest.approx(record["test_top1"])


def test_a_resumed_run_says_what_changed_among_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "d", 24)
    options = [*on_folder(images), *QUICK, "--expDir", str(tmp_path), "--expID", "r"]
    main.main(options)
    more = ["--dataset", "folder", "--expDir", str(tmp_path), "--expID", "r", "--continue"]
    capsys.readouterr()
    main.main([*more, "--nEpochs", "2"])
    assert "not bit for bit: nEpochs" in capsys.readouterr().out
    moved = sorted((images / "train" / "class 0").iterdir())[:2]
    for path in moved:
        path.rename(images / "train" / "class 1" / path.name)
    Image.new("RGB", (30, 24)).save(images / "train" / "class 2" / "new.png")
    main.main([*more, "--nEpochs", "3"])
    output = capsys.readouterr().out
    assert "1 images added, 2 with another class" in output
    main.main([*more, "--nEpochs", "3"])
    output = capsys.readouterr().out
    assert "images added" not in output
    assert "bit-for-bit identical" in output


def test_runs_tested_on_other_images_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "d", 24)
    options = [*on_folder(images), *QUICK, "--expDir", str(tmp_path)]
    for run in ("a", "b"):
        main.main([*options, "--expID", run])
    Image.new("RGB", (30, 24)).save(images / "val" / "class 0" / "new.png")
    main.main([*options, "--expID", "c"])
    runs = [str(tmp_path / "folder" / run) for run in "abc"]
    out = ["--out", str(tmp_path / "c.png")]
    assert "other images" not in said(compare.main, [*runs[:2], *out], capsys)[1]
    output = said(compare.main, [*runs, *out], capsys)[1]
    assert "tested on other images than a: c;" in output


def test_mean_and_deviation_follow_files_that_are_replaced(tmp_path: Path) -> None:
    """In place, under the same names: the folder's own time stays."""

    def solid(level: int) -> None:
        for part in ("train", "val"):
            for name in ("cat", "dog"):
                folder = tmp_path / "d" / part / name
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(4):
                    pixels = np.full((24, 24, 3), level + number, np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")

    def mean(run: str) -> float:
        arguments = [*on_folder(tmp_path / "d"), *QUICK, "--expDir", str(tmp_path), "--expID", run]
        main.main(arguments)
        weights = archive.read(tmp_path / "folder" / run / "best.pt")
        return 255 * weights["network"]["normalise.mean"][0].item()

    solid(20)
    assert mean("dark") == pytest.approx(21.5, abs=0.01)
    solid(200)
    assert mean("bright") == pytest.approx(201.5, abs=0.01)


@pytest.mark.parametrize(
    "spoilt",
    ["[]", "{", '{"KEY": {"mean": [0.5, 0.5, 0.5], "std": [1e-300, 0.1, 0.1]}}', "[" * 99_999],
)
def test_a_spoilt_cache_of_statistics_is_made_anew(spoilt: str, tmp_path: Path) -> None:
    import utils

    ours = utils.load_ours("statistics")
    path = tmp_path / "statistics.json"
    path.write_text(spoilt.replace("KEY", "k"))
    whole = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    assert ours.cached(str(path), "k", lambda: whole) == whole
    assert json.loads(path.read_text())["k"] == {"mean": whole[0], "std": whole[1]}
    assert ours.cached(str(path), "k", lambda: 1 / 0) == whole


def test_a_header_names_what_is_left_out_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "d", 12)
    (images / "train" / "class 0" / "a.heic").write_bytes(b"x")
    (images / "val" / "class 0" / "Thumbs.db").write_bytes(b"x")
    (images / "train" / "class 0" / "@eaDir").mkdir()
    make_images(images / "raw", 3)
    arguments = [*on_folder(images), *QUICK, "--expDir", str(tmp_path)]
    output = said(main.main, arguments, capsys)[1]
    assert "left out  1 .db, 1 .heic, 1 @eaDir/" in output
    assert "beside    raw/: images that are not read" in output
    output = said(prepare.main, ["info", "--data_dir", str(images)], capsys)[1]
    assert "left out: 1 .heic, 1 @eaDir/" in output
    assert "raw/: images that are not read" in output


def test_check_names_bad_images_and_works_on_read_only_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "d", 12)
    bad = images / "train" / "class 0" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    arguments = [*on_folder(images), *QUICK, "--expDir", str(tmp_path / "r")]
    status, _, error = said(main.main, arguments, capsys)
    assert status == 2
    assert str(bad) in error
    assert "prepare.py check" in error
    lists = tmp_path / "lists"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != images and access(path, mode))
    status, _, error = said(prepare.main, ["check", "--data_dir", str(images)], capsys)
    assert status == 2
    assert "read-only for this user: name a folder for the lists with --out" in error
    check = ["check", "--data_dir", str(images), "--out", str(lists)]
    status, _, error = said(prepare.main, check, capsys)
    assert status == 1
    assert "bad: train/class 0/0.jpg: " in error
    assert "train/class 0/0.jpg" in (lists / "bad_images.csv").read_text()
    assert not (images / "manifest.csv").exists()


def test_predictions_are_summed_up_on_a_terminal_alone(trained: Path) -> None:
    weights = str(trained / "runs" / "folder" / "r" / "best.pt")
    command = [sys.executable, str(ROOT / "predict.py"), weights, str(trained / "d" / "val")]
    piped = subprocess.run(command, capture_output=True, text=True)
    assert (piped.returncode, piped.stderr) == (0, "")
    ours, terminal = os.openpty()
    with os.fdopen(ours, "rb") as screen:
        child = subprocess.Popen(command, stdout=terminal)
        os.close(terminal)
        shown = b""
        # The terminal's end is an error when its last user has left it.
        with contextlib.suppress(OSError):
            while part := screen.read1():
                shown += part
        assert child.wait() == 0
    lines = shown.decode().replace("\r\n", "\n")
    assert lines.startswith(piped.stdout)
    table = lines.removeprefix(piped.stdout).strip().splitlines()
    assert table[0].split() == ["class", "images", "mean", "probability"]
    counted = sum(int(row.rsplit(maxsplit=3)[1]) for row in table[1:])
    assert counted == len(piped.stdout.splitlines())
