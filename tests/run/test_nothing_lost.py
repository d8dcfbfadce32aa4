"""Whatever happens to a run's folder, its disk or its terminal, what was trained is somewhere."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import rig

from base import archive
from run.checkpoint import Saver, newest, steps


def until(reached: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


def slowed() -> None:
    """Make each step of a run last 20 ms."""
    from run.run import Run

    after_step = Run.after_step

    def slower(self: Run, sums: object) -> None:
        time.sleep(0.02)
        after_step(self, sums)  # type: ignore[arg-type]

    Run.after_step = slower  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM]
)
def test_a_closed_terminal_and_a_scheduler_s_warnings_save(
    number: signal.Signals, tmp_path: Path
) -> None:
    def before() -> None:
        slowed()
        # Whoever runs these tests in the background may ignore it.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    child = rig.Child(rig.options(tmp_path, "--saveEvery", "10m"), before=before)
    until(lambda: child.steps >= 4)
    child.kill(number)
    assert child.wait() == 128 + number
    assert f"stopped by {number.name} at step" in child.text()
    saved = newest(rig.run_folder(tmp_path) / "checkpoints")
    assert saved is not None
    assert saved.progress.step >= 4


def test_a_run_under_nohup_goes_on(tmp_path: Path) -> None:
    def ignored() -> None:
        slowed()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    child = rig.Child(rig.options(tmp_path, "--nEpochs", "1"), before=ignored)
    until(lambda: child.steps >= 4)
    child.kill(signal.SIGHUP)
    assert child.wait() == 0


@pytest.mark.parametrize("how", ["moved", "removed", "all removed", "lock removed", "taken"])
def test_a_run_whose_folder_is_lost_saves_beside_it(how: str, tmp_path: Path) -> None:
    child = rig.Child(rig.options(tmp_path, "--nEpochs", "3"), before=slowed)
    until(lambda: child.finished_save >= 5)
    folder = rig.run_folder(tmp_path)
    if how == "moved":
        folder.rename(tmp_path / "elsewhere")
    elif how == "removed":
        shutil.rmtree(folder)
    elif how == "all removed":
        # As by someone who cleans up a disk.
        shutil.rmtree(folder.parent)
    else:
        (folder / "lock").unlink()
    second = rig.Child(rig.options(tmp_path, "--continue")) if how == "taken" else None
    assert child.wait() == 1
    rescued = folder.with_name("tiny-rescued")
    assert f"is saved in {rescued}; resume with: python" in child.text().replace("\n", " ")
    assert child.text().count("was removed, moved or taken") == 1
    assert "Traceback" not in child.text()
    saved = newest(rescued / "checkpoints")
    assert saved is not None
    assert saved.progress.step >= 5
    assert json.loads((rescued / "options.json").read_text())["options"]["nEpochs"] == 3
    if second is not None:
        assert second.wait() == 0
    rig.finish([*rig.options(tmp_path, "--continue"), "--expID", "tiny-rescued"])


def failing(names: str, first: int = 1) -> Callable[[], None]:
    """Make the disk full for files whose name has this in it, from the first such write on."""

    def before() -> None:
        write, count = archive.write, [0]

        def full(path: Path, value: object) -> None:
            if names in path.name:
                count[0] += 1
                if count[0] >= first:
                    raise OSError(28, os.strerror(28), str(path))
            write(path, value)

        archive.write = full

    return before


def test_a_run_whose_last_save_fails_does_not_end_well(tmp_path: Path) -> None:
    more = ["--nEpochs", "2", "--saveEvery", "10m"]
    child = rig.Child(rig.options(tmp_path, *more), before=failing("model_2"))
    assert child.wait() == 1
    assert "what was trained since is lost; " in child.text()
    left = steps(rig.run_folder(tmp_path) / "checkpoints")
    assert f"{left[-1]} is intact" in child.text()
    assert "best test top-1" not in child.text()


def test_best_pt_is_of_the_epoch_that_the_summary_names(tmp_path: Path) -> None:
    """Also where a better one could not be written."""
    more = ["--nEpochs", "6", "--saveEvery", "10m", "--snapshot", "0"]
    child = rig.Child(rig.options(tmp_path, *more), before=failing("best", 2))
    child.wait()
    run = rig.run_folder(tmp_path)
    record = archive.read(run / "best.pt")["record"]
    said = child.text()
    if "best test top-1" in said:
        assert f"best test top-1 {record['test_top1']:.2f} % in epoch {record['epoch']}:" in said
    assert "training continues" in said or "failed twice in a row" in said


def test_no_checkpoint_is_called_whole_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = Saver(tmp_path / "none")
    (tmp_path / "none" / "step-1.pt").mkdir(parents=True)
    saver.save(1, {"a": 1})
    saver.join()
    saver.report()
    assert "training continues; no checkpoint was saved before" in capsys.readouterr().err


def test_a_stop_that_cannot_save_says_so(tmp_path: Path) -> None:
    def before() -> None:
        slowed()
        failing("step-")()

    child = rig.Child(rig.options(tmp_path, "--saveEvery", "10m"), before=before)
    until(lambda: child.steps >= 3)
    child.kill(signal.SIGTERM)
    assert child.wait() == 1
    assert "saved; resume with" not in child.text()
    assert "no checkpoint was saved before" in child.text()


def test_a_readers_server_outlives_a_signal_to_the_group(tmp_path: Path) -> None:
    """By default they are forked from it: a scheduler signals all processes of a job."""
    images = rig.make_images(tmp_path / "d", 96)
    options = rig.image_options(tmp_path / "runs", images, "--nThreads", "2", "--timeout", "30")
    child = rig.Child([*options, "--nEpochs", "50"], before=slowed)
    until(lambda: child.steps >= 7)
    started = time.monotonic()
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait(20) == 143
    assert time.monotonic() - started < 8
    assert "stopped by SIGTERM" in child.text()


def test_a_killed_idle_reader_is_missed_at_once(tmp_path: Path) -> None:
    """Under the default start method it is no child of the run: no signal tells of its death."""
    images = rig.make_images(tmp_path / "d", 96)
    options = rig.image_options(tmp_path / "runs", images, "--nThreads", "2", "--timeout", "30")
    child = rig.Child([*options, "--nEpochs", "50"], before=slowed)
    until(lambda: child.steps >= 7)
    readers = rig.readers(child.pid)
    assert readers
    started = time.monotonic()
    os.kill(readers[-1], signal.SIGKILL)
    assert child.wait(25) == 1
    assert time.monotonic() - started < 10
    assert "a loader worker died" in child.text()
    assert "is saved, resume with" in child.text()


def test_an_epoch_over_other_images_is_begun_anew(tmp_path: Path) -> None:
    """Stopped in the middle of it: the batches that are left would be others."""
    images = rig.make_images(tmp_path / "d", 96)
    options = rig.image_options(tmp_path / "runs", images, "--nThreads", "0", "--nEpochs", "2")
    child = rig.Child(options, before=slowed)
    until(lambda: child.steps >= 3)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    (images / "train" / "class 0" / "new.jpg").write_bytes(
        next((images / "train" / "class 0").glob("*.jpg")).read_bytes()
    )
    said = rig.finish([*options, "--continue"])
    assert "other batches than before: this epoch is restarted" in said
    assert "epoch 1, step" in said
    assert "not bit for bit: 1 images added" in said
