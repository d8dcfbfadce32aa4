"""When a run ends before its last epoch."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import rig

from run import checkpoint
from training.stopping import Stopping


@dataclass
class Epoch:
    test_top1: float | None
    test_loss: float | None = 1.0
    seconds: float = 60.0


def after(top1: list[float | None], stopping: Stopping) -> int:
    """Return the epoch after which a run with these results ends, 0 for none."""
    history = [Epoch(value) for value in top1]
    ends = [n for n in range(1, len(history) + 1) if stopping.reason(history[:n])]
    return ends[0] if ends else 0


def test_patience_counts_epochs_since_the_best() -> None:
    patient = Stopping.parse("3", None)
    assert after([50, 60, 55, 60, 59], patient) == 5
    assert after([50, 60, 55, 61, 59], patient) == 0
    # Where nothing can be tested nothing gets better either.
    assert after([None, None, None], patient) == 3
    assert after([50, None, None, None], patient) == 4


def test_patience_of_the_loss_looks_at_the_loss() -> None:
    patient = Stopping.parse("loss:2", None)
    losses = [0.9, 0.5, 0.6, 0.5, 0.4]
    ends = [bool(patient.reason([Epoch(99, loss) for loss in losses[:n]])) for n in range(1, 6)]
    assert ends == [False, False, False, True, False]


def test_hours_end_before_the_epoch_that_would_go_beyond() -> None:
    stopping = Stopping.parse(None, 5 / 60)  # five epochs of a minute
    assert after([1, 2, 3, 4, 5, 6], stopping) == 5
    assert Stopping.parse(None, None).reason([Epoch(1)] * 1000) == ""


@pytest.mark.parametrize("text", ["0", "x", "top5:3", "loss:", "-1", "loss:1:2", ""])
def test_a_patience_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither epochs"):
        Stopping.parse(text, None)


def test_a_run_without_patience_left_ends_well_and_is_then_finished(tmp_path: Path) -> None:
    # Nothing gets better at a rate of 0.
    more = ["--LR", "0", "--weightDecay", "0", "--patience", "2", "--nEpochs", "9"]
    said = rig.finish(rig.options(tmp_path, *more))
    assert "ended after" in said
    assert "(--patience)" in said
    run = rig.run_folder(tmp_path)
    epochs = len((run / "log.jsonl").read_text().splitlines())
    assert 3 <= epochs < 9
    # The last epoch's weights are kept, as those of a run's last epoch are.
    assert (run / f"model_{epochs}.pt").exists()
    again = rig.finish(rig.options(tmp_path, "--continue", "--nEpochs", "9"))
    assert f"this run has ended after {epochs} epochs, no higher test top-1" in again
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None
    assert found.progress.epoch == epochs
    longer = rig.finish(rig.options(tmp_path, "--continue", "--nEpochs", "9", "--patience", "4"))
    assert "bit-for-bit identical" in longer
    assert len((run / "log.jsonl").read_text().splitlines()) == epochs + 2


def test_a_stopped_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    more = ["--patience", "2", "--nEpochs", "12", "--LR", "0.5"]
    rig.finish(rig.options(tmp_path / "whole", *more))
    child = rig.Child(rig.options(tmp_path / "stopped", *more))
    while child.alive() and child.steps < 17:
        pass
    child.kill(15)
    child.wait()
    rig.finish(rig.options(tmp_path / "stopped", "--continue", "--nEpochs", "12"))
    assert rig.fingerprint(tmp_path / "stopped") == rig.fingerprint(tmp_path / "whole")


def test_a_run_that_trains_all_its_epochs_has_not_ended_early(tmp_path: Path) -> None:
    more = ["--LR", "0", "--weightDecay", "0", "--patience", "1", "--nEpochs", "2"]
    assert "ended after" not in rig.finish(rig.options(tmp_path, *more))
    assert "has finished its 2 epochs" in rig.finish(rig.options(tmp_path, *more, "--continue"))


def test_a_run_without_time_ends_after_its_first_epoch(tmp_path: Path) -> None:
    said = rig.finish(rig.options(tmp_path, "--hours", "0"))
    assert "(--hours)" in said
    log = (rig.run_folder(tmp_path) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1]
