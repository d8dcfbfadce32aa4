"""Workers: lost ones are named, bad images counted, and nothing grows."""

import errno
import json
import multiprocessing
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bad_images
import pytest
import torch
import worker_deaths
from common import ROOT
from rig import make_images

import augmentation
import data
import opts
from base.errors import Refused, clear_errors
from loading import starts, workers
from loading.deaths import LostWorker, WorkerWatch, print_unless_told, quiet_pinning
from loading.plan import Plan
from loading.starts import enough_processes
from loading.workers import Reader, Task
from transforms import Pipeline


@pytest.fixture(autouse=True)
def _own_signals():
    """The campaigns set handlers for children; give back what was there."""
    before = signal.getsignal(signal.SIGCHLD)
    hook = sys.unraisablehook
    yield
    signal.signal(signal.SIGCHLD, before)
    sys.unraisablehook = hook


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
        with deaths.guard(60, []):
            deaths.pending = True
            wait()

    deaths = WorkerWatch(tell)
    before = signal.signal(signal.SIGALRM, deaths._on_alarm)
    try:
        with pytest.raises(RuntimeError, match="is killed"):
            await_a_batch()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("error", "is_printed"),
    [
        (ValueError("our own fault"), True),
        (KeyboardInterrupt(), True),
        (RuntimeError("no CUDA"), True),
        (ConnectionResetError(), False),
        (EOFError(), False),
        (FileNotFoundError(), False),
        (BlockingIOError(errno.EAGAIN, "no more"), False),
        (RuntimeError("can't start new thread"), False),
    ],
)
def test_a_worker_prints_what_the_main_process_does_not_tell(
    error: BaseException, is_printed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    print_unless_told(type(error), error, None)
    assert bool(capsys.readouterr().err) is is_printed


def _pin_memory_loop(error: BaseException) -> None:
    raise error


def another(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("target", "error", "is_printed"),
    [
        (_pin_memory_loop, ConnectionResetError(), False),
        (_pin_memory_loop, EOFError(), False),
        (_pin_memory_loop, FileNotFoundError(), False),
        (_pin_memory_loop, ValueError("our own fault"), True),
        (another, ConnectionResetError(), True),
    ],
)
def test_a_thread_that_pins_prints_what_the_main_thread_does_not_tell(
    target: Callable[[BaseException], None],
    error: BaseException,
    is_printed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    quiet_pinning.__wrapped__()
    thread = threading.Thread(target=target, args=(error,))
    thread.start()
    thread.join()
    assert len(printed) == is_printed


def test_a_worker_that_the_pinning_thread_finds_gone_is_lost() -> None:
    class Batches:
        def __iter__(self) -> Any:
            raise RuntimeError("Pin memory thread exited unexpectedly")

    tasks = SimpleNamespace(tasks=[1])
    loader = SimpleNamespace(
        tasks=tasks, deaths=WorkerWatch(), timeout=1, loader=Batches(), _workers=list
    )
    with pytest.raises(LostWorker, match="died or stopped responding"):
        next(data.FileLoader._read(loader))  # type: ignore[arg-type]


def test_nothing_is_raised_where_no_batch_is_awaited_any_more() -> None:
    """A step may take longer than a batch may."""
    watch = WorkerWatch(lambda *_: None)
    before = signal.signal(signal.SIGALRM, watch._on_alarm)
    try:
        with watch.guard(60, []):
            assert watch.waiting
            assert signal.getitimer(signal.ITIMER_REAL)[1] > 0
        assert not watch.waiting
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_memory_files_and_threads_stay() -> None:
    # Over 6,000 images: what comes once, a MiB or two, is no growth. In a process of its own: a
    # fork of this one has all that other tests left, whose pages become its own one by one.
    command = [sys.executable, "-c", "import json, soak; print(json.dumps(soak.run(16)))"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["ended_well"]
    assert result["MiB_per_1000_images"] < 1
    assert result["MiB_per_1000_decodes"] < 1
    # A checkpoint may be just being written.
    assert result["more_files"] <= 2
    assert (
        result["more_threads"] == result["files_left_open"] == result["left_in_shared_memory"] == 0
    )


@pytest.mark.parametrize("elsewhere", ["working folder", "PYTHONPATH"])
def test_workers_run_this_copy_of_the_suite(elsewhere: str, images: Path, tmp_path: Path) -> None:
    # Another copy, as `pip install -e` of another clone brings it: its files say so.
    other = tmp_path / "other"
    (other / "loading").mkdir(parents=True)
    told = "import pathlib\npathlib.Path(__file__).with_name('used').touch()\n"
    for name in ("data.py", "loading/__init__.py", "loading/shield.py"):
        (other / name).write_text(told)
    command = [sys.executable, str(ROOT / "main.py"), "--dataset", "folder", "--data_dir", images]
    small = "--imageSize 24 --cropSize 20 --nEpochs 1 --nThreads 1 --GPU -1"
    command += small.split()
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(other)} if elsewhere == "PYTHONPATH" else {}
    folder = other if elsewhere == "working folder" else tmp_path
    result = subprocess.run(
        [*command, "--expDir", tmp_path, "--logger", "none"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert not list(other.rglob("used"))


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        EOFError(),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_workers_that_cannot_start_are_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under `ulimit -u 4`, which does not hold for root."""
    with pytest.raises(SystemExit) as stop, clear_errors(opts.WAYS_OUT), enough_processes():
        raise error
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "`ulimit -u`" in said
    assert "--nThreads" in said


# A user whom nothing else belongs to; the limit does not hold for root.
USER = "54321"
AS_USER = ["setpriv", "--reuid", USER, "--clear-groups"]
# It may read what root may, as a virtual environment of root's.
AS_USER += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]


def can_become_another() -> bool:
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return False
    return subprocess.run([*AS_USER, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_become_another(), reason="root and util-linux are needed")
@pytest.mark.parametrize(("method", "most"), [("fork", 9), ("forkserver", 7), ("forkserver", 14)])
def test_a_limit_of_processes_is_one_line_and_leaves_none(
    method: str, most: int, tmp_path: Path
) -> None:
    """The first worker, the second, or a thread of theirs cannot be started."""
    images = make_images(tmp_path / "images", 24)
    tmp_path.chmod(0o777)
    options = f"--dataset folder --imageSize 40 --cropSize 32 --nThreads 2 --startMethod {method}"
    given = ["--data_dir", str(images), "--expDir", str(tmp_path / "out"), "--GPU", "-1"]
    command = shlex.join([sys.executable, str(ROOT / "main.py"), *options.split(), *given])
    result = subprocess.run(
        [*AS_USER, "bash", "-c", f"ulimit -u {most}; OMP_NUM_THREADS=1 exec {command}"],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "`ulimit -u`" in result.stderr
    # The server of workers goes a moment later.
    end = time.monotonic() + 20
    while subprocess.run(["pgrep", "-u", USER], capture_output=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_other_errors_of_a_start_are_not_taken_for_it() -> None:
    for error in (RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "no")):
        with pytest.raises(type(error)), enough_processes():
            raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "again")]
)
def test_a_thread_that_cannot_start_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, clear_errors():
        raise error
    assert stop.value.code == 1
    assert "may start no more processes and threads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EAGAIN, "again"), SystemExit),
        (RuntimeError("can't start new thread"), SystemExit),
        (OSError(errno.ENOENT, "gone"), OSError),
        (RuntimeError("ours"), RuntimeError),
    ],
)
def test_a_lack_of_processes_is_left_to_the_main_process(
    error: Exception, raised: type[BaseException]
) -> None:
    class Process:
        def run(self) -> None:
            raise error

    class Quiet(starts._Quiet, Process):
        pass

    with pytest.raises(raised) as caught:
        Quiet().run()
    if raised is SystemExit:
        assert caught.value.code == starts.LACKING  # type: ignore[attr-defined]


@pytest.mark.parametrize("finishes", [True, False])
def test_a_worker_leaves_the_later_steps_to_a_gpu(finishes: bool, images: Path) -> None:
    pipeline = Pipeline(augmentation.parse("crop,flip,erase:1"), 20, 16, seed=3)
    plain = Pipeline(augmentation.parse("crop"), 20, 16, seed=3)
    plan = Plan(6, 6)
    found = [
        Reader(data.open_images("folder", str(images), "train"), one, plan, finishes=finishes)[
            Task(0, 0)
        ][0]
        for one in (pipeline, plain)
    ]
    # What comes after the window is the device's own.
    assert torch.equal(*found) is not finishes


def test_a_timer_of_someone_else_s_still_reaches_them() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    try:
        watch = WorkerWatch(lambda *_: None)
        for _ in range(2):
            watch._take_alarm()
            os.kill(os.getpid(), signal.SIGALRM)
        assert heard == [signal.SIGALRM] * 2
        assert signal.getsignal(signal.SIGALRM) == watch._on_alarm
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("length", "is_short"), [(59, True), (60, True), (61, False)])
def test_sockets_lie_in_a_short_folder(
    length: int, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "/" + "x" * (length - 1)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setattr(multiprocessing.util, "get_temp_dir", lambda: None)
    starts.shorten_socket_paths()
    assert tempfile.tempdir == (folder if is_short else "/tmp")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setattr(starts, "SHORT_FOLDERS", ("/no/such/folder",))
    if is_short:
        starts.shorten_socket_paths()
        return
    with pytest.raises(Refused, match="is too long a path for the workers' sockets"):
        starts.shorten_socket_paths()


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_worker_s_batch_lies_in_shared_memory(
    in_worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "get_worker_info", lambda: object() if in_worker else None)
    room = workers._shared(2, 3, 4)
    assert (room.shape, room.dtype) == ((2, 3, 4), torch.uint8)
    assert room.is_shared() is in_worker


@pytest.mark.parametrize(
    ("error", "is_printed"),
    [(RuntimeError("can't start new thread"), False), (ValueError("ours"), True)],
)
def test_what_cannot_be_raised_is_still_printed(
    error: Exception, is_printed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    given = SimpleNamespace(exc_value=error)
    starts._print_unless_lacking(given)
    assert told == ([given] if is_printed else [])


@pytest.mark.parametrize(("parent", "ends"), [(0, True), (None, False)])
def test_a_worker_ends_whose_server_has_ended(
    parent: int | None, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):
        pass

    def end(status: int) -> None:
        raise Ended

    asked: list[tuple[int, int]] = []
    library = SimpleNamespace(prctl=lambda *given: asked.append(given))
    monkeypatch.setattr(starts.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(os, "_exit", end)
    server = os.getppid() if parent is None else parent
    monkeypatch.setitem(sys.modules, "loading.shield", SimpleNamespace(SERVER=server))
    if ends:
        with pytest.raises(Ended):
            starts._end_with_parent()
    else:
        starts._end_with_parent()
    # Linux's PR_SET_PDEATHSIG.
    assert asked == [(1, signal.SIGKILL)]


def test_no_feeder_of_workers_is_cut_off_at_the_end() -> None:
    """Its semaphores would be told as leaked."""
    made = multiprocessing.get_context("forkserver").Queue()
    made.put(1)
    assert made.get() == 1
    feeders = [t for t in threading.enumerate() if t.name == "QueueFeederThread"]
    # As DataLoader leaves it.
    made.cancel_join_thread()
    made.close()
    starts._end_feeders()
    assert feeders
    assert not any(thread.is_alive() for thread in feeders)
