"""Nothing that was trained is lost: small versions of the campaigns, and the order in which a file
reaches the disk.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import damage
import disk_full
import kill
import non_finite
import pytest
import rig
import signals
import torch
import worker_counts

from base import archive
from base.errors import Failed
from base.files import whole_file
from run import checkpoint


def test_a_killed_run_ends_with_the_weights_of_the_whole_one() -> None:
    result = kill.run(4, seed=11)
    assert result["equal"] == 4
    assert result["finished_saves_lost"] == 0


def test_workers_and_prefetching_change_no_sample_and_no_pixel() -> None:
    assert worker_counts.run(4, seed=2)["equal"] == 4


def test_a_damaged_checkpoint_is_named_and_the_one_before_used() -> None:
    result = damage.run(60, seed=3)
    assert result["silently_changed"] == 0
    assert (
        result["refused_by_name"]
        == result["fell_back"]
        == result["trials"] - result["read_unchanged"]
    )


def test_a_failed_save_leaves_the_checkpoint_before() -> None:
    result = disk_full.run(3, seed=4, root=False)
    assert result["all"] == 3


def test_sigterm_saves_in_time_and_goes_on_exactly() -> None:
    result = signals.run(1, seed=5)
    assert result["equal"] == result["saved_in_time"] == result["trials"]
    assert result["orphans"] == 0


def test_values_that_are_not_finite_reach_nothing() -> None:
    result = non_finite.run(30, seed=6)
    assert result["unchanged_bitwise"] == result["bad_steps"]
    assert result["good_steps"] == 30 - result["bad_steps"]
    assert result["third_in_a_row"] == {"status": 1, "told": True, "checkpoint_finite": True}


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.lstrip("."))
        fsync(descriptor)

    def seen_replace(source: str, target: str) -> None:
        events.append(f"rename {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    folder = tmp_path / "checkpoints"
    saver = checkpoint.Saver(folder, keep=1)
    saver.save(1, {"a": torch.ones(3)})
    saver.save(2, {"a": torch.ones(3)})
    saver.wait()
    assert events[:3] == [
        f"sync step-1.pt.{os.getpid()}.tmp",
        "rename step-1.pt",
        "sync checkpoints",
    ]
    assert [path.name for path in folder.iterdir()] == ["step-2.pt"]


def test_saving_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, disk = archive.write, threading.Event()

    def write(path: Path, value: object) -> None:
        disk.wait()
        slow(path, value)

    monkeypatch.setattr(archive, "write", write)
    saver = checkpoint.Saver(tmp_path / "c")
    weights = torch.zeros(1000)
    saver.save(1, {"weights": weights})
    assert saver.busy
    weights += 1  # training goes on; what is written is the copy
    disk.set()
    saver.wait()
    assert not archive.read(tmp_path / "c" / "step-1.pt")["weights"].any()


def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = checkpoint.Saver(tmp_path / "c")
    saver.save(1, {"network": {"w": torch.tensor([1.0, float("inf")])}})
    saver.wait()
    assert "network.w is not finite" in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / "c") == []
    saver.save(2, {"network": {"w": torch.tensor([float("nan")])}})
    with pytest.raises(Failed, match="twice in a row"):
        saver.wait()


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail(_: Path) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError), whole_file(path, check=fail) as file:
        file.write("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_that_cannot_be_read_back_never_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-1.pt"
    archive.write(path, {"a": torch.ones(3)})
    before, save = path.read_bytes(), torch.save

    def spoilt(value: object, file: BinaryIO) -> None:
        """Write as a failing disk does: one byte of the tensor is another."""
        buffer = io.BytesIO()
        save(value, buffer)
        content = bytearray(buffer.getvalue())
        content[content.index(torch.full((64,), 7.0).numpy().tobytes()) + 5] ^= 1
        file.write(content)

    monkeypatch.setattr(torch, "save", spoilt)
    with pytest.raises(archive.Damaged, match="wrong CRC"):
        archive.write(path, {"a": torch.full((64,), 7.0)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-1.pt"]


def test_odd_zips_are_refused_before_they_are_read(tmp_path: Path) -> None:
    good = tmp_path / "good.pt"
    torch.save({"a": torch.ones(4)}, good)
    with zipfile.ZipFile(good) as source:
        parts = {name: source.read(name) for name in source.namelist()}

    def packed(**how: object) -> Path:
        path = tmp_path / "odd.pt"
        with zipfile.ZipFile(path, "w", **how) as target:
            for name, content in parts.items():
                target.writestr(name, content)
        return path

    assert archive.read(packed())["a"].sum() == 4
    with pytest.raises(archive.Damaged, match="packed"):
        archive.read(packed(compression=zipfile.ZIP_DEFLATED))
    parts["archive/../../x"] = b""
    with pytest.raises(archive.Damaged, match="leads out"):
        archive.read(packed())
    (tmp_path / "text.pt").write_text("no zip")
    with pytest.raises(archive.Damaged, match=r"text\.pt"):
        archive.read(tmp_path / "text.pt")


def test_a_pickle_that_runs_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"network": Bad()}, tmp_path / "bad.pt")
    # Not by the error that a warning is in tests.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(archive.Damaged):
            archive.read(tmp_path / "bad.pt")
    assert not (tmp_path / "canary").exists()


def test_a_second_run_in_the_same_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    first = rig.Child(rig.options(tmp_path, "--nEpochs", "200"))
    while first.alive() and first.steps < 2:
        time.sleep(0.01)
    second = rig.Child(rig.options(tmp_path, "--continue"))
    assert second.wait() == 2
    assert f"process {first.pid}" in second.text()
    first.kill()
    first.wait()
    stale = rig.run_folder(tmp_path) / "checkpoints" / ".step-9.pt.1.tmp"
    stale.touch()
    third = rig.Child(rig.options(tmp_path, "--continue", "--nEpochs", "3"))
    assert third.wait() == 0, third.text()
    assert not stale.exists()


def test_sigusr1_saves_and_goes_on_and_a_second_sigint_stops_now(tmp_path: Path) -> None:
    child = rig.Child(rig.options(tmp_path, "--nEpochs", "400", "--saveEvery", "60m"))
    while child.alive() and child.steps < 2:
        time.sleep(0.002)
    child.kill(10)
    limit = time.monotonic() + 20
    checkpoints = rig.run_folder(tmp_path) / "checkpoints"
    while time.monotonic() < limit and not checkpoint.steps(checkpoints):
        time.sleep(0.002)
    assert checkpoint.steps(checkpoints)
    assert child.alive()
    child.kill(2)
    assert child.wait() in (130, -2)


def test_a_run_goes_on_within_its_epoch_unless_its_batches_are_others(tmp_path: Path) -> None:
    options = rig.options(tmp_path, "--nEpochs", "2", "--saveEvery", "1")
    child = rig.Child(options)
    while child.steps < 2:
        time.sleep(0.005)
    child.kill(signal.SIGTERM)
    child.wait()
    stopped = checkpoint.newest(rig.run_folder(tmp_path) / "checkpoints")
    assert stopped is not None
    assert stopped.progress.batch > 0
    same = tmp_path / "same"
    shutil.copytree(tmp_path / "synthetic", same / "synthetic")
    text = rig.finish(rig.options(same, "--nEpochs", "2", "--continue"))
    assert "this epoch is restarted" not in text
    text = rig.finish(rig.options(tmp_path, "--nEpochs", "2", "--continue", "--batchSize", "8"))
    assert "other batches than before: this epoch is restarted" in text


@pytest.mark.parametrize(
    ("every", "names"),
    [("0", {"model_3.pt"}), ("-1", {"model.pt"}), ("2", {"model_2.pt", "model_3.pt"})],
)
def test_weights_of_epochs_are_kept_as_asked(every: str, names: set[str], tmp_path: Path) -> None:
    rig.finish(rig.options(tmp_path, "--nEpochs", "3", "--snapshot", every))
    found = {path.name for path in rig.run_folder(tmp_path).glob("*.pt")}
    assert found - {"best.pt"} == names


def test_a_worse_epoch_after_a_resume_leaves_the_best_weights(tmp_path: Path) -> None:
    rig.finish(rig.options(tmp_path, "--nEpochs", "3"))
    best = rig.run_folder(tmp_path) / "best.pt"
    before = best.read_bytes()
    rig.finish(rig.options(tmp_path, "--continue", "--nEpochs", "4", "--LR", "3"))
    log = (best.parent / "log.jsonl").read_text().splitlines()
    top1 = [json.loads(line)["test_top1"] for line in log]
    assert top1[3] < max(top1[:3])
    assert best.read_bytes() == before


def test_an_old_checkpoint_that_cannot_be_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unlink = Path.unlink

    def stays(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".pt" and path.parent.name == "checkpoints":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stays)
    saver = checkpoint.Saver(tmp_path / "checkpoints", keep=1)
    for step in (1, 2, 3):
        saver.save(step, {"weights": torch.ones(2) * step})
        # Nothing that was trained is lost.
        saver.finish()
    places = [tmp_path / "checkpoints" / f"step-{step}.pt" for step in (1, 2, 3)]
    what = f"cannot remove {places[0]}, which --keep 1 leaves out: Permission denied"
    # Once.
    assert capfd.readouterr().err == f"{what}; {places[1]} is intact\n"
    assert all(place.exists() for place in places)


def test_options_given_anew_are_told_to_break_exactness(tmp_path: Path) -> None:
    rig.finish(rig.options(tmp_path, "--nEpochs", "1"))
    same = rig.finish(rig.options(tmp_path, "--continue", "--nEpochs", "1", "--keep", "2"))
    other = rig.finish(rig.options(tmp_path, "--continue", "--nEpochs", "2", "--batchSize", "20"))
    assert "bit-for-bit identical to an uninterrupted run" in same
    assert "not bit for bit: " in other
    assert "batchSize 16 became 20" in other


def test_a_file_system_without_inodes_says_so(tmp_path: Path) -> None:
    """Bytes are free there, and the system says "No space left on device" all the same."""
    where = tmp_path / "few names"
    where.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=4", "none", str(where)]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    try:
        assert checkpoint.room_left(where).endswith("bytes are free there")
        # The folder itself takes the fourth.
        for number in range(3):
            (where / str(number)).touch()
        with pytest.raises(OSError, match="No space left"):
            (where / "one more").touch()
        assert "no inode is free" in checkpoint.room_left(where)
    finally:
        subprocess.run(["umount", str(where)], check=True)
    assert checkpoint.room_left(tmp_path / "absent") == "nothing is free there"
