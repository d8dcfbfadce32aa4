"""The GPU paths without a GPU: torch's own host code over a CUDA runtime whose kernels do nothing.

See standin/README.md for what this can and cannot show. `pytest -m campaign tests/gpu` runs the
full grid.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from common import ROOT
from rig import make_images

from augmentation import AUGMENTATIONS
from models import OURS

HERE = Path(__file__).parent / "standin"
pytestmark = pytest.mark.skipif(
    torch.version.cuda is None or not (shutil.which("gcc") and shutil.which("nm")),
    reason="the CUDA stand-in needs a CUDA build of torch, gcc and nm",
)
Report = dict[str, dict[str, Any]]

# One step's paths on one GPU: none may fail, none may wait.
STEP = {
    "plain": "",
    "fp16": "--precision fp16",
    "fp32": "--precision fp32",
    "adamw": "--optimizer adamw",
    "no momentum": "--momentum 0",
    "nesterov": "--nesterov --backboneLR 0.1 --no-decayAll",
    "ema": "--ema 0.99",
    "clip": "--clip 1",
    "accumulate": "--accumulate 3",
    "smoothing": "--labelSmoothing 0.1 --classWeights --balanced",
    "freeze": "--freeze features",
    "optimize": "--optimize",
    "ten crops": "--tenCrop",
    "without cuDNN": "--backend nn",
    "resized": "--imageSize 60",
    "resized, bicubic": "--imageSize 60 --interpolation bicubic",
    "resized, padded": "--imageSize 60 --augment pad:4,crop",
    "resized, centre": "--imageSize 60 --augment none",
    "verbose": "--verbose",
    "all at once": "--precision fp16 --ema 0.9 --clip 1 --accumulate 2 --optimizer adamw "
    "--optimize --augment crop,flip,jitter,mixup --labelSmoothing 0.1",
}
VALUES = {"scale": "scale:60:64", "pad": "pad,crop"}
STEP |= {f"augment {name}": f"--augment {VALUES.get(name, name)}" for name in AUGMENTATIONS}
SMALL_NETWORKS = "--cropSize 64 --batchSize 16 --synthetic 96:6:64"
NETWORKS = [*OURS, "resnet18", "vit_b_16"]
FAST_NETWORKS = ("alexnet", "alexnetbn", "googlenet")
# Budgets of a step: synthetic images of 64 pixels, crop 56, batches of 64, SGD, the default steps.
BUDGET = "--synthetic 400:10:64 --batchSize 64"
BUDGETS = {
    "alexnetbn": (BUDGET, 200),
    "resnet50 with averaged weights": (f"{BUDGET} --netType resnet50 --ema 0.999", 900),
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fakecuda")  # without a space: LD_PRELOAD splits at one
    command = [sys.executable, str(HERE / "build.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def on_fake_gpus(
    built: Path, *command: str, gpus: int = 2, mebibytes: int = 80_000, major: int = 9, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run Python on fake GPUs."""
    environment = os.environ | {
        "LD_PRELOAD": str(built / "libfakecuda.so"),
        "LD_LIBRARY_PATH": str(built),
        "OMP_NUM_THREADS": "1",
        "FAKE_CUDA_DEVICES": str(gpus),
        "FAKE_CUDA_MIB": str(mebibytes),
        "FAKE_CUDA_MAJOR": str(major),
        **more,
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def reports(built: Path, folder: Path, cases: dict[str, str], **settings: Any) -> Report:
    """Run cases in one process on fake GPUs."""
    (folder / "cases.json").write_text(json.dumps(cases))
    paths = str(folder / "cases.json"), str(folder / "reports.json")
    result = on_fake_gpus(built, str(HERE / "child.py"), *paths, **settings)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "reports.json").read_text())


@pytest.fixture(scope="session")
def steps(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    cases = STEP | {name: text for name, (text, _) in BUDGETS.items()}
    return reports(built, tmp_path_factory.mktemp("steps"), cases)


@pytest.mark.parametrize("name", STEP)
def test_a_step_runs_on_a_gpu_and_waits_for_nothing(name: str, steps: Report) -> None:
    assert not steps[name]["error"]
    assert not steps[name]["waits"]


@pytest.mark.parametrize("name", [name for name in STEP if name != "verbose"])
def test_a_step_copies_little_to_the_device_and_from_pinned_memory(
    name: str, steps: Report
) -> None:
    assert steps[name]["h2d_pageable"] == 0
    assert steps[name]["h2d_pinned"] <= 3


KEEPING = {
    "device": "--decoded device",
    "device, resized": "--decoded device --augment resizedcrop,flip,jitter",
    "device, scaled": "--decoded device --augment scale:60:64,crop",
    "device, ten crops": "--decoded device --tenCrop",
    "device, two GPUs": "--decoded device --nGPU 2",
    "ram": "--decoded ram",
    "disk, resized": "--decoded disk --augment resizedcrop",
}


@pytest.fixture(scope="session")
def keeping(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("keeping")
    images = make_images(folder / "d", 230)
    on_folder = f"--dataset folder --data_dir {images} --nThreads 1"
    cases = {name: f"{on_folder} {text}" for name, text in KEEPING.items()}
    return reports(built, folder, cases)


@pytest.mark.parametrize("name", KEEPING)
def test_kept_pixels_are_cut_and_copied_without_waiting(name: str, keeping: Report) -> None:
    assert not keeping[name]["error"]
    assert not keeping[name]["waits"]
    assert keeping[name]["h2d_pageable"] == 0
    assert keeping[name]["h2d_pinned"] <= (1 if name.startswith("device") else 2)


def test_pixels_that_a_gpu_cannot_hold_are_refused_beforehand(built: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "d", 60)
    sizes = "--imageSize 900 --cropSize 64 --nEpochs 1 --logger none --GPU 0 --decoded device"
    command = f"main.py --dataset folder --data_dir {images} {sizes} --expDir {tmp_path}"
    result = on_fake_gpus(built, *command.split(), mebibytes=200)
    assert result.returncode == 2
    assert "GPU's memory" in result.stderr
    assert "give --decoded ram" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_gives_the_device_no_more_to_do_than_its_budget(name: str, steps: Report) -> None:
    assert steps[name]["operations"] <= BUDGETS[name][1]


def test_averaged_weights_cost_few_launches(steps: Report) -> None:
    assert steps["ema"]["operations"] - steps["plain"]["operations"] <= 8


def test_randaugment_costs_few_launches(steps: Report) -> None:
    assert steps["augment randaugment"]["operations"] - steps["plain"]["operations"] <= 60


@pytest.fixture(scope="session")
def networks(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return reports(built, tmp_path_factory.mktemp("networks"), network_cases(FAST_NETWORKS))


def network_cases(names: Any) -> dict[str, str]:
    """Return each network with what its GPU path may trip over; the last batch has 3 images."""
    kinds = {"deterministic": "--deterministic", "parallel": "--nGPU 2 --synthetic 35:6:64"}
    return {
        f"{name} {kind}": f"--netType {name} {SMALL_NETWORKS} {text}"
        for name in names
        for kind, text in kinds.items()
    }


@pytest.mark.parametrize("case", network_cases(FAST_NETWORKS))
def test_networks_are_deterministic_and_parallel(case: str, networks: Report) -> None:
    assert not networks[case]["error"]


@pytest.mark.campaign
def test_every_network_is_deterministic_parallel_and_recomputed(
    built: Path, tmp_path: Path
) -> None:
    cases = network_cases(NETWORKS)
    for name in NETWORKS:
        cases[f"{name} plain"] = f"--netType {name} {SMALL_NETWORKS}"
        cases[f"{name} recomputed"] = f"--netType {name} {SMALL_NETWORKS} --nGPU 2 --optimize"
    found = reports(built, tmp_path, cases)
    assert {name: r["error"] for name, r in found.items() if r["error"]} == {}


@pytest.mark.campaign
@pytest.mark.parametrize("gpus", range(1, 9))
def test_batches_of_any_size_are_shared_out(gpus: int, built: Path, tmp_path: Path) -> None:
    cases = {
        f"{batch} {net}": f"--nGPU {gpus} --netType {net} --batchSize {batch} "
        f"--synthetic {2 * batch + 1}:6:64 --cropSize 64"
        for batch in range(2, 3 * gpus + 1)
        for net in ("alexnetbn", "squeezenet")
    }
    found = reports(built, tmp_path, cases, gpus=8)
    assert {name: r["error"] for name, r in found.items() if r["error"]} == {}


RUN = "--dataset synthetic --synthetic 67:4:64 --imageSize 64 --cropSize 64 --batchSize 16"
RANKS = {
    "all at once": "--syncBN --ema 0.9 --accumulate 2 --precision fp16 --clip 1",
    "plain": "",
    "an auxiliary head": "--netType googlenet",
    "frozen": "--freeze features --optimizer adamw",
    "recomputed": "--netType resnet18 --optimize",
}


@pytest.mark.parametrize(
    "case",
    [
        name if name == "all at once" else pytest.param(name, marks=pytest.mark.campaign)
        for name in RANKS
    ],
)
def test_two_ranks_train_each_on_its_own_gpu(case: str, built: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = f"{RUN} --nEpochs 2 --logger none {RANKS[case]} --expDir {tmp_path}"
    result = on_fake_gpus(built, *launcher, str(HERE / "rank.py"), *command.split())
    assert result.returncode == 0, result.stderr[-3000:]
    assert "device    cuda Fake GPU" in result.stdout
    log = next(tmp_path.glob("*/*/log.jsonl")).read_text().splitlines()
    # A last batch of 3 on 2 ranks is left out where it is too small for batch norm.
    assert len(log) == 2
    assert json.loads(log[-1])["step"] in (8, 10)


@pytest.mark.parametrize("gpus", [1, 2])
def test_gpus_without_bf16_train_in_float32(gpus: int, built: Path, tmp_path: Path) -> None:
    command = f"main.py {RUN} --nEpochs 1 --logger none --GPU 0 --nGPU {gpus} --expDir {tmp_path}"
    result = on_fake_gpus(built, *command.split(), major=7)
    assert result.returncode == 0, result.stderr[-3000:]
    assert ", fp32 (it has no bf16 arithmetic)" in result.stdout


MEMORY = "--dataset synthetic --synthetic 512:6:224 --imageSize 224 --cropSize 224 --batchSize 256"


@pytest.mark.parametrize(("net", "gpus"), [("alexnetbn", 2)])
def test_too_large_a_batch_names_the_one_that_fits(
    net: str, gpus: int, built: Path, tmp_path: Path
) -> None:
    command = f"main.py {MEMORY} --netType {net} --nEpochs 1 --logger none --GPU 0 --nGPU {gpus}"
    result = on_fake_gpus(built, *command.split(), "--expDir", str(tmp_path), mebibytes=500)
    assert result.returncode == 1
    assert "images at once fit: --accumulate" in result.stderr
    assert "Traceback" not in result.stderr


def test_too_little_memory_for_the_network_is_one_line(built: Path, tmp_path: Path) -> None:
    command = f"main.py {MEMORY} --netType vgg16 --nEpochs 1 --logger none --GPU 0"
    result = on_fake_gpus(built, *command.split(), "--expDir", str(tmp_path), mebibytes=300)
    assert result.returncode == 1
    assert "more memory than cuda:0 has" in result.stderr
    assert "Traceback" not in result.stderr


PASSES = """
import sys
import torch, main, utils

class Seen(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        # In a thread of torch, which has the context of the pass and lets go of it later.
        held = torch._C._get_obj_in_tls("context")
        print("held", isinstance(held[utils._PASSES], utils._Held))
        return gradient

main.main(sys.argv[1:])
Seen.apply(torch.ones(2, device="cuda", requires_grad=True)).sum().backward()
"""


def test_a_run_on_gpus_waits_for_the_threads_of_its_passes(built: Path, tmp_path: Path) -> None:
    # One that had not let go of its pass ended the process with SIGABRT: 2 of 15 times where it was
    # starved.
    command = f"{RUN} --nEpochs 1 --logger none --GPU 0 --expDir {tmp_path}"
    result = on_fake_gpus(built, "-c", PASSES, *command.split())
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == "held True"


PINS_SLOWLY = """
import multiprocessing, os, signal, sys, time
import main
from base.errors import Failed, clear_errors
from run.run import Run
from torch.utils.data._utils import pin_memory as pinning

pin, after_step = pinning.pin_memory, Run.after_step

def pin_slowly(data, device):
    if isinstance(data, (list, tuple)):
        time.sleep(0.3)  # a batch
    return pin(data, device)

def lose_workers(run, sums):
    if run.progress.step == 1:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(float(seconds))
    if seconds == "2":
        raise Failed("the run failed")
    after_step(run, sums)

if __name__ == "__main__":
    seconds = sys.argv[1]
    pinning.pin_memory, Run.after_step = pin_slowly, lose_workers
    with clear_errors():
        main.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        ("1", "a loader worker died or stopped responding"),
        ("2", "the run failed"),
    ],
)
def test_lost_workers_of_a_gpu_are_one_line(
    seconds: str, message: str, built: Path, tmp_path: Path
) -> None:
    # torch's thread that pins batches meets them before the main thread does.
    folder = make_images(tmp_path / "images", count=960)
    script = tmp_path / "pins slowly.py"
    script.write_text(PINS_SLOWLY)
    command = f"--dataset folder --data_dir {folder} --nThreads 2 --nEpochs 1 --logger none --GPU 0"
    result = on_fake_gpus(
        *(built, str(script), seconds, *command.split(), "--imageSize", "24", "--cropSize", "24"),
        *("--netType", "resnet9xs", "--expDir", str(tmp_path)),
        PYTHONPATH=str(ROOT),
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


DEVICES = """
import sys
import numpy as np, torch, configs, main, utils
from base.errors import Refused
from torch import nn

print([utils.device_for(None, 1, rank, 2).index for rank in (0, 1)])
print(utils.has_bf16(torch.device("cuda", 0)))
try:
    utils.device_for(0, 4)
except Refused as error:
    print(error)
if torch.cuda.device_count() == 2:
    utils.reseed(torch.device("cuda", 0), 1, 2, gpus=2)
    seeds = [torch.cuda.default_generators[gpu].initial_seed() for gpu in (0, 1)]
    print("seeds", seeds[0] != seeds[1])

    uploader = utils.Uploader(torch.device("cuda", 0))
    sent = uploader.pack(np.arange(5), np.ones((2, 3), np.float32))
    print([(tensor.dtype, tuple(tensor.shape)) for tensor in sent])
    print("beside", uploader.stream != torch.cuda.current_stream())

    seen, own = set(), nn.Conv2d.forward
    def noted(self, images):
        result = own(self, images)
        if self.training:
            seen.add((str(result.dtype), str(result.device)))
        return result
    nn.Conv2d.forward = noted
    base = "--dataset synthetic --synthetic 64:6:64 --imageSize 64 --cropSize 64 --nEpochs 1"
    more = "--batchSize 16 --logger none --GPU 0 --nGPU 2 --precision bf16 --expDir"
    main.main([*base.split(), *more.split(), sys.argv[1]])
    print(sorted(seen))
"""


def test_devices_are_what_a_rank_sees_and_what_they_can(built: Path) -> None:
    # A scheduler shows a rank its own GPU alone; one without bf16 trains in float32.
    said = on_fake_gpus(built, "-c", DEVICES, gpus=1, major=7).stdout.splitlines()
    assert said == ["[0, 0]", "False", "GPUs 0 to 3 cannot be had: this machine has 1 GPU"]


def test_replicas_compute_as_was_asked_for_and_draw_their_own(built: Path, tmp_path: Path) -> None:
    said = on_fake_gpus(built, "-c", DEVICES, str(tmp_path)).stdout.splitlines()
    assert said[:2] == ["[0, 1]", "True"]
    assert said[3] == "seeds True"
    assert said[4] == "[(torch.int64, (5,)), (torch.float32, (2, 3))]"
    assert said[5] == "beside True"
    assert said[-1] == "[('torch.bfloat16', 'cuda:0'), ('torch.bfloat16', 'cuda:1')]"


@pytest.mark.campaign
def test_it_never_says_bit_for_bit_of_a_gpu_that_adds_up_in_any_order(
    built: Path, tmp_path: Path
) -> None:
    base = "main.py --dataset synthetic --synthetic 64:4:32 --nEpochs 1 --logger none --GPU 0"
    command = f"{base} --imageSize 32 --cropSize 32 --netType squeezenet --expDir {tmp_path}"
    assert on_fake_gpus(built, *command.split()).returncode == 0
    again = on_fake_gpus(built, *command.split(), "--continue")
    assert "not bit for bit: a GPU without --deterministic" in again.stdout, again.stderr
