"""Options do what they say: rates by epoch, weights of classes and layers, averages, the best
epoch.
"""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import rig
import torch
from torch import nn
from torch.nn import functional as F

import opts
from base import archive
from configs import make_criterion
from datasets.images import ArrayImages
from training.metrics import Criterion
from training.ranks import Ranks
from training.schedule import make_schedule
from training.updater import Updater, make_optimizer

# farrajota's multi-gpu-torchnet, and Zagoruyko's cifar.torch: first epoch, rate, weight decay.
TORCH7 = [(1, 1e-2, 5e-4), (19, 5e-3, 5e-4), (30, 1e-3, 0), (44, 5e-4, 0), (53, 1e-4, 0)]
NIN = [(1, 1e-1, 5e-4), (10, 1e-2, 5e-4), (20, 1e-3, 0), (26, 1e-4, 0)]


@pytest.mark.parametrize(
    ("regime", "first", "epochs", "rows"),
    [("torch7", 1e-2, 55, TORCH7), ("nin", 1e-1, 35, NIN)],
)
def test_each_epoch_has_the_rate_and_decay_of_its_regime(
    regime: str, first: float, epochs: int, rows: list[tuple[int, float, float]]
) -> None:
    schedule = make_schedule(lr=None, weight_decay=None, first=first, regime=regime)
    for epoch in range(1, epochs + 1):
        expected = [row[1:] for row in rows if row[0] <= epoch][-1]
        for within in (0.0, 0.5, 0.999):
            assert schedule.at((epoch - 1 + within) / epochs) == pytest.approx(expected), epoch


def test_thirds_and_weight_decays_of_other_kinds() -> None:
    steps = make_schedule(lr=None, weight_decay=None, first=0.1, kind="step")
    assert [round(steps.at(epoch / 90)[0], 9) for epoch in (0, 29.9, 30, 59.9, 60, 89.9)] == [
        *(0.1, 0.1, 0.01, 0.01, 0.001, 0.001)
    ]
    # The regime drops its decay late, the others keep it; a given one is constant.
    assert steps.at(0.99)[1] == 5e-4
    given = make_schedule(lr=None, weight_decay=0.02, first=0.1)
    assert {given.at(share)[1] for share in (0, 0.5, 0.99)} == {0.02}


def options(text: str = "") -> opts.Options:
    return opts.parse(f"--dataset synthetic {text}".split())


def images(counts: list[int]) -> ArrayImages:
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    return ArrayImages(pixels, labels, [f"c{k}" for k in range(len(counts))], "nowhere")


def test_a_class_weighs_inversely_to_its_images() -> None:
    found = make_criterion(options("--classWeights"), images([10, 30, 60]), torch.device("cpu"))
    assert found.weights is not None
    assert found.weights.tolist() == pytest.approx([100 / 30, 100 / 90, 100 / 180])
    assert make_criterion(options(), images([1, 2]), torch.device("cpu")).weights is None
    smooth = make_criterion(
        options("--labelSmoothing 0.2"), images([10, 30, 60]), torch.device("cpu")
    )
    assert smooth.smoothing == 0.2


def test_weights_of_classes_and_smoothing_reach_the_loss() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = torch.tensor([1.0, 2.0, 4.0])
    own = Criterion(weights, 0.1)((logits,), labels)
    # The formula: each image's loss by its class's weight, smoothed over all classes.
    log_probs = F.log_softmax(logits, 1)
    hard = -(weights[labels] * log_probs[torch.arange(6), labels]).sum()
    even = -(log_probs * weights).sum() / 3
    assert own.item() == pytest.approx((0.9 * hard + 0.1 * even).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_all_but_the_last_layer_learn_at_their_share(kind: str) -> None:
    moved = []
    for factor in (1.0, 0.25):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        before = [parameter.detach().clone() for parameter in network.parameters()]
        made = make_optimizer(network, kind, backbone=factor)
        updater = Updater(network, made, make_schedule(lr=0.1, weight_decay=0.0, first=0), Ranks())
        pixels = torch.randn(8, 4)
        updater.begin(0)
        updater.backward(loss := network(pixels).square().mean())
        updater.apply(loss, 0, np.arange(8))
        now = [parameter.detach() for parameter in network.parameters()]
        moved.append([after - was for after, was in zip(now, before, strict=True)])
    for number, (whole, part) in enumerate(zip(*moved, strict=True)):
        # Four tensors of the first two layers, then weight and bias of the last one.
        share = 0.25 if number < 4 else 1.0
        assert torch.allclose(part, share * whole, rtol=1e-4, atol=1e-7), number
        # A bias before batch norm has no gradient.
        assert number == 1 or whole.abs().max() > 0


def test_averages_survive_a_stop(tmp_path: Path) -> None:
    more = ["--ema", "0.9"]
    rig.finish(rig.options(tmp_path / "whole", *more))
    child = rig.Child(rig.options(tmp_path / "stopped", *more))
    while child.steps < 18:
        assert child.alive(), child.text()
    child.kill(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    rig.finish(rig.options(tmp_path / "stopped", *more, "--continue"))
    assert rig.fingerprint(tmp_path / "stopped") == rig.fingerprint(tmp_path / "whole")


def test_the_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    # So high a rate that the last epoch is seldom the best one.
    rig.finish(rig.options(tmp_path, "--nEpochs", "6", "--LR", "0.4"))
    run = rig.run_folder(tmp_path)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    tops = [line["test_top1"] for line in log]
    best = tops.index(max(tops)) + 1
    assert len(set(tops)) > 1
    kept, same = (archive.read(run / name)["network"] for name in ("best.pt", f"model_{best}.pt"))
    assert all(torch.equal(kept[name], same[name]) for name in kept)
    others = [n for n in range(1, 7) if tops[n - 1] < max(tops)]
    for number in others:
        other = archive.read(run / f"model_{number}.pt")["network"]
        assert not all(torch.equal(kept[name], other[name]) for name in kept)


def test_momentum_is_that_which_is_asked_for() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    network = nn.Module()
    network.weight = weight
    made = make_optimizer(network, momentum=0.5)
    updater = Updater(network, made, make_schedule(lr=0.1, weight_decay=0.0, first=0), Ranks())
    velocity, expected = 0.0, 1.0
    for step in range(4):
        updater.begin(0)
        updater.backward(loss := weight.square().sum())
        velocity = 0.5 * velocity + 2 * expected
        expected -= 0.1 * velocity
        updater.apply(loss, step, np.arange(1))
        assert weight.item() == pytest.approx(expected)
    assert math.isfinite(expected)
