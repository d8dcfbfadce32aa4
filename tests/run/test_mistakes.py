"""Mistakes that people make with runs: each is one line, and nothing that was trained is lost by
it.
"""

import json
import shutil
from pathlib import Path

import pytest
import rig

import main
import opts
from base.errors import clear_errors
from run import checkpoint


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop, clear_errors(opts.WAYS_OUT):
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
    said = refused([*again, "--synthetic", "200:5:20"], capsys)
    assert "has classes 4, not 5, with pattern 4:" in said
    assert (rig.run_folder(finished) / "options.json").read_text() == before
    assert "resuming from" in rig.finish(again)


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
    assert found.path.name == "step-13.pt"


def test_other_batches_in_the_middle_of_an_epoch_begin_it_anew(tmp_path: Path) -> None:
    child = rig.Child(rig.options(tmp_path, "--nEpochs", "9", "--saveEvery", "1"))
    while child.alive() and child.steps < 5:
        pass
    child.kill(15)
    assert child.wait() == 143
    said = rig.finish(rig.options(tmp_path, "--continue", "--nEpochs", "9", "--batchSize", "40"))
    newest = checkpoint.newest(rig.run_folder(tmp_path) / "checkpoints")
    assert newest is not None
    assert newest.progress.epoch == 9
    assert "is restarted" in said or "epoch 2, step 13" in said


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


def test_a_stored_option_of_another_kind_is_named(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rig.run_folder(finished) / "options.json"
    stored = json.loads(path.read_text())
    # A path that is none, and is given again.
    stored["options"]["expDir"] = 5
    path.write_text(json.dumps(stored))
    assert "resuming from" in rig.finish(rig.options(finished, "--continue"))
    # Who typed nothing of it hears where it stands.
    stored["options"] |= {"expDir": str(finished), "labelSmoothing": 1.0}
    path.write_text(json.dumps(stored))
    said = refused(rig.options(finished, "--continue"), capsys)
    assert "--labelSmoothing: 1 is not from 0 to below 1" in said
    assert said.endswith(f"(it stands in {path})\n")


def test_a_run_that_cannot_be_looked_at_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(rig.options(tmp_path / ("a" * 300), "--continue"), capsys)
    assert said.count("\n") == 1
    assert "File name too long" in said


@pytest.mark.parametrize("more", [["--optimizer", "adamw"], ["--retrain", "other.pt"]])
def test_an_option_that_cannot_join_a_run_costs_no_run(
    more: list[str], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(rig.options(finished, "--continue", "--nEpochs", "2", *more), capsys)
    assert more[0] in said
    assert "--overwrite" not in said
    assert "or name another --expID" in said
    # What it began with, given again, is no change.
    assert "resuming from" in rig.finish(rig.options(finished, "--continue", "--nEpochs", "2"))


def test_parts_that_are_too_small_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "synthetic", "--synthetic", "32:4:24", "--netType", "alexnetbn"]
    words += ["--cropSize", "20", "--GPU", "-1", "--expDir", str(tmp_path)]
    said = refused([*words, "--batchSize", "8", "--accumulate", "100"], capsys)
    assert "--batchSize 8 in 100 parts" in said
    assert said.endswith("raise it, or lower --accumulate\n")
    said = refused([*words, "--batchSize", "1"], capsys)
    assert said.endswith("in each part: raise it\n")


def test_stray_lines_in_the_log_of_steps_are_dropped(finished: Path) -> None:
    log = rig.run_folder(finished) / "full_train.log"
    whole = log.read_text()
    log.write_text(whole + "\n\nrubbish")
    rig.finish(rig.options(finished, "--continue", "--nEpochs", "1"))
    assert log.read_text() == whole


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


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rig.run_folder(finished)
    notes = run / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years of work")
    (run / ".mine.1.tmp").write_text("mine")
    assert "holds what no run wrote: .mine.1.tmp, notes" in refused(
        rig.options(finished, "--overwrite"), capsys
    )
    assert (run / "best.pt").exists()
    assert (notes / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(notes)
    (run / ".mine.1.tmp").unlink()
    left = run / "checkpoints" / ".step-9.pt.77.tmp"
    left.write_text("half")
    rig.finish(rig.options(finished, "--overwrite", "--nEpochs", "1"))
    assert not left.exists()
    assert not list(run.glob("model_2.pt"))


def test_checkpoints_through_a_link_are_refused_and_stay(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rig.run_folder(finished)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / "checkpoints", elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    assert "holds what no run wrote: checkpoints" in refused(
        rig.options(finished, "--overwrite"), capsys
    )
    assert list(elsewhere.glob("step-*.pt"))


def test_weights_without_their_options_are_a_run_too(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rig.run_folder(finished)
    (run / "options.json").unlink()
    assert "already holds a run" in refused(rig.options(finished, "--nEpochs", "1"), capsys)
    assert list(run.glob("checkpoints/step-*.pt"))
