"""The tutorial's session runs as it is typed."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from common import ROOT
from PIL import Image

COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [190, 190, 60], [60, 190, 190]])
# What is typed; all other indented lines are what was printed.
TYPED = ("python ", "rm ", "grep ", "head ")


def commands() -> list[str]:
    """Return the tutorial's commands, whose lines may go on in the next."""
    found: list[str] = []
    goes_on = False
    for line in (ROOT / "docs" / "tutorial.md").read_text().splitlines():
        text = line.strip()
        if goes_on:
            found[-1] += f" {text}"
        elif line.startswith("    ") and text.startswith(TYPED):
            found.append(text)
        goes_on = line.startswith("    ") and text.endswith("|")
    return found


def make_photographs(folder: Path) -> None:
    """Write five large pictures of soft colours, each around one of its own, with some noise:
    nobody takes them for drawn, and every part of one looks like the others.
    """
    draws = np.random.default_rng(3)
    folder.mkdir()
    for number in range(5):
        small = COLOURS[number] + draws.integers(-55, 56, (6, 8, 3))
        small = small.clip(0, 255).astype(np.uint8)
        large = np.asarray(Image.fromarray(small).resize((1500, 1000), Image.Resampling.BICUBIC))
        noisy = large + draws.normal(0, 8, large.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")


def run(folder: Path, replaced: dict[str, str]) -> None:
    for command in commands():
        for before, after in replaced.items():
            command = command.replace(before, after)
        command = command.replace("python ", f"{sys.executable} {ROOT}/", 1)
        if "--calibrate" in command:
            take_one_for_another(folder / "D" / "val")
        # Bits depend on the threads.
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, shell=True, cwd=folder, capture_output=True, text=True, env=env
        )
        # A check that finds a bad file says so by its status.
        allowed = (0, 1) if "prepare.py check" in command else (0,)
        assert result.returncode in allowed, (command, result.stdout, result.stderr)
        assert "Traceback" not in result.stderr, command


def take_one_for_another(val: Path) -> None:
    """Put an image into another class too: where all are right, and the processor decides on so few
    whether they are, there is no temperature.
    """
    first, second = sorted(val.iterdir())[:2]
    image = min(first.iterdir())
    shutil.copy(image, second / f"also-{image.name}")


def labelled_rightly(folder: Path) -> tuple[int, int]:
    """Return how many of the labels that were made wrong are right again, and how many there
    are.
    """
    with (folder / "D" / "wrong.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "mislabelled"]
    right = [(folder / "D" / "train" / row["class"] / Path(row["path"]).name) for row in rows]
    return sum(path.exists() for path in right), len(rows)


def check(folder: Path) -> None:
    assert not (folder / "D" / "train" / "photo 01" / "broken.jpg").exists()
    assert not list((folder / "D" / "train").glob("*/again-*"))
    for name in ("where.png", "similar.png", "features.npz", "photo.onnx", "small.onnx"):
        assert (folder / name).stat().st_size > 1000, name
    assert (folder / "cache" / "folder" / "mended" / "report.html").exists()


def test_the_session_runs_on_made_up_photographs(tmp_path: Path) -> None:
    make_photographs(tmp_path / "made-up")
    fewer = {"--train 160 --val 40 --mislabelled 22 --leaks 6": "--train 30 --val 10"}
    fewer["--train 160 --val 40 --mislabelled 22 --leaks 6"] += " --mislabelled 4 --leaks 2"
    fewer |= {"--photos photos": "--photos made-up", "--nEpochs 10": "--nEpochs 4"}
    fewer |= {
        "--folds 5": "--folds 3",
        "--imageSize 72 --cropSize 64": "--imageSize 36 --cropSize 32",
    }
    run(tmp_path, fewer)
    check(tmp_path)


@pytest.mark.campaign
@pytest.mark.skipif("PHOTOGRAPHS" not in os.environ, reason="PHOTOGRAPHS names no folder of them")
def test_the_session_finds_what_it_says_on_photographs(tmp_path: Path) -> None:
    run(tmp_path, {"--photos photos": f"--photos {os.environ['PHOTOGRAPHS']}"})
    check(tmp_path)
    right, wrong = labelled_rightly(tmp_path)
    assert wrong == 22
    assert right >= 18
