"""What a run must survive: changed, bad and hostile files, links, caps, odd names, lost reading processes."""

import csv
import json
import multiprocessing
import os
import queue
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_images
import mutations
import numpy as np
import payloads
import pytest
import rig
import soak
import torch
import worker_deaths
from PIL import Image

import main
from datasets import decode
from datasets.images import Limits
from loading.deaths import WorkerWatch
from loading.plan import Plan
from loading.workers import Reader, Task
from transforms import Pipeline


@pytest.fixture(autouse=True)
def _own_signals():
    """The campaigns set handlers for children; give back what was there."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_changed_files_are_read_or_refused_by_name() -> None:
    result = mutations.run(1400)
    assert result["failures"] == 0, result


def test_attacks_are_refused() -> None:
    result = payloads.run()
    assert result["refused"] == result["trials"] >= 100
    assert result["canary_touched"] == 0
    assert result["slowest_seconds"] < payloads.SECONDS


def test_bad_images_are_named_counted_and_never_replaced() -> None:
    result = bad_images.run(2)
    assert {result.pop("trials")} == set(result.values())


def test_a_lost_reading_process_is_named_and_the_run_saved() -> None:
    result = worker_deaths.run(6)
    assert result["named_in_time"] >= 5, result  # by the clock, on machines that are busy
    assert result["saved"] == 6
    assert result["equal"] == 1
    assert result["orphans"] == result["left_in_shared_memory"] == 0


PIPE = multiprocessing.Pipe()  # kept open: nothing ever comes through it
WAITS = {
    "queue": lambda: queue.Queue().get(timeout=9),
    "pipe": PIPE[0].recv,
    "poll": lambda: PIPE[0].poll(9),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_death_is_raised_wherever_a_batch_is_awaited(wait: Callable[[], Any]) -> None:
    """Beside a GPU that is a queue, which the thread that pins memory fills."""

    def tell(*_: Any) -> None:
        raise RuntimeError("DataLoader worker is killed")

    def await_a_batch() -> None:
        with deaths.guard(60):
            deaths.pending = True
            wait()

    deaths = WorkerWatch(tell)
    before = signal.signal(signal.SIGALRM, deaths._on_alarm)
    try:
        with pytest.raises(RuntimeError, match="is killed"):
            await_a_batch()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_memory_files_and_threads_stay() -> None:
    result = soak.run(10)
    assert result["ended_well"]
    assert result["MiB_per_1000_images"] < 1
    assert result["MiB_per_1000_decodes"] < 1
    assert result["more_files"] <= 8  # batches under way are files too
    assert (
        result["more_threads"] == result["files_left_open"] == result["left_in_shared_memory"] == 0
    )


def reasons(root: Path, limits: Limits) -> list[str]:
    images = open_folder(str(root), "train")
    images.limits = limits
    return [
        reason
        for _, _, reason in Reader(
            images, Pipeline([], 16, 16), Plan(len(images), len(images)), finishes=True
        )[Task(0, 0)][2]
    ]


def test_caps_and_links_have_options(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "set" / "train" / label).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "set" / "train" / label / "0.png")
    (tmp_path / "outside.png").write_bytes(
        (tmp_path / "set" / "train" / "a" / "0.png").read_bytes()
    )
    (tmp_path / "set" / "train" / "a" / "1.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "set" / "train" / "a" / "2.png").symlink_to("0.png")
    (tmp_path / "set" / "val" / "a").mkdir(parents=True)
    (tmp_path / "set" / "val" / "a" / "3.png").write_bytes((tmp_path / "outside.png").read_bytes())
    (tmp_path / "set" / "train" / "b" / "3.png").symlink_to("../../val/a/3.png")
    (tmp_path / "set elsewhere" / "c").mkdir(parents=True)
    (tmp_path / "set elsewhere" / "c" / "4.png").write_bytes(
        (tmp_path / "outside.png").read_bytes()
    )
    (tmp_path / "set" / "train" / "c").symlink_to(tmp_path / "set elsewhere" / "c")
    assert reasons(tmp_path / "set", Limits(links=True)) == []
    refused = reasons(tmp_path / "set", Limits())
    assert len(refused) == 2
    assert all("--followLinks" in reason for reason in refused)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert len(reasons(tmp_path / "link", Limits())) == 2
    assert all(
        "--maxMegapixels" in reason
        for reason in reasons(tmp_path / "set", Limits(links=True, pixels=1199))
    )
    assert all(
        "--maxMegabytes" in reason
        for reason in reasons(tmp_path / "set", Limits(links=True, bytes=20))
    )
    assert decode.MAX_PIXELS == 200_000_000


NAMES = [
    "new\nline",
    "tab\tand \x1b[31mred",
    'comma, "quote"',
    "\u202eback",
    "x" * 250,
    os.fsdecode(b"\xff\xfe"),
]


def test_odd_names_come_through_and_never_raw_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    noise = np.random.default_rng(1)
    for part in ("train", "val"):
        for name in NAMES:
            path = tmp_path / "set" / part / name / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(noise.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    main.main(
        rig.image_options(
            tmp_path / "runs",
            tmp_path / "set",
            "--nEpochs",
            "1",
            "--nThreads",
            "0",
            "--batchSize",
            "4",
        )
    )
    run = tmp_path / "runs" / "folder" / "tiny"
    printed = "".join(capsys.readouterr())
    assert not set(printed) & {"\x1b", "\u202e"}
    with (run / "classes.csv").open(newline="", errors="surrogateescape") as file:
        assert len(list(csv.DictReader(file))) == len(NAMES)
    stored = torch.load(run / "best.pt", weights_only=True)["model"]
    assert json.dumps(sorted(stored["classes"])) == json.dumps(sorted(NAMES))


def test_weights_are_only_data_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"network": payloads.Call(os.mkdir, str(tmp_path / "touched"))}, tmp_path / "bad.pt")
    with pytest.raises(payloads.archive.Damaged):
        payloads.archive.read(tmp_path / "bad.pt")
    assert not (tmp_path / "touched").exists()
    assert (
        resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    )  # the limits were the children's alone
