"""A function of the user's that hears of every epoch, and the log as a table."""

import asyncio
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from common import ROOT

from base.errors import Interrupted, Refused
from run.hook import Hook, load

HOOK = """
import json

def keep(record, run):
    with open("heard.jsonl", "a") as file:
        file.write(json.dumps([record, run]) + "\\n")

def fail(record, run):
    raise RuntimeError("the server is away")

def leave(record, run):
    raise SystemExit(3)

nothing = 3
"""
TRAIN = "--dataset synthetic --synthetic 32:4:24 --imageSize 24 --cropSize 20 --GPU -1 --nEpochs 2"


def run(folder: Path, hook: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "my_hook.py").write_text(HOOK)
    command = [sys.executable, str(ROOT / "main.py"), *TRAIN.split(), "--hook", hook, *more]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200)


def test_a_hook_hears_of_every_epoch(tmp_path: Path) -> None:
    result = run(tmp_path, "my_hook:keep", "--logger", "none")
    assert result.returncode == 0, result.stderr
    heard = [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text().splitlines()]
    folder = tmp_path / "cache" / "synthetic" / "alexnetbn"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record for record, _ in heard] == log
    assert heard[0][1]["options"]["netType"] == "alexnetbn"
    assert (tmp_path / heard[0][1]["folder"]).resolve() == folder

    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, log, strict=True):
        for name, value in record.items():
            assert row[name] == ("" if value is None else str(value))


def test_a_hook_that_fails_is_said_once_and_costs_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "my_hook:fail")
    assert result.returncode == 0
    told = "--hook my_hook:fail failed: RuntimeError: the server is away; training continues\n"
    assert result.stderr == told


def test_a_hook_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    result = run(tmp_path, "my_hook:leave", "--logger", "none")
    assert result.returncode == 0
    assert result.stderr == "--hook my_hook:leave failed: SystemExit: 3; training continues\n"
    log = tmp_path / "cache" / "synthetic" / "alexnetbn" / "log.jsonl"
    assert len(log.read_text().splitlines()) == 2


def test_a_hook_in_a_file_that_is_called_like_one_of_ours_is_found(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text(HOOK)
    result = run(tmp_path, "utils:keep", "--logger", "none")
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "heard.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("my_hook", "is not module:function"),
        ("my_hook:other", "cannot be imported: AttributeError"),
        ("no_such_module:log", "cannot be imported: ModuleNotFoundError"),
        ("my_hook:nothing", "is no function"),
    ],
)
def test_a_hook_that_is_none_is_refused_before_anything_is_trained(
    hook: str, message: str, tmp_path: Path
) -> None:
    result = run(tmp_path, hook)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("cache/**/options.json"))


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_mlflow_keeps_what_the_documented_hook_logs(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    text = (ROOT / "docs" / "runs.md").read_text()
    block = next(part for part in text.split("\n\n") if "import mlflow" in part)
    lines = text[text.index(block) :].splitlines()
    code = [line[4:] for line in lines[: next(i for i, v in enumerate(lines) if v[:1].strip())]]
    (tmp_path / "mlflow_hook.py").write_text("\n".join(code))
    result = run(tmp_path, "mlflow_hook:log")
    assert result.returncode == 0, result.stderr
    assert "failed" not in result.stderr
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = mlflow.search_runs(search_all_experiments=True)
    assert "metrics.test_top1" in found.columns


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
def test_whatever_a_hook_raises_ends_no_run(
    kind: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def function(record: object, run: object) -> None:
        raise kind("away")

    Hook("m:f", function, {})({"epoch": 1})
    assert f"failed: {kind.__name__}: away; training continues" in capsys.readouterr().err
    (tmp_path / f"odd_{kind.__name__}.py").write_text(
        f"import asyncio\nraise asyncio.{kind.__name__}('no')\n"
        if kind is asyncio.CancelledError
        else f"raise {kind.__name__}('no')\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=f"cannot be imported: {kind.__name__}: no"):
        load(f"odd_{kind.__name__}:f", {})
    # A signal is none of its errors.
    with pytest.raises(Interrupted):
        Hook("m:f", lambda *_: leave(), {})({"epoch": 1})


def leave() -> None:
    raise Interrupted(15)


def test_a_hook_gets_record_and_run_and_fails_aloud_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard: list[tuple[object, object]] = []

    def function(record: object, run: object) -> None:
        heard.append((record, run))
        if len(heard) > 1:
            raise ValueError("away")

    told = Hook("m:f", function, {"folder": "d"})
    told({"epoch": 1})
    assert heard == [({"epoch": 1}, {"folder": "d"})]
    assert capsys.readouterr().err == ""
    told({"epoch": 2})
    said = capsys.readouterr().err
    assert said == "--hook m:f failed: ValueError: away; training continues\n"
    told({"epoch": 3})
    assert len(heard) == 3
    assert capsys.readouterr().err == ""
