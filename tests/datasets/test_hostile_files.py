"""Changed and hostile files, links, caps and odd names: read or refused by name."""

import csv
import json
import os
import signal
from pathlib import Path

import changed_files
import numpy as np
import payloads
import pytest
import rig
import torch
from PIL import Image

import main
import opts
from base.errors import with_way_out
from datasets import decode
from datasets.folder import open_folder
from datasets.images import Limits
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
    result = changed_files.run(1400)
    assert result["failures"] == 0, result


def test_attacks_are_refused() -> None:
    result = payloads.run()
    assert result["refused"] == result["trials"] >= 100
    assert result["canary_touched"] == 0
    assert result["slowest_seconds"] < payloads.SECONDS


def reasons(root: Path, limits: Limits) -> list[str]:
    images = open_folder(str(root), "train")
    images.limits = limits
    plan = Plan(len(images), len(images))
    _, _, bad = Reader(images, Pipeline([], 16, 16), plan, finishes=True)[Task(0, 0)]
    return [with_way_out(image.reason, image.limit, opts.WAYS_OUT) for image in bad]


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
