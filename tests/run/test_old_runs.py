"""A run that an older version of this suite stopped goes on: samples/old-run, of commit 6e943c1."""

import json
import shutil
from pathlib import Path

import pytest
import rig
import torch
from common import DATA

import export
import model
import predict
from datasets import given
from datasets.images import Limits


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run of three epochs, stopped at step 21 of the second one."""
    shutil.copytree(DATA / "old-run", tmp_path / "runs")
    return tmp_path / "runs"


def test_an_old_run_is_resumed_to_its_end(old: Path) -> None:
    said = rig.finish(rig.options(old, "--continue"))
    assert "epoch 2, step 21" in said
    assert "an older version's checkpoint, which knows nothing of its images" in said
    # A new default never reaches into a run that has begun.
    assert "learning rate 0.01, regime over" in said
    log = (old / "synthetic" / "tiny" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2, 3]
    # The first epoch's line is the old version's own.
    stored = DATA / "old-run" / "synthetic" / "tiny" / "log.jsonl"
    assert log[0] == stored.read_text().splitlines()[0]
    first, *_ = (old / "synthetic" / "tiny" / "full_train.log").read_text().splitlines()
    assert first.startswith("1\t1\t")


def test_old_weights_are_tested_predicted_and_exported(
    old: Path, images: Path, tmp_path: Path
) -> None:
    best = old / "synthetic" / "tiny" / "best.pt"
    said = rig.finish(rig.options(tmp_path / "test", "--test", "--retrain", str(best)))
    assert "test_top1" in said

    network = model.load(str(best))
    assert network.spec.net_type == "tiny"
    photos = next(given.sources([str(images / "val" / "class 0")], Limits()))
    found = list(predict.predict(network, photos, 2))
    assert len(found) == len(photos)
    assert all(len(prediction.ranking) == 2 for prediction in found)

    out = tmp_path / "weights.safetensors"
    assert export.export(str(best), "safetensors", out) == 0
    assert isinstance(network.body, torch.nn.Module)


def test_an_old_run_with_another_rate_holds_it(old: Path) -> None:
    said = rig.finish(rig.options(old, "--continue", "--LR", "0.002"))
    assert "learning rate 0.002, constant over" in said
