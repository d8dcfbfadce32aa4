"""What a pass says while it lasts, and what TensorBoard is given: by formulas."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from common import ROOT, Terminal, epoch_record
from torch import nn

from loading.workers import BadImage
from report import contact
from report.console import COLUMNS, Console
from report.events import Events
from report.record import EpochRecord
from report.report import Report
from run.watch import JUDGED_AFTER, Clock, Watch
from training.metrics import Sums


class Kept:
    """A SummaryWriter that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, torch.Tensor, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def add_image(self, tag: str, pixels: torch.Tensor, step: int, **more: Any) -> None:
        self.images.append((tag, pixels, step))


def events() -> tuple[Events, Kept]:
    made = object.__new__(Events)
    kept = Kept()
    made.writer = kept  # type: ignore[assignment]
    return made, kept


def record(step: int, **more: Any) -> EpochRecord:
    return epoch_record(**({"epoch": 1, "step": step} | more))


@pytest.mark.parametrize("count", [1, 7, 500, 501, 1000, 1001, 2600])
def test_losses_of_an_epoch_stand_at_their_steps(count: int) -> None:
    made, kept = events()
    # The third epoch of so many steps: each loss is its step.
    losses = [float(step) for step in range(2 * count + 1, 3 * count + 1)]
    made.epoch(record(3 * count), losses)
    points = [(value, step) for tag, value, step in kept.scalars if "of a step" in tag]
    assert all(value == step for value, step in points)
    stride = -(-count // 500)
    assert [step for _, step in points] == list(range(2 * count + stride, 3 * count + 1, stride))
    assert 1 <= len(points) <= 500


def test_what_was_not_measured_has_no_point() -> None:
    made, kept = events()
    made.epoch(record(9, test_top1=None, test_map=None, lr=0.25), [])
    found = {tag: (value, step) for tag, value, step in kept.scalars}
    assert found["lr"] == (0.25, 9)
    assert "test/top1" not in found
    assert "test/map" not in found
    assert "test/loss" in found


@pytest.mark.parametrize("count", [1, 3, 4, 6, 16, 40])
def test_the_first_batch_is_shown_in_rows_of_four(count: int) -> None:
    made, kept = events()
    images = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 300 - 20
    made.first_batch(images)
    ((tag, sheet, step),) = kept.images
    shown = min(count, 16)
    columns = min(4, shown)
    assert (tag, step, sheet.dtype) == ("first batch", 1, torch.uint8)
    assert sheet.shape == (3, 5 * -(-shown // 4), 5 * columns)
    wanted = images.clamp(0, 255).to(torch.uint8)
    for number in range(shown):
        top, left = 5 * (number // 4), 5 * (number % 4)
        assert torch.equal(sheet[:, top : top + 5, left : left + 5], wanted[number])
    # Nothing stands where the last row has no image.
    assert sheet.sum() == wanted[:shown].sum()


@pytest.mark.parametrize(("step", "purged"), [(0, None), (1, 2), (9, 10)])
def test_what_came_after_the_checkpoint_is_forgotten(
    step: int, purged: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils import tensorboard

    given: dict[str, Any] = {}
    monkeypatch.setattr(tensorboard, "SummaryWriter", lambda folder, **more: given.update(more))
    Events(tmp_path, step)
    assert given == {"purge_step": purged}


def test_options_and_last_metrics_stand_where_runs_are_compared(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    made = Events(tmp_path, 0)
    options = {"LR": 0.1, "netType": "alexnet", "syncBN": False, "batchSize": 8, "device": None}
    made.hyperparameters(options, record(12, test_top1=75.0, test_loss=None))
    made.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    (point,) = read.Scalars("last/test_top1")
    assert (point.step, point.value) == (12, 75.0)
    assert "last/test_loss" not in read.Tags()["scalars"]
    found = {}
    for content in (read.summary_metadata["_hparams_/session_start_info"],):
        data = HParamsPluginData.FromString(content.plugin_data.content)
        for name, value in data.session_start_info.hparams.items():
            found[name] = getattr(value, value.WhichOneof("kind"))
    assert found == {"LR": 0.1, "netType": "alexnet", "syncBN": False, "batchSize": 8}


def told(console: Console, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    return said


def watch_of(tmp_path: Path, **more: bool) -> Watch:
    return Watch(Console(tmp_path, **more), tmp_path, torch.device("cpu"))


def sums(*values: float) -> Sums:
    made = Sums(torch.device("cpu"))
    made.values.copy_(torch.tensor(values, dtype=made.values.dtype))
    return made


def test_a_line_of_a_step_says_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watch_of(tmp_path, verbose=True)
    said = told(watch.console, monkeypatch)
    watch.clock.last, watch.clock.given = 0.25, time.perf_counter() - 2
    progress: Any = SimpleNamespace(epoch=2, batch=4)
    # 40 images: a loss of 1.5, 30 of them right, 38 within five.
    watch.step(progress, sums(60, 30, 38, 40), 0.05, 16, 9, 7)
    beginning = "epoch[3/7][5/9][batch=16] - epoch so far: loss 1.5000; top-1 err 25.00 %; "
    assert said[0].startswith(f"{beginning}top-5 err 5.00 %; this step: lr 0.05; data 0.250 s; ")
    assert float(said[0].split("forward-backward ")[1].split()[0]) == pytest.approx(2, abs=0.5)
    watch.console.hidden.add("test_top5")
    watch.step(progress, sums(60, 30, 38, 40), 0.05, 16, 9, 7)
    assert "top-1 err 25.00 %; this step" in said[1]
    watch.step(progress, sums(0, 0, 0, 0), 0.05, 16, 9, 7)
    assert "loss 0.0000; skipped; this step" in said[2]


def test_sums_come_beside_the_bar_when_they_have_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watch_of(tmp_path)
    watch.console.bars = True
    shown: list[str] = []
    monkeypatch.setattr(watch.console, "beside_bar", shown.append)
    progress: Any = SimpleNamespace(epoch=0, batch=0)
    for count in (10, 20, 30):
        watch.step(progress, sums(count * 0.5, count * 0.8, count, count), 0.1, 10, 3, 1)
    # Each is shown with the step after it: on a CPU a copy is there at once.
    assert shown == ["loss 0.500, top-1 80.00 %"] * 2
    watch.console.bars = False
    watch.step(progress, sums(5, 5, 5, 5), 0.1, 10, 3, 1)
    assert len(shown) == 2


def test_a_pass_counts_the_time_it_waits_and_the_time_it_works(tmp_path: Path) -> None:
    watch = watch_of(tmp_path)

    def batches() -> Any:
        for seconds in (0.2, 0.05):
            time.sleep(seconds)
            yield SimpleNamespace(total=8)

    seen = 0
    for batch in watch.timed(batches(), "train", 16):
        time.sleep(0.1)
        seen += batch.total
    assert seen == watch.clock.images == 16
    # No more than that is the machine's own business.
    assert 0.25 <= watch.clock.data < 0.25 + 5
    assert 0.2 <= watch.clock.first < watch.clock.data
    assert watch.clock.last < 0.2 <= watch.clock.compute < 0.2 + 5
    assert watch.clock.seconds == watch.clock.data + watch.clock.compute


def test_what_a_gpu_has_yet_to_do_is_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(Console(tmp_path), tmp_path, torch.device("cuda", 1))
    waited: list[torch.device] = []

    def synchronize(device: torch.device) -> None:
        waited.append(device)
        time.sleep(0.3)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    batches: Any = [SimpleNamespace(total=8)]
    assert len(list(watch.timed(batches, "train", 8))) == 1
    assert waited == [torch.device("cuda", 1)]
    assert 0.3 <= watch.clock.compute < 0.3 + 5


def test_a_new_clock_has_counted_nothing() -> None:
    assert Clock() == Clock(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("data", "compute", "first", "is_said"),
    [
        # Of 40 s without the start, 10 % wait: said; less is not.
        (4.0, 36.0, 0.0, True),
        (3.9, 36.1, 0.0, False),
        # The start of the workers does not count, neither as waiting nor as time.
        (14.0, 36.0, 10.0, True),
        (13.9, 36.1, 10.0, False),
        (20.0, 9.0, 0.0, False),
        (20.0, 10.0, 0.0, True),
        (25.0, 10.0, 5.5, False),
    ],
)
def test_reading_that_limits_a_run_is_said_once(
    data: float,
    compute: float,
    first: float,
    is_said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert JUDGED_AFTER == 30
    watch = watch_of(tmp_path)
    said = told(watch.console, monkeypatch)
    watch.training = Clock(data=data, compute=compute, first=first)
    watch.advise()
    assert said == []
    watch.reads_files = True
    watch.advise()
    watch.advise()
    assert len(said) == is_said
    if is_said:
        share = (data - first) / (data + compute - first)
        assert f"limits this run, {share:.0%} of its time" in said[0]


@pytest.mark.parametrize("quiet", [False, True])
def test_bad_images_of_all_passes_are_listed(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watch_of(tmp_path, quiet=quiet)
    said = told(watch.console, monkeypatch)
    assert watch.left_out("training", {}) is None
    assert said == []
    assert watch.left_out("training", {3: BadImage(3, "b.jpg", "no image")}) == 1
    more = {1: BadImage(1, "a.jpg", "empty"), 3: BadImage(3, "b.jpg", "no image")}
    assert watch.left_out("the test", more) == 2
    assert said[1] == f"2 bad images were left out of the test: {tmp_path / 'bad_images.csv'}"
    assert (tmp_path / "bad_images.csv").exists() is not quiet
    if not quiet:
        text = (tmp_path / "bad_images.csv").read_text().splitlines()
        assert text == ["path,reason", "a.jpg,empty", "b.jpg,no image"]


@pytest.mark.parametrize(
    ("more", "drawn"), [({}, True), ({"quiet": True}, False), ({"verbose": True}, False)]
)
def test_bars_are_for_a_terminal(
    more: dict[str, bool], drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not Console(tmp_path, **more).bars
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    console = Console(tmp_path, **more)
    assert console.bars is drawn
    with console.bar("train", 40) as bar:
        bar.update(10)
        console.beside_bar("loss 1.250")
        bar.refresh()
    assert ("train" in terminal.getvalue()) is drawn
    assert ("loss 1.250" in terminal.getvalue()) is drawn


def test_a_table_has_one_heading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(tmp_path)
    said = told(console, monkeypatch)
    console.hidden.add("test_top5")
    first, second = record(5, train_loss=0.51234), record(10, train_loss=None, test_top1=12.5)
    console.show_epoch(first, [first])
    console.show_epoch(second, [first, second])
    headings = [name for name in COLUMNS.values() if name != "test_top5"]
    assert said[0].split() == headings
    assert [len(line) for line in said] == [len(said[0])] * 3
    rows = [dict(zip(headings, line.split(), strict=True)) for line in said[1:]]
    assert [row["train_loss"] for row in rows] == ["0.5123", "-"]
    assert [row["test_top1"] for row in rows] == ["1.00", "12.50"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_each_loss_stands_at_its_step(tmp_path: Path) -> None:
    Console(tmp_path).step_losses(1, 3, [0.3, 0.2, 0.1])
    Console(tmp_path).step_losses(2, 5, [0.1 + 0.2, float("nan")])
    Console(tmp_path, quiet=True).step_losses(3, 6, [1.0])
    rows = [line.split("\t") for line in (tmp_path / "full_train.log").read_text().splitlines()]
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "2"], ["1", "3"], ["2", "4"], ["2", "5"]]
    assert [float(row[2]) for row in rows[:4]] == [0.3, 0.2, 0.1, 0.1 + 0.2]
    assert np.isnan(float(rows[4][2]))


def test_histograms_are_of_all_weights() -> None:
    made, kept = events()
    found: dict[str, torch.Tensor] = {}
    kept.add_histogram = lambda name, value, step: found.update({name: value})  # type: ignore[attr-defined]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(torch.bfloat16)
    made.histograms(network, 7)
    assert found.keys() == dict(network.named_parameters()).keys()
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("last", [False, True])
def test_options_are_written_beside_the_last_metrics(
    last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    report = Report(tmp_path, {})
    report.events = SimpleNamespace(  # type: ignore[assignment]
        epoch=lambda *_: calls.append("epoch"),
        flush=lambda: calls.append("flush"),
        hyperparameters=lambda options, record: calls.append("hyperparameters"),
    )
    monkeypatch.setattr(report, "_draw_test_batch", lambda _: calls.append("test batch"))
    monkeypatch.setattr(report, "_draw_epoch", lambda *_, **more: calls.append(str(more)))
    tested: Any = SimpleNamespace(classes=[])
    one = record(5)
    end = {"best": False, "snapshot": False, "last": last}
    report.epoch([one], tested, [1.0], nn.Identity(), **end)
    assert calls[:3] == ["test batch", "epoch", "flush"]
    assert ("hyperparameters" in calls) is last
    # The first batches of a test are shown once.
    report.epoch([one, one], tested, [1.0], nn.Identity(), **end)
    assert calls.count("test batch") == 1


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_the_first_batch_is_drawn_as_the_network_sees_it(kind: torch.dtype, tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 40, 40), generator=draws).to(kind)
    report = Report(tmp_path, {})
    report.classes = ["cat", "dog"]
    report.first_batch(images, torch.tensor([0, 1, 1, 0, 1]))
    wanted = images.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    contact.draw(wanted, ["cat", "dog", "dog", "cat", "dog"], tmp_path / "wanted.png")
    assert (tmp_path / "first_batch.png").read_bytes() == (tmp_path / "wanted.png").read_bytes()
    Report(tmp_path / "none", {}, disabled=True).first_batch(images, torch.zeros(5))
    assert not (tmp_path / "none").exists()


NO_TENSORFLOW = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from report.events import Events
Events(Path({folder!r}), 0).writer.close()
assert "tensorflow" not in sys.modules
print("written")
"""


def test_tensorflow_is_left_alone_where_it_is_installed(tmp_path: Path) -> None:
    """One that cannot be loaded would end the run."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('no such driver')\n")
    code = NO_TENSORFLOW.format(root=str(ROOT), folder=str(tmp_path / "events"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment
    )
    assert result.stdout == "written\n", result.stderr


LOCKED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from tqdm import tqdm
from report.console import Console
Console(Path({folder!r}))
tqdm(total=1, disable=False).close()
read, write = os.pipe()
child = os.fork()
if not child:
    tqdm.get_lock().acquire()
    os.write(write, b"1")
    time.sleep(60)
os.read(read, 1)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
tqdm(total=1, disable=False).close()
print("drawn")
"""


def test_a_fork_that_was_killed_holds_no_bar_back(tmp_path: Path) -> None:
    code = LOCKED.format(root=str(ROOT), folder=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == "drawn\n", result.stderr
