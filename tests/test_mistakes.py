"""Mistakes that people make with runs and files: each is one line, and nothing that was trained is lost by it."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rig
import torch
from PIL import Image

import main
import opts
from base.errors import Refused, clear_errors
from datasets import decode
from run import checkpoint


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop, clear_errors():
        main.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run of one epoch that has ended."""
    rig.finish(rig.options(tmp_path, "--nEpochs", "1"))
    return tmp_path


def test_a_wrong_continue_is_refused_and_harms_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (rig.run_folder(finished) / "options.json").read_text()
    again = rig.options(finished, "--continue", "--nEpochs", "2")
    assert "has netType tiny, not alexnetbn" in refused(
        [*again, "--netType", "alexnetbn", "--expID", "tiny"], capsys
    )
    assert "4 classes, not 5 classes" in refused([*again, "--synthetic", "200:5:20"], capsys)
    assert (rig.run_folder(finished) / "options.json").read_text() == before
    assert "continuing" in rig.finish(again)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rig.run_folder(finished)
    log = (run / "log.jsonl").read_text()
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert "--overwrite" in refused(rig.options(finished, "--continue"), capsys)
    assert (run / "log.jsonl").read_text() == log


def test_weights_among_the_checkpoints_are_passed_over(finished: Path) -> None:
    run = rig.run_folder(finished)
    shutil.copy(run / "best.pt", run / "checkpoints" / "step-99.pt")
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None
    assert found[0].name == "step-13.pt"


def test_other_batches_in_the_middle_of_an_epoch_begin_it_anew(tmp_path: Path) -> None:
    child = rig.Child(rig.options(tmp_path, "--nEpochs", "9", "--saveEvery", "1"))
    while child.alive() and child.steps < 5:
        pass
    child.kill(15)
    assert child.wait() == 143
    said = rig.finish(rig.options(tmp_path, "--continue", "--nEpochs", "9", "--batchSize", "40"))
    newest = checkpoint.newest(rig.run_folder(tmp_path) / "checkpoints")
    assert newest is not None
    assert newest[1]["progress"]["epoch"] == 9
    assert "begins anew" in said or "epoch 2, step 13" in said


def test_a_finished_run_says_so(finished: Path) -> None:
    assert "has finished its 1 epochs" in rig.finish(
        rig.options(finished, "--continue", "--nEpochs", "1")
    )


def test_weights_that_are_gone_are_not_missed_by_a_run_that_goes_on(
    finished: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    shutil.copy(rig.run_folder(finished) / "best.pt", weights)
    other = rig.options(tmp_path / "other", "--retrain", str(weights), "--nEpochs", "1")
    rig.finish(other)
    weights.unlink()
    rig.finish(rig.options(tmp_path / "other", "--continue", "--nEpochs", "2"))


@pytest.mark.parametrize(
    "content",
    ["{", '{"options": []}', '{"options": {"netType": "nope"}}', '{"options": {"batchSize": "x"}}'],
)
def test_a_spoilt_options_file_is_named(
    finished: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (rig.run_folder(finished) / "options.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        opts.parse(rig.options(finished, "--continue"))
    assert stop.value.code == 2
    assert "options.json" in capsys.readouterr().err


def test_stray_lines_in_the_log_of_steps_are_dropped(finished: Path) -> None:
    log = rig.run_folder(finished) / "full_train.log"
    whole = log.read_text()
    log.write_text(whole + "\n\nrubbish")
    rig.finish(rig.options(finished, "--continue", "--nEpochs", "1"))
    assert log.read_text() == whole


WRONG = [
    (["--GPU", "-1", "--nGPU", "2"], "the CPU is one device"),
    (["--batchSize", "1"], "--batchSize 1: alexnetbn has batch norm"),
    (["--limit", "1"], "--limit"),
    (["--freeze", "99"], "name fewer"),
    (["--synthetic", "99999999999:4:32"], "ask for fewer"),
    (["--expDir", "/proc/nothing"], "--expDir"),
    (["--expID", "a" * 300], "--expID"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_wrong_values_together_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "--dataset",
        "synthetic",
        "--synthetic",
        "16:4:20",
        "--GPU",
        "-1",
        "--nEpochs",
        "1",
        "--expDir",
        str(tmp_path),
    ]
    said = refused([*common, *arguments], capsys)
    assert words in said
    assert said.count("\n") == 1


def test_the_fine_stem_is_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--netType", "resnet18", "--stem", "fine"],
        ["--saveEvery", "²"],
        ["--freeze", "²"],
    ):
        with pytest.raises(SystemExit):
            opts.parse(arguments)
        assert arguments[-2] in capsys.readouterr().err


def test_a_palette_with_transparent_colours_is_read() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(200)))
    assert decode.pixels(buffer.getvalue()).shape == (8, 8, 3)


def test_stray_bytes_in_a_jpeg_are_passed_over_and_a_cut_one_refused(
    photographs: list[np.ndarray],
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photographs[0][:64, :64]).save(buffer, "JPEG")
    data = buffer.getvalue()
    stray = data[:-2] + b"\x01\x02\x03\x04" + data[-2:]
    assert (decode.pixels(stray) == decode.pixels(data)).all()
    with pytest.raises(ValueError):
        decode.pixels(data[: len(data) * 2 // 3])


def test_ten_crops_that_are_all_sure_of_something_else_have_a_finite_loss() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[500.0] * 3, [-500.0] * 3]))
        logarithms = main.log_probabilities(network, torch.ones(1, 5, 3, 1, 1))
    assert logarithms.isfinite().all()


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


def test_nothing_is_left_by_a_run_that_never_began(tmp_path: Path) -> None:
    child = rig.Child(
        rig.options(tmp_path), before=lambda: __import__("os").kill(__import__("os").getpid(), 15)
    )
    assert child.wait() == -15
    rig.finish(rig.options(tmp_path, "--nEpochs", "1"))
    assert (
        json.loads((rig.run_folder(tmp_path) / "options.json").read_text())["options"]["nEpochs"]
        == 1
    )


def test_a_mistake_beside_overwrite_loses_no_run(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = rig.fingerprint(finished)
    refused(rig.options(finished, "--overwrite", "--freeze", "99"), capsys)
    assert rig.fingerprint(finished) == before
    rig.finish(rig.options(finished, "--overwrite", "--nEpochs", "2"))
    assert len((rig.run_folder(finished) / "log.jsonl").read_text().splitlines()) == 2
