"""No program ends in a traceback for its output's sake, and each is stopped in one line."""

import ast
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common import ROOT
from rig import make_images

from base import errors, process

PROGRAMS = ["main.py", "predict.py", "export.py", "prepare.py", "compare.py"]


def run(command: str, folder: Path | str = ROOT, **more: object) -> subprocess.CompletedProcess:
    """Run a shell command, python being this one; a pipeline's status is its first program's."""
    text = command.replace("python ", f"{sys.executable} ")
    shell = ["bash", "-c", f"set -o pipefail; {text}"]
    return subprocess.run(shell, cwd=folder, capture_output=True, text=True, **more)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("output", [">/dev/full", ">&-", "| true", ">&- 2>&-"])
def test_help_survives_any_output(program: str, output: str) -> None:
    result = run(f"python {program} --help {output}")
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert result.returncode in (0, 1, 2)


def test_a_listing_that_nobody_reads_any_more_ends_quietly(tmp_path: Path) -> None:
    images = make_images(tmp_path / "d", 24)
    quiet = run(f"python prepare.py info --data_dir {images} | true")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    full = run(f"python prepare.py info --data_dir {images} > /dev/full")
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].endswith("standard output: No space left on device")


def test_training_goes_on_without_its_output(tmp_path: Path) -> None:
    """Closed, full, or in an encoding that lacks a class's name."""
    images = make_images(tmp_path / "d", 24)
    (images / "train" / "class 0").rename(images / "train" / "日本語")
    (images / "val" / "class 0").rename(images / "val" / "日本語")
    # The smallest class, which the header names.
    next((images / "train" / "日本語").iterdir()).unlink()
    options = "--dataset folder --imageSize 24 --cropSize 20 --nEpochs 1 --nThreads 0 --GPU -1"
    options += f" --netType ninbn --logger none --data_dir {images} --expDir {tmp_path}/runs"
    for number, output in enumerate((">&-", "> /dev/full", "2>&-", f"> {tmp_path}/log")):
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        command = f"python main.py {options} --expID r{number} {output}"
        result = run(command, env=environment)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
        assert (tmp_path / "runs" / "folder" / f"r{number}" / "best.pt").exists()
    assert "\\u65e5" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
@pytest.mark.parametrize("after", [0.15, 1.0])
def test_a_program_that_has_begun_nothing_is_stopped_in_one_line(
    number: signal.Signals, after: float, tmp_path: Path
) -> None:
    command = [sys.executable, "main.py", "--dataset", "synthetic", "--synthetic", "9000:4:200"]
    child = subprocess.Popen(
        [*command, "--expDir", str(tmp_path / "runs")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after)
    child.send_signal(number)
    try:
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    # Before Python has set anything up a signal ends it by itself.
    if child.returncode != -number:
        assert child.returncode == 128 + number
        assert said.count("\n") == 1
        assert f"main.py: stopped by {number.name}" in said
    assert not (tmp_path / "runs").exists()


def test_preparing_is_stopped_with_nothing_half_written(tmp_path: Path) -> None:
    images = make_images(tmp_path / "d", 600)
    out = tmp_path / "small"
    command = [sys.executable, "prepare.py", "shrink", "--data_dir", str(images)]
    child = subprocess.Popen(
        [*command, "--out", str(out), "--size", "10"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not any(out.rglob("*.jpg")) and child.poll() is None:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    if child.returncode != 0:
        assert child.returncode == 130
        assert "Traceback" not in said
        assert said.splitlines()[-1] == "prepare.py: stopped by SIGINT"
    assert not list(out.rglob(".*"))


SLOW_TO_LEAVE = """
import os, signal, time
from base import errors

for number in errors.STOPPING:
    signal.signal(number, errors.leave_at_once)
with errors.clear_errors():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    finally:
        print("cleaning up", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
        print("cleaned up", flush=True)
"""


def test_a_second_signal_does_not_wait_for_cleaning_up() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SLOW_TO_LEAVE], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout == "cleaning up\n"
    assert result.returncode == -signal.SIGTERM


@pytest.mark.parametrize(("encoding", "kept"), [("latin-1", "latin-1"), (None, "utf-8")])
def test_a_stream_keeps_its_encoding(encoding: str | None, kept: str) -> None:
    before = None if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with process._stream(os.open(os.devnull, os.O_WRONLY), "standard output", before) as stream:
        assert stream.encoding == kept
        stream.write("caf\u00e9 \u65e5")


@pytest.mark.parametrize(
    ("handler", "left_out"), [(signal.SIG_DFL, set()), (signal.SIG_IGN, {signal.SIGHUP})]
)
def test_a_closed_terminal_ends_a_program_but_under_nohup(
    handler: signal.Handlers, left_out: set[signal.Signals]
) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert set(errors.asked_to_stop()) == set(errors.STOPPING) - left_out
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_nobody_reads_goes_nowhere() -> None:
    reading, writing = os.pipe()
    process._redirect(writing)
    os.write(writing, b"lost")
    os.close(writing)
    # The pipe has no writer any more, and nothing came through it.
    assert os.read(reading, 10) == b""
    os.close(reading)


BEGUN = """
import signal, sys
from base import errors, process
process.begin()
stopping = {signal.getsignal(number) for number in errors.asked_to_stop()}
assert stopping == {errors.leave_at_once}, stopping
assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
for stream, title in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
    assert isinstance(stream.buffer.raw, process.Lasting)
    assert stream.buffer.raw.title == title
print("begun")
"""


def test_a_program_begins_with_streams_that_last_and_signals_that_end_it() -> None:
    result = subprocess.run([sys.executable, "-c", BEGUN], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "begun\n"), result.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_answers_signals_before_it_imports_anything(program: str) -> None:
    """Ctrl-C during an import would otherwise be a traceback."""
    text = (ROOT / program).read_text()
    code = ast.parse(text).body[1:3]
    assert [ast.unparse(node) for node in code] == [
        "from base import process",
        "if __name__ == '__main__':\n    process.begin()",
    ]


@pytest.mark.parametrize("program", [*PROGRAMS, "statistics.py"])
def test_a_working_folder_that_is_gone_is_said(program: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, runpy, sys; os.rmdir(os.getcwd()); "
        f"sys.argv = [{program!r}, '--help']; sys.path.insert(0, {str(ROOT)!r}); "
        f"runpy.run_path({str(ROOT / program)!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=gone, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 2
    assert result.stderr == "the working folder was removed: change to another one\n"
