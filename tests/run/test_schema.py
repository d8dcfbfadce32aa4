"""A checkpoint that is whole and does not fit is refused by its field, before any of it is used."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rig
import torch
from hypothesis import given
from hypothesis import strategies as st

from base import archive
from run import schema

State = dict[str, Any]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averaged weights that can be resumed, of which one checkpoint is left."""
    place = tmp_path_factory.mktemp("run")
    rig.finish(rig.options(place, "--nEpochs", "1", "--keep", "1", "--ema", "0.9"))
    return place


def put(path: tuple[object, ...], value: object) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def drop(*path: object) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


MOMENTUM = ("updater", "optimizer", 0, "momentum_buffer")
WEIGHT = ("network", "body.0.weight")
CHANGES = {
    "format is 99": put(("format",), 99),
    "format is '1'": put(("format",), "1"),
    "format is True": put(("format",), True),
    "format is None": drop("format"),
    "surprise is unknown": put(("surprise",), 1),
    "progress is missing": drop("progress"),
    "network is missing": drop("network"),
    "network holds body.0.weight, which is no tensor": put(WEIGHT, 3.0),
    r"body.0.weight is \[8, 3, 2, 2\] float32, not \[8, 3, 3, 3\]": put(
        WEIGHT, torch.zeros(8, 3, 2, 2)
    ),
    r"body.0.weight is .* float64": put(WEIGHT, torch.zeros(8, 3, 3, 3, dtype=torch.float64)),
    "body.0.weight is missing": drop(*WEIGHT),
    "body.77 is unknown": put(("network", "body.77"), torch.zeros(1)),
    "momentum_buffer of parameter 0 is .*1": put(MOMENTUM, torch.zeros(1)),
    "momentum_buffer of parameter 0 is .*float16": put(
        MOMENTUM, torch.zeros(8, 3, 3, 3, dtype=torch.float16)
    ),
    "momentum_buffer of parameter 0, which is no tensor": put(MOMENTUM, "0"),
    "exp_avg of parameter 0 is not of this optimizer": put(
        ("updater", "optimizer", 0), {"exp_avg": torch.zeros(8, 3, 3, 3)}
    ),
    "parameter 99": put(("updater", "optimizer", 99), {"momentum_buffer": torch.zeros(1)}),
    "'x', which is no parameter's state": put(("updater", "optimizer", "x"), {}),
    "skipped is -1": put(("updater", "skipped"), -1),
    "averaged: body.0.weight is missing": drop("updater", "averaged", "body.0.weight"),
    "scale is no tensor of one number": put(("updater", "scale"), torch.ones(2)),
    "good is no tensor of one number": put(("updater", "good"), 3),
    "updates is 1.5": put(("updater", "updates"), 1.5),
    "epoch is -1": put(("progress", "epoch"), -1),
    "epoch is 'two'": put(("progress", "epoch"), "two"),
    "step is True": put(("progress", "step"), True),
    "best is 101": put(("progress", "best"), 101),
    "best accuracy without its epoch": put(("progress", "best_epoch"), None),
    "with a history of 0": put(("progress", "history"), []),
    "train_loss is 'low'": put(("progress", "history", 0, "train_loss"), "low"),
    "epoch 1, which cannot be read": drop("progress", "history", 0, "lr"),
    "has epoch 7 in place 1": put(("progress", "history", 0, "epoch"), 7),
    "sums is neither nothing": put(("progress", "sums"), {"values": torch.zeros(1, 4)}),
    "sums has tensors of other shapes": put(
        ("progress", "sums"), {"values": torch.zeros(1, 4), "losses": torch.zeros(1, 9)}
    ),
    "settings holds threads": put(("settings", "threads"), 1.5),
    "settings holds a peak of 'high', which is no learning rate": put(("settings", "peak"), "high"),
    "settings holds a peak of 'inf'": put(("settings", "peak"), "inf"),
    "images lacks a side": drop("images", "test"),
    "images holds no fingerprints": put(("images",), {"train": 3, "test": 4}),
    "model describes no network": put(("model", "cropSize"), -16),
    "its stem is 'thick'": put(("model", "stem"), "thick"),
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_does_not_fit_is_refused_by_its_field(
    said: str, stopped: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "r")
    path = next((tmp_path / "r").rglob("step-*.pt"))
    state = archive.read(path)
    CHANGES[said](state)
    archive.write(path, state)
    before = path.read_bytes()
    child = rig.Child(rig.options(tmp_path / "r", "--nEpochs", "2", "--continue", "--ema", "0.9"))
    assert child.wait() == 2, child.text()
    text = child.text()
    assert "Traceback" not in text
    import re

    lines = [line for line in text.splitlines() if str(path) in line and re.search(said, line)]
    assert len(lines) == 1, text
    assert path.read_bytes() == before


def test_what_a_run_writes_fits(stopped: Path, tmp_path: Path) -> None:
    for path in stopped.rglob("step-*.pt"):
        assert schema.problem(archive.read(path)) == ""
    more = {"fp16": ["--precision", "fp16"], "adamw": ["--optimizer", "adamw"], "plain": []}
    for name, options in more.items():
        arguments = rig.options(tmp_path / name, *options, "--snapshot", "0", "--momentum", "0")
        rig.finish([*arguments, "--nEpochs", "1"])
        rig.finish([*arguments, "--nEpochs", "2", "--continue"])
        for path in (tmp_path / name).rglob("step-*.pt"):
            assert schema.problem(archive.read(path)) == ""


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(PLAIN, st.sampled_from([*schema.CONTENT, "all"]))
def test_nothing_that_a_file_can_hold_breaks_the_look_at_it(value: object, field: str) -> None:
    whole: State = {
        "format": 2,
        "model": {},
        "network": {},
        "settings": {},
        "images": {},
        "updater": {"optimizer": {}, "skipped": 0, "in_a_row": 0},
        "progress": dict.fromkeys(schema.PROGRESS, 0) | {"history": [], "sums": None},
    }
    found = schema.problem(value if field == "all" else whole | {field: value})
    assert isinstance(found, str)
    assert "\n" not in found or "\n" in repr(value)


@pytest.mark.parametrize(
    "name",
    [
        *("options.json", "checkpoints", "best.pt", "full_train.log", "log.jsonl", "lock"),
        *("images.npz", "split.csv", "classes.csv", "curves.png", "model_2.pt"),
    ],
)
def test_a_pipe_in_a_run_s_folder_hangs_nothing(name: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "r")
    run = rig.run_folder(tmp_path / "r")
    path = next(run.rglob("step-*.pt")) if name == "checkpoints" else run / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    child = rig.Child(rig.options(tmp_path / "r", "--nEpochs", "2", "--continue", "--ema", "0.9"))
    assert child.wait(60) in (0, 1, 2)
    assert "Traceback" not in child.text()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80" * 5000, b"1\t1\n", b""])
def test_a_spoilt_log_is_set_aside(content: bytes, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "r")
    run = rig.run_folder(tmp_path / "r")
    (run / "full_train.log").write_bytes(content)
    rig.finish(rig.options(tmp_path / "r", "--nEpochs", "2", "--continue", "--ema", "0.9"))
    if b"\n" not in content and content:
        assert (run / "full_train.log.damaged").read_bytes() == content
    assert len((run / "log.jsonl").read_text().splitlines()) == 2
