"""What a program did not write it neither replaces nor removes."""

import shutil
from pathlib import Path

import pytest
import rig
from rig import make_images, on_folder

import compare
import export
import main
import opts
import predict
import prepare
from base import archive
from base.errors import Failed, clear_errors
from run import checkpoint


def refused(run, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:  # type: ignore[no-untyped-def]
    """Run a program that must refuse; return its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, clear_errors(opts.WAYS_OUT):
        run(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    rig.finish(rig.options(place, "--keep", "6"))
    return rig.run_folder(place)


def test_good_checkpoints_outlive_damaged_newer_ones(run: Path, tmp_path: Path) -> None:
    """The damaged ones have higher numbers: the new ones must not be removed for them."""
    shutil.copytree(run.parents[1], tmp_path / "r")
    folder = rig.run_folder(tmp_path / "r") / "checkpoints"
    for path in checkpoint.steps(folder)[-2:]:
        path.write_bytes(path.read_bytes()[:-1000])
    rig.finish(rig.options(tmp_path / "r", "--keep", "2", "--continue", "--limit", "64"))
    found = checkpoint.newest(folder)
    assert found is not None
    assert found.progress.epoch == 3


def test_lists_of_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "d", 12)
    for name in ("bad_images.csv", "manifest.csv"):
        (images / name).write_text("id,label\n1,cat\n")
        said = refused(prepare.main, ["check", "--data_dir", str(images)], capsys)
        assert f"{name} is not of this program" in said
        assert (images / name).read_text() == "id,label\n1,cat\n"
        prepare.main(["info", "--data_dir", str(images)])
        (images / name).unlink()
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "bad_images.csv").write_text("mine\n")
    shrink = ["shrink", "--data_dir", str(images), "--out", str(tmp_path / "small")]
    assert "is not of this program" in refused(prepare.main, shrink, capsys)
    assert (tmp_path / "small" / "bad_images.csv").read_text() == "mine\n"
    # Its own are renewed.
    for _ in range(2):
        prepare.main(["check", "--data_dir", str(images), "--nThreads", "0"])


def test_pictures_that_are_read_are_not_written_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "d", 12)
    photo = next((images / "val").rglob("*.jpg"))
    before, weights = photo.read_bytes(), str(run / "best.pt")
    for call in (
        [weights, str(photo), "--csv", str(photo)],
        [weights, str(images / "val"), "--sheet", str(photo)],
        [weights, str(photo), "--csv", str(tmp_path / "x"), "--sheet", str(tmp_path / "x")],
    ):
        refused(predict.main, call, capsys)
    assert photo.read_bytes() == before
    log = (run / "log.jsonl").read_bytes()
    refused(compare.main, [str(run), "--out", str(run / "log.jsonl")], capsys)
    assert (run / "log.jsonl").read_bytes() == log


def test_a_refused_call_removes_no_folder_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "d", 12)
    mine = tmp_path / "mine" / "folder"
    mine.mkdir(parents=True)
    arguments = [*on_folder(images / "val"), "--expDir", str(tmp_path / "mine"), "--expID", "z"]
    refused(main.main, arguments, capsys)
    assert mine.is_dir()
    assert list(mine.iterdir()) == []


def test_an_export_that_gives_no_numbers_is_not_kept(run: Path, tmp_path: Path) -> None:
    value = archive.read(run / "best.pt")
    network = value["network"]
    # Finite weights whose logits overflow: the largest difference is NaN, which is not 0.
    name = next(name for name in reversed(network) if name.endswith("weight"))
    network[name].fill_(3e38)
    archive.write(tmp_path / "best.pt", value)
    with pytest.raises(Failed, match="differ by nan"):
        export.export(str(tmp_path / "best.pt"), "safetensors", tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
