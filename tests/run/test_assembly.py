"""What a run is put together from follows its options."""

import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from common import ROOT
from rig import make_images

import data
import model
import opts
import utils
from assembly import header, images, pipelines, training
from base.errors import Interrupted, Refused
from datasets import DATASETS, PHOTOS
from run import launch
from run.checkpoint import Every, Interval
from run.folder import clear_folder, environment, holds_run, prepare_folder
from run.signals import Signals
from training.compiled import Compiled
from training.lr_range import RangeTest
from training.replicas import Replicas

FOLDER = ["--dataset", "folder", "--data_dir", "d"]


def parsed(*words: str) -> opts.Options:
    return opts.parse([*words])


def test_photographs_have_the_torch7_suite_s_sizes() -> None:
    found = {
        name: (source.imageSize, source.cropSize)
        for name, source in DATASETS.items()
        if source.augment == PHOTOS
    }
    assert set(found.values()) == {(256, 224)}
    assert {"ilsvrc2012", "folder", "table", "shards", "parquet"} <= found.keys()


@pytest.mark.parametrize("more", [[], ["--badImages", "skip"]])
def test_bad_images_are_left_out_where_that_is_asked_for(more: list[str]) -> None:
    options = parsed("--dataset", "table", "--labels", "l.csv", *more)
    assert images._image_settings(options)["skip"] is bool(more)


@pytest.mark.parametrize(
    ("words", "first", "decay"),
    [
        # The network's own decay, and its own highest rate.
        (["--dataset", "mnist"], 0.05, 5e-4),
        (["--dataset", "mnist", "--netType", "alexnet"], 0.01, 5e-4),
        (["--dataset", "mnist", "--netType", "vgg13bn"], 0.002, 5e-4),
        (["--dataset", "mnist", "--optimizer", "adamw"], 1e-3, 0.05),
        (["--dataset", "mnist", "--optimizer", "adamw", "--weightDecay", "0.2"], 1e-3, 0.2),
        (["--dataset", "mnist", "--optimizer", "adamw", "--weightDecay", "0"], 1e-3, 0.0),
    ],
)
def test_a_schedule_begins_with_the_network_s_or_adamw_s_own(
    words: list[str], first: float, decay: float
) -> None:
    plan = training.schedule_of(parsed(*words))
    rates = [plan.at(number / 200)[0] for number in range(200)]
    assert max(rates) == pytest.approx(first, rel=0.01)
    assert plan.at(0.1)[1] == pytest.approx(decay)


@pytest.mark.parametrize("first", [True, False])
def test_one_rank_writes_a_range_test_down(
    first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    run: Any = SimpleNamespace(
        ranks=SimpleNamespace(first=first),
        folder=tmp_path,
        console=SimpleNamespace(say=said.append),
        report=SimpleNamespace(draw_range=lambda found: None),
    )
    rates = [1e-5 * 1.1**number for number in range(60)]
    found = RangeTest(rates, [3 - 0.03 * number for number in range(60)])
    training.show_range(parsed("--dataset", "mnist"), run, found)
    assert (tmp_path / "findLR.csv").exists() is first
    assert bool(said) is first


@pytest.mark.parametrize(
    ("seconds", "minutes", "due"),
    [(60, 1, True), (59.9, 1, False), (600, 10, True), (599.9, 10, False), (30, 0.5, True)],
)
def test_a_checkpoint_is_due_after_its_minutes(
    seconds: float, minutes: float, due: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("run.checkpoint.time.monotonic", lambda: now)
    interval = Interval(Every(None, minutes))
    now += seconds
    assert interval.due(10**6) is due
    interval.reset(10**6)
    assert not interval.due(2 * 10**6)


def test_a_checkpoint_is_due_after_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("run.checkpoint.time.monotonic", lambda: now)
    interval = Interval(Every(5, None))
    now += 1e6
    assert [interval.due(step) for step in (0, 4, 5, 6)] == [False, False, True, True]
    interval.reset(6)
    assert [interval.due(step) for step in (10, 11)] == [False, True]


def test_sigusr1_asks_for_a_checkpoint_alone() -> None:
    signals = Signals()
    assert (signals.save, signals.stop, signals.armed) == (False, None, False)
    signals._on_save(10, None)
    assert (signals.save, signals.stop) == (True, None)


def test_workers_are_said_of_what_has_some() -> None:
    run: Any = SimpleNamespace(
        environment={"precision": "fp32", "threads": 2, "device": "cpu x86_64"},
        ranks=SimpleNamespace(world=3),
        step=SimpleNamespace(device=torch.device("cpu")),
    )
    options = parsed(*FOLDER, "--nThreads", "5", "--precision", "fp32")
    arrays: Any = object()
    said = header._describe_device(options, run, arrays)
    assert "3 x 2 threads" in said
    assert "workers" not in said
    files: Any = object.__new__(header.FileLoader)
    assert "3 x 2 threads, 5 workers" in header._describe_device(options, run, files)
    kept: Any = object.__new__(header.KeptLoader)
    assert "3 x 2 threads, 5 threads that read" in header._describe_device(options, run, kept)


def test_a_limit_that_is_refused_names_itself() -> None:
    assert str(Refused("a line", limit="x")) == "a line"
    assert (Refused("a line", limit="x").limit, Refused("a line").limit) == ("x", "")


@pytest.mark.parametrize("inner_is_link", [False, True])
def test_what_no_run_wrote_stays_when_a_run_is_removed(inner_is_link: bool, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.mkdir()
    inner = run / "checkpoints"
    if inner_is_link:
        inner.symlink_to(elsewhere)
    else:
        inner.mkdir()
    own = ["options.json", "log.jsonl", "best.pt", "checkpoints/step-000000000009.pt"]
    foreign = ["notes.txt", "checkpoints/thesis.pdf"]
    for name in (*own, *foreign, "lock"):
        (run / name).write_text(name)
    (run / "best of all").mkdir()
    (run / "curves.png").symlink_to(tmp_path / "mine.png")
    clear_folder(run)
    left = {str(path.relative_to(run)) for path in run.rglob("*")}
    stays = {*foreign, "lock", "best of all", "curves.png", "checkpoints"}
    if inner_is_link:
        # Nothing that a link leads to is a run's.
        stays = {"notes.txt", "lock", "best of all", "curves.png", "checkpoints"}
        assert len(list(elsewhere.iterdir())) == 2
    assert left - {name for name in left if inner_is_link and "/" in name} == stays


@pytest.mark.parametrize("name", ["options.json", "best.pt", "checkpoints/step-000000000001.pt"])
def test_any_of_these_makes_a_run(name: str, tmp_path: Path) -> None:
    """A run that was trained is not overwritten because some of it is gone."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "log.jsonl").write_text("")
    assert not holds_run(tmp_path)
    (tmp_path / name).write_text("")
    assert holds_run(tmp_path)
    with pytest.raises(Refused, match="already holds a run"):
        prepare_folder(tmp_path, resume=False, overwrite=False)
    prepare_folder(tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("words", "world", "said"),
    [
        ([], 1, "1 epochs of 10 steps, global batch 24; sgd"),
        (["--nGPU", "3"], 1, "global batch 24, 8 a GPU; sgd"),
        ([], 2, "global batch 24, 12 a rank; sgd"),
        (["--accumulate", "4"], 1, "global batch 24, in 4 parts; sgd"),
    ],
)
def test_a_header_says_how_a_batch_is_shared(words: list[str], world: int, said: str) -> None:
    run: Any = SimpleNamespace(ranks=SimpleNamespace(world=world), chosen=[])
    options = parsed("--dataset", "mnist", "--nEpochs", "1", "--batchSize", "24", *words)
    assert said in header._describe_training(options, run, 10)


@pytest.mark.parametrize(
    ("there", "asked", "device"),
    [
        # GPUs; --GPU, GPUs of a process, rank on its machine, ranks there.
        (0, (None, 1, 0, 1), "cpu"),
        (0, (-1, 1, 0, 1), "cpu"),
        (0, (0, 1, 0, 1), "GPU 0 cannot be had: this machine has 0 GPUs"),
        (0, (None, 2, 0, 1), "GPUs 0 to 1 cannot be had: this machine has 0 GPUs"),
        (4, (None, 1, 0, 1), "cuda:0"),
        (4, (-1, 1, 0, 1), "cpu"),
        (4, (-1, 2, 0, 1), "2 GPUs were asked for and the CPU, which is one device"),
        (4, (3, 1, 0, 1), "cuda:3"),
        (4, (4, 1, 0, 1), "GPU 4 cannot be had: this machine has 4 GPUs"),
        (4, (2, 2, 0, 1), "cuda:2"),
        (4, (3, 2, 0, 1), "GPUs 3 to 4 cannot be had: this machine has 4 GPUs"),
        (4, (None, 1, 2, 4), "cuda:2"),
        (4, (1, 1, 2, 3), "cuda:3"),
        (4, (1, 1, 3, 4), "GPU 4 cannot be had: this machine has 4 GPUs"),
        # A scheduler that shows each rank its own GPU alone.
        (1, (None, 1, 3, 4), "cuda:0"),
        (1, (0, 1, 3, 4), "cuda:0"),
        (1, (1, 1, 0, 4), "GPU 1 cannot be had: this machine has 1 GPU"),
        (1, (None, 2, 0, 1), "GPUs 0 to 1 cannot be had: this machine has 1 GPU"),
        (1, (None, 2, 1, 2), "GPUs 1 to 2 cannot be had: this machine has 1 GPU"),
        (2, (None, 1, 2, 4), "GPU 2 cannot be had: this machine has 2 GPUs"),
    ],
)
def test_each_rank_takes_its_gpu_or_says_which_is_missing(
    there: int, asked: tuple[Any, ...], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "_count_gpus", lambda: there)
    try:
        found = str(utils.device_for(*asked))
    except Refused as error:
        found = str(error)
    assert found == device


@pytest.mark.parametrize("error", [RuntimeError("driver too old\nmore"), AssertionError("none")])
def test_a_driver_that_does_not_fit_is_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(Refused, match=r"the GPU cannot be used: (driver too old|none)$"):
        utils._count_gpus()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert utils._count_gpus() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "28 -> 28, bilinear"),
        (["--tenCrop"], "28 -> 28, bilinear, ten crops"),
        (["--flipTest"], "28 -> 28, bilinear, with mirror images"),
    ],
)
def test_a_test_says_how_it_sees_images(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    for name in ("_describe_network", "_describe_device", "_about"):
        monkeypatch.setattr(header, name, lambda *_: "")
    monkeypatch.setattr(header, "_describe_files", lambda *_: {})

    class Tested(list[int]):
        where, classes = "d", tuple("abcdefghij")

    run: Any = SimpleNamespace(
        console=SimpleNamespace(quiet=False, say=lines.append, hidden=set()),
        folder="f",
        report=SimpleNamespace(),
    )
    loader: Any = SimpleNamespace(images=Tested(), plan=SimpleNamespace(image_count=0))
    options = parsed("--dataset", "mnist", "--test", "--retrain", "w.pt", *words)
    header.print_test_header(options, run, None, loader)  # type: ignore[arg-type]
    assert f"pixels    {said}" in lines[0].splitlines()


@pytest.mark.parametrize(
    ("kind", "gpus", "name"),
    [("cpu", 1, "cpu x86"), ("cuda", 1, "cuda H100"), ("cuda", 2, "cuda H100 x 2")],
)
def test_bits_depend_on_the_device_and_how_many_there_are(
    kind: str, gpus: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    monkeypatch.setattr("run.folder.platform.machine", lambda: "x86")
    ranks: Any = SimpleNamespace(world=3)
    found = environment(torch.device(kind), ranks, gpus)
    assert (found["device"], found["ranks"]) == (name, 3)
    assert found["torch"] == str(torch.__version__)


def test_statistics_are_read_by_workers_that_start_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def made(*_: Any, **settings: Any) -> Any:
        asked.append(settings)
        raise Refused("enough")

    monkeypatch.setattr(data, "make_loader", made)
    where = make_images(tmp_path / "d", 6)
    own = parsed("--dataset", "folder", "--data_dir", str(where), "--expDir", str(tmp_path))
    own.startMethod, own.timeout, own.nThreads = "spawn", 77, 3
    with pytest.raises(Refused, match="enough"):
        pipelines.statistics(own, images.open_both(own)[0])
    wanted = {"workers": 3, "skip": False, "start_method": "spawn", "timeout": 77}
    assert asked == [wanted]


def test_a_warm_up_lasts_its_epochs() -> None:
    words = ["--dataset", "mnist", "--nEpochs", "8", "--warmup", "2", "--schedule", "cosine"]
    plan = training.schedule_of(parsed(*words, "--LR", "0.4"))
    rates = [plan.at(epoch / 8)[0] for epoch in (0, 1, 2, 3)]
    assert rates[:3] == pytest.approx([0, 0.2, 0.4], abs=0.01)
    assert rates[3] < rates[2]


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 3), (1, 2), (2, 1)])
def test_each_gpu_of_a_process_draws_its_own(
    first: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generators = tuple(torch.Generator().manual_seed(99) for _ in range(4))
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    before = torch.get_rng_state()
    try:
        utils.reseed(torch.device("cuda", first), "dropout", 5, gpus=count)
    finally:
        torch.set_rng_state(before)
    seeds = [generator.initial_seed() for generator in generators]
    own = seeds[first : first + count]
    assert 99 not in own
    assert len(set(own)) == count
    assert seeds[:first] + seeds[first + count :] == [99] * (4 - count)


LETS_GO_LATE = """
import contextvars, threading, time
import utils

def hold(passes):
    time.sleep(0.3)
    print("let go", flush=True)

utils.end_passes_at_exit()
passes = [contextvars.copy_context()]
threading.Thread(target=hold, args=(passes.pop(),), daemon=True).start()
"""


def test_a_process_waits_for_who_still_has_a_backward_pass() -> None:
    command = [sys.executable, "-c", LETS_GO_LATE]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stdout) == (0, "let go\n")


def test_a_process_does_not_wait_for_ever_for_a_backward_pass() -> None:
    command = [sys.executable, "-c", LETS_GO_LATE.replace("0.3", "90")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(("name", "least"), [("alexnet", 1), ("alexnetbn", 2)])
@pytest.mark.parametrize(("device", "gpus"), [("cuda:1", [1, 2, 3]), ("cuda", [0, 1])])
def test_data_parallel_takes_neighbouring_gpus(
    name: str, least: int, device: str, gpus: list[int]
) -> None:
    run: Any = SimpleNamespace(
        step=SimpleNamespace(device=torch.device(device)), ranks=SimpleNamespace(world=1)
    )
    options: Any = SimpleNamespace(compile=False, gpus=len(gpus))
    network = model.create(name, 3, 32)
    found = training.make_parallel(options, run, network)
    assert isinstance(found, Replicas)
    assert (found.gpus, found.least, found.module) == (gpus, least, network)


def test_compiling_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: ("compiled", network))
    network: Any = model.create("alexnet", 3, 32)
    for kind, asked in (("cpu", False), ("cpu", True), ("cuda", True)):
        run: Any = SimpleNamespace(
            step=SimpleNamespace(device=torch.device(kind)), ranks=SimpleNamespace(world=1)
        )
        options: Any = SimpleNamespace(compile=asked, gpus=1, accumulate=1)
        found = training.make_parallel(options, run, network)
        if kind == "cuda":
            assert isinstance(found, Compiled)
        else:
            assert found == (("compiled", network) if asked else network)
    # A graph's gradients are overwritten by its next replay.
    options.accumulate = 2
    with pytest.raises(
        Refused, match="--compile makes a step one graph, --accumulate parts: give --accumulate 1"
    ):
        training.make_parallel(options, run, network)


@pytest.mark.parametrize(
    ("rank", "world", "found"),
    [
        ("0", "2", True),
        (None, "2", False),
        ("0", None, False),
        (None, None, False),
        ("", "", False),
    ],
)
def test_a_launcher_says_rank_and_world(
    rank: str | None, world: str | None, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert launch.is_rank() is found


@pytest.mark.parametrize("given", [None, "SIGTERM"])
def test_ranks_are_started_by_torch_s_launcher(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TORCHELASTIC_SIGNALS_TO_HANDLE"
    monkeypatch.setenv(name, given or "x")
    if given is None:
        monkeypatch.delenv(name)
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    # What is not written yet would be gone with this program.
    flushed: list[int] = []
    stdout = SimpleNamespace(flush=lambda: flushed.append(len(calls)))
    monkeypatch.setattr(sys, "stdout", stdout)
    launch.start_ranks(3, "main.py", ["--nGPU", "3"])
    assert flushed == [0]
    ((program, command),) = calls
    assert program == command[0] == sys.executable
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    assert command[1:] == [*launcher, str(Path("main.py").resolve()), "--nGPU", "3"]
    # Every signal that asks a run to save reaches the ranks.
    handed = os.environ[name].split(",")
    assert handed == [given] if given else {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2"} <= {*handed}


SHIELDED = """
import os, signal, sys
from base import errors
from loading import deaths, shield
numbers = (*errors.STOPPING, signal.SIGUSR1)
assert all(signal.getsignal(number) == signal.SIG_IGN for number in numbers)
assert sys.excepthook is deaths.print_unless_told
assert shield.SERVER == os.getpid()
print("shielded")
"""


def test_a_server_of_workers_is_shielded_from_the_group_s_signals() -> None:
    command = [sys.executable, "-c", SHIELDED]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "shielded\n", result.stderr


SECOND = """
import os, signal, time
from base import errors
from run import signals
from run.signals import Signals
signals.end_workers = lambda: print("workers ended", flush=True)
with Signals() as signals:
    signals.armed = True
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print("asked", signals.stop == signal.SIGTERM, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
    print("still here")
"""


def test_a_second_signal_stops_a_run_now() -> None:
    command = [sys.executable, "-c", SECOND]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "asked True\nworkers ended\n"), (
        result.stderr
    )


STOPPED_AT_ONCE = """
import os, signal, sys
import main
from run.run import Run

def stop_twice(run, sums):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)

if __name__ == "__main__":
    Run.after_step = stop_twice
    main.main(sys.argv[1:])
"""


def test_a_run_that_is_stopped_at_once_brings_no_warning(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images")
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED_AT_ONCE)
    command = f"--dataset folder --data_dir {folder} --imageSize 16 --cropSize 16 --GPU -1"
    result = subprocess.run(
        [sys.executable, script, *command.split(), "--nThreads", "1", "--expDir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (-signal.SIGTERM, "")


def test_a_signal_before_anything_can_be_saved_ends_the_run() -> None:
    signals = Signals()
    with pytest.raises(Interrupted):
        signals._on_stop(signal.SIGTERM, None)
    assert signals.stop == signal.SIGTERM


def test_handlers_are_put_back_after_a_run() -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    with Signals() as signals:
        within = [signal.getsignal(number) for number in numbers]
        assert within == [signals._on_stop, signals._on_save, signals._on_stop]
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_data_set_is_what_its_document_says() -> None:
    text = (ROOT / "docs" / "datasets.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\d+) -> (\d+) \| ([^|]+) \|", text, re.MULTILINE)
    told = {name: (int(stored), int(seen)) for name, stored, seen, _ in rows}
    assert told == {name: (s.imageSize, s.cropSize) for name, s in DATASETS.items()}
    for name, *_, epochs in rows:
        if epochs.strip().isdecimal():
            assert int(epochs) == DATASETS[name].nEpochs
    for source in DATASETS.values():
        module, _, function = source.opener.partition(":")
        assert callable(getattr(import_module(f"datasets.{module}"), function))
