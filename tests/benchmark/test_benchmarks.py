"""Each benchmark runs as its README line says, and writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from common import DATA, ROOT

from benchmark import speedrun

LINES = {
    "steps": [
        "--batchSize",
        "4",
        "--steps",
        "2",
        "--repetitions",
        "1",
        "--imageSize",
        "72",
        "--cropSize",
        "64",
        "--cpu",
    ],
    "cifar10": ["--batches", "3", "--repetitions", "1"],
    "augmentations": ["--batch", "4", "--repetitions", "2"],
    "gpu": [
        "--cpu",
        "--small",
        "--netType",
        "alexnetbn",
        "--parts",
        "parity",
        "non_finite",
        "rates",
    ],
    "reporting": ["--epochs", "3", "--steps", "50"],
    "saving": ["--netType", "alexnetbn", "--trials", "1"],
    "imagenet": ["--nThreads", "1", "--repetitions", "1", "--peer", "torchvision"],
    "speedrun": ["--seeds", "2", "--GPU", "-1", "--data_dir", str(DATA / "mnist")],
}


@pytest.mark.parametrize("name", LINES)
def test_a_benchmark_runs_and_keeps_its_figures(name: str, images: Path, tmp_path: Path) -> None:
    more = ["--data_dir", str(images)] if name == "imagenet" else []
    command = [
        sys.executable,
        f"benchmark/{name}.py",
        *LINES[name],
        *more,
        "--json",
        str(tmp_path / "figures.json"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) > 2
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["command"].startswith(f"python benchmark/{name}.py")


def test_a_speed_run_counts_the_last_epoch_and_the_median_second() -> None:
    record = speedrun.Record(99.0, "")
    seeds = [
        speedrun.Seed(1, 98.9, 10.0, 1, 100.0),
        speedrun.Seed(2, 99.2, 30.0, 1, 300.0),
        speedrun.Seed(3, 99.0, 11.0, 1, 110.0),
    ]
    found = speedrun.summary(record, seeds)
    assert found["top1"] == pytest.approx(99.0333, abs=1e-3)
    assert found["deviation"] == pytest.approx(0.15275, abs=1e-4)
    assert (found["seconds"], found["rate"], found["reached"]) == (11.0, 110.0, True)
    assert not speedrun.summary(record, seeds[:1])["reached"]


def test_a_speed_run_says_why_it_could_not_train(tmp_path: Path) -> None:
    command = [sys.executable, "benchmark/speedrun.py", "--seeds", "1", "--LR", "fast"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "--LR" in result.stderr
