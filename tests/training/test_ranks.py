"""Several ranks train the same network as one, test each image once, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from common import ROOT
from rig import OPTIONS

from base import arguments
from base.errors import Refused
from base.randomness import shuffled
from loading.plan import Plan
from run import checkpoint
from training.ranks import _refuse_shared_gpu

CHILD = ROOT / "tests" / "support" / "parity_child.py"
FILES = ["--netType", "alexnetbn", *OPTIONS[2:], "--dataset", "folder", "--nThreads", "1"]
TRAIN = [
    *OPTIONS,
    "--dataset",
    "synthetic",
    "--synthetic",
    "203:4:20",
    "--augment",
    "crop,flip",
    "--logger",
    "none",
]


def torchrun(ranks: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a script on so many ranks of one thread each, on a port of its own."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
    ]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(CHILD.parent)]),
    }
    return subprocess.run(
        [*launch, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240
    )


def parity(ranks: int, kind: str, out: Path, *more: str) -> dict:
    # Rounding to bf16 is coarser than what the order of a sum changes.
    plain = ["--expDir", str(out), "--nEpochs", "4", "--precision", "fp32"]
    result = torchrun(ranks, str(CHILD), str(out), kind, *TRAIN, *plain, *more)
    assert result.returncode == 0, result.stderr[-2000:]
    return torch.load(f"{out}.0", weights_only=True)


# A weight's gradient is a sum over 16 images and the first convolution's 8 x 8 positions; ranks add
# up in another order, and each addition in float32 rounds by 2^-24 of what it adds.
ROUNDING = 16 * 64 * 2**-24


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(8))
def test_gradients_of_two_ranks_are_those_of_one(seed: int, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        more = ["--syncBN"] if ranks > 1 else []
        out = tmp_path / str(ranks)
        found.append(parity(ranks, "float32", out, *more, "--manualSeed", str(seed))["gradients"])
    largest = max(gradient.abs().max() for gradient in found[0])
    apart = max((own - one).abs().max() for own, one in zip(*found, strict=True))
    assert apart <= ROUNDING * largest


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("alone")
    return {kind: parity(1, kind, folder / kind) for kind in ("float32", "float64")}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.campaign)])
def test_ranks_train_the_network_of_one(ranks: int, alone: dict[str, dict], tmp_path: Path) -> None:
    single = parity(ranks, "float32", tmp_path / "float32", "--syncBN")
    largest = max(gradient.abs().max() for gradient in alone["float32"]["gradients"])
    for own, one in zip(single["gradients"], alone["float32"]["gradients"], strict=True):
        assert (own - one).abs().max() <= ROUNDING * largest
    double = parity(ranks, "float64", tmp_path / "float64", "--syncBN")
    for own, one in zip(double["network"], alone["float64"]["network"], strict=True):
        assert torch.allclose(own.double(), one.double(), rtol=1e-9, atol=1e-9)
    weights = [
        torch.load(f"{tmp_path / 'float64'}.{rank}", weights_only=True)["network"]
        for rank in range(ranks)
    ]
    trained = [torch.cat([value.flatten().double() for value in rank]) for rank in weights]
    assert all(torch.equal(trained[0], other) for other in trained[1:])


def test_a_run_of_two_ranks_is_one_run(images: Path, tmp_path: Path) -> None:
    arguments = [*FILES, "--data_dir", str(images)]
    logs = []
    for ranks in (1, 2):
        result = torchrun(ranks, "main.py", *arguments, "--expDir", str(tmp_path / str(ranks)))
        assert result.returncode == 0, result.stderr[-2000:]
        assert result.stdout.count("best test top-1") == 1
        folder = next((tmp_path / str(ranks)).glob("folder/alexnetbn"))
        logs.append([json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()])
        assert (folder / "classes.csv").exists()
        found = checkpoint.newest(folder / "checkpoints")
        assert found is not None
        assert found.progress.step == logs[-1][-1]["step"] == 6
    for record in logs[1]:
        assert record["test_top1"] * 9 / 100 == pytest.approx(
            round(record["test_top1"] * 9 / 100)
        )  # of 9 images, once each


def test_under_torchrun_a_wrong_call_is_said_once(tmp_path: Path) -> None:
    result = torchrun(2, "main.py", *FILES, "--expDir", str(tmp_path), "--nGPU", "2")
    assert result.returncode
    assert result.stderr.count("a rank has one GPU") == 1
    result = torchrun(2, "main.py", "--dataset", "folder", "--data_dir", str(tmp_path / "none"))
    assert result.returncode
    # Nothing begins that a GPU would be missed in.
    assert "no GPU found" not in result.stdout
    assert result.stderr.count("there is no folder") == 1


@pytest.mark.parametrize(("rank", "said"), [("", 1), ("0", 1), ("1", 0), ("10", 0)])
def test_a_rank_that_torchrun_did_not_end_says_nothing_more(
    rank: str, said: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(arguments, "WAIT_FOR_FIRST", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            arguments.Parser(prog="main.py").error("no such network")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "main.py: error: no such network\n" * said


def test_a_bad_image_on_one_rank_ends_all(images: Path, tmp_path: Path) -> None:
    (images / "train" / "class 1" / "1.jpg").write_bytes(b"no image")
    started = time.monotonic()
    result = torchrun(
        2, "main.py", *FILES, "--data_dir", str(images), "--expDir", str(tmp_path / "runs")
    )
    assert result.returncode
    assert time.monotonic() - started < 60
    assert "bad image" in result.stderr


@pytest.mark.parametrize("world", [1, 3, 64, 4096])
def test_every_rank_of_any_number_has_its_share(world: int) -> None:
    count = 10**9 + 7
    plans = [Plan(count, 8192, 1, True, rank=rank, world=world) for rank in range(world)]
    number = len(plans[0]) // 2
    parts = [plan.indices(3, number) for plan in plans]
    sizes = [len(part) for part in parts]
    assert sum(sizes) == 8192
    assert max(sizes) - min(sizes) <= 1
    whole = Plan(count, 8192, 1, True).indices(3, number)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(whole))
    assert len(np.unique(whole)) == 8192
    last = [plan.indices(3, len(plan) - 1) for plan in plans]
    assert sum(map(len, last)) == plans[0].size(len(plans[0]) - 1) == count % 8192


@pytest.mark.parametrize("world", [1, 2, 7, 100])
def test_an_epoch_over_all_ranks_has_every_image_once(world: int) -> None:
    plans = [Plan(10_007, 128, 4, True, rank=rank, world=world) for rank in range(world)]
    every = np.concatenate([part for plan in plans for part in plan.epoch(2)])
    assert np.array_equal(np.sort(every), np.arange(10_007))


def test_the_order_of_a_billion_images_is_a_bijection() -> None:
    count = 10**9
    places = np.random.default_rng(0).integers(0, count, 100_000)
    images = shuffled(np.unique(places), count, 5, 2)
    assert len(np.unique(images)) == len(np.unique(places))
    assert images.min() >= 0
    assert images.max() < count


LONELY = ROOT / "tests" / "support" / "lonely_rank.py"


def test_a_rank_may_work_alone_for_longer_than_silence_may_last() -> None:
    result = torchrun(2, str(LONELY), "works")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "rank 0 summed 2" in result.stdout
    assert "rank 1 summed 2" in result.stdout


def test_a_rank_that_falls_silent_ends_the_others_with_one_line() -> None:
    started = time.monotonic()
    result = torchrun(2, str(LONELY), "stops")
    assert result.returncode != 0
    assert "another rank has ended or cannot be reached (rank 1 was silent for" in result.stderr
    assert "resume with: the command" in result.stderr
    assert time.monotonic() - started < 60


def test_ranks_that_join_again_wait_for_each_other_again() -> None:
    result = torchrun(2, str(CHILD.with_name("joined_rank.py")))
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == [f"{turn}:{rank}" for turn in range(3) for rank in (0, 1)]


def test_main_starts_its_ranks_itself(tmp_path: Path) -> None:
    command = [sys.executable, "main.py", "--GPU", "-1", "--nGPU", "2", "--parallel", "ranks"]
    command += ["--dataset", "synthetic", "--synthetic", "35:4:20", "--imageSize", "20"]
    command += ["--cropSize", "16", "--netType", "ninbn", "--batchSize", "16", "--nEpochs", "1"]
    # A last batch of 3 is one image to one of two ranks: batch norm cannot norm that.
    result = subprocess.run(
        [*command, "--logger", "none", "--expDir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "3 images on 2 ranks, too few: it is left out" in result.stdout
    assert "32 of 35 training" in result.stdout
    log = (tmp_path / "synthetic" / "ninbn" / "log.jsonl").read_text()
    assert json.loads(log)["step"] == 2


@pytest.mark.parametrize("shared", [True, False])
def test_two_ranks_with_one_gpu_are_refused(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # No GPU is needed: what torch says of one, and what the other ranks send, stand here.
    device = torch.device("cuda", 1)
    one = types.SimpleNamespace(uuid="GPU-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: one)

    def answered(keys: torch.Tensor) -> None:
        assert keys[[0, 1]].eq(0).all()
        keys[0], keys[1] = 1, keys[2] if shared else 2

    monkeypatch.setattr(torch.distributed, "all_reduce", answered)
    if shared:
        with pytest.raises(Refused, match="ranks 2 and 1 have the same GPU, cuda:1: start fewer"):
            _refuse_shared_gpu(device, 2, 3)
    else:
        _refuse_shared_gpu(device, 2, 3)
    monkeypatch.setattr(torch.distributed, "all_reduce", None)
    _refuse_shared_gpu(torch.device("cpu"), 2, 3)
