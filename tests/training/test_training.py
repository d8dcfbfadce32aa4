"""Schedules, optimizers, averages, accumulation and precision do what their sources say."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rig
import torch
from common import DATA, ROOT
from torch import nn

import main
import model
from base import archive
from base.errors import Failed, Refused
from models.recompute import recompute
from run import checkpoint
from training.metrics import Criterion
from training.ranks import Ranks
from training.schedule import KINDS, make_schedule
from training.step import Step
from training.updater import Updater, _average_all, flatten_buffers, make_optimizer

STEPS = 1000


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS)),
        ("onecycle", lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.4, STEPS + 1)),
        ("step", lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [334, 667])),
    ],
)
def test_schedules_are_torchs(kind: str, make) -> None:  # type: ignore[no-untyped-def]
    theirs = make(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.4))
    ours = make_schedule(lr=0.4, weight_decay=0, first=1, kind=kind)
    for step in range(STEPS):
        assert ours.at(step / STEPS)[0] == pytest.approx(
            theirs.get_last_lr()[0], abs=1e-3 if kind == "onecycle" else 1e-12
        )
        theirs.optimizer.step()
        theirs.step()


def test_a_rate_alone_holds_and_a_warm_up_leads_to_it() -> None:
    assert {
        make_schedule(lr=0.3, weight_decay=None, first=1).at(share)[0] for share in (0, 0.5, 0.99)
    } == {0.3}
    for kind in KINDS:
        warm = make_schedule(lr=0.3, weight_decay=None, first=1, kind=kind, warmup=0.1)
        rates = [warm.at(share)[0] for share in (0, 0.05, 0.0999)]
        assert rates[0] == pytest.approx(0.003)
        assert rates == sorted(rates)
        assert rates[2] == pytest.approx(0.3, rel=0.01)
    regime = make_schedule(lr=0.3, weight_decay=None, first=1, kind="regime")
    assert [regime.at(share)[0] for share in (0, 0.4)] == [0.3, 0.15]


def test_one_cycle_has_torchs_first_highest_and_last_rate() -> None:
    # OneCycleLR's defaults: 1/25 at first, the whole after 30 %, 1/25 of 1/10,000 at last.
    schedule = make_schedule(lr=0.4, weight_decay=0, first=1, kind="onecycle")
    rates = [schedule.at(share)[0] for share in (0, 0.3, 1)]
    assert rates == pytest.approx([0.4 / 25, 0.4, 0.4 / 25 / 1e4])


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
def test_a_cosine_takes_what_warming_up_leaves(warmup: float) -> None:
    schedule = make_schedule(lr=0.3, weight_decay=None, first=1, kind="cosine", warmup=warmup)
    rest = 1 - warmup
    rates = [schedule.at(warmup + rest * part)[0] for part in (0, 1 / 3, 1 / 2, 2 / 3)]
    assert rates == pytest.approx([0.3, 0.3 * 0.75, 0.3 / 2, 0.3 * 0.25])


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adamw"])
def test_updates_are_torchs_and_biases_need_not_decay(kind: str) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    name = "adamw" if kind == "adamw" else "sgd"
    made = make_optimizer(ours, name, nesterov=kind == "nesterov", decay_all=False)
    updater = Updater(
        ours, made, make_schedule(lr=0.1, weight_decay=0.01, first=0), Ranks(), clip=0.5
    )
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.01},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    reference = (
        torch.optim.AdamW(groups, 0.1)
        if kind == "adamw"
        else torch.optim.SGD(groups, 0.1, 0.9, nesterov=kind == "nesterov")
    )
    for step in range(5):
        images = torch.randn(4, 5)
        updater.begin(0)
        updater.backward(loss := ours(images).square().mean())
        updater.apply(loss, step, torch.arange(4).numpy())
        reference.zero_grad()
        theirs(images).square().mean().backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
        assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


def test_averages_are_torchs() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    planned = make_schedule(lr=0.1, weight_decay=0, first=0)
    updater = Updater(network, make_optimizer(network), planned, Ranks(), average=0.9)
    updater.updates = 1000  # the faster first steps are past
    theirs = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    theirs.n_averaged += 1
    for step in range(5):
        updater.begin(0)
        updater.backward(loss := network(torch.randn(8, 4)).square().sum())
        updater.apply(loss, step, torch.arange(8).numpy())
        theirs.update_parameters(network)
    assert not any(parameter.requires_grad for parameter in updater.network_for_eval.parameters())
    for own, other in zip(
        updater.network_for_eval.state_dict().values(),
        theirs.module.state_dict().values(),
        strict=True,
    ):
        assert not own.is_floating_point() or torch.allclose(own, other, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts: int) -> None:
    torch.manual_seed(0)
    network = model.create("alexnetowt", 5, 32).double().eval()  # no dropout
    images, labels = (
        torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8),
        torch.randint(0, 5, (8,)),
    )
    found = []
    for count in (1, parts):
        step = Step(torch.device("cpu"), seed=1, accumulate=count)
        planned = make_schedule(lr=0.1, weight_decay=0, first=0)
        updater = Updater(network, make_optimizer(network), planned, Ranks())
        updater.begin(0)
        loss, logits = main.gradients(
            step, network, updater, Criterion(smoothing=0.1), images, labels, 8, 0
        )
        assert logits.shape == (8, 5)
        found.append([loss, *(parameter.grad.clone() for parameter in network.parameters())])
    for whole, part in zip(*found, strict=True):
        assert torch.allclose(whole, part, rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_mean_over_this_rank_s_own_images() -> None:
    torch.manual_seed(0)
    network = model.create("alexnetowt", 5, 32).eval()
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 5, (6,))
    planned = make_schedule(lr=0.1, weight_decay=0, first=0)
    updater = Updater(network, make_optimizer(network), planned, Ranks())
    updater.begin(0)
    # Of a batch of 18 over three ranks, here in two parts.
    step = Step(torch.device("cpu"), seed=1, accumulate=2)
    loss, logits = main.gradients(step, network, updater, Criterion(), images, labels, 18, 0)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    gradient = next(network.parameters()).grad.clone()
    network.zero_grad()
    (nn.functional.cross_entropy(network(images), labels) / 3).backward()
    assert torch.allclose(gradient, next(network.parameters()).grad, atol=1e-6)


def test_the_third_bad_step_in_a_row_ends_the_run_and_a_good_one_forgives() -> None:
    network = nn.Linear(4, 2)
    planned = make_schedule(lr=0.1, weight_decay=0, first=0)
    updater = Updater(network, make_optimizer(network), planned, Ranks())

    def apply(*values: float) -> None:
        for number, value in enumerate(values):
            updater.begin(0)
            updater.backward(loss := network(torch.full((3, 4), value)).square().sum())
            updater.apply(loss, number, np.arange(3))
        updater.settle()

    nan = math.nan
    apply(nan, nan, 1.0, nan, nan, 1.0)
    assert (updater.skipped, updater.in_a_row) == (4, 0)
    apply(nan, nan)
    with pytest.raises(Failed, match="not finite in 3 steps in a row"):
        apply(nan)


def test_a_scaled_loss_updates_as_an_unscaled_one() -> None:
    weights = []
    for scaled in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        planned = make_schedule(lr=0.1, weight_decay=0, first=0)
        updater = Updater(network, make_optimizer(network), planned, Ranks(), scaled=scaled)
        for step in range(4):
            updater.begin(0)
            images = torch.linspace(-1, 1, 32).view(8, 4) * (step + 1)
            updater.backward(loss := network(images).pow(3).sum())
            updater.apply(loss, step, np.arange(8))
        weights.append(torch.cat([value.flatten() for value in network.parameters()]))
    # Scales are powers of two: they round nothing.
    assert torch.equal(*weights)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_averages_on_a_gpu_are_those_of_a_cpu(share: float) -> None:
    own = [torch.zeros(3), torch.tensor(5), torch.ones(2, 2)]
    new = [torch.tensor([4.0, 8.0, -4.0]), torch.tensor(7), torch.full((2, 2), 3.0)]
    expected = [old.lerp(value, share) for old, value in zip(own, new, strict=True) if old.dim()]
    _average_all(own, new, torch.tensor(share))
    assert torch.equal(own[0], expected[0])
    assert torch.equal(own[2], expected[1])
    # Counts are taken as they are.
    assert own[1] == new[1] == 7


@pytest.mark.parametrize(("name", "least"), [("alexnetbn", 2), ("alexnetowt", 1)])
@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_no_part_of_a_short_batch_is_too_small_for_batch_norm(
    name: str, least: int, count: int
) -> None:
    network = model.create(name, 5, 32).train()
    planned = make_schedule(lr=0.1, weight_decay=0, first=0)
    updater = Updater(network, make_optimizer(network), planned, Ranks())
    seen: list[int] = []
    network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    updater.begin(0)
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.long)
    step = Step(torch.device("cpu"), seed=1, accumulate=4)
    main.gradients(step, network, updater, Criterion(), images, labels, count, 0)
    assert sum(seen) == count
    assert len(seen) == min(4, count // least)
    assert max(seen) - min(seen) <= 1


def test_the_loss_is_torchs_and_of_all_heads() -> None:
    logits, other, labels = torch.randn(6, 4), torch.randn(6, 4), torch.randint(0, 4, (6,))
    theirs = nn.CrossEntropyLoss(label_smoothing=0.2)
    expected = 6 * (theirs(logits, labels) + 0.3 * theirs(other, labels))
    assert Criterion(smoothing=0.2)((logits, other), labels) == pytest.approx(
        expected.item(), rel=1e-6
    )


def arguments(folder: Path, *more: str) -> list[str]:
    base = [
        "--dataset",
        "mnist",
        "--data_dir",
        str(DATA / "mnist"),
        "--GPU",
        "-1",
        "--batchSize",
        "64",
        "--logger",
        "none",
    ]
    return [*base, "--nEpochs", "2", "--expDir", str(folder), *more]


def test_averaged_weights_are_tested_kept_and_continued(tmp_path: Path) -> None:
    more = ["--ema", "0.9", "--optimizer", "adamw", "--schedule", "onecycle", "--precision", "bf16"]
    rig.finish(rig.options(tmp_path, *more, "--nEpochs", "2"))
    run = rig.run_folder(tmp_path)
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None
    state, kept = found.parts, archive.read(run / "model_2.pt")["network"]
    assert all(torch.equal(kept[name], state["updater"]["averaged"][name]) for name in kept)
    assert not all(torch.equal(kept[name], state["network"][name]) for name in kept)
    assert all(math.isfinite(record.test_loss) for record in found.progress.history)
    rig.finish(rig.options(tmp_path, "--continue", "--nEpochs", "3"))
    assert len((run / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("megabytes", [700, 1536])
def test_too_large_a_batch_names_the_one_that_fits(tmp_path: Path, megabytes: int) -> None:
    # The limit counts from what the imports take, which differs by gigabytes between builds of
    # torch.
    limited = (
        "import resource, sys, pathlib, torch, torchvision, main, opts\nfrom base.errors import "
        "clear_errors\n"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * "
        "resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + ({megabytes} << 20),) * 2)\n"
        "with clear_errors(opts.WAYS_OUT):\n    main.main(sys.argv[1:])\n"
    )
    command = [
        sys.executable,
        "-c",
        limited,
        "--dataset",
        "synthetic",
        "--synthetic",
        "256:4:224",
        "--netType",
        "squeezenet",
    ]
    command += [
        "--batchSize",
        "256",
        "--GPU",
        "-1",
        "--logger",
        "none",
        "--expDir",
        str(tmp_path),
        "--nEpochs",
        "1",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1, result.stderr
    assert "images at once fit: --accumulate" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
def test_a_compiled_network_learns_as_it_does_without_and_is_saved_under_its_own_names(
    tmp_path: Path,
) -> None:
    rig.finish(rig.options(tmp_path / "plain", "--nEpochs", "1"))
    command = [
        sys.executable,
        "tests/support/tiny_rank.py",
        *rig.options(tmp_path / "compiled", "--nEpochs", "1", "--compile"),
    ]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    runs = [rig.run_folder(tmp_path / name) for name in ("plain", "compiled")]
    losses = [json.loads((run / "log.jsonl").read_text())["train_loss"] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # dropout's masks are made another way
    weights = [set(torch.load(run / "best.pt", weights_only=True)["network"]) for run in runs]
    assert weights[0] == weights[1]


def test_a_short_batch_in_parts_leaves_no_image_alone(tmp_path: Path) -> None:
    # 74 images in batches of 64: the last one has 10, eight parts of it would have 1 or 2.
    more = ["--synthetic", "74:4:20", "--batchSize", "64", "--accumulate", "8", "--nEpochs", "1"]
    rig.finish(rig.options(tmp_path, *more))
    log = (rig.run_folder(tmp_path) / "log.jsonl").read_text()
    assert json.loads(log)["step"] == 2


@pytest.mark.parametrize("name", ["googlenet", "resnet18", "vit_b_16", "squeezenet"])
def test_recomputing_changes_no_gradient(name: str) -> None:
    size = 32
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        network = model.create(name, 3, size).train()
        if again:
            assert recompute(network) > 0
        torch.manual_seed(1)  # of dropout
        sum(head.sum() for head in network(images, heads=True)).backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_size_that_cannot_be_trained_at_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    network = model.create("inception_v3", 3, 80)
    with pytest.raises(Refused, match="inception_v3 cannot take images of 80 x 80 pixels"):
        model.refuse_size(network)


def test_buffers_become_parts_of_one_tensor_and_restore_together() -> None:
    network = model.create("ninbn", 3, 32).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flat = flatten_buffers(network)
    assert len(flat) == 2  # float32 and int64
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert not any(torch.equal(before[name], network.state_dict()[name]) for name in statistics)
    whole = sum(value.numel() for value in flat)
    assert whole == sum(before[name].numel() for name in statistics)
