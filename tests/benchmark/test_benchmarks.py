"""Each benchmark runs as its README line says, and writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from common import ROOT

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
